"use strict";
(function () {
  function value(row, column) {
    var raw = row.cells[column].getAttribute("data-value");
    return raw === null ? null : Number(raw);
  }

  function compare(column, numeric, sign) {
    return function (a, b) {
      if (!numeric) {
        return sign * a.cells[column].textContent.trim().localeCompare(
          b.cells[column].textContent.trim(), undefined, { numeric: true });
      }
      var x = value(a, column), y = value(b, column);
      if (x === null || y === null) {
        return (x === null ? 1 : 0) - (y === null ? 1 : 0);
      }
      return sign * (x - y);
    };
  }

  function sort(table, header) {
    var falling = header.getAttribute("aria-sort") === "ascending" ||
      (!header.hasAttribute("aria-sort") && header.dataset.numeric === "yes");
    table.querySelectorAll("thead th").forEach(function (other) { other.removeAttribute("aria-sort"); });
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
    var body = table.tBodies[0];
    Array.from(body.rows)
      .sort(compare(header.cellIndex, header.dataset.numeric === "yes", falling ? -1 : 1))
      .forEach(function (row) { body.appendChild(row); });
  }

  document.querySelectorAll("table[data-sortable]").forEach(function (table) {
    table.querySelectorAll("thead th").forEach(function (header) {
      var button = document.createElement("button");
      button.type = "button";
      while (header.firstChild) { button.appendChild(header.firstChild); }
      header.appendChild(button);
      button.addEventListener("click", function () { sort(table, header); });
    });
  });

  var opened = [];
  window.addEventListener("beforeprint", function () {
    opened = Array.from(document.querySelectorAll("details:not([open])"));
    opened.forEach(function (details) { details.open = true; });
  });
  window.addEventListener("afterprint", function () {
    opened.forEach(function (details) { details.open = false; });
  });
})();
