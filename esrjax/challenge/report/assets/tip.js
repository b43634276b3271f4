// Tooltips: one at a time, next to what is hovered, focused or tapped; Escape closes it.

const tooltip = {
  node: document.getElementById("tooltip"),
  anchor: null,

  show(anchor, lines, box) {
    this.hide();
    this.node.replaceChildren(...lines.filter(Boolean).map((line, k) =>
      h(k ? "p" : "strong", {}, line)));
    this.node.hidden = false;
    this.position(box ?? anchor.getBoundingClientRect());
    if (anchor.matches("button")) anchor.setAttribute("aria-describedby", "tooltip");
    this.anchor = anchor;
  },

  hide() {
    this.anchor?.removeAttribute("aria-describedby");
    this.anchor = null;
    this.node.hidden = true;
  },

  /** Above the box if there is room, else below it; never outside the window. */
  position(box) {
    const own = this.node.getBoundingClientRect(), gap = 8;
    const width = document.documentElement.clientWidth;
    const left = Math.min(box.left + box.width / 2 - own.width / 2, width - own.width - gap);
    const above = box.top - own.height - gap;
    const top = above >= gap ? above : box.top + box.height + gap;
    this.node.style.left = `${Math.max(gap, left)}px`;
    this.node.style.top = `${top}px`;
  },

  /** Attaches a tooltip to a node; `lines()` is called whenever it is shown. */
  attach(node, lines) {
    const show = () => this.show(node, lines());
    const hide = () => this.anchor === node && this.hide();
    node.addEventListener("pointerenter", show);
    node.addEventListener("pointerleave", (e) => e.pointerType === "mouse" && hide());
    node.addEventListener("focus", show);
    node.addEventListener("blur", hide);
    node.addEventListener("click", show);
    return node;
  },
};

document.addEventListener("keydown", (e) => e.key === "Escape" && tooltip.hide());
document.addEventListener("pointerdown", (e) =>
  tooltip.anchor?.contains(e.target) || tooltip.hide());
addEventListener("scroll", () => tooltip.hide(), { passive: true, capture: true });
