"use strict";
const body = document.querySelector("tbody");
const rows = [...body.rows];
const filter = document.getElementById("filter");
const served = document.getElementById("served");
const models = [...document.querySelectorAll("#models button")];

function show() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = new Set(models.filter((m) => m.ariaPressed === "true").map((m) => m.dataset.model));
  let count = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const visible = wanted.has(row.dataset.model)
      && (!served.checked || row.classList.contains("served"))
      && words.every((word) => text.includes(word));
    row.hidden = !visible;
    count += visible;
  }
  document.getElementById("count").textContent = `${count} of ${rows.length} rows`;
}

function key(row, column) {
  const cell = row.cells[column];
  if (!cell || cell.colSpan > 1) return null;
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const column = Number(button.dataset.column);
    const head = button.parentElement;
    const down = head.ariaSort === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    // What is refused has no number: it stays at the end either way.
    rows.sort((a, b) => {
      const [x, y] = [key(a, column), key(b, column)];
      if (x === null || y === null) return (x === null) - (y === null);
      const order = typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true });
      return down ? -order : order;
    });
    body.append(...rows);
  });
}
for (const button of models) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.ariaPressed !== "true"));
    show();
  });
}
filter.addEventListener("input", show);
served.addEventListener("change", show);
show();
