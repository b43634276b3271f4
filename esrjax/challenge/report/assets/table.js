// The ranked table: one tbody per status, sortable within it; every figure has a tooltip with its
// provenance.

const RANK = { key: "rank", label: "Rank", isText: true };
const TEAM = { key: "team", label: "Team", isText: true };
const HAS_RANKS = data.entries.some((entry) => entry.rank);  // else no space is reserved for ranks

function rankedTable() {
  const columns = [RANK, TEAM, ...data.columns, ...data.scores];
  const table = h("table", { "aria-describedby": "scale" });
  const bodies = data.groups.map((group) => tableBody(group, columns));
  const headers = columns.map((column) => columnHeader(column, columns, bodies));
  table.append(h("thead", {}, h("tr", {}, headers)), ...bodies.map((body) => body.node));
  enableArrowKeys(table);
  return [h("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": "Ranked table" },
    table), h("p", { class: "footnote", id: "scale" }, data.scale)];
}

function columnHeader(column, columns, bodies) {
  const cell = h("th", { scope: "col", class: column.isText ? "text" : null });
  const unit = column.unit && h("span", { class: "unit" }, ` ${column.unit}`);
  cell.append(h("button", { type: "button", onclick: () => sortBy(cell, column, bodies) },
    column.label, unit));
  if (column.key === "rank") cell.setAttribute("aria-sort", "ascending");
  return cell;
}

/** Sorts every body by a column, descending the second time; rows without a figure come last. */
function sortBy(cell, column, bodies) {
  const isDescending = cell.getAttribute("aria-sort") === "ascending";
  for (const other of cell.parentNode.children) other.removeAttribute("aria-sort");
  cell.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
  for (const body of bodies) {
    const rows = body.rows.map((row) => [sortKey(row.entry, column), row.node]);
    const withKey = rows.filter(([key]) => key !== null);
    const withoutKey = rows.filter(([key]) => key === null);
    withKey.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (isDescending ? -1 : 1));
    body.node.append(...[...withKey, ...withoutKey].map(([, node]) => node));
  }
}

function sortKey(entry, column) {
  if (column.key === "rank") return entry.rank ?? entry.cells.main.value;
  if (column.key === "team") return entry.team.toLowerCase();
  return entry.cells[column.key]?.value ?? null;
}

function tableBody(group, columns) {
  const rows = group.entries.map((k) =>
    ({ entry: data.entries[k], node: tableRow(data.entries[k], columns) }));
  const title = h("tr", { class: "status" },
    h("th", { scope: "rowgroup", colspan: columns.length }, h("span", {}, group.description)));
  return { rows, node: h("tbody", { class: group.status }, title, rows.map((row) => row.node)) };
}

function tableRow(entry, columns) {
  const team = h("th", { scope: "row" }, h("span", { class: "team" }, entry.team),
    h("span", { class: "method" }, entry.method),
    entry.weights && h("span", { class: "weights" }, `${entry.weights} weights`));
  const figures = columns.slice(2).map((column) => h("td", {}, figureButton(entry, column)));
  return h("tr", {}, h("td", { class: "rank" }, entry.rank ?? "\u2013"), team, figures);
}

function figureButton(entry, column) {
  const cell = entry.cells[column.key];
  if (!cell) return h("span", { class: "missing" }, "\u2013");
  const isScore = !("unit" in column);
  const classes = [cell.below_threshold && "below_threshold", isScore && cell.rank === 1 && "best"]
    .filter(Boolean);
  const rank = isScore && HAS_RANKS ? h("small", {}, cell.rank ? `(${cell.rank})` : "") : null;
  const button = h("button", { type: "button", class: `figure ${classes.join(" ")}`,
    tabindex: -1 }, formatScore(cell.text), rank);
  return tooltip.attach(button, () => [
    `${entry.team}: ${column.label}`,
    isScore || cell.value === null ? null : `${formatExact(cell.value)} ${column.unit}`,
    cell.below_threshold
      && `Below the threshold of ${formatNumber(data.psnr_thresholds[column.key], 2)} dB.`,
    cell.below_threshold && entry.waiver && `Ranked nevertheless: ${entry.waiver}.`,
    cell.note,
  ]);
}

/** `6.76e3` as a figure with a power of ten. */
function formatScore(text) {
  const [digits, power] = text.split("e");
  if (text === "inf") return ["\u221e"];
  return power ? [`${digits}\u202f\u00d7\u202f10`, h("sup", {}, power)] : [text];
}

/** One tab stop for all figures (roving tabindex); arrow keys move between them. */
function enableArrowKeys(table) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const first = table.querySelector(".figure");
  if (first) first.tabIndex = 0;
  table.addEventListener("keydown", (e) => {
    const current = e.target.closest(".figure"), step = steps[e.key];
    if (!current || !step) return;
    e.preventDefault();
    nextFigure(table, current, step)?.focus();
  });
  table.addEventListener("focusin", (e) => {
    if (!e.target.matches(".figure")) return;
    for (const other of table.querySelectorAll(".figure[tabindex='0']")) other.tabIndex = -1;
    e.target.tabIndex = 0;
  });
}

/** The next figure in a direction; skips empty cells and headings. */
function nextFigure(table, current, [down, right]) {
  const rows = [...table.querySelectorAll("tbody tr:not(.status)")];
  let y = rows.indexOf(current.closest("tr")), x = current.closest("td").cellIndex;
  while ((y += down, x += right, rows[y]?.cells[x])) {
    const figure = rows[y].cells[x].querySelector(".figure");
    if (figure) return figure;
  }
  return null;
}
