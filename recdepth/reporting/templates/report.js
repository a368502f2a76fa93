"use strict";
// Tables sort by a click on a column's head; commands have a button that copies them.

const numberOf = (text) => {
  const found = text.replace(/\s/g, "").match(/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?/i);
  return found ? Number(found[0]) : NaN;
};

const compare = (a, b) => {
  const [x, y] = [numberOf(a), numberOf(b)];
  if (a === "" || b === "") return (a === "") - (b === "");
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
};

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = (row) => (row.cells[column].dataset.value ?? row.cells[column].textContent).trim();
      const rows = [...table.tBodies[0].rows].sort((a, b) => compare(text(a), text(b)) * (down ? -1 : 1));
      table.tBodies[0].append(...rows);
    });
  });
}

for (const box of document.querySelectorAll(".command")) {
  if (!navigator.clipboard) continue; // a file opened from disk, in some browsers
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(box.querySelector("pre").textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select and copy";
    }
  });
  box.append(button);
}
