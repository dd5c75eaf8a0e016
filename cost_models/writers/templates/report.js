// Tables are sorted by a click on a heading, and all that is folded is opened for the printer.
for (const head of document.querySelectorAll("th")) {
  head.tabIndex = 0;
  head.onkeydown = (event) => { if (event.key === "Enter") head.onclick(); };
  head.onclick = () => {
    const body = head.closest("table").tBodies[0];
    const at = head.cellIndex;
    const down = head.getAttribute("aria-sort") !== "descending";
    const value = (row) => row.cells[at].dataset.v;
    const compare = (a, b) => value(a) !== undefined && value(b) !== undefined
      ? value(a) - value(b)
      : row_text(a, at).localeCompare(row_text(b, at));
    const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * compare(a, b));
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
  };
}
function row_text(row, at) { return row.cells[at].textContent; }
window.onbeforeprint = () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
};
