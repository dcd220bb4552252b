// The transfer matrix: one tab stop for each table, arrow keys between cells, a note beside the cell, and the answers
// behind it. Without this script a cell is a link to the examples with its numbers as a title.
const from = document.getElementById("examples-from");
let origin = null; // the cell whose answers are shown

// The cell that lies in a direction, past those without data; undefined at the edge.
function neighbour(cells, row, column, down, right) {
  let cell;
  do {
    row += down;
    column += right;
    cell = cells[row]?.[column];
  } while (cell === null);
  return cell;
}

function showAnswers(table, cell) {
  form.model.value = table.dataset.model;
  form.condition.value = cell.closest("tr").dataset.condition;
  form.measure.value = cell.dataset.measure;
  const same = (row) => ["model", "condition", "measure"].every((key) => row[key] === form[key].value);
  form.group.value = rows.some((row) => same(row) && row.group === groups[0]) ? groups[0] : "";
  form.search.value = "";
  show();
  origin = cell;
  from.querySelector("p").textContent = cell.note;
  from.hidden = false;
}

for (const table of document.querySelectorAll("table[role=grid]")) {
  const cells = [...table.tBodies[0].rows].map((row) => [...row.querySelectorAll("td")].map((td) => td.querySelector("a")));
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  let stop = cells.flat().find(Boolean);
  cells.forEach((line, row) =>
    line.forEach((cell, column) => {
      if (!cell) return;
      cell.note = cell.title;
      cell.removeAttribute("title");
      cell.setAttribute("aria-describedby", "tip");
      cell.tabIndex = cell === stop ? 0 : -1;
      cell.addEventListener("mouseenter", () => showTip(cell, cell.note));
      cell.addEventListener("mouseleave", hideTip);
      cell.addEventListener("blur", hideTip);
      cell.addEventListener("focus", () => {
        stop.tabIndex = -1;
        stop = cell;
        stop.tabIndex = 0;
        cell.scrollIntoView({ block: "nearest", inline: "nearest" });
        showTip(cell, cell.note);
      });
      cell.addEventListener("click", () => {
        showAnswers(table, cell);
        hideTip();
      });
      cell.addEventListener("keydown", (event) => {
        const ends = { Home: line.find(Boolean), End: line.findLast(Boolean) };
        const next = moves[event.key] ? neighbour(cells, row, column, ...moves[event.key]) : ends[event.key];
        if (moves[event.key] || next) event.preventDefault();
        if (event.key === "Escape") hideTip();
        next?.focus();
      });
    }),
  );
}

from.querySelector("a").addEventListener("click", (event) => {
  event.preventDefault();
  origin.focus();
});
form.addEventListener("input", () => {
  from.hidden = true; // the filter is no longer the cell's
});
