// Scales from values to pixels, and axes with ticks.

function linearScale([low, high], [from, to]) {
  const toPixels = (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  return { toPixels, ticks: (count) => linearTicks(low, high, count), isLinear: true };
}

function logScale([low, high], range) {
  const scale = linearScale([Math.log(low), Math.log(high)], range);
  const ticks = (count) => {
    const values = logTicks(low, high, count);
    return values.length > 2 ? values : linearTicks(low, high, count);
  };
  return { toPixels: (value) => scale.toPixels(Math.log(value)), ticks };
}

/** A scale that spans all values: logarithmic if they span more than a factor of 4, else linear. */
function autoScale(values, range, padding = 0.06) {
  const low = Math.min(...values), high = Math.max(...values);
  if (low > 0 && high / low > 4) {
    const factor = (high / low) ** padding;
    return logScale([low / factor, high * factor], range);
  }
  const margin = (high - low || Math.abs(high) / 10 || 1) * padding;
  return linearScale([low - margin, high + margin], range);
}

/** A scale for differences: linear, or asinh if there are outliers, so that both stay readable. */
function differenceScale(values, range) {
  const magnitudes = values.map(Math.abs).sort((a, b) => a - b);
  const typical = magnitudes[Math.floor(0.9 * (magnitudes.length - 1))];
  const largest = magnitudes.at(-1);
  if (!(typical > 0 && largest > 6 * typical)) return autoScale(values, range, 0.04);
  const transform = (value) => Math.asinh((4 * value) / typical);
  const scale = autoScale(values.map(transform), range, 0.04);
  const isInside = (value) => value >= Math.min(...values) && value <= Math.max(...values);
  const ticks = (count) => {
    let positive = logTicks(typical / 3, largest, Infinity);
    while (2 * positive.length > count && positive.length > 1)
      positive = positive.filter((_, k) => (positive.length - 1 - k) % 2 === 0);
    return [...positive.map((value) => -value), 0, ...positive].filter(isInside);
  };
  return { toPixels: (value) => scale.toPixels(transform(value)), ticks, isAsinh: true };
}

/** Round values 1, 2 or 5 times a power of ten apart, at most about `count` of them. */
function linearTicks(low, high, count) {
  const minStep = (high - low) / count, power = 10 ** Math.floor(Math.log10(minStep));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= minStep) ?? 10);
  const first = Math.ceil(low / step), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, k) => (first + k) * step);
}

/** 1, 2 and 5 times powers of ten; only the powers if these would be more than `count`. */
function logTicks(low, high, count) {
  const first = Math.floor(Math.log10(low)), last = Math.floor(Math.log10(high));
  const powers = Array.from({ length: last - first + 1 }, (_, k) => 10 ** (first + k));
  const multiples = (factors) => powers
    .flatMap((power) => factors.map((factor) => factor * power))
    .filter((value) => value >= low && value <= high);
  const [all, onlyPowers] = [multiples([1, 2, 5]), multiples([1])];
  return all.length > count && onlyPowers.length > 1 ? onlyPowers : all;
}

/** Labels of ticks; on a linear axis all have as many decimals as the one that needs most. */
function tickLabels(scale, values) {
  const exact = values.map((value) => Number(value.toPrecision(6)).toString());
  const decimals = Math.max(...exact.map((text) => text.split(".")[1]?.length ?? 0));
  const labels = scale.isLinear ? values.map((value) => value.toFixed(decimals)) : exact;
  return labels.map((text) => text.replace("-", "\u2212"));
}

/** An axis with grid lines and a title; `box` is the plotting area. */
function axis(side, scale, box, title, count) {
  const isHorizontal = side === "bottom";
  const values = scale.ticks(count), labels = tickLabels(scale, values);
  const ticks = values.map((value, k) => {
    const position = scale.toPixels(value);
    const line = isHorizontal
      ? { x1: position, x2: position, y1: box.top, y2: box.bottom }
      : { x1: box.left, x2: box.right, y1: position, y2: position };
    const text = isHorizontal
      ? { x: position, y: box.bottom + 17, "text-anchor": "middle" }
      : { x: box.left - 7, y: position + 4, "text-anchor": "end" };
    return s("g", { class: "tick" }, s("line", line), s("text", text, labels[k]));
  });
  const position = isHorizontal
    ? { x: (box.left + box.right) / 2, y: box.bottom + 36, "text-anchor": "middle" }
    : { x: 0, y: box.top - 12 };
  return s("g", { class: "axis" }, ticks, s("text", { class: "axis-title", ...position }, title));
}
