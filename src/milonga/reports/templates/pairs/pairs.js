"use strict";
// A run's pairs, page by page: winner and loser share a position, so that one plays on where the other was. Text of the
// run is shown as text, never as markup.

const form = byId("tools");
const list = byId("stage");
const REASONS = {
  "not a number": "a clip could not be scored", order: "the scorers rank the other clip higher", min_winner_score: "the winner scores too low",
  min_loser_score: "the loser scores too low", min_margin: "the scores are too close", max_margin: "the scores are too far apart",
  worst: "another loser is worse", corrected: "dropped by hand", votes: "too few votes", kept: "kept",
};
const ACTIONS = { swap: "swapped by hand", drop: "dropped by hand", keep: "kept by hand" };
let start = 0;
let asked = 0; // the number of the last query, of which alone the answer is shown

const shown = (value) => (value === null ? "not a number" : value.toFixed(3).replace("-", "−"));

function side(pair, name, title, group) {
  const clip = pair[name];
  const sound = soundPlayer({ url: `${here}/clips/${clip.id}`, view: `${here}/clips/${clip.id}/view`, label: title, group });
  const words = clip.words === pair.prompt ? [] : [make("p", {}, `Generated from: ${clip.words}`)];
  const element = make(`section.side.${name}`, {}, sound.element, ...words,
    make("p.scores", {}, Object.entries(clip.scores).map(([scorer, value]) => `${scorer} ${shown(value)}`).join(" · ")),
    make("p.how", {}, `${clip.steps} ${clip.steps === 1 ? "step" : "steps"}, seed ${clip.seed}`));
  return { sound, element };
}

function card(pair) {
  const differences = Object.entries(pair.chosen.scores).map(([scorer, value]) => {
    const other = pair.rejected.scores[scorer];
    return `difference by ${scorer} ${value === null || other === null ? "–" : shown(value - other)}`;
  });
  const group = playerGroup();
  const [winner, loser] = [side(pair, "chosen", "Winner", group), side(pair, "rejected", "Loser", group)];
  const [reason, detail] = pair.refused.split(/: ?(.*)/);
  const verdict = pair.correction ? ACTIONS[pair.correction] : pair.refused ? `refused: ${REASONS[reason] || reason}${detail ? ` (${detail})` : ""}` : "";
  const correct = async (action) => {
    const answer = await ask("PUT", `/pairs/${pair.id}`, { action: action === pair.correction ? "" : action });
    if (answer.refused) return notice(answer.refused);
    stopSound();
    const next = card(answer);
    item.replaceWith(next);
    next.querySelector(`.${action}`)?.focus();
    notice(answer.correction ? `The pair is ${ACTIONS[answer.correction]}. Training uses the correction.` : "The correction is taken back.");
  };
  const offered = pair.refused && !pair.correction ? ["keep", "swap"] : pair.correction === "keep" ? ["keep", "swap"] : ["swap", "drop"];
  const buttons = offered.map((action) => make(`button.plain.${action}`, { type: "button", onclick: () => correct(action), "aria-pressed": `${pair.correction === action}` },
    { swap: "Swap winner and loser", drop: "Drop", keep: "Keep" }[action]));
  const item = make("li.card", { tabindex: "-1", id: pair.id }, make("h2", { dir: "auto" }, pair.prompt),
    make("p.facts", {}, [`strategy ${pair.strategy}`, ...differences].join(" · "), ...(verdict ? [make("span.refused", {}, ` · ${verdict}`)] : [])),
    make("div.two", {}, winner.element, loser.element),
    make("div.actions", {}, make("button.plain", { type: "button", onclick: () => item.change() }, "Switch"), ...buttons, make("a.plain", { href: `#${pair.id}` }, "Link to this pair")));
  item.winner = winner.sound;
  item.loser = loser.sound;
  item.change = () => (winner.sound.isPlaying() ? loser.sound : winner.sound).play();
  return item;
}

async function load(from) {
  const mine = (asked += 1);
  stopSound();
  const query = new URLSearchParams(new FormData(form));
  query.set("start", from);
  const only = location.hash.slice(1);
  if (only) query.set("pair", only);
  const answer = await ask("GET", `/pairs?${query}`);
  if (mine !== asked) return; // a later query was sent meanwhile
  if (answer.refused) return notice(answer.refused);
  start = from;
  list.replaceChildren(...answer.pairs.map(card));
  const last = start + answer.pairs.length;
  const pages = Math.ceil(answer.total / answer.size);
  notice(only ? "" : answer.total ? `${start + 1} to ${last} of ${answer.total}` : "No matching pairs.");
  if (only) byId("notice").append("One pair. ", make("a", { href: "#" }, "Show all pairs"));
  byId("page").textContent = pages > 1 ? `Page ${Math.floor(start / answer.size) + 1} of ${pages}` : "";
  byId("by").hidden = !form.elements.sort.value;
  byId("back").disabled = start === 0;
  byId("on").disabled = last >= answer.total;
  byId("back").onclick = () => load(Math.max(0, start - answer.size));
  byId("on").onclick = () => load(start + answer.size);
  scrollTo(0, 0);
}

const current = () => document.activeElement.closest(".card") || list.querySelector(".card");

function step(by) {
  const cards = [...list.children];
  const focused = document.activeElement.closest(".card");
  const next = cards[focused ? cards.indexOf(focused) + by : 0];
  if (!next) return;
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

const KEYS = {
  j: () => step(1), k: () => step(-1), w: () => current()?.winner.play(), l: () => current()?.loser.play(), x: () => current()?.change(),
  " ": () => (sounding ? sounding.pause() : current()?.winner.play()),
};
document.addEventListener("keydown", (event) => {
  const busy = event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select");
  if (busy || !KEYS[event.key] || (event.key === " " && event.target.closest("button, a"))) return;
  event.preventDefault();
  KEYS[event.key]();
});
form.addEventListener("input", () => {
  if (location.hash) history.replaceState(null, "", location.pathname);
  load(0);
});
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => load(0));

ask("GET", "/about").then((about) => {
  if (about.refused) return notice(about.refused);
  byId("run").textContent = about.run;
  document.title = `Pairs of ${about.run} · Milonga`;
  const verdicts = Object.entries(about.verdicts);
  const total = verdicts.reduce((sum, [name, count]) => sum + (name === "corrected by hand" ? 0 : count), 0);
  const options = verdicts.map(([name, count]) => new Option(`${name === "kept" || name === "corrected by hand" ? name : `refused: ${REASONS[name] || name}`} (${count})`, name));
  form.elements.verdict.replaceChildren(...options, new Option(`all (${total})`, ""));
  form.elements.strategy.replaceChildren(new Option("all", ""), ...about.strategies.map((name) => new Option(name, name)));
  form.elements.scorer.replaceChildren(...about.scorers.map((name) => new Option(name, name)));
  return load(0);
});
