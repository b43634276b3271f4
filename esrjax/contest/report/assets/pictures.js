// Pictures side by side: what is looked at, and what is drawn again when that changes.

/** The picture, who is left and right of the divider, where it is; the region, and the error. */
const look = { picture: null, left: null, right: null, at: 0.5, x: 0, y: 0, side: 64, ceiling: 32,
  hidden: new Set() };

let drawings = [];  // of what depends on the region
const redraw = () => drawings.forEach((draw) => draw());
const view = (picture, label) => picture.views.find((each) => each.label === label);

function pictures() {
  if (!data.pictures.length) return null;
  const views = data.pictures[0].views.map((each) => [each.label, each.label]);
  [look.left, look.right] = [views[0][0], (views.length > 2 ? views[1] : views.at(-1))[0]];
  turnTo(data.pictures[0].name);
  const [frame, map] = [h("div", { class: "frame-of-two" }), h("div", {})];
  const tiles = h("div", { class: "tiles" });
  const show = () => draw(frame, map, tiles);
  const pick = (key) => (label) => { look[key] = label; show(); };
  show();
  return section("pictures", "Side by side", "Drag the divider. Drag the square on the small "
    + "picture to choose what is enlarged below. PSNR is that of the whole picture.",
    h("div", { class: "controls" }, pictureChoice(show),
      select("Left", views, look.left, pick("left")),
      select("Right", views, look.right, pick("right"))),
    h("div", { class: "bench" }, frame, h("div", { class: "aside" }, map, regionChoice(),
      methodChoice(show), ceilingChoice())),
    tiles);
}

function pictureChoice(show) {
  const names = data.pictures.map((each) => [each.name, each.name]);
  if (names.length < 2) return null;
  return select("Picture", names, look.picture.name, (name) => { turnTo(name); show(); });
}

/** Another picture: the region goes to where it has most detail, the methods stay. */
function turnTo(name) {
  look.picture = data.pictures.find((each) => each.name === name);
  look.side = Math.min(look.side, look.picture.width, look.picture.height);
  centre(...look.picture.detail);
}

async function draw(frame, map, tiles) {
  const picture = look.picture;
  await Promise.all(picture.views.map(decoded));
  if (picture !== look.picture) return;  // another one was chosen meanwhile
  drawings = [];
  const shown = picture.views.filter((each) => !look.hidden.has(each.label));
  frame.replaceChildren(divider(picture));
  map.replaceChildren(locator(picture));
  tiles.replaceChildren(...shown.map((each) => tile(each, picture.views.at(-1))));
  redraw();
}

/** The picture of a view as an image that can be drawn from. */
async function decoded(each) {
  if (!each.image) {
    each.image = new Image();
    each.image.src = each.uri;
  }
  await each.image.decode();
}
