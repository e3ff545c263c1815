"use strict";
// Text of the run only ever becomes textContent: a prompt is shown, never obeyed.
const form = document.getElementById("tools");
const list = document.getElementById("list");
const told = document.getElementById("told");
const player = new Audio();
let start = 0;
let asked = 0;
let playing = null; // the button whose clip sounds
let queue = []; // buttons still to be played

function ask(path) {
  return fetch(path).then(async (answer) => {
    if (!answer.ok) throw new Error((await answer.json()).error);
    return answer;
  });
}

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
}

function fill(template, fields) {
  const node = document.getElementById(template).content.firstElementChild.cloneNode(true);
  for (const [selector, text] of Object.entries(fields)) node.querySelector(selector).textContent = text;
  return node;
}

const shown = (value) => (value === null ? "not a number" : value.toFixed(3).replace("-", "−"));

function side(pair, name, title) {
  const one = pair[name];
  const node = fill("side", {
    h3: title,
    ".play": "Play",
    ".words": one.words === pair.prompt ? "" : `made from: ${one.words}`,
    ".scores": Object.entries(one.scores).map(([scorer, value]) => `${scorer} ${shown(value)}`).join(" · "),
    ".how": `${one.steps} steps, seed ${one.seed}`,
  });
  node.classList.add(name);
  const button = node.querySelector(".play");
  button.dataset.clip = one.id;
  button.setAttribute("aria-label", `Play the ${title.toLowerCase()} of: ${pair.prompt}`);
  button.addEventListener("click", () => play(button === playing ? [] : [button]));
  return node;
}

function card(pair) {
  const deltas = Object.entries(pair.chosen.scores).map(([scorer, value]) => {
    const other = pair.rejected.scores[scorer];
    return `Δ ${value === null || other === null ? "–" : shown(value - other)} by ${scorer}`;
  });
  const node = fill("card", { h2: pair.prompt, ".facts": [`strategy ${pair.strategy}`, ...deltas].join(" · ") });
  if (pair.refused) {
    const reason = document.createElement("span");
    reason.className = "refused";
    reason.textContent = ` · refused, ${pair.refused}`;
    node.querySelector(".facts").append(reason);
  }
  node.querySelector(".sides").append(side(pair, "chosen", "Winner"), side(pair, "rejected", "Loser"));
  return node;
}

function stop() {
  player.pause();
  if (playing) {
    playing.textContent = "Play";
    playing.classList.remove("on");
  }
  playing = null;
}

async function play(buttons) {
  stop();
  queue = buttons.slice(1);
  const button = buttons[0];
  if (!button) return;
  playing = button;
  button.textContent = "Stop";
  button.classList.add("on");
  try {
    // As a blob it can be sought in, and every browser plays it, also those that ask servers for ranges.
    const clip = await (await ask(`clips/${button.dataset.clip}`)).blob();
    if (playing !== button) return;
    URL.revokeObjectURL(player.src);
    player.src = URL.createObjectURL(clip);
    await player.play();
  } catch (error) {
    if (playing === button && error.name !== "AbortError") {
      stop();
      told.textContent = `The clip cannot be played: ${error.message}`;
    }
  }
}

player.addEventListener("ended", () => play(queue));

async function load(from) {
  const mine = ++asked;
  play([]);
  const query = new URLSearchParams(new FormData(form));
  query.set("start", from);
  try {
    const found = await (await ask(`pairs?${query}`)).json();
    if (mine !== asked) return; // a later question was asked meanwhile
    start = from;
    list.replaceChildren(...found.pairs.map(card));
    const last = start + found.pairs.length;
    told.textContent = found.total ? `${start + 1} to ${last} of ${found.total}` : "No pair fits.";
    document.getElementById("back").disabled = start === 0;
    document.getElementById("on").disabled = last >= found.total;
    document.getElementById("back").onclick = () => load(Math.max(0, start - found.size));
    document.getElementById("on").onclick = () => load(start + found.size);
    window.scrollTo(0, 0);
  } catch (error) {
    told.textContent = `The pairs cannot be read: ${error.message}`;
  }
}

function current() {
  const focused = document.activeElement.closest(".card");
  return focused || list.querySelector(".card");
}

function step(by) {
  const cards = [...list.children];
  const focused = document.activeElement.closest(".card");
  const next = cards[focused ? cards.indexOf(focused) + by : 0];
  if (next) {
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  }
}

const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  w: () => play([...current().querySelectorAll(".chosen .play")]),
  l: () => play([...current().querySelectorAll(".rejected .play")]),
  b: () => play([...current().querySelectorAll(".play")]),
  " ": () => play([]),
};

document.addEventListener("keydown", (event) => {
  const busy = event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select");
  if (busy || !KEYS[event.key] || (event.key === " " && event.target.closest("button")) || !list.children.length) return;
  event.preventDefault();
  KEYS[event.key]();
});
form.addEventListener("input", () => load(0));
form.addEventListener("submit", (event) => event.preventDefault());

ask("about").then((answer) => answer.json()).then((about) => {
  document.getElementById("run").textContent = about.run;
  document.title = `Pairs of ${about.run} · Milonga`;
  const verdicts = Object.entries(about.verdicts);
  const all = verdicts.reduce((sum, [, count]) => sum + count, 0);
  const named = verdicts.map(([name, count]) => [name, `${name === "kept" ? name : `refused: ${name}`} (${count})`]);
  options(form.verdict, [...named, ["", `all (${all})`]]);
  options(form.strategy, [["", "all"], ...about.strategies.map((name) => [name, name])]);
  options(form.scorer, about.scorers.map((name) => [name, name]));
  return load(0);
}).catch((error) => { told.textContent = `The run cannot be read: ${error.message}`; });
