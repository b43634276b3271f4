// Plots of quality against cost, with the Pareto frontier.

function paretoPlots() {
  const qualities = data.columns.filter((column) => column.key.startsWith("psnr")
    && data.entries.some((entry) => isFiniteNumber(entry.cells[column.key]?.value)));
  if (!qualities.length) return null;
  let quality = qualities[0];
  const redraws = [];
  const plots = [["runtime_ms", "Runtime"], ["params_m", "Parameters"]].map(([key, label]) => {
    const cost = { ...data.columns.find((column) => column.key === key), label };
    const container = h("div", { class: "plot" });
    redraws.push(responsive(container, (width) => paretoPlot(cost, quality, width)));
    const caption = h("figcaption", {}, `PSNR against ${cost.label.toLowerCase()}`);
    return h("figure", {}, caption, container);
  });
  const onChange = (key) => {
    quality = qualities.find((column) => column.key === key);
    redraws.forEach((redraw) => redraw());
  };
  const control = qualities.length > 1
    && radioGroup("Quality", qualities.map((c) => [c.key, c.label]), quality.key, onChange);
  return section("pareto", "Quality against cost", "Up and left is better. The line is the Pareto "
    + "frontier: the methods that no other method beats in both. Methods below a PSNR threshold "
    + "are shown, but not part of the frontier.",
    control || null, h("div", { class: "plots" }, plots), legend());
}

function legend() {
  const item = (classes, text) =>
    h("span", { class: "key" }, s("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14",
      "aria-hidden": "true" }, marker(classes, 0, 0)), text);
  const statuses = new Set(data.entries.map((entry) => entry.status));
  return h("p", { class: "legend" }, item("ranked on-frontier", "on the frontier"),
    statuses.has("ranked") ? item("ranked", "ranked") : null,
    statuses.has("no_psnr") ? item("no_psnr", "PSNR not known on both splits") : null,
    statuses.has("below_threshold") ? item("below_threshold", "below a threshold") : null,
    statuses.has("baseline") ? item("baseline", "baseline") : null);
}

function paretoPlot(cost, quality, width) {
  const height = Math.max(320, Math.min(460, width * 0.8));
  const box = { left: 46, right: width - 14, top: 34, bottom: height - 46 };
  const figure = (entry, column) => entry.cells[column.key]?.value;
  const points = data.entries
    .map((entry) => ({ entry, cost: figure(entry, cost), psnr: figure(entry, quality) }))
    .filter((point) => isFiniteNumber(point.psnr) && point.cost > 0);
  if (!points.length) return h("p", { class: "empty" }, "No method has both figures.");
  const threshold = data.psnr_thresholds[quality.key];
  const psnrs = points.map((p) => p.psnr).concat(threshold ?? []);
  const x = autoScale(points.map((p) => p.cost), [box.left, box.right], 0.12);
  const y = autoScale(psnrs, [box.bottom, box.top], 0.1);
  for (const point of points)
    Object.assign(point, { x: x.toPixels(point.cost), y: y.toPixels(point.psnr) });
  const frontier = paretoFrontier(points);
  const marks = points.map((point) => pointMark(point, cost, quality, frontier));
  const best = points.reduce((a, b) => (b.psnr > a.psnr ? b : a));
  return s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": `${quality.label} against ${cost.label}; highest: ${best.entry.team}` },
    axis("left", y, box, `${quality.label}, dB`, 6),
    axis("bottom", x, box, `${cost.label}, ${cost.unit}`, Math.max(3, width / 75)),
    frontierPath(frontier, box),
    threshold ? thresholdLine(y.toPixels(threshold), box, threshold) : null,
    pointLabels(points, frontier, box, threshold && y.toPixels(threshold)), marks);
}

/** In order of cost, the points with a higher PSNR than all cheaper ones. */
function paretoFrontier(points) {
  const candidates = points.filter((point) => point.entry.status !== "below_threshold")
    .sort((a, b) => a.cost - b.cost || b.psnr - a.psnr);
  let best = -Infinity;
  return candidates.filter((point) => point.psnr > best && ((best = point.psnr), true));
}

function frontierPath(frontier, box) {
  if (!frontier.length) return null;
  const steps = frontier.map((point) => `H${point.x}V${point.y}`).join("");
  const line = `M${frontier[0].x} ${box.bottom}${steps}H${box.right}`;
  return s("g", { class: "frontier" }, s("path", { class: "area", d: `${line}V${box.bottom}Z` }),
    s("path", { d: line }));
}

function thresholdLine(y, box, threshold) {
  return s("g", { class: "threshold" }, s("line", { x1: box.left, x2: box.right, y1: y, y2: y }),
    s("text", { x: box.right, y: y + 14, "text-anchor": "end" },
      `threshold ${formatNumber(threshold, 2)}`));
}

function marker(classes, x, y) {
  if (classes.startsWith("baseline"))
    return s("rect", { class: `mark ${classes}`, x: x - 4.5, y: y - 4.5, width: 9, height: 9,
      transform: `rotate(45 ${x} ${y})` });
  return s("circle", { class: `mark ${classes}`, cx: x, cy: y, r: 5 });
}

function pointMark({ entry, cost, psnr, x, y }, costColumn, quality, frontier) {
  const isOnFrontier = frontier.some((point) => point.entry === entry);
  const figures = `${formatExact(psnr)} dB, ${formatExact(cost)} ${costColumn.unit}`;
  const mark = marker(`${entry.status}${isOnFrontier ? " on-frontier" : ""}`, x, y);
  const suffix = isOnFrontier ? ", on the frontier" : "";
  const node = s("g", { class: "point", tabindex: 0, role: "img",
    "aria-label": `${entry.team}, ${entry.method}: ${figures}${suffix}` },
    s("circle", { class: "target", cx: x, cy: y, r: 12 }), mark);
  return tooltip.attach(node, () => [`${entry.team}: ${entry.method}`, figures,
    isOnFrontier && "No method that reaches the thresholds is better in both.",
    entry.cells[costColumn.key].note, entry.cells[quality.key].note]);
}
