"use strict";
// The takes of a prompt: a grid of variations and models for each order, edits and files below, and the comparison of two.

const cards = new Map(); // the takes on the screen by id
const MAX_COLUMNS = 4; // of a grid; with more models every take names its own
let drawn = ""; // what is on the screen, so that it is left in place while nothing else is
const title = (take) => take.title || `Take ${take.ordinal}`;
const seconds = (value) => `${Number(value.toFixed(2))} s`;
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// A model's name, or a letter where names are hidden: which letter is another one for every prompt.
function shownName(system) {
  if (!blind() || system === "upload") return system === "upload" ? "file" : system;
  const order = (name) => [...`${state.prompt?.id}${name}`].reduce((sum, letter) => Math.imul(sum ^ letter.codePointAt(0), 16777619) >>> 0, 2166136261);
  const names = [...new Set(state.takes.map((take) => take.system).filter((name) => name !== "upload"))].sort((a, b) => order(a) - order(b));
  return `Model ${String.fromCharCode(65 + names.indexOf(system))}`;
}

const sampling = (take) => [`seed ${take.seed}`, plural(take.steps, "step"), `guidance ${take.guidance}`, take.scheduler, take.seconds && take.edit === "" && seconds(take.seconds),
  take.negative && `without “${take.negative}”`].filter(Boolean).join(" · ");

// What was done to another take, in words.
function editing(take) {
  const source = state.takes.find((one) => one.id === take.source);
  const of = source ? title(source) : "a deleted take";
  const what = { region: () => `${seconds(take.start)} to ${seconds(take.stop)} of ${of} repainted`, continue: () => `${of} continued by ${seconds(take.seconds)}`,
    loop: () => `loop of ${of}`, vary: () => `variation of ${of}` }[take.edit]();
  return take.words ? `${what}: “${take.words}”` : what;
}

function details(take) {
  const rank = take.rank && bestFirst() ? ` · rank ${take.rank}` : "";
  if (take.edit === "upload") return `file${rank}`;
  const own = take.edit ? `${editing(take)} · ${shownName(take.system)} · ${sampling(take)}` : `${shownName(take.system)} · no. ${take.number + 1}`;
  return own + (bestFirst() && !take.edit ? ` · ${sampling(take)}` : "") + rank;
}

// A take's card: its buttons depend on whether it is generated, waits or failed.
function card(take) {
  const item = make("li.take", { tabindex: "-1", "data-id": take.id });
  const name = title(take);
  const settings = make("p.settings");
  const remove = button("plain", "Delete", () => deleteTake(item.take), { "aria-label": `Delete ${name}` });
  if (take.generated) {
    const sound = soundPlayer({ url: `${here}/takes/${take.id}/sound`, view: `${here}/takes/${take.id}/view`, label: name, onRegion: (region) => {
      repaint.hidden = !region;
      if (region) repaint.textContent = `Edit ${region.map(seconds).join(" to ")}`;
    } });
    const repaint = button("plain", "Edit this region", () => openEditor(item.take, sound.group.region), { hidden: true });
    const keep = button("keep", "Keep", () => decide(item.take, true), { "aria-label": `Keep ${name}` });
    const drop = button("drop", "Discard", () => decide(item.take, false), { "aria-label": `Discard ${name}` });
    const act = (label, does) => button("plain", label, () => { menu.open = false; does(); }, { "aria-label": `${label}: ${name}` });
    const menu = make("details.menu", {}, make("summary", { "aria-label": `More actions for ${name}` }, "⋯"), make("div", {},
      act("More like this", () => moreLikeThis(item.take)), ...(take.edit === "upload" ? [] : [act("Use this seed", () => useSettings(item.take))]),
      make("a.plain", { href: `${here}/takes/${take.id}/original`, download: "", "aria-label": `Save ${name}` }, "Save"),
      act("Rename", () => openRenamer(item.take)), remove));
    const edit = button("plain", "Edit", () => openEditor(item.take, null), { "aria-label": `Edit ${name}` });
    item.append(sound.element, repaint, settings, make("div.verdict", {}, keep, drop, edit, menu));
    Object.assign(item, { sound, keep, drop, edit, settings });
  } else {
    const status = make("p.status");
    const again = button("plain", "Try again", () => change("POST", `/takes/${take.id}`), { "aria-label": `Try again: ${name}` });
    item.append(make("p.name", {}, name), status, settings, make("div.verdict", {}, again, remove));
    Object.assign(item, { status, again, settings });
  }
  return item;
}

function refreshCard(item, take) {
  item.take = take;
  item.settings.textContent = details(take);
  item.classList.toggle("kept", take.keep === true);
  item.classList.toggle("dropped", take.keep === false);
  if (take.generated) {
    item.keep.setAttribute("aria-pressed", take.keep === true);
    item.drop.setAttribute("aria-pressed", take.keep === false);
    return;
  }
  item.classList.toggle("failed", take.trouble !== "" && take.trouble !== "cancelled");
  item.again.hidden = take.trouble === "";
  const current = state.current?.id === take.id ? state.current : null;
  item.status.textContent = take.trouble === "cancelled" ? "Cancelled" : take.trouble ? `Failed: ${take.trouble}`
    : !take.offered ? `Waiting for ${take.system}. Start the studio with it to make this take.`
      : !current ? "Queued" : current.loading ? "Loading the model …" : `Step ${current.step} of ${current.steps}`;
}

// The number of takes that are shown, the best first; null for all in the order of their requests. Not before every take
// is there, so that none moves while it is listened to.
function bestFirst() {
  const waiting = state.takes.some((take) => !take.generated && !take.trouble && take.offered);
  return state.scorers.length && !waiting ? number(byId("ask"), "best") || null : null;
}

// Sections of takes: [key, heading, columns, takes]; an order's takes are a grid of variations by models.
function sections() {
  const best = bestFirst();
  if (best) {
    const order = [...state.takes].sort((a, b) => (a.rank ?? 1e9) - (b.rank ?? 1e9));
    return [["best", "The best first", 0, all ? order : order.slice(0, best)]];
  }
  const batches = new Map();
  for (const take of state.takes.filter((one) => one.edit === "")) {
    const own = state.systems.find((one) => one.name === take.system);
    const usual = own && own.steps === take.steps && own.guidance === take.guidance; // models with other defaults share a grid
    const key = JSON.stringify([take.seed, take.negative, take.scheduler, take.seconds, usual || [take.steps, take.guidance]]);
    if (!batches.has(key)) batches.set(key, []);
    batches.get(key).push(take);
  }
  const rows = [...batches].map(([key, takes]) => {
    const systems = [...new Set(takes.map((take) => take.system))];
    const ordered = [...takes].sort((a, b) => a.number - b.number || systems.indexOf(a.system) - systems.indexOf(b.system));
    const same = new Set(takes.map(sampling)).size === 1;
    return [key, same ? sampling(takes[0]) : `seed ${takes[0].seed}, each model with its own steps and guidance`, systems.length, ordered];
  });
  for (const [key, heading, kinds] of [["edits", "Edits", ["region", "continue", "loop", "vary"]], ["files", "Files", ["upload"]]]) {
    const takes = state.takes.filter((take) => kinds.includes(take.edit));
    if (takes.length) rows.push([key, heading, 0, takes]);
  }
  return rows;
}

function drawTakes() {
  if (!state.prompt) {
    stage.replaceChildren(make("p.hint", {}, "No sounds yet. Type what you want to hear, or drop a file; each take can be played as soon as it is generated."));
    drawn = "";
    return;
  }
  const ids = new Set(state.takes.map((take) => take.id));
  for (const [id, item] of cards) if (!ids.has(id) || Boolean(item.sound) !== state.takes.find((take) => take.id === id).generated) cards.delete(id);
  for (const take of state.takes) {
    if (!cards.has(take.id)) cards.set(take.id, card(take));
    refreshCard(cards.get(take.id), take);
  }
  const rows = sections();
  const layout = JSON.stringify([state.prompt.id, blind(), rows.map(([key, heading, columns, takes]) => [key, heading, columns, takes.map((take) => [take.id, take.generated, take.title])])]);
  if (drawn !== layout) {
    drawn = layout;
    const focused = document.activeElement;
    stage.replaceChildren(heading(), ...rows.map(section), ...showMore(rows), hints());
    if (focused?.isConnected) focused.focus({ preventScroll: true });
  }
  stage.querySelector(".compare").disabled = state.takes.filter((take) => take.generated && take.keep !== false).length < 2;
  stage.querySelector(".zip").hidden = !state.takes.some((take) => take.keep);
}

function section([key, text, columns, takes]) {
  const systems = columns > 1 && columns <= MAX_COLUMNS ? [...new Set(takes.map((take) => take.system))] : [];
  const list = make("ol.takes", {}, takes.map((take) => cards.get(take.id)));
  const head = make("div.columns", { "aria-hidden": "true" }, systems.map((name) => make("span", {}, shownName(name))));
  for (const one of [list, head]) if (columns) one.style.setProperty("--columns", columns);
  list.classList.toggle("grid", systems.length > 1);
  const again = takes[0].edit === "" && key !== "best" ? button("plain", "Use this seed", () => useSettings(takes[0])) : "";
  return make("section.batch", {}, make("div.batch-head", {}, make("h2", {}, text), again), make("div.scroll", {}, ...(systems.length > 1 ? [head] : []), list));
}

function heading() {
  const hide = make("input", { type: "checkbox", checked: blind(), onchange: () => { remember("blind", hide.checked); drawTakes(); } });
  return make("div.head", {}, make("h1.prompt", { dir: "auto" }, state.prompt.text), make("div.tools", {},
    button("compare", "Compare two", compareTwo), make("label.check", {}, hide, " Hide model names"),
    make("a.plain.zip", { href: `${here}/kept.zip?prompt=${state.prompt.id}`, download: "", hidden: true }, "Download kept"),
    button("plain", "Delete prompt", deletePrompt)));
}

function showMore([[key, , , takes]]) {
  const rest = key === "best" ? state.takes.length - takes.length : 0;
  return rest ? [button("more", `Show ${rest} more`, () => { all = true; drawTakes(); })] : [];
}

const keyList = (rows) => rows.map(([key, what]) => make("span", {}, make("kbd", {}, key), ` ${what}`));
function hints() {
  const on = make("input", { type: "checkbox", checked: shortcuts(), onchange: () => remember("shortcuts-off", !on.checked) });
  return make("p.keys", {}, make("label.check", {}, on, " Shortcuts"), keyList([["↑ ↓", "move"], ["space", "play"], ["k", "keep"], ["d", "discard"], ["e", "edit"], ["m", "more like this"], ["c", "compare two"], ["/", "new prompt"]]));
}

// Pairs of takes, without the names of their models, until none are left or the user stops. Nothing can be answered
// before both were played in full.
async function compareTwo() {
  const pair = await request("GET", `/comparison?prompt=${shown}`);
  if (!pair.refused) drawComparison(pair);
}

function drawComparison(pair) {
  stopSound();
  if (!pair.left) {
    stopComparing();
    notice("All takes have been compared.");
    return;
  }
  const group = playerGroup();
  const refresh = () => {
    const missing = [a, b].some((sound) => !sound.isHeard());
    choices.forEach((one) => { one.disabled = missing; });
    hint.textContent = missing ? "Listen to both sounds in full, then answer. While one plays, the other takes over at the same position." : "You can answer now.";
  };
  const sound = (side) => soundPlayer({ url: `${here}/takes/${pair[side].id}/sound`, view: `${here}/takes/${pair[side].id}/view`, label: side.toUpperCase(), group, onHeard: () => refresh() });
  const [a, b] = ["a", "b"].map(sound);
  const answer = async (better) => {
    if (choices[0].disabled) return;
    choices.forEach((one) => { one.disabled = true; });
    const next = await request("PUT", "/comparison", { a: pair.a.id, b: pair.b.id, better });
    if (next.refused) refresh();
    else if (comparing) drawComparison(next);
  };
  const undo = async () => {
    const last = await request("DELETE", `/comparison?prompt=${shown}`);
    if (!last.refused && comparing) drawComparison(last);
  };
  const choices = [["a", "A is better"], ["same", "No difference"], ["b", "B is better"]].map(([value, label]) => button("choice", label, () => answer(value)));
  const hint = make("p.hint", { role: "status" });
  comparing = { a: a.toggle, b: b.toggle, answer, undo };
  document.body.classList.add("comparing");
  drawn = "";
  show(make("div.card.comparison", {}, make("p.step", {}, `Which sound do you prefer for this text? ${plural(pair.left, "comparison")} left`),
    make("h1.prompt", { dir: "auto" }, state.prompt.text), make("div.two", {}, a.element, b.element), hint, make("div.choices", {}, choices),
    make("div.ends", {}, button("back", "Done", stopComparing), button("back", "Undo the last answer", undo)),
    make("p.keys", {}, keyList([["a", "play A"], ["b", "play B"], ["1", "A better"], ["2", "no difference"], ["3", "B better"], ["u", "undo"], ["esc", "done"]]))));
  refresh();
}

function stopComparing() {
  if (!comparing) return;
  stopSound();
  comparing = null;
  document.body.classList.remove("comparing");
  drawTakes();
}
