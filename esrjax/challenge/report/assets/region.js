// The enlarged region: a square on the original, moved by dragging or with the arrow keys.

const REGION_SIZES = [32, 48, 64, 96, 128];  // HR pixels
const KEY_STEPS = { ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4] };

/** Centers the region at a pixel, or as near as the border of the image allows. */
function centerRegion(x, y) {
  const { width, height } = viewer.image;
  const clamp = (start, length) =>
    Math.round(Math.min(Math.max(0, start - viewer.size / 2), length - viewer.size));
  viewer.x = clamp(x, width);
  viewer.y = clamp(y, height);
}

function setRegionSize(size) {
  const [x, y] = [viewer.x + viewer.size / 2, viewer.y + viewer.size / 2];
  viewer.size = Math.min(size, viewer.image.width, viewer.image.height);
  centerRegion(x, y);
}

function regionSelector(image) {
  const region = h("button", { type: "button", class: "region",
    "aria-label": "Enlarged region; the arrow keys move it" });
  const overview = h("div", { class: "overview" }, viewImage(image, image.views.at(-1)), region);
  const moveTo = (x, y) => { centerRegion(x, y); redraw(); };
  onDrag(overview, (x, y) => moveTo(x * image.width, y * image.height));
  region.addEventListener("keydown", (e) => {
    const step = KEY_STEPS[e.key];
    if (!step) return;
    e.preventDefault();
    moveTo(viewer.x + viewer.size / 2 + step[0], viewer.y + viewer.size / 2 + step[1]);
  });
  regionDrawers.push(() => {
    region.style.left = `${(100 * viewer.x) / image.width}%`;
    region.style.top = `${(100 * viewer.y) / image.height}%`;
    region.style.width = `${(100 * viewer.size) / image.width}%`;
    region.style.height = `${(100 * viewer.size) / image.height}%`;
  });
  return h("div", {}, overview, h("p", {}, describeCrop(image)));
}

/** Which part of the image the crop shows. */
function describeCrop({ name, hr_size: [height, width], ...crop }) {
  if (crop.height === height && crop.width === width)
    return `${name}: full image, ${width} \u00d7 ${height} pixels.`;
  return `${name}: crop of ${crop.width} \u00d7 ${crop.height} pixels at (${crop.left}, `
    + `${crop.top}), of ${width} \u00d7 ${height}.`;
}

function regionSizeControl() {
  const largest = Math.min(...data.images.flatMap((image) => [image.width, image.height]));
  const sizes = REGION_SIZES.filter((size) => size <= largest);
  if (sizes.length < 2) return null;
  const onChange = (size) => { setRegionSize(size); redraw(); };
  const options = sizes.map((size) => [size, `${size}\u2009px`]);
  return radioGroup("Region", options, viewer.size, onChange);
}
