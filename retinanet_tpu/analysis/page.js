"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);

  // Curves: the script moves the points of lines that are already there.
  const choice = document.getElementById("curve-class");
  const curves = choice && read("curve-data");
  const place = (chart, x, y) => {
    const {left, top, width, height} = chart.dataset;
    return x.map((value, i) => [value, y[i]]).filter(([, b]) => b >= 0)
      .map(([a, b]) => `${+left + width * a / 1000},${+top + height * (1 - b / 1000)}`)
      .join(" ");
  };
  const recalls = Array.from({length: 101}, (_, i) => i * 10);
  const show = (number) => {
    const {p50, p75, t, p, r, f, best, text} = curves[number];
    const precision = document.getElementById("precision-chart");
    const threshold = document.getElementById("threshold-chart");
    const move = (chart, key, x, y) => chart.querySelector(`[data-key=${key}]`)
      .setAttribute("points", place(chart, x, y));
    move(precision, "p50", recalls, p50);
    move(precision, "p75", recalls, p75);
    move(threshold, "precision", t, p);
    move(threshold, "recall", t, r);
    move(threshold, "f1", t, f);
    const mark = threshold.querySelector(".mark");
    mark.classList.toggle("hidden", best < 0);
    const {left, width} = threshold.dataset;
    for (const side of ["x1", "x2"]) {
      mark.setAttribute(side, +left + width * Math.max(best, 0) / 1000);
    }
    document.getElementById("curve-text").textContent = text;
  };
  if (choice) choice.addEventListener("change", () => show(choice.selectedIndex));

  // Tables: a click on a heading sorts, a second click reverses.
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? +cell.dataset.value : cell.textContent;
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b));
  for (const button of document.querySelectorAll("table.sortable th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const isNumber = !head.classList.contains("name");
      const before = head.getAttribute("aria-sort");
      const first = isNumber ? "descending" : "ascending";
      const second = isNumber ? "ascending" : "descending";
      const order = before === first ? second : first;
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const body = head.closest("table").tBodies[0];
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((a, b) =>
        sign * compare(valueOf(a, head.cellIndex), valueOf(b, head.cellIndex)));
      body.append(...rows);
    });
  }

  // Images: filters by group, by kind, by class and by score.
  const state = {group: "", kind: "", name: "", score: 0};
  const shots = document.querySelectorAll("#shots figure");
  const apply = () => {
    let count = 0;
    for (const shot of shots) {
      let matches = 0;
      for (const box of shot.querySelectorAll(".box")) {
        const {kind, name, score} = box.dataset;
        const isObject = score === undefined;
        const fits = (!state.kind || kind === state.kind)
          && (!state.name || name === state.name)
          && (isObject || +score >= state.score);
        matches += fits;
        // Objects that do not fit stay as context.
        box.classList.toggle("dim", isObject && !fits);
        box.classList.toggle("hidden", !isObject && !fits);
      }
      const isInGroup = !state.group || shot.dataset.group === state.group;
      const isShown = isInGroup && (matches > 0 || !(state.kind || state.name));
      shot.classList.toggle("hidden", !isShown);
      count += isShown;
    }
    document.getElementById("shot-count").textContent =
      `${count} of ${shots.length} images`;
  };
  for (const button of document.querySelectorAll("[data-choose]")) {
    button.addEventListener("click", () => {
      state.kind = button.dataset.choose;
      for (const other of document.querySelectorAll("[data-choose]")) {
        other.setAttribute("aria-pressed", other === button);
      }
      apply();
    });
  }
  for (const key of ["name", "group"]) {
    const select = document.getElementById(key === "name" ? "shot-class" : "shot-group");
    if (select) select.addEventListener("change", () => {
      state[key] = select.value;
      apply();
    });
  }
  const slider = document.getElementById("shot-score");
  if (slider) slider.addEventListener("input", () => {
    state.score = +slider.value;
    document.getElementById("shot-score-text").textContent = state.score.toFixed(2);
    apply();
  });
})();
