"use strict";
// Sorting, filtering, one player at a time, and the keyboard. Without it the page still reads and plays.
(() => {
  const list = document.getElementById("cards");
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
  if (!list) return;
  document.documentElement.classList.add("script");
  const cards = [...list.children];
  const field = (name) => document.getElementById(name);

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
    if (sounding?.element.closest(".card").hidden) stopSound();
  }

  const players = new Map(); // by their element
  for (const card of cards) {
    const group = playerGroup();
    for (const holder of card.querySelectorAll(".player")) {
      const [picture, audio] = [holder.querySelector("img"), holder.querySelector("audio")];
      const view = { ...JSON.parse(holder.dataset.view), picture: picture.src };
      const player = soundPlayer({ url: audio.getAttribute("src"), view, label: `${holder.dataset.system}: ${card.querySelector("h3").textContent}`, group });
      players.set(player.element, player);
      picture.replaceWith(player.element);
      audio.remove();
    }
  }

  function step(button, rows, columns) {
    const shown = [...list.children].filter((card) => !card.hidden);
    const card = button.closest(".card");
    const buttons = [...card.querySelectorAll(".play")];
    const next = shown[shown.indexOf(card) + rows];
    if (!next) return;
    const line = [...next.querySelectorAll(".play")];
    const target = line[Math.min(Math.max(buttons.indexOf(button) + columns, 0), line.length - 1)];
    if (target === button) return;
    target.focus();
    if (rows) next.scrollIntoView({ block: "nearest" });
    if (sounding) players.get(target.closest(".sound")).play();
  }

  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
    const button = event.target === document.body ? sounding?.element.querySelector(".play") : event.target.closest(".play");
    if (event.key === "Escape") stopSound();
    if (!button) return;
    if (moves[event.key]) {
      event.preventDefault();
      step(button, ...moves[event.key]);
    } else if (event.key === " " && event.target === document.body) {
      event.preventDefault();
      if (!event.repeat) stopSound();
    }
  });

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
