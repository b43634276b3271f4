// Image comparison: state of the viewer, and its layout.

/** Image, labels left and right of the divider (0 to 1), enlarged region, scale of error maps. */
const viewer = { image: null, left: null, right: null, divider: 0.5, x: 0, y: 0, size: 64,
  errorScale: 32, hidden: new Set() };

let regionDrawers = [];  // functions that draw whatever depends on the region
const redraw = () => regionDrawers.forEach((draw) => draw());
const findView = (image, label) => image.views.find((view) => view.label === label);

function imageComparison() {
  if (!data.images.length) return null;
  const labels = data.images[0].views.map((view) => [view.label, view.label]);
  viewer.left = labels[0][0];
  viewer.right = (labels.length > 2 ? labels[1] : labels.at(-1))[0];
  selectImage(data.images[0].name);
  const [slider, overview] = [h("div", { class: "compare-main" }), h("div", {})];
  const tiles = h("div", { class: "tiles" });
  const show = () => draw(slider, overview, tiles);
  const selectSide = (side) => (label) => { viewer[side] = label; show(); };
  show();
  return section("images", "Image comparison", "Drag the divider. Drag the square on the small "
    + "image to choose the region enlarged below. PSNR is that of the full image.",
    h("div", { class: "controls" }, imageControl(show),
      dropdown("Left", labels, viewer.left, selectSide("left")),
      dropdown("Right", labels, viewer.right, selectSide("right"))),
    h("div", { class: "compare" }, slider, h("div", { class: "compare-aside" }, overview,
      regionSizeControl(), methodControl(show), errorScaleControl())),
    tiles);
}

function imageControl(show) {
  const names = data.images.map((image) => [image.name, image.name]);
  if (names.length < 2) return null;
  return dropdown("Image", names, viewer.image.name, (name) => { selectImage(name); show(); });
}

/** Selects an image; the region moves to its most detailed part, the methods stay. */
function selectImage(name) {
  viewer.image = data.images.find((image) => image.name === name);
  viewer.size = Math.min(viewer.size, viewer.image.width, viewer.image.height);
  centerRegion(...viewer.image.detail_center);
}

async function draw(slider, overview, tiles) {
  const image = viewer.image;
  await Promise.all(image.views.map(decodeView));
  if (image !== viewer.image) return;  // the user has selected another image meanwhile
  regionDrawers = [];
  const views = image.views.filter((view) => !viewer.hidden.has(view.label));
  slider.replaceChildren(compareSlider(image));
  overview.replaceChildren(regionSelector(image));
  tiles.replaceChildren(...views.map((view) => cropTile(view, image.views.at(-1))));
  redraw();
}

/** Decodes the pixels of a view, so that they can be drawn on a canvas. */
async function decodeView(view) {
  if (!view.image) {
    view.image = new Image();
    view.image.src = view.uri;
  }
  await view.image.decode();
}
