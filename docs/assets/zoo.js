// Makes the table of models sortable and filterable. Without scripts it is a plain table.
"use strict";

function zooSort(headers, rows, body) {
  const number = (cell) => parseFloat(cell.replaceAll(",", ""));
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    header.replaceChildren(button);
    const isNumber = header.classList.contains("number");
    button.addEventListener("click", () => {
      const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      rows.sort((a, b) => {
        const [left, right] = [a, b].map((row) => row.cells[column].textContent);
        if (!left || !right) return !left - !right; // empty cells come last
        const order = isNumber
          ? number(left) - number(right)
          : left.localeCompare(right, "en", { numeric: true });
        return direction * order;
      });
      body.append(...rows);
    });
  });
}

function zooFilter(box, headers, rows) {
  const column = (name) => headers.findIndex((header) => header.textContent === name);
  const [family, weights] = [column("family"), column("weights")];
  const form = document.createElement("form");
  form.className = "zoo-filter";
  form.innerHTML = `
    <label>Filter <input type="search" name="words" placeholder="for example: bottleneck" autocomplete="off"></label>
    <label>Family <select name="family"><option value="">all</option></select></label>
    <label><input type="checkbox" name="published"> with published weights</label>
    <output></output>`;
  const { words, family: select, published } = form.elements;
  for (const name of new Set(rows.map((row) => row.cells[family].textContent))) select.add(new Option(name, name));

  const update = () => {
    const wanted = words.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(
        wanted.every((word) => text.includes(word)) &&
        (!select.value || row.cells[family].textContent === select.value) &&
        (!published.checked || row.cells[weights].textContent !== "0")
      );
    }
    form.querySelector("output").value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} networks`;
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  box.before(form);
  update();
}

for (const box of document.querySelectorAll(".zoo")) {
  const { tHead, tBodies } = box.querySelector("table");
  const [headers, rows] = [[...tHead.rows[0].cells], [...tBodies[0].rows]];
  zooFilter(box, headers, rows);
  zooSort(headers, rows, tBodies[0]);
}
