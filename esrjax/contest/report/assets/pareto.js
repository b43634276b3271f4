// Quality against cost: who is not beaten in both.

function paretoPlots() {
  const qualities = data.columns.filter((column) => column.key.startsWith("psnr"));
  if (!qualities.length) return null;
  let quality = qualities[0];
  const redraws = [];
  const plots = [["runtime_ms", "Runtime"], ["params_m", "Parameters"]].map(([key, label]) => {
    const cost = { ...data.columns.find((column) => column.key === key), label };
    const holder = h("div", { class: "plot" });
    redraws.push(responsive(holder, (width) => paretoPlot(cost, quality, width)));
    return h("figure", {}, h("figcaption", {}, `PSNR against ${cost.label.toLowerCase()}`), holder);
  });
  const change = (key) => {
    quality = qualities.find((column) => column.key === key);
    redraws.forEach((redraw) => redraw());
  };
  const picker = qualities.length > 1
    && choice("Quality", qualities.map((c) => [c.key, c.label]), quality.key, change);
  return section("pareto", "Quality against cost", "Further up and further left is better. The "
    + "line joins the methods that no other beats in both; methods under a PSNR threshold are "
    + "shown but do not count.", picker || null, h("div", { class: "plots" }, plots), legend());
}

function legend() {
  const mark = (kind, text) =>
    h("span", { class: "key" }, s("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14",
      "aria-hidden": "true" }, marker(kind, 0, 0)), text);
  const held = new Set(data.lines.map((line) => line.standing));
  return h("p", { class: "legend" }, mark("ranked front", "on the frontier"),
    held.has("ranked") ? mark("ranked", "ranked") : null,
    held.has("unjudged") ? mark("unjudged", "not judged") : null,
    held.has("missed") ? mark("missed", "under a threshold") : null,
    held.has("baseline") ? mark("baseline", "baseline") : null);
}

function paretoPlot(cost, quality, width) {
  const height = Math.max(320, Math.min(460, width * 0.8));
  const box = { left: 46, right: width - 14, top: 34, bottom: height - 46 };
  const figure = (line, column) => line.cells[column.key]?.value;
  const points = data.lines
    .map((line) => ({ line, cost: figure(line, cost), psnr: figure(line, quality) }))
    .filter((point) => finite(point.psnr) && point.cost > 0);
  if (!points.length) return h("p", { class: "lone" }, "No method has both figures.");
  const floor = data.floors[quality.key];
  const levels = points.map((p) => p.psnr).concat(floor ?? []);
  const x = fitting(points.map((p) => p.cost), [box.left, box.right], 0.12);
  const y = fitting(levels, [box.bottom, box.top], 0.1);
  for (const point of points) Object.assign(point, { x: x.at(point.cost), y: y.at(point.psnr) });
  const front = frontier(points);
  const marks = points.map((point) => pointMark(point, cost, quality, front));
  const best = points.reduce((a, b) => (b.psnr > a.psnr ? b : a));
  return s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": `${quality.label} against ${cost.label}; highest: ${best.line.team}` },
    axis("left", y, box, `${quality.label}, dB`, 6),
    axis("bottom", x, box, `${cost.label}, ${cost.unit}`, Math.max(3, width / 75)),
    frontLine(front, box), floor ? threshold(y.at(floor), box, floor) : null,
    labels(points, front, box, floor && y.at(floor)), marks);
}

/** From the cheapest on, whoever is better than all that cost less. */
function frontier(points) {
  const counted = points.filter((point) => point.line.standing !== "missed")
    .sort((a, b) => a.cost - b.cost || b.psnr - a.psnr);
  let best = -Infinity;
  return counted.filter((point) => point.psnr > best && ((best = point.psnr), true));
}

function frontLine(front, box) {
  if (!front.length) return null;
  const stairs = front.map((point) => `H${point.x}V${point.y}`).join("");
  const line = `M${front[0].x} ${box.bottom}${stairs}H${box.right}`;
  return s("g", { class: "front" }, s("path", { class: "under", d: `${line}V${box.bottom}Z` }),
    s("path", { d: line }));
}

function threshold(y, box, floor) {
  return s("g", { class: "threshold" }, s("line", { x1: box.left, x2: box.right, y1: y, y2: y }),
    s("text", { x: box.right, y: y + 14, "text-anchor": "end" }, `threshold ${number(floor, 2)}`));
}

function marker(kind, x, y) {
  if (kind.startsWith("baseline"))
    return s("rect", { class: `mark ${kind}`, x: x - 4.5, y: y - 4.5, width: 9, height: 9,
      transform: `rotate(45 ${x} ${y})` });
  return s("circle", { class: `mark ${kind}`, cx: x, cy: y, r: 5 });
}

function pointMark({ line, cost, psnr, x, y }, costs, quality, front) {
  const on = front.some((point) => point.line === line);
  const words = `${exact(psnr)} dB, ${exact(cost)} ${costs.unit}`;
  const mark = marker(`${line.standing}${on ? " front" : ""}`, x, y);
  const node = s("g", { class: "point", tabindex: 0, role: "img",
    "aria-label": `${line.team}, ${line.method}: ${words}${on ? ", on the frontier" : ""}` },
    s("circle", { class: "target", cx: x, cy: y, r: 12 }), mark);
  return tip.on(node, () => [`${line.team}: ${line.method}`, words,
    on && "No method that qualifies is better in both.", line.cells[costs.key].note,
    line.cells[quality.key].note]);
}
