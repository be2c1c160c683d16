// A click on a header sorts its table by that column; a second click turns the order round. Absent values come last.
for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const order = head.ariaSort === "ascending" ? "descending" : "ascending", sign = order === "ascending" ? 1 : -1;
    const key = (row) => row.cells[head.cellIndex].dataset.key;
    const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    const absent = (row) => Number(key(row) === "");
    const rows = [...body.rows];
    rows.sort((a, b) => absent(a) - absent(b) || sign * compare(key(a), key(b)));
    for (const other of head.parentElement.cells) other.ariaSort = null;
    head.ariaSort = order;
    body.append(...rows);
  });
}
