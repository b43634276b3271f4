// Labels of plotted points: none overlaps another label or a point, or leaves the plot.

const DIRECTIONS = [[1, 0], [-1, 0], [0, -1], [0, 1], [1, -1], [-1, -1], [1, 1], [-1, 1],
  [0.5, -1], [-0.5, -1], [0.5, 1], [-0.5, 1]];
const DISTANCES = [9, 18, 30, 44, 60, 78];  // pixels; beyond the first a leader line is drawn
const LABEL_HEIGHT = 14;  // pixels

/** Team labels, those on the frontier first; a label without free space is omitted. */
function pointLabels(points, frontier, box, thresholdY) {
  const context = document.createElement("canvas").getContext("2d");
  const occupied = points.map(({ x, y }) => boxAround(x, y, 6));
  if (thresholdY) occupied.push({ left: box.right - 96, right: box.right, top: thresholdY,
    bottom: thresholdY + 18 });
  const font = getComputedStyle(document.body).fontFamily;
  const priority = (point) =>
    (frontier.includes(point) ? 0 : point.entry.status === "baseline" ? 1 : 2);
  const ordered = [...points].sort((a, b) => priority(a) - priority(b));
  return s("g", { class: "labels", "aria-hidden": "true" }, ordered.map((point) => {
    context.font = `${frontier.includes(point) ? 600 : 400} 12px ${font}`;
    const width = context.measureText(point.entry.team).width;
    const label = findFreeBox(point, width, occupied, box);
    if (!label) return null;
    occupied.push(label);
    return s("g", {}, leaderLine(point, label), s("text", { x: label.left, y: label.bottom - 3.5,
      class: frontier.includes(point) ? "on-frontier" : null }, point.entry.team));
  }));
}

const boxAround = (x, y, r) => ({ left: x - r, right: x + r, top: y - r, bottom: y + r });

/** The nearest free box for a label of this width, or undefined. */
function findFreeBox(point, width, occupied, box) {
  for (const distance of DISTANCES)
    for (const [right, down] of DIRECTIONS) {
      const label = labelBox(point, width, distance, right, down);
      if (isInside(label, box) && !occupied.some((other) => overlap(label, other)))
        return { ...label, hasLeader: distance > DISTANCES[0] };
    }
  return undefined;
}

function labelBox(point, width, distance, right, down) {
  const x = point.x + right * distance, y = point.y + down * distance;
  const left = right > 0 ? x : right < 0 ? x - width : x - width / 2;
  const top = down > 0 ? y : down < 0 ? y - LABEL_HEIGHT : y - LABEL_HEIGHT / 2;
  return { left, right: left + width, top, bottom: top + LABEL_HEIGHT };
}

function leaderLine(point, label) {
  if (!label.hasLeader) return null;
  const x = Math.min(Math.max(point.x, label.left), label.right);
  const y = Math.min(Math.max(point.y, label.top + 2), label.bottom - 2);
  return s("line", { class: "leader", x1: point.x, y1: point.y, x2: x, y2: y });
}

const isInside = (label, box) =>
  label.left >= box.left && label.right <= box.right && label.top >= box.top
  && label.bottom <= box.bottom;

const overlap = (a, b) =>
  a.left < b.right + 3 && b.left < a.right + 3 && a.top < b.bottom && b.top < a.bottom;
