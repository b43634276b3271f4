// Two pictures in one frame, with a divider between them for mouse, finger and keyboard.

function divider(picture) {
  const [left, right] = [view(picture, look.left), view(picture, look.right)];
  const over = image(picture, left);
  const bar = h("div", { class: "bar", "aria-hidden": "true" });
  const stage = h("div", { class: "stage" }, image(picture, right), over, bar,
    h("span", { class: "left" }, left.label), h("span", { class: "right" }, right.label));
  const slider = h("input", { type: "range", min: 0, max: 100, step: 0.5,
    "aria-label": `Divider: ${left.label} on the left, ${right.label} on the right` });
  const move = (at) => {
    look.at = Math.min(1, Math.max(0, at));
    over.style.clipPath = `inset(0 ${100 * (1 - look.at)}% 0 0)`;
    bar.style.left = `${100 * look.at}%`;
    slider.value = 100 * look.at;
    slider.setAttribute("aria-valuetext", `${Math.round(100 * look.at)} % ${left.label}`);
  };
  slider.addEventListener("input", () => move(slider.value / 100));
  dragged(stage, move);
  move(look.at);
  const node = h("div", { class: "divider" }, stage, slider);
  node.style.setProperty("--ratio", picture.width / picture.height);
  return node;
}

function image(picture, each) {
  return h("img", { src: each.uri, alt: `${picture.name}, ${each.label}`, width: picture.width,
    height: picture.height, draggable: "false" });
}

/** Calls back with where the pointer is on a node, 0 to 1 both ways, while it is held down. */
function dragged(node, moved) {
  const tell = (e) => {
    const box = node.getBoundingClientRect();
    moved((e.clientX - box.left) / box.width, (e.clientY - box.top) / box.height);
  };
  node.addEventListener("pointerdown", (e) => {
    if (e.button) return;
    node.setPointerCapture(e.pointerId);
    tell(e);
  });
  node.addEventListener("pointermove", (e) => node.hasPointerCapture(e.pointerId) && tell(e));
}
