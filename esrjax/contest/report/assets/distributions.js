// Picture by picture: quality relative to the baseline, and runtime, a strip for every method.

const ENOUGH = 8;   // pictures from which quartiles say something
const MANY = 40;    // pictures from which dots are small
const REACH = 24;   // of the pointer, pixels

function distributions() {
  if (!data.sets.length) return null;
  const holder = h("div", { class: "strips" });
  const show = (name) => {
    const set = data.sets.find((each) => each.name === name);
    holder.replaceChildren(...[qualityFigure(set), runtimeFigure(set)].filter(Boolean));
  };
  show(data.sets[0].name);
  const names = data.sets.map((each) => [each.name, each.name]);
  return section("distributions", "Picture by picture", "Every dot is one picture; point at it for "
    + "its name. The box holds the middle half of the pictures, the bar is their median.",
    names.length > 1 ? choice("Set", names, names[0][0], show) : null, holder);
}

/** PSNR relative to the baseline's where it has some and others too; else as it is. */
function qualityFigure(set) {
  const base = set.rows[set.base], relative = base?.psnr.length > 0 && set.rows.length > 1;
  if (!relative) return stripFigure(`PSNR on ${set.name}`, stripRows(set, (row) => row.psnr),
    { label: "PSNR, dB", unit: "dB" });
  const gain = (row) => row.psnr.map((value, k) =>
    finite(value) && finite(base.psnr[k]) ? value - base.psnr[k] : null);
  return stripFigure(`PSNR on ${set.name}, difference to the baseline`,
    stripRows(set, gain).filter((row) => row.line !== base.line),
    { label: "difference to the baseline, dB", unit: "dB", zero: true });
}

function runtimeFigure(set) {
  const rows = stripRows(set, (row) => row.runtime);
  return stripFigure(`Runtime on ${set.name}`, rows, { label: "runtime, ms", unit: "ms",
    cold: true });
}

/** Every method that has figures, with a dot for each. */
function stripRows(set, figures) {
  return set.rows.map((row) => ({ line: row.line, dots: figures(row)
    .map((value, index) => ({ value, index, name: set.pictures[index] }))
    .filter((dot) => finite(dot.value)) })).filter((row) => row.dots.length);
}

function stripFigure(title, rows, how) {
  if (!rows.length) return null;
  const holder = h("div", { class: "plot" });
  responsive(holder, (width) => strips(rows, how, width));
  const cold = how.cold && h("p", { class: "legend" }, h("span", { class: "key" },
    s("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" },
      s("circle", { class: "cold", r: 4.5 })), "first picture, with the cost of starting"));
  return h("figure", {}, h("figcaption", {}, title), holder, cold || null);
}

function strips(rows, how, width) {
  const wide = width >= 520, pitch = wide ? 30 : 46;
  const box = { left: wide ? 150 : 8, right: width - 10, top: 8, bottom: 8 + rows.length * pitch };
  const values = rows.flatMap((row) => row.dots.map((dot) => dot.value)).concat(how.zero ? 0 : []);
  const range = [box.left, box.right];
  const x = how.zero ? around(values, range) : fitting(values, range, 0.04);
  const height = box.bottom + 46, name = how.label + (x.bent ? " (asinh scale)" : "");
  const zero = how.zero && { class: "zero", x1: x.at(0), x2: x.at(0), y1: box.top, y2: box.bottom };
  return s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": how.label }, axis("bottom", x, box, name, Math.max(3, width / 80)),
    zero ? s("line", zero) : null,
    rows.map((row, k) => strip(row, how, x, box, { top: box.top + k * pitch, pitch, wide })));
}

/** One method: its name, a dot for each picture, the quartiles. */
function strip(row, how, x, box, { top, pitch, wide }) {
  const line = data.lines[row.line], lead = wide ? 0 : 16;
  const middle = top + lead + (pitch - lead) / 2, thick = (pitch - lead - 8) * 0.8;
  const dots = row.dots.map((dot) => ({ ...dot, x: x.at(dot.value),
    y: middle + apart(dot.index) * thick }));
  const ring = s("circle", { class: "aim", r: 5, visibility: "hidden" });
  const name = wide ? { x: box.left - 10, y: middle + 4, "text-anchor": "end" }
    : { x: box.left, y: top + lead - 4 };
  const words = summary(row.dots, how);
  const node = s("g", { class: `strip ${line.standing}`, tabindex: 0, role: "img",
    "aria-label": `${line.team}: ${words}` },
    s("rect", { class: "band", x: 0, y: top, width: box.right + 10, height: pitch }),
    s("text", name, short(line.team, wide ? 22 : 40)), dotMarks(dots, how),
    quartileMarks(row.dots, x, middle, thick), ring);
  return pointed(node, dots, ring, line, how, words);
}

/** Where in its strip a dot lies, -1/2 to 1/2; it says nothing, and keeps dots apart. */
const apart = (index) => ((index * 0.618) % 1) - 0.5;

/** The dots as one path; the first picture, where it was timed from cold, as a ring. */
function dotMarks(dots, how) {
  const first = how.cold && dots.find((dot) => dot.index === 0);
  const rest = dots.filter((dot) => dot !== first);
  const path = rest.map((dot) => `M${dot.x.toFixed(1)} ${dot.y.toFixed(1)}h0`).join("");
  return s("g", {}, s("path", { class: rest.length < MANY ? "few dots" : "dots", d: path }),
    first ? s("circle", { class: "cold", cx: first.x, cy: first.y, r: 4 }) : null);
}

/** The middle half and the median; of few pictures the median alone. */
function quartileMarks(dots, x, middle, thick) {
  const [low, median, high] = quartiles(dots).map(x.at), top = middle - thick / 2;
  const bar = { class: "median", x1: median, x2: median, y1: top - 2, y2: top + thick + 2 };
  const box = { class: "box", x: low, y: top, width: Math.max(1, high - low), height: thick, rx: 2 };
  return s("g", {}, dots.length < ENOUGH ? null : s("rect", box), s("line", bar));
}

function quartiles(dots) {
  const sorted = dots.map((dot) => dot.value).sort((a, b) => a - b);
  return [0.25, 0.5, 0.75].map((part) => {
    const at = part * (sorted.length - 1), below = Math.floor(at);
    return sorted[below] + (at - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
  });
}

const figureText = (value, how) => (how.zero ? signed : number)(value, 3);

function summary(dots, how) {
  const [low, median, high] = quartiles(dots).map((value) => figureText(value, how));
  const sorted = [...dots].sort((a, b) => a.value - b.value);
  const [least, most] = [sorted[0], sorted.at(-1)]
    .map((dot) => `${figureText(dot.value, how)} (${dot.name})`);
  return `median ${median} ${how.unit}, the middle half from ${low} to ${high}; `
    + `lowest ${least}, highest ${most}`;
}

/** The dot nearest to the pointer is named; with the keyboard, the strip as a whole. */
function pointed(node, dots, ring, line, how, words) {
  const leave = () => { ring.setAttribute("visibility", "hidden"); tip.hide(); };
  const aim = (e) => {
    const own = node.ownerSVGElement.getBoundingClientRect();
    const far = (dot) => Math.hypot(dot.x - e.clientX + own.left, dot.y - e.clientY + own.top);
    const dot = dots.reduce((a, b) => (far(b) < far(a) ? b : a));
    if (far(dot) > REACH) return leave();
    fill(ring, { cx: dot.x, cy: dot.y, visibility: "visible" }, []);
    tip.show(node, [`${dot.name}: ${figureText(dot.value, how)} ${how.unit}`, line.team,
      how.cold && dot.index === 0 && "The first picture carries the cost of starting."],
      { left: own.left + dot.x, top: own.top + dot.y - 4, width: 0, height: 8 });
  };
  node.addEventListener("pointermove", aim);
  node.addEventListener("pointerdown", aim);
  node.addEventListener("pointerleave", leave);
  node.addEventListener("focus", () =>
    node.matches(":focus-visible") && tip.show(node, [line.team, words]));
  node.addEventListener("blur", leave);
  return node;
}

const short = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
