"use strict";
// Tables are sorted by a click on a head; without this script they are as they were written.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  const written = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(head, column));
  });

  function sort(head, column) {
    const next = { none: "descending", descending: "ascending", ascending: "none" }[head.ariaSort ?? "none"];
    for (const other of head.parentNode.cells) other.ariaSort = null;
    if (next !== "none") head.ariaSort = next;
    table.classList.toggle("sorted", next !== "none");
    const sign = next === "ascending" ? 1 : -1;
    const rows = next === "none" ? written : [...written].sort((a, b) => compare(a, b, column, sign));
    body.append(...rows);
  }
}

// Numbers by their size, words by the alphabet; what is missing comes last.
function compare(a, b, column, sign) {
  const [x, y] = [a, b].map((row) => row.cells[column].dataset.order);
  if (x === "" || y === "") return (x === "") - (y === "");
  const numbers = [Number(x), Number(y)];
  return sign * (numbers.some(Number.isNaN) ? x.localeCompare(y, "en", { numeric: true }) : numbers[0] - numbers[1]);
}
