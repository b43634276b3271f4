// One note at a time beside what is pointed at, focused or tapped; Escape closes it.

const tip = {
  box: document.getElementById("tip"),
  anchor: null,

  show(anchor, lines, at) {
    this.hide();
    this.box.replaceChildren(...lines.filter(Boolean).map((line, k) =>
      h(k ? "p" : "strong", {}, line)));
    this.box.hidden = false;
    this.place(at ?? anchor.getBoundingClientRect());
    if (anchor.matches("button")) anchor.setAttribute("aria-describedby", "tip");
    this.anchor = anchor;
  },

  hide() {
    this.anchor?.removeAttribute("aria-describedby");
    this.anchor = null;
    this.box.hidden = true;
  },

  /** Above where there is room, else below; never out of the window. */
  place(at) {
    const own = this.box.getBoundingClientRect(), gap = 8;
    const width = document.documentElement.clientWidth;
    const left = Math.min(at.left + at.width / 2 - own.width / 2, width - own.width - gap);
    const above = at.top - own.height - gap;
    const top = above >= gap ? above : at.top + at.height + gap;
    this.box.style.left = `${Math.max(gap, left)}px`;
    this.box.style.top = `${top}px`;
  },

  /** Gives a node a note: `lines()` is asked each time. */
  on(node, lines) {
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

document.addEventListener("keydown", (e) => e.key === "Escape" && tip.hide());
document.addEventListener("pointerdown", (e) => tip.anchor?.contains(e.target) || tip.hide());
addEventListener("scroll", () => tip.hide(), { passive: true, capture: true });
