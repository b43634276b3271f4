// One region as everyone gives it, and how far each is from the original in grey levels.

const CEILINGS = [16, 32, 64, 128];  // error that is shown white, grey levels

function tile(each, original) {
  const crop = h("canvas", { role: "img", "aria-label": `${each.label}, enlarged` });
  drawings.push(() => drawCrop(crop, each.image));
  const caption = h("figcaption", {}, h("b", {}, each.label), h("span", {}, psnrText(each)));
  if (each === original)
    return h("figure", { class: "tile" }, caption, crop,
      h("p", {}, "Below each of the others: how far it is from this, in grey levels."));
  const error = h("canvas", { role: "img", "aria-label": `${each.label}, error` });
  drawings.push(() => drawError(error, each.image, original.image));
  return h("figure", { class: "tile" }, caption, crop, error);
}

function psnrText(each) {
  if (each === look.picture.views.at(-1)) return "";
  return finite(each.psnr) ? `${number(each.psnr, 2)} dB` : "\u221e dB";
}

function drawCrop(canvas, picture) {
  canvas.width = canvas.height = look.side;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(picture, look.x, look.y, look.side, look.side, 0, 0, look.side, look.side);
  return pen;
}

/** |difference| of every pixel, the mean over its three channels; white from the ceiling on. */
function drawError(canvas, picture, original) {
  const pixels = (of) => drawCrop(document.createElement("canvas"), of)
    .getImageData(0, 0, look.side, look.side);
  const [ours, theirs] = [pixels(picture), pixels(original)];
  for (let k = 0; k < ours.data.length; k += 4) {
    const off = (c) => Math.abs(ours.data[k + c] - theirs.data[k + c]);
    ours.data.fill(((off(0) + off(1) + off(2)) / 3 / look.ceiling) * 255, k, k + 3);
  }
  canvas.width = canvas.height = look.side;
  canvas.getContext("2d").putImageData(ours, 0, 0);
}

/** Which methods are enlarged; the original always is. */
function methodChoice(show) {
  const labels = data.pictures[0].views.slice(0, -1).map((each) => each.label);
  if (labels.length < 3) return null;
  const flip = (label) => { look.hidden.delete(label) || look.hidden.add(label); show(); };
  return h("fieldset", { class: "choice" }, h("legend", {}, "Enlarged"), labels.map((label) =>
    h("label", {}, h("input", { type: "checkbox", checked: true, onchange: () => flip(label) }),
      h("span", {}, label))));
}

/** The error that is white, and the scale of greys up to it. */
function ceilingChoice() {
  const top = h("output", {}, `${look.ceiling} grey levels or more`);
  const change = (ceiling) => {
    look.ceiling = ceiling;
    top.textContent = `${ceiling} grey levels or more`;
    redraw();
  };
  return h("div", {}, choice("White at", CEILINGS.map((n) => [n, n]), look.ceiling, change),
    h("p", { class: "ramp" }, "Error 0", h("span", { "aria-hidden": "true" }), top));
}
