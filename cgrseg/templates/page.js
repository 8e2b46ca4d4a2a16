// Theme, hints, sorting, large pictures and read-outs of curves. No library, no request.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const darkQuery = window.matchMedia("(prefers-color-scheme: dark)");
const redraws = [];

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : darkQuery.matches;
}
function redrawAll() { for (const redraw of redraws) redraw(); }
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  redrawAll();
});
darkQuery.addEventListener("change", redrawAll);

// Paper is white: print in light colours with every part open, then go back.
let before = null;
window.addEventListener("beforeprint", () => {
  const closed = [...document.querySelectorAll("details:not([open])")];
  before = { theme: root.dataset.theme, closed };
  for (const part of closed) part.open = true;
  root.dataset.theme = "light";
  redrawAll();
});
window.addEventListener("afterprint", () => {
  if (!before) return;
  for (const part of before.closed) part.open = false;
  if (before.theme) root.dataset.theme = before.theme; else delete root.dataset.theme;
  before = null;
  redrawAll();
});

const tip = document.getElementById("tip");
function showTip(text, x, y) {
  tip.textContent = text;
  tip.style.visibility = "visible";
  const box = tip.getBoundingClientRect();
  const left = x + 16 + box.width > innerWidth ? x - box.width - 12 : x + 16;
  const top = y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, top) + "px";
}
function hideTip() { tip.style.visibility = "hidden"; }
for (const element of document.querySelectorAll("[data-tip]")) {
  element.addEventListener("pointermove", (e) => showTip(element.dataset.tip, e.clientX, e.clientY));
  element.addEventListener("pointerleave", hideTip);
}

// Undefined values stay last whichever way a column is sorted.
function sortBy(table, column, descending) {
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].dataset.value;
  const rows = [...body.rows];
  const numeric = rows.every((row) => key(row) === "" || !isNaN(Number(key(row))));
  rows.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = numeric ? Number(x) - Number(y) : x.localeCompare(y);
    return descending ? -order : order;
  });
  body.append(...rows);
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const act = () => {
      const descending = head.getAttribute("aria-sort") !== "descending" && column > 0
        || head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortBy(table, column, descending);
    };
    head.addEventListener("click", act);
    head.addEventListener("keydown", (e) => { if (e.key === "Enter") act(); });
  });
}

const large = document.getElementById("large");
for (const image of document.querySelectorAll("figure img")) {
  image.addEventListener("click", () => {
    const shown = large.querySelector("img");
    shown.src = image.src;
    shown.className = image.className;
    const heading = image.closest(".sample")?.querySelector("h4")?.firstChild.textContent ?? "";
    large.querySelector("p").textContent = heading + "· " + image.alt;
    large.showModal();
  });
}
large.addEventListener("click", () => large.close());

for (const svg of document.querySelectorAll("svg[data-series]")) {
  const series = JSON.parse(svg.dataset.series);
  const cursor = svg.querySelector(".cursor");
  svg.addEventListener("pointermove", (e) => {
    const box = svg.getBoundingClientRect();
    const x = (e.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    let nearest = null;
    for (const line of series) {
      line.px.forEach((px) => {
        if (nearest === null || Math.abs(px - x) < Math.abs(nearest - x)) nearest = px;
      });
    }
    const said = [];
    let at = 0;
    for (const line of series) {
      const k = line.px.indexOf(nearest);
      if (k >= 0) { said.push(line.name + ": " + line.y[k]); at = line.x[k]; }
    }
    cursor.setAttribute("x1", nearest);
    cursor.setAttribute("x2", nearest);
    cursor.style.visibility = "visible";
    showTip("iteration " + Math.round(at) + "\n" + said.join("\n"), e.clientX, e.clientY);
  });
  svg.addEventListener("pointerleave", () => { cursor.style.visibility = "hidden"; hideTip(); });
}
