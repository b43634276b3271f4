// The data of the page, and helpers that create elements. Text is only ever set as text, never as
// HTML: names of teams and methods may contain markup.

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

/** Creates an HTML element. */
const h = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);

/** Creates an SVG element. */
const s = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

const formatNumber = (value, decimals) => value.toFixed(decimals).replace("-", "\u2212");
const formatSigned = (value, decimals) => (value > 0 ? "+" : "") + formatNumber(value, decimals);
const formatExact = (value) => Number(value.toPrecision(7)).toString().replace("-", "\u2212");
const isFiniteNumber = (value) => typeof value === "number" && Number.isFinite(value);

let numRadioGroups = 0;

/** A choice of one of a few options: radio buttons that look like a row of buttons. */
function radioGroup(title, options, selected, onChange) {
  const name = `radio-${(numRadioGroups += 1)}`;
  const radio = ([value, text]) => h("label", {}, h("input", { type: "radio", name, value,
    checked: value === selected, onchange: () => onChange(value) }), h("span", {}, text));
  return h("fieldset", { class: "choice" }, h("legend", {}, title), options.map(radio));
}

/** A choice of one of many options. */
function dropdown(title, options, selected, onChange) {
  const list = h("select", { onchange: () => onChange(list.value) },
    options.map(([value, text]) => h("option", { value, selected: value === selected }, text)));
  return h("label", { class: "dropdown" }, h("span", {}, title), list);
}

/** Redraws the content of a container whenever its width changes; returns a forced redraw. */
function responsive(container, draw) {
  let width = 0;
  const redraw = () => {
    const newWidth = Math.floor(container.clientWidth);
    if (newWidth && newWidth !== width) container.replaceChildren(draw((width = newWidth)));
  };
  new ResizeObserver(() => requestAnimationFrame(redraw)).observe(container);
  return () => { width = 0; redraw(); };
}

function section(id, title, text, ...children) {
  return h("section", { id, "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, title), text && h("p", { class: "intro" }, text), children);
}
