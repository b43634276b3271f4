// The page, from top to bottom.

function header() {
  return h("header", {}, h("h1", {}, data.title), h("p", { class: "lede" }, data.lede));
}

function ranking() {
  const about = "Point at a figure, or tap it, to read where it comes from. A heading sorts.";
  const notes = data.notes.length
    ? h("ul", { class: "notes" }, data.notes.map((note) => h("li", {}, note))) : null;
  return section("ranking", "Ranking", about, rankedTable(), notes);
}

document.getElementById("report").append(...[header(), ranking(), paretoPlots(), distributions(),
  pictures(), h("footer", {}, h("p", {}, data.made))].filter(Boolean));
