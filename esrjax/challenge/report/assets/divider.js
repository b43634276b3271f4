// Two versions of an image in one frame, with a divider for mouse, touch and keyboard.

function compareSlider(image) {
  const [left, right] = [findView(image, viewer.left), findView(image, viewer.right)];
  const overlay = viewImage(image, left);
  const bar = h("div", { class: "bar", "aria-hidden": "true" });
  const frame = h("div", { class: "compare-frame" }, viewImage(image, right), overlay, bar,
    h("span", { class: "left" }, left.label), h("span", { class: "right" }, right.label));
  const slider = h("input", { type: "range", min: 0, max: 100, step: 0.5,
    "aria-label": `Divider: ${left.label} on the left, ${right.label} on the right` });
  const move = (position) => {
    viewer.divider = Math.min(1, Math.max(0, position));
    overlay.style.clipPath = `inset(0 ${100 * (1 - viewer.divider)}% 0 0)`;
    bar.style.left = `${100 * viewer.divider}%`;
    slider.value = 100 * viewer.divider;
    slider.setAttribute("aria-valuetext", `${Math.round(100 * viewer.divider)} % ${left.label}`);
  };
  slider.addEventListener("input", () => move(slider.value / 100));
  onDrag(frame, move);
  move(viewer.divider);
  const node = h("div", { class: "compare-slider" }, frame, slider);
  node.style.setProperty("--ratio", image.width / image.height);
  return node;
}

function viewImage(image, view) {
  return h("img", { src: view.uri, alt: `${image.name}, ${view.label}`, width: image.width,
    height: image.height, draggable: "false" });
}

/** Calls back with the position of a pressed pointer in a node, 0 to 1 along both axes. */
function onDrag(node, callback) {
  const report = (e) => {
    const box = node.getBoundingClientRect();
    callback((e.clientX - box.left) / box.width, (e.clientY - box.top) / box.height);
  };
  node.addEventListener("pointerdown", (e) => {
    if (e.button) return;
    node.setPointerCapture(e.pointerId);
    report(e);
  });
  node.addEventListener("pointermove", (e) => node.hasPointerCapture(e.pointerId) && report(e));
}
