// From figures to pixels, and where the ticks of an axis are.

function linear([low, high], [from, to]) {
  const at = (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  return { at, ticks: (count) => steps(low, high, count), even: true };
}

function logarithmic([low, high], range) {
  const inner = linear([Math.log(low), Math.log(high)], range);
  const ticks = (count) => {
    const round = decades(low, high, count);
    return round.length > 2 ? round : steps(low, high, count);
  };
  return { at: (value) => inner.at(Math.log(value)), ticks };
}

/** Logarithmic where the figures span more than a factor of four. */
function fitting(values, range, pad = 0.06) {
  const low = Math.min(...values), high = Math.max(...values);
  if (low > 0 && high / low > 4) {
    const room = (high / low) ** pad;
    return logarithmic([low / room, high * room], range);
  }
  const room = (high - low || Math.abs(high) / 10 || 1) * pad;
  return linear([low - room, high + room], range);
}

/** About zero: linear there, logarithmic far from it where a few lie very far (asinh). */
function around(values, range) {
  const sizes = values.map(Math.abs).sort((a, b) => a - b);
  const usual = sizes[Math.floor(0.9 * (sizes.length - 1))], most = sizes.at(-1);
  if (!(usual > 0 && most > 6 * usual)) return fitting(values, range, 0.04);
  const bend = (value) => Math.asinh((4 * value) / usual);
  const inner = fitting(values.map(bend), range, 0.04);
  const within = (value) => value >= Math.min(...values) && value <= Math.max(...values);
  const ticks = (count) => {
    let sides = decades(usual / 3, most, Infinity);
    while (2 * sides.length > count && sides.length > 1)
      sides = sides.filter((_, k) => (sides.length - 1 - k) % 2 === 0);
    return [...sides.map((value) => -value), 0, ...sides].filter(within);
  };
  return { at: (value) => inner.at(bend(value)), ticks, bent: true };
}

/** Round figures, 1, 2 or 5 apart, at most about `count` of them. */
function steps(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  const first = Math.ceil(low / step), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, k) => (first + k) * step);
}

/** 1, 2 and 5 times the powers of ten; the powers alone where all would be more than `count`. */
function decades(low, high, count) {
  const first = Math.floor(Math.log10(low)), last = Math.floor(Math.log10(high));
  const powers = Array.from({ length: last - first + 1 }, (_, k) => 10 ** (first + k));
  const within = (factors) => powers.flatMap((power) => factors.map((factor) => factor * power))
    .filter((value) => value >= low && value <= high);
  const [all, bare] = [within([1, 2, 5]), within([1])];
  return all.length > count && bare.length > 1 ? bare : all;
}

/** The ticks of a linear axis have as many decimals as the one that needs most. */
function tickTexts(scale, values) {
  const plain = values.map((value) => Number(value.toPrecision(6)).toString());
  const most = Math.max(...plain.map((text) => text.split(".")[1]?.length ?? 0));
  const texts = scale.even ? values.map((value) => value.toFixed(most)) : plain;
  return texts.map((text) => text.replace("-", "\u2212"));
}

/** An axis with its grid and its name; `box` is the plotting area. */
function axis(side, scale, box, label, count) {
  const across = side === "bottom";
  const values = scale.ticks(count), texts = tickTexts(scale, values);
  const marks = values.map((value, k) => {
    const at = scale.at(value);
    const line = across
      ? { x1: at, x2: at, y1: box.top, y2: box.bottom }
      : { x1: box.left, x2: box.right, y1: at, y2: at };
    const text = across
      ? { x: at, y: box.bottom + 17, "text-anchor": "middle" }
      : { x: box.left - 7, y: at + 4, "text-anchor": "end" };
    return s("g", { class: "tick" }, s("line", line), s("text", text, texts[k]));
  });
  const name = across
    ? { x: (box.left + box.right) / 2, y: box.bottom + 36, "text-anchor": "middle" }
    : { x: 0, y: box.top - 12 };
  return s("g", { class: "axis" }, marks, s("text", { class: "name", ...name }, label));
}
