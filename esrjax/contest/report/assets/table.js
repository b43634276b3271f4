// The ranked table: a body for each standing, sorted within it; every figure tells its origin.

const RANK = { key: "rank", label: "Rank", words: true };
const TEAM = { key: "team", label: "Team", words: true };
const RANKS = data.lines.some((line) => line.rank);  // else their place is not kept free

function rankedTable() {
  const columns = [RANK, TEAM, ...data.columns, ...data.scores];
  const table = h("table", { "aria-describedby": "scale" });
  const bodies = data.groups.map((group) => groupBody(group, columns));
  const heads = columns.map((column) => heading(column, columns, bodies));
  table.append(h("thead", {}, h("tr", {}, heads)), ...bodies.map((body) => body.node));
  walk(table);
  return [h("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": "Ranked table" },
    table), h("p", { class: "fine", id: "scale" }, data.scale)];
}

function heading(column, columns, bodies) {
  const cell = h("th", { scope: "col", class: column.words ? "words" : null });
  const unit = column.unit && h("span", { class: "unit" }, ` ${column.unit}`);
  cell.append(h("button", { type: "button", onclick: () => order(cell, column, bodies) },
    column.label, unit));
  if (column.key === "rank") cell.setAttribute("aria-sort", "ascending");
  return cell;
}

/** Sort every body by a column, the other way the second time; what has no figure comes last. */
function order(cell, column, bodies) {
  const down = cell.getAttribute("aria-sort") === "ascending";
  for (const other of cell.parentNode.children) other.removeAttribute("aria-sort");
  cell.setAttribute("aria-sort", down ? "descending" : "ascending");
  for (const body of bodies) {
    const rows = body.rows.map((row) => [sortKey(row.line, column), row.node]);
    const [some, none] = [rows.filter(([k]) => k !== null), rows.filter(([k]) => k === null)];
    some.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1));
    body.node.append(...[...some, ...none].map(([, node]) => node));
  }
}

function sortKey(line, column) {
  if (column.key === "rank") return line.rank ?? line.cells.main.value;
  if (column.key === "team") return line.team.toLowerCase();
  return line.cells[column.key]?.value ?? null;
}

function groupBody(group, columns) {
  const rows = group.lines.map((k) => ({ line: data.lines[k], node: row(data.lines[k], columns) }));
  const title = h("tr", { class: "standing" },
    h("th", { scope: "rowgroup", colspan: columns.length }, h("span", {}, group.meaning)));
  return { rows, node: h("tbody", { class: group.standing }, title, rows.map((r) => r.node)) };
}

function row(line, columns) {
  const team = h("th", { scope: "row" }, h("span", { class: "team" }, line.team),
    h("span", { class: "method" }, line.method));
  const figures = columns.slice(2).map((column) => h("td", {}, figure(line, column)));
  return h("tr", {}, h("td", { class: "rank" }, line.rank ?? "\u2013"), team, figures);
}

function figure(line, column) {
  const cell = line.cells[column.key];
  if (!cell) return h("span", { class: "none" }, "\u2013");
  const score = !("unit" in column);
  const kind = [cell.missed && "missed", score && cell.rank === 1 && "best"].filter(Boolean);
  const place = score && RANKS ? h("small", {}, cell.rank ? `(${cell.rank})` : "") : null;
  const button = h("button", { type: "button", class: `figure ${kind.join(" ")}`, tabindex: -1 },
    scientific(cell.text), place);
  return tip.on(button, () => [
    `${line.team}: ${column.label}`,
    score ? null : `${exact(cell.value)} ${column.unit}`,
    cell.missed && `Under the threshold of ${number(data.floors[column.key], 2)} dB.`,
    cell.missed && line.waived && `Ranked all the same: ${line.waived}.`,
    cell.note,
  ]);
}

/** `6.76e3` as a figure with a power of ten. */
function scientific(text) {
  const [figures, power] = text.split("e");
  if (text === "inf") return ["\u221e"];
  return power ? [`${figures}\u202f\u00d7\u202f10`, h("sup", {}, power)] : [text];
}

/** One stop of the tab key for all figures; arrow keys go from one to the next. */
function walk(table) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const first = table.querySelector(".figure");
  if (first) first.tabIndex = 0;
  table.addEventListener("keydown", (e) => {
    const here = e.target.closest(".figure"), step = steps[e.key];
    if (!here || !step) return;
    e.preventDefault();
    beside(table, here, step)?.focus();
  });
  table.addEventListener("focusin", (e) => {
    if (!e.target.matches(".figure")) return;
    for (const other of table.querySelectorAll(".figure[tabindex='0']")) other.tabIndex = -1;
    e.target.tabIndex = 0;
  });
}

/** The next figure in that direction, over empty cells and headings. */
function beside(table, here, [down, right]) {
  const rows = [...table.querySelectorAll("tbody tr:not(.standing)")];
  let y = rows.indexOf(here.closest("tr")), x = here.closest("td").cellIndex;
  while ((y += down, x += right, rows[y]?.cells[x])) {
    const found = rows[y].cells[x].querySelector(".figure");
    if (found) return found;
  }
  return null;
}
