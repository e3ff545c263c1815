"use strict";
// One prompt: its takes appear as they are generated, and each is kept or discarded, or compared with another. The
// server stores requests and decisions, so a reload, or another device, shows the same.

const form = byId("ask");
const takes = byId("stage");
const cards = new Map(); // the takes on the screen by id
let state = null;
let shown = location.hash.slice(1); // the prompt whose takes are on the screen
let comparing = null;
let all = false; // whether the takes after the best are shown too

const own = (take) => `${take.system} · ${take.steps} steps · guidance ${take.guidance} · seed ${take.seed}, no. ${take.number + 1}`;
const button = (kind, label, onclick, properties = {}) => make(`button.${kind}`, { type: "button", onclick, ...properties }, label);

async function request(method, path, body) {
  const answer = await ask(method, path, body);
  if (answer.refused) notice(answer.refused);
  return answer;
}

async function change(method, path, body) {
  const answer = await request(method, path, body);
  if (!answer.refused) draw(answer);
}

// A take's card: its buttons depend on whether it is generated, waits or failed.
function card(take, place) {
  const one = make("li.take", { tabindex: "-1", "data-id": take.id });
  const names = `take ${place + 1}`;
  if (take.generated) {
    const sound = player(`${here}/takes/${take.id}/sound`, `Take ${place + 1}`);
    const keep = button("keep", "Keep", () => decide(one.take, true), { "aria-label": `Keep ${names}` });
    const drop = button("drop", "Discard", () => decide(one.take, false), { "aria-label": `Discard ${names}` });
    const save = make("a.save", { href: `${here}/takes/${take.id}/wav`, download: "", "aria-label": `Save ${names} as a WAV file` }, "Save");
    one.append(sound.element, make("p.settings", {}, own(take)), make("div.verdict", {}, keep, drop, save));
    Object.assign(one, { toggle: sound.toggle, keep, drop });
  } else {
    const status = make("p.status");
    const again = button("back", "Try again", () => change("POST", `/takes/${take.id}`), { "aria-label": `Try ${names} again` });
    one.append(make("p.name", {}, `Take ${place + 1}`), status, make("p.settings", {}, own(take)), again);
    Object.assign(one, { status, again });
  }
  return one;
}

function refresh(one, take, current) {
  one.take = take;
  one.querySelector(".settings").textContent = own(take) + (take.rank && bestFirst() ? ` · rank ${take.rank}` : "");
  one.classList.toggle("kept", take.keep === true);
  one.classList.toggle("dropped", take.keep === false);
  if (take.generated) {
    one.keep.setAttribute("aria-pressed", take.keep === true);
    one.drop.setAttribute("aria-pressed", take.keep === false);
    return;
  }
  one.classList.toggle("failed", take.trouble !== "");
  one.again.hidden = take.trouble === "";
  const step = current && current.id === take.id ? current.step : null;
  one.status.textContent = take.trouble ? `Generation failed: ${take.trouble}`
    : !take.offered ? `Waiting for ${take.system}, which this studio was started without.`
      : step === null ? "Waiting in the queue." : step ? `Step ${step} of ${take.steps}` : "Loading the model …";
}

// The number of takes that are shown, the best first; null for all in the order of their requests. Not before every take
// is there, so that none moves while it is listened to.
function bestFirst() {
  const waiting = state.takes.some((take) => !take.generated && !take.trouble && take.offered);
  return state.scorers.length && !waiting && form.elements.best.checkValidity() ? number("best") : null;
}

function list() {
  const rows = new Map(state.takes.map((take, place) => [take.id, [take, place]]));
  for (const [id, one] of cards) {
    const now = rows.get(id);
    if (!now || Boolean(one.toggle) !== now[0].generated) cards.delete(id);
  }
  for (const [take, place] of rows.values()) {
    if (!cards.has(take.id)) cards.set(take.id, card(take, place));
    refresh(cards.get(take.id), take, state.current);
  }
  const best = bestFirst();
  const order = best ? [...state.takes].sort((a, b) => (a.rank ?? 1e9) - (b.rank ?? 1e9)) : state.takes;
  return order.map((take, place) => Object.assign(cards.get(take.id), { hidden: best !== null && !all && place >= best }));
}

function drawMore(items) {
  const rest = items.filter((one) => one.hidden).length;
  const more = takes.querySelector(".more");
  more.hidden = !rest;
  more.textContent = `Show ${rest} more`;
}

function drawTakes() {
  const prompt = state.prompts.find((one) => one.id === state.prompt);
  if (!prompt) {
    takes.replaceChildren(make("p.hint", {}, "No prompts yet. Type what you want to hear; each variation can be played as soon as it is generated."));
    return;
  }
  const items = list();
  const present = takes.querySelector("ol");
  const comparable = state.takes.filter((one) => one.generated && one.keep !== false).length > 1;
  if (present && takes.dataset.prompt === prompt.id) { // leave the playing and the focused card in place
    items.forEach((one, place) => { if (present.children[place] !== one) present.insertBefore(one, present.children[place] || null); });
    while (present.children.length > items.length) present.lastChild.remove();
    takes.querySelector(".compare").disabled = !comparable;
    drawMore(items);
    return;
  }
  takes.dataset.prompt = prompt.id;
  takes.replaceChildren(
    make("div.head", {}, make("h1.prompt", { dir: "auto" }, prompt.text), button("compare", "Compare two", compareTwo, { disabled: !comparable })),
    make("ol.takes", {}, items), button("more", "", () => { all = true; drawTakes(); }), hints());
  drawMore(items);
}

const hints = () => make("p.keys", {}, [["↑ ↓", "move"], ["space", "play"], ["k", "keep"], ["d", "discard"], ["c", "compare two"], ["/", "new prompt"]]
  .map(([key, what]) => make("span", {}, make("kbd", {}, key), ` ${what}`)));

function drawProgress() {
  const { current, waiting } = state;
  byId("progress").hidden = !waiting;
  if (!waiting) return;
  const take = current && state.takes.find((one) => one.id === current.id);
  const step = !current ? "" : current.step ? `${take ? `${take.system}: ` : ""}step ${current.step} of ${current.steps}` : "loading the model";
  byId("what").textContent = [`${waiting} in the queue`, step].filter(Boolean).join(" · ");
  const gauge = byId("progress").querySelector(".gauge");
  gauge.setAttribute("aria-valuemax", current ? current.steps : 1);
  gauge.setAttribute("aria-valuenow", current ? current.step : 0);
  gauge.firstChild.style.width = current ? `${(100 * current.step) / current.steps}%` : "0";
}

function drawPrompts() {
  byId("earlier").hidden = state.prompts.length < 2;
  byId("earlier").querySelector("ul").replaceChildren(...state.prompts.map((one) => make("li", {},
    make("button.earlier", { type: "button", dir: "auto", "aria-current": `${one.id === state.prompt}`, onclick: () => go(one.id) },
      make("span", {}, one.text), make("small", {}, one.num_kept ? `${one.num_kept} of ${one.num_generated} kept` : `${one.num_generated} generated`)))));
}

function drawSystems() {
  const field = byId("systems");
  byId("best").hidden = !state.scorers.length;
  if (field.querySelector("input")) return;
  field.hidden = state.systems.length < 2;
  field.append(...state.systems.map((one) => make("label.chip", {}, make("input", { type: "checkbox", name: "system", value: one.name, checked: true }), make("span", {}, one.name))));
  for (const name of ["steps", "guidance"]) {
    const values = [...new Set(state.systems.map((one) => one[name]))];
    form.elements[name].placeholder = values.length === 1 ? `${values[0]}` : "default";
  }
}

function draw(answer) {
  state = answer;
  shown = state.prompt;
  drawSystems();
  drawProgress();
  drawPrompts();
  if (!comparing) drawTakes();
}

async function go(prompt) {
  stopComparing();
  all = false;
  shown = prompt;
  history.replaceState(null, "", `#${prompt}`);
  await change("GET", `/state?prompt=${prompt}`);
  scrollTo({ top: takes.offsetTop - 20, behavior: "instant" });
}

const decide = (take, keep) => change("PUT", `/takes/${take.id}`, { keep: take.keep === keep ? null : keep });

// Pairs of takes, without the names of their systems, until none are left or the user stops.
async function compareTwo() {
  const pair = await request("GET", `/comparison?prompt=${shown}`);
  if (!pair.refused) drawComparison(pair);
}

function drawComparison(pair) {
  if (stopPlaying) stopPlaying();
  if (!pair.left) {
    stopComparing();
    notice("All pairs of takes that are not discarded have been compared.");
    return;
  }
  const sound = (side) => player(`${here}/takes/${pair[side].id}/sound`, side.toUpperCase());
  const [a, b] = ["a", "b"].map(sound);
  const answer = async (better) => {
    const next = await request("PUT", "/comparison", { a: pair.a.id, b: pair.b.id, better });
    if (!next.refused && comparing) drawComparison(next);
  };
  const choices = [["a", "A is better"], ["same", "No difference"], ["b", "B is better"]]
    .map(([value, label]) => button("choice", label, () => answer(value)));
  comparing = { a: a.toggle, b: b.toggle, answer };
  document.body.classList.add("comparing");
  const prompt = state.prompts.find((one) => one.id === shown);
  delete takes.dataset.prompt;
  show(make("div.card.comparison", {}, make("p.step", {}, `Which one do you prefer? ${pair.left} ${pair.left > 1 ? "comparisons" : "comparison"} left`),
    make("h1.prompt", { dir: "auto" }, prompt.text), make("div.two", {}, a.element, b.element), make("div.choices", {}, choices),
    make("div.ends", {}, button("back", "Stop", stopComparing)),
    make("p.keys", {}, [["a", "play A"], ["b", "play B"], ["1", "A better"], ["2", "no difference"], ["3", "B better"], ["esc", "stop"]]
      .map(([key, what]) => make("span", {}, make("kbd", {}, key), ` ${what}`)))));
}

function stopComparing() {
  if (!comparing) return;
  if (stopPlaying) stopPlaying();
  comparing = null;
  document.body.classList.remove("comparing");
  cards.clear();
  drawTakes();
}

function move(by) {
  const items = [...takes.querySelectorAll(".take:not([hidden])")];
  const next = items[items.indexOf(document.activeElement.closest(".take")) + by] || (by < 0 ? items[0] : items.at(-1));
  if (!next) return;
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

const current = () => document.activeElement.closest(".take") || takes.querySelector(".take");
const KEYS = {
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  " ": () => current()?.toggle?.(),
  k: () => current()?.keep?.click(),
  d: () => current()?.drop?.click(),
  c: () => { const compare = takes.querySelector(".compare"); if (compare && !compare.disabled) compareTwo(); },
  "/": () => byId("words").focus(),
};
const COMPARISON_KEYS = {
  a: () => comparing.a(), b: () => comparing.b(), Escape: stopComparing,
  1: () => comparing.answer("a"), 2: () => comparing.answer("same"), 3: () => comparing.answer("b"),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select")) return;
  if (event.target === byId("words")) {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); form.requestSubmit(); }
    else if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === " " && event.target.closest("button, a")) return; // the browser activates the focused element
  const action = (comparing ? COMPARISON_KEYS : KEYS)[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || event.repeat) return;
  event.preventDefault();
  action();
});

const number = (name) => (form.elements[name].value === "" ? null : Number(form.elements[name].value));

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const systems = state.systems.length < 2 ? state.systems.map((one) => one.name) : [...form.querySelectorAll("[name=system]:checked")].map((one) => one.value);
  const order = { prompt: form.elements.prompt.value, systems, count: number("count") };
  for (const name of ["steps", "guidance", "seed"]) order[name] = number(name);
  stopComparing();
  all = false;
  const answer = await request("POST", "/takes", order);
  if (answer.refused) return;
  history.replaceState(null, "", `#${answer.prompt}`);
  draw(answer);
  byId("words").blur();
});
form.elements.best.addEventListener("input", () => { all = false; if (state && !comparing) drawTakes(); });
byId("cancel").addEventListener("click", () => change("DELETE", `/takes?prompt=${shown}`));

async function watch() {
  for (;;) {
    if (document.visibilityState === "visible") {
      const prompt = shown;
      const answer = await ask("GET", `/state?prompt=${prompt}`);
      if (answer.refused) notice(answer.refused);
      else if (prompt === shown || !state) draw(answer);
    }
    await wait(state?.waiting ? 400 : 4000);
  }
}
watch();
