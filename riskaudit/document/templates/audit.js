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

  function choice(label, count) {
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = label + " (" + count + ")";
    button.setAttribute("aria-pressed", "false");
    return button;
  }

  function show(table, column, bar, chosen, text) {
    Array.from(table.tBodies[0].rows).forEach(function (row) {
      row.hidden = text !== null && row.cells[column].textContent.trim() !== text;
    });
    bar.querySelectorAll("button").forEach(function (button) {
      button.setAttribute("aria-pressed", String(button === chosen));
    });
  }

  var everything = [];
  document.querySelectorAll("table[data-sortable] th[data-filtered]").forEach(function (header) {
    var table = header.closest("table"), column = header.cellIndex, counts = new Map();
    var rows = Array.from(table.tBodies[0].rows);
    rows.forEach(function (row) {
      var text = row.cells[column].textContent.trim();
      counts.set(text, (counts.get(text) || 0) + 1);
    });
    if (counts.size < 2) { return; }
    var bar = document.createElement("div");
    bar.className = "filter";
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "Rows of the table " + table.caption.firstChild.firstChild.textContent.trim());
    bar.appendChild(document.createTextNode("Show "));
    var all = bar.appendChild(choice("all", rows.length));
    all.addEventListener("click", function () { show(table, column, bar, all, null); });
    counts.forEach(function (count, text) {
      var button = bar.appendChild(choice(text, count));
      button.addEventListener("click", function () { show(table, column, bar, button, text); });
    });
    all.click();
    everything.push(all);
    var frame = table.closest(".scroll");
    frame.parentNode.insertBefore(bar, frame);
  });

  function copy(code, button) {
    function said(words) {
      button.textContent = words;
      window.setTimeout(function () { button.textContent = "Copy"; }, 2000);
    }
    // Where the page may not write to the clipboard, the text is at least selected.
    function select() {
      window.getSelection().selectAllChildren(code);
      said("Selected");
    }
    if (!navigator.clipboard) { select(); return; }
    navigator.clipboard.writeText(code.textContent).then(function () { said("Copied"); }, select);
  }

  document.querySelectorAll(".snippet").forEach(function (snippet) {
    var button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-live", "polite");
    button.addEventListener("click", function () { copy(snippet.querySelector("code"), button); });
    snippet.appendChild(button);
  });

  var opened = [];
  window.addEventListener("beforeprint", function () {
    everything.forEach(function (all) { all.click(); });
    opened = Array.from(document.querySelectorAll("details:not([open])"));
    opened.forEach(function (details) { details.open = true; });
  });
  window.addEventListener("afterprint", function () {
    opened.forEach(function (details) { details.open = false; });
  });
})();
