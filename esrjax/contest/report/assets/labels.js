// Names beside points: none over another, over a point or out of the plot.

const AROUND = [[1, 0], [-1, 0], [0, -1], [0, 1], [1, -1], [-1, -1], [1, 1], [-1, 1],
  [0.5, -1], [-0.5, -1], [0.5, 1], [-0.5, 1]];
const DISTANCES = [9, 18, 30, 44, 60, 78];  // pixels; a line leads from those beyond the first
const LINE = 14;  // height of a name, pixels

/** The names, those on the frontier first; a name for which there is no room is left out. */
function labels(points, front, box, floor) {
  const pen = document.createElement("canvas").getContext("2d");
  const taken = points.map(({ x, y }) => square(x, y, 6));
  if (floor) taken.push({ left: box.right - 96, right: box.right, top: floor, bottom: floor + 18 });
  const font = getComputedStyle(document.body).fontFamily;
  const first = (point) => (front.includes(point) ? 0 : point.line.standing === "baseline" ? 1 : 2);
  const inOrder = [...points].sort((a, b) => first(a) - first(b));
  return s("g", { class: "labels", "aria-hidden": "true" }, inOrder.map((point) => {
    pen.font = `${front.includes(point) ? 600 : 400} 12px ${font}`;
    const place = room(point, pen.measureText(point.line.team).width, taken, box);
    if (!place) return null;
    taken.push(place);
    return s("g", {}, leader(point, place), s("text", { x: place.left, y: place.bottom - 3.5,
      class: front.includes(point) ? "front" : null }, point.line.team));
  }));
}

const square = (x, y, r) => ({ left: x - r, right: x + r, top: y - r, bottom: y + r });

/** The nearest free place for a name of that width, or undefined. */
function room(point, width, taken, box) {
  for (const distance of DISTANCES)
    for (const [right, down] of AROUND) {
      const place = beyond(point, width, distance, right, down);
      if (inside(place, box) && !taken.some((other) => overlap(place, other)))
        return { ...place, far: distance > DISTANCES[0] };
    }
  return undefined;
}

function beyond(point, width, distance, right, down) {
  const x = point.x + right * distance, y = point.y + down * distance;
  const left = right > 0 ? x : right < 0 ? x - width : x - width / 2;
  const top = down > 0 ? y : down < 0 ? y - LINE : y - LINE / 2;
  return { left, right: left + width, top, bottom: top + LINE };
}

function leader(point, place) {
  if (!place.far) return null;
  const x = Math.min(Math.max(point.x, place.left), place.right);
  const y = Math.min(Math.max(point.y, place.top + 2), place.bottom - 2);
  return s("line", { class: "leader", x1: point.x, y1: point.y, x2: x, y2: y });
}

const inside = (place, box) =>
  place.left >= box.left && place.right <= box.right && place.top >= box.top
  && place.bottom <= box.bottom;

const overlap = (a, b) =>
  a.left < b.right + 3 && b.left < a.right + 3 && a.top < b.bottom && b.top < a.bottom;
