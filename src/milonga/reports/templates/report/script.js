"use strict";
// Sorting, filtering, one player at a time, and the keyboard. Without it the page still reads and plays.
(() => {
  const list = document.getElementById("cards");
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
  if (!list) return;
  document.documentElement.classList.add("script");
  const cards = [...list.children];
  const field = (name) => document.getElementById(name);
  let sounding = null;

  const number = (card, key) => Number(card.dataset[key]);
  const last = (value) => (Number.isNaN(value) ? Infinity : value);
  const orders = {
    drawn: (card) => number(card, "place"),
    improved: (card) => last(-number(card, "gain")),
    worsened: (card) => last(number(card, "gain")),
    worst: (card) => last(number(card, "score")),
  };

  function wanted(card) {
    const { reason, labels, tags, faults } = card.dataset;
    return (!field("reason").value || reason === field("reason").value)
      && (!field("label")?.value || JSON.parse(labels).includes(field("label").value))
      && (!field("split").value || JSON.parse(tags).includes(field("split").value))
      && (!field("faults")?.checked || faults === "True");
  }

  function arrange() {
    const order = orders[field("sort").value];
    const placed = [...cards].sort((a, b) => {
      const [left, right] = [order(a), order(b)];
      return left < right ? -1 : left > right ? 1 : number(a, "place") - number(b, "place");
    });
    list.append(...placed);
    for (const card of cards) card.hidden = !wanted(card);
    const count = cards.filter((card) => !card.hidden).length;
    field("shown").textContent = `${count} of ${cards.length} prompts`;
    field("none").hidden = count > 0;
    if (sounding && sounding.closest(".card").hidden) stop();
  }

  const audioOf = (button) => button.parentElement.querySelector("audio");

  function stop() {
    if (!sounding) return;
    const audio = audioOf(sounding);
    audio.pause();
    audio.currentTime = 0;
    sounding.classList.remove("playing");
    sounding.setAttribute("aria-pressed", "false");
    sounding = null;
  }

  function play(button) {
    stop();
    sounding = button;
    button.focus({ preventScroll: true }); // Safari gives a clicked button no focus, and the arrow keys need it
    button.classList.add("playing");
    button.setAttribute("aria-pressed", "true");
    audioOf(button).play().catch((error) => {
      if (error.name === "AbortError") return; // stopped before it began
      stop();
      field("shown").textContent = `This clip cannot be played here (${error.name}).`;
    });
    requestAnimationFrame(() => follow(button));
  }

  function follow(button) {
    if (sounding !== button) return;
    const audio = audioOf(button);
    button.querySelector(".head").style.left = `${(100 * audio.currentTime) / (audio.duration || 1)}%`;
    requestAnimationFrame(() => follow(button));
  }

  const toggle = (button) => (sounding === button ? stop() : play(button));

  function step(button, rows, columns) {
    const shown = [...list.children].filter((card) => !card.hidden);
    const card = button.closest(".card");
    const buttons = [...card.querySelectorAll(".play")];
    const next = shown[shown.indexOf(card) + rows];
    if (!next) return;
    const line = [...next.querySelectorAll(".play")];
    const target = line[Math.min(Math.max(buttons.indexOf(button) + columns, 0), line.length - 1)];
    if (target === button) return;
    const heard = sounding !== null;
    target.focus();
    if (rows) next.scrollIntoView({ block: "nearest" });
    if (heard) play(target);
  }

  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
    const button = event.target === document.body ? sounding : event.target.closest(".play");
    if (event.key === "Escape") stop();
    if (!button) return;
    if (moves[event.key]) {
      event.preventDefault();
      step(button, ...moves[event.key]);
    } else if (event.key === " ") {
      event.preventDefault();
      if (!event.repeat) toggle(button);
    }
  });

  for (const button of list.querySelectorAll(".play")) {
    const audio = audioOf(button);
    audio.controls = false;
    button.addEventListener("click", () => toggle(button));
    button.addEventListener("keyup", (event) => { if (event.key === " ") event.preventDefault(); });
    audio.addEventListener("ended", () => { if (sounding === button) stop(); });
  }
  document.querySelector(".tools").addEventListener("change", arrange);
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  arrange();
})();

// Tables of results: a heading sorts the systems of every split by its column, best first; a list filters splits.
(() => {
  for (const table of document.querySelectorAll(".sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (head.dataset.higher === undefined) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "order";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const higher = head.dataset.higher === "1";
        const value = (row) => (row.cells[column].dataset.value === "" ? Infinity : (higher ? -1 : 1) * Number(row.cells[column].dataset.value));
        for (const body of table.tBodies) {
          const rows = [...body.rows].filter((row) => !row.classList.contains("split"));
          body.append(...rows.sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0)));
        }
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", higher ? "descending" : "ascending");
      });
    });
  }
  document.getElementById("rows")?.addEventListener("change", (event) => {
    for (const body of document.querySelectorAll(".sortable tbody")) {
      body.hidden = event.target.value !== "" && body.dataset.split !== event.target.value;
    }
    for (const part of document.querySelectorAll("#results .scroll")) {
      part.hidden = [...part.querySelectorAll("tbody")].every((body) => body.hidden);
    }
  });
})();
