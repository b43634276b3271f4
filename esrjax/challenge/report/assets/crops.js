// The enlarged region of each method, and its error map: the difference to the original.

const ERROR_SCALES = [16, 32, 64, 128];  // error that is shown white, gray levels

function cropTile(view, original) {
  const crop = h("canvas", { role: "img", "aria-label": `${view.label}, enlarged` });
  regionDrawers.push(() => drawCrop(crop, view.image));
  const caption = h("figcaption", {}, h("b", {}, view.label), h("span", {}, psnrText(view)));
  if (view === original)
    return h("figure", { class: "tile" }, caption, crop,
      h("p", {}, "Below each of the others: its difference to the original, in gray levels."));
  const error = h("canvas", { role: "img", "aria-label": `${view.label}, error` });
  regionDrawers.push(() => drawError(error, view.image, original.image));
  return h("figure", { class: "tile" }, caption, crop, error);
}

function psnrText(view) {
  if (view === viewer.image.views.at(-1)) return "";
  return isFiniteNumber(view.psnr) ? `${formatNumber(view.psnr, 2)} dB` : "\u221e dB";
}

function drawCrop(canvas, image) {
  const { x, y, size } = viewer;
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, x, y, size, size, 0, 0, size, size);
  return context;
}

/** Mean over the channels of |difference| at every pixel; white from the error scale on. */
function drawError(canvas, image, original) {
  const pixels = (source) => drawCrop(document.createElement("canvas"), source)
    .getImageData(0, 0, viewer.size, viewer.size);
  const [sr, hr] = [pixels(image), pixels(original)];
  for (let k = 0; k < sr.data.length; k += 4) {
    const diff = (c) => Math.abs(sr.data[k + c] - hr.data[k + c]);
    sr.data.fill(((diff(0) + diff(1) + diff(2)) / 3 / viewer.errorScale) * 255, k, k + 3);
  }
  canvas.width = canvas.height = viewer.size;
  canvas.getContext("2d").putImageData(sr, 0, 0);
}

/** Which methods are enlarged; the original always is. */
function methodControl(show) {
  const labels = data.images[0].views.slice(0, -1).map((view) => view.label);
  if (labels.length < 3) return null;
  const toggle = (label) => { viewer.hidden.delete(label) || viewer.hidden.add(label); show(); };
  return h("fieldset", { class: "choice" }, h("legend", {}, "Enlarged"), labels.map((label) =>
    h("label", {}, h("input", { type: "checkbox", checked: true, onchange: () => toggle(label) }),
      h("span", {}, label))));
}

/** The error that is shown white, and the gray scale up to it. */
function errorScaleControl() {
  const label = h("output", {}, `${viewer.errorScale} gray levels or more`);
  const onChange = (errorScale) => {
    viewer.errorScale = errorScale;
    label.textContent = `${errorScale} gray levels or more`;
    redraw();
  };
  const options = ERROR_SCALES.map((n) => [n, n]);
  return h("div", {}, radioGroup("Max error", options, viewer.errorScale, onChange),
    h("p", { class: "gray-scale" }, "Error 0", h("span", { "aria-hidden": "true" }), label));
}
