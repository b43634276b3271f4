// Distributions over images: PSNR relative to the baseline, and runtime, one strip per method.

const MIN_DOTS_FOR_BOX = 8;      // with fewer images quartiles mean little, and no box is drawn
const MIN_DOTS_FOR_SMALL = 40;   // from this number of images on dots are small
const POINTER_RADIUS = 24;       // a dot within this distance of the pointer is named, pixels

function distributions() {
  if (!data.datasets.length) return null;
  const container = h("div", { class: "strips" });
  const show = (name) => {
    const dataset = data.datasets.find((d) => d.name === name);
    container.replaceChildren(...[qualityFigure(dataset), runtimeFigure(dataset)].filter(Boolean));
  };
  show(data.datasets[0].name);
  const names = data.datasets.map((dataset) => [dataset.name, dataset.name]);
  return section("distributions", "Per-image figures", "Each dot is one image; hover over it to "
    + "see its name. The box spans the middle half of the images (25 % to 75 %), the bar is their "
    + "median.",
    names.length > 1 ? radioGroup("Dataset", names, names[0][0], show) : null, container);
}

/** PSNR minus that of the baseline if it has some and other methods do too; else PSNR itself. */
function qualityFigure(dataset) {
  const baseline = dataset.rows[dataset.baseline];
  const isRelative = baseline?.psnr.length > 0 && dataset.rows.length > 1;
  if (!isRelative) return stripFigure(`PSNR on ${dataset.name}`,
    stripRows(dataset, (row) => row.psnr), { label: "PSNR, dB", unit: "dB" });
  const gain = (row) => row.psnr.map((value, k) =>
    isFiniteNumber(value) && isFiniteNumber(baseline.psnr[k]) ? value - baseline.psnr[k] : null);
  return stripFigure(`PSNR on ${dataset.name}, difference to the baseline`,
    stripRows(dataset, gain).filter((row) => row.entry !== baseline.entry),
    { label: "difference to the baseline, dB", unit: "dB", isDifference: true });
}

function runtimeFigure(dataset) {
  const rows = stripRows(dataset, (row) => row.runtime_ms);
  return stripFigure(`Runtime on ${dataset.name}`, rows, { label: "runtime, ms", unit: "ms",
    hasColdStart: true });
}

/** The methods with figures, each with one dot per image. */
function stripRows(dataset, figures) {
  return dataset.rows.map((row) => ({ entry: row.entry, dots: figures(row)
    .map((value, index) => ({ value, index, name: dataset.image_names[index] }))
    .filter((dot) => isFiniteNumber(dot.value)) })).filter((row) => row.dots.length);
}

function stripFigure(title, rows, options) {
  if (!rows.length) return null;
  const container = h("div", { class: "plot" });
  responsive(container, (width) => stripPlot(rows, options, width));
  const key = options.hasColdStart && h("p", { class: "legend" }, h("span", { class: "key" },
    s("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" },
      s("circle", { class: "cold-start", r: 4.5 })), "first image, including the start-up cost"));
  return h("figure", {}, h("figcaption", {}, title), container, key || null);
}

function stripPlot(rows, options, width) {
  const isWide = width >= 520, pitch = isWide ? 30 : 46;
  const box = { left: isWide ? 150 : 8, right: width - 10, top: 8,
    bottom: 8 + rows.length * pitch };
  const values = rows.flatMap((row) => row.dots.map((dot) => dot.value))
    .concat(options.isDifference ? 0 : []);
  const range = [box.left, box.right];
  const x = options.isDifference ? differenceScale(values, range) : autoScale(values, range, 0.04);
  const height = box.bottom + 46, title = options.label + (x.isAsinh ? " (asinh scale)" : "");
  const zero = options.isDifference
    && { class: "zero", x1: x.toPixels(0), x2: x.toPixels(0), y1: box.top, y2: box.bottom };
  return s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": options.label }, axis("bottom", x, box, title, Math.max(3, width / 80)),
    zero ? s("line", zero) : null,
    rows.map((row, k) =>
      strip(row, options, x, box, { top: box.top + k * pitch, pitch, isWide })));
}

/** One method: its name, one dot per image, quartiles. */
function strip(row, options, x, box, { top, pitch, isWide }) {
  const entry = data.entries[row.entry], nameHeight = isWide ? 0 : 16;
  const middle = top + nameHeight + (pitch - nameHeight) / 2;
  const thickness = (pitch - nameHeight - 8) * 0.8;
  const dots = row.dots.map((dot) => ({ ...dot, x: x.toPixels(dot.value),
    y: middle + jitter(dot.index) * thickness }));
  const highlight = s("circle", { class: "highlight", r: 5, visibility: "hidden" });
  const name = isWide ? { x: box.left - 10, y: middle + 4, "text-anchor": "end" }
    : { x: box.left, y: top + nameHeight - 4 };
  const summary = describeDots(row.dots, options);
  const node = s("g", { class: `strip ${entry.status}`, tabindex: 0, role: "img",
    "aria-label": `${entry.team}: ${summary}` },
    s("rect", { class: "band", x: 0, y: top, width: box.right + 10, height: pitch }),
    s("text", name, truncate(entry.team, isWide ? 22 : 40)), dotMarks(dots, options),
    quartileMarks(row.dots, x, middle, thickness), highlight);
  return attachDotTooltip(node, dots, highlight, entry, options, summary);
}

/** Vertical offset of a dot in its strip, -1/2 to 1/2; only keeps dots apart. */
const jitter = (index) => ((index * 0.618) % 1) - 0.5;

/** All dots as one path; the first image as a circle where it includes the start-up cost. */
function dotMarks(dots, options) {
  const first = options.hasColdStart && dots.find((dot) => dot.index === 0);
  const others = dots.filter((dot) => dot !== first);
  const path = others.map((dot) => `M${dot.x.toFixed(1)} ${dot.y.toFixed(1)}h0`).join("");
  const size = others.length < MIN_DOTS_FOR_SMALL ? "large dots" : "dots";
  return s("g", {}, s("path", { class: size, d: path }),
    first ? s("circle", { class: "cold-start", cx: first.x, cy: first.y, r: 4 }) : null);
}

/** Box of the quartiles and bar of the median; only the median of few images. */
function quartileMarks(dots, x, middle, thickness) {
  const [low, median, high] = quartiles(dots).map(x.toPixels), top = middle - thickness / 2;
  const bar = { class: "median", x1: median, x2: median, y1: top - 2, y2: top + thickness + 2 };
  const box = { class: "box", x: low, y: top, width: Math.max(1, high - low), height: thickness,
    rx: 2 };
  return s("g", {}, dots.length < MIN_DOTS_FOR_BOX ? null : s("rect", box), s("line", bar));
}

function quartiles(dots) {
  const sorted = dots.map((dot) => dot.value).sort((a, b) => a - b);
  return [0.25, 0.5, 0.75].map((fraction) => {
    const position = fraction * (sorted.length - 1), lower = Math.floor(position);
    const next = sorted[lower + 1] ?? sorted[lower];
    return sorted[lower] + (position - lower) * (next - sorted[lower]);
  });
}

const formatFigure = (value, options) =>
  (options.isDifference ? formatSigned : formatNumber)(value, 3);

function describeDots(dots, options) {
  const [low, median, high] = quartiles(dots).map((value) => formatFigure(value, options));
  const sorted = [...dots].sort((a, b) => a.value - b.value);
  const [lowest, highest] = [sorted[0], sorted.at(-1)]
    .map((dot) => `${formatFigure(dot.value, options)} (${dot.name})`);
  return `median ${median} ${options.unit}, middle half ${low} to ${high}; `
    + `lowest ${lowest}, highest ${highest}`;
}

/** The pointer shows the nearest dot, the keyboard a summary of the strip. */
function attachDotTooltip(node, dots, highlight, entry, options, summary) {
  const leave = () => { highlight.setAttribute("visibility", "hidden"); tooltip.hide(); };
  const point = (e) => {
    const own = node.ownerSVGElement.getBoundingClientRect();
    const distance = (dot) =>
      Math.hypot(dot.x - e.clientX + own.left, dot.y - e.clientY + own.top);
    const dot = dots.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    if (distance(dot) > POINTER_RADIUS) return leave();
    fill(highlight, { cx: dot.x, cy: dot.y, visibility: "visible" }, []);
    tooltip.show(node, [`${dot.name}: ${formatFigure(dot.value, options)} ${options.unit}`,
      entry.team,
      options.hasColdStart && dot.index === 0 && "The first image includes the start-up cost."],
      { left: own.left + dot.x, top: own.top + dot.y - 4, width: 0, height: 8 });
  };
  node.addEventListener("pointermove", point);
  node.addEventListener("pointerdown", point);
  node.addEventListener("pointerleave", leave);
  node.addEventListener("focus", () =>
    node.matches(":focus-visible") && tooltip.show(node, [entry.team, summary]));
  node.addEventListener("blur", leave);
  return node;
}

const truncate = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
