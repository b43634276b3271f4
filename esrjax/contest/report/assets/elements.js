// The data of the page, and the making of elements. Texts are only ever set as text.

"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

const h = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);

const s = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

const number = (value, decimals) => value.toFixed(decimals).replace("-", "\u2212");
const signed = (value, decimals) => (value > 0 ? "+" : "") + number(value, decimals);
const exact = (value) => Number(value.toPrecision(7)).toString().replace("-", "\u2212");
const finite = (value) => typeof value === "number" && Number.isFinite(value);

let choices = 0;

/** A choice of one among few: real radio buttons that look like a row of buttons. */
function choice(title, options, chosen, change) {
  const name = `choice-${(choices += 1)}`;
  const one = ([value, text]) => h("label", {}, h("input", { type: "radio", name, value,
    checked: value === chosen, onchange: () => change(value) }), h("span", {}, text));
  return h("fieldset", { class: "choice" }, h("legend", {}, title), options.map(one));
}

/** A choice of one among many. */
function select(title, options, chosen, change) {
  const list = h("select", { onchange: () => change(list.value) },
    options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));
  return h("label", { class: "select" }, h("span", {}, title), list);
}

/** Draws again whenever the width of its container changes. */
function responsive(holder, draw) {
  let width = 0;
  const redraw = () => {
    const now = Math.floor(holder.clientWidth);
    if (now && now !== width) holder.replaceChildren(draw((width = now)));
  };
  new ResizeObserver(() => requestAnimationFrame(redraw)).observe(holder);
  return () => { width = 0; redraw(); };
}

function section(id, title, text, ...children) {
  return h("section", { id, "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, title), text && h("p", { class: "about" }, text), children);
}
