// The region that is enlarged: a square to drag over the original, or to push with arrow keys.

const SIDES = [32, 48, 64, 96, 128];  // HR pixels
const STEPS = { ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4] };

/** Put the middle of the region there, or as near as the picture allows. */
function centre(x, y) {
  const { width, height } = look.picture;
  look.x = Math.round(Math.min(Math.max(0, x - look.side / 2), width - look.side));
  look.y = Math.round(Math.min(Math.max(0, y - look.side / 2), height - look.side));
}

function enlarge(side) {
  const [x, y] = [look.x + look.side / 2, look.y + look.side / 2];
  look.side = Math.min(side, look.picture.width, look.picture.height);
  centre(x, y);
}

function locator(picture) {
  const frame = h("button", { type: "button", class: "frame",
    "aria-label": "Region that is enlarged; the arrow keys move it" });
  const map = h("div", { class: "locator" }, image(picture, picture.views.at(-1)), frame);
  const go = (x, y) => { centre(x, y); redraw(); };
  dragged(map, (x, y) => go(x * picture.width, y * picture.height));
  frame.addEventListener("keydown", (e) => {
    const step = STEPS[e.key];
    if (!step) return;
    e.preventDefault();
    go(look.x + look.side / 2 + step[0], look.y + look.side / 2 + step[1]);
  });
  drawings.push(() => {
    frame.style.left = `${(100 * look.x) / picture.width}%`;
    frame.style.top = `${(100 * look.y) / picture.height}%`;
    frame.style.width = `${(100 * look.side) / picture.width}%`;
    frame.style.height = `${(100 * look.side) / picture.height}%`;
  });
  return h("div", {}, map, h("p", {}, extent(picture)));
}

/** What of the picture is shown. */
function extent({ name, whole: [height, width], ...shown }) {
  if (shown.height === height && shown.width === width)
    return `${name}: the whole picture, ${width} \u00d7 ${height} pixels.`;
  return `${name}: ${shown.width} \u00d7 ${shown.height} pixels from (${shown.left}, ${shown.top}) `
    + `on, of ${width} \u00d7 ${height}.`;
}

function regionChoice() {
  const largest = Math.min(...data.pictures.flatMap((each) => [each.width, each.height]));
  const sides = SIDES.filter((side) => side <= largest);
  if (sides.length < 2) return null;
  const change = (side) => { enlarge(side); redraw(); };
  return choice("Region", sides.map((side) => [side, `${side}\u2009px`]), look.side, change);
}
