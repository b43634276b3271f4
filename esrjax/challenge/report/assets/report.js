// The page, from top to bottom.

function header() {
  return h("header", {}, h("h1", {}, data.title), h("p", { class: "summary" }, data.summary));
}

function ranking() {
  const intro = "Hover over a figure, or tap it, to see where it comes from. Click a heading to sort.";
  const notes = data.notes.length
    ? h("ul", { class: "notes" }, data.notes.map((note) => h("li", {}, note))) : null;
  return section("ranking", "Ranking", intro, rankedTable(), notes);
}

document.getElementById("report").append(...[header(), ranking(), paretoPlots(), distributions(),
  imageComparison(), h("footer", {}, h("p", {}, data.footer))].filter(Boolean));
