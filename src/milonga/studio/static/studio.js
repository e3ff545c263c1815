"use strict";
// One caption: its takes appear as they are made, and each is kept or discarded, or compared with another. What was
// asked for and what was decided is the server's to know; a reload, or another device, shows the same.

const form = byId("ask");
const takes = byId("stage");
const cards = new Map(); // the takes on the screen by id
let state = null;
let shown = location.hash.slice(1); // the prompt whose takes are on the screen
let duelling = null;

const own = (take) => `${take.system} · ${take.steps} steps · guidance ${take.guidance} · seed ${take.seed}, no. ${take.number + 1}`;
const button = (kind, label, onclick, properties = {}) => make(`button.${kind}`, { type: "button", onclick, ...properties }, label);

async function tell(method, path, body) {
  const answer = await ask(method, path, body);
  if (answer.refused) notice(answer.refused);
  return answer;
}

async function change(method, path, body) {
  const answer = await tell(method, path, body);
  if (!answer.refused) draw(answer);
}

// A take's card: what can be done with it depends on whether it is made, waits or failed.
function card(take, place) {
  const one = make("li.take", { tabindex: "-1", "data-id": take.id });
  const names = `take ${place + 1}`;
  if (take.made) {
    const sound = player(`${here}/takes/${take.id}/sound`, `Take ${place + 1}`);
    const keep = button("keep", "Keep", () => decide(one.take, true), { "aria-label": `Keep ${names}` });
    const drop = button("drop", "Discard", () => decide(one.take, false), { "aria-label": `Discard ${names}` });
    const save = make("a.save", { href: `${here}/takes/${take.id}/wav`, download: "", "aria-label": `Save ${names} as a WAV file` }, "Save");
    one.append(sound.element, make("p.made", {}, own(take)), make("div.verdict", {}, keep, drop, save));
    Object.assign(one, { toggle: sound.toggle, keep, drop });
  } else {
    const told = make("p.told");
    const again = button("back", "Try again", () => change("POST", `/takes/${take.id}`), { "aria-label": `Try ${names} again` });
    one.append(make("p.name", {}, `Take ${place + 1}`), told, make("p.made", {}, own(take)), again);
    Object.assign(one, { told, again });
  }
  return one;
}

function refresh(one, take, making) {
  one.take = take;
  one.classList.toggle("kept", take.kept === true);
  one.classList.toggle("dropped", take.kept === false);
  if (take.made) {
    one.keep.setAttribute("aria-pressed", take.kept === true);
    one.drop.setAttribute("aria-pressed", take.kept === false);
    return;
  }
  one.classList.toggle("failed", take.trouble !== "");
  one.again.hidden = take.trouble === "";
  const step = making && making.id === take.id ? making.step : null;
  one.told.textContent = take.trouble ? `It could not be made: ${take.trouble}`
    : !take.offered ? `It waits for ${take.system}, which this studio was started without.`
      : step === null ? "It waits for its turn." : step ? `Step ${step} of ${take.steps}` : "The model is being loaded …";
}

function list() {
  const wanted = new Map(state.takes.map((take, place) => [take.id, [take, place]]));
  for (const [id, one] of cards) {
    const now = wanted.get(id);
    if (!now || Boolean(one.toggle) !== now[0].made) cards.delete(id);
  }
  for (const [take, place] of wanted.values()) {
    if (!cards.has(take.id)) cards.set(take.id, card(take, place));
    refresh(cards.get(take.id), take, state.making);
  }
  return state.takes.map((take) => cards.get(take.id));
}

function drawTakes() {
  const prompt = state.prompts.find((one) => one.id === state.prompt);
  if (!prompt) {
    takes.replaceChildren(make("p.hint", {}, "Nothing was asked for yet. Type what you want to hear, and each variation can be played as soon as it is made."));
    return;
  }
  const items = list();
  const there = takes.querySelector("ol");
  const comparable = state.takes.filter((one) => one.made && one.kept !== false).length > 1;
  if (there && takes.dataset.prompt === prompt.id) { // leave what sounds and what is focused where it is
    items.forEach((one, place) => { if (there.children[place] !== one) there.insertBefore(one, there.children[place] || null); });
    while (there.children.length > items.length) there.lastChild.remove();
    takes.querySelector(".compare").disabled = !comparable;
    return;
  }
  takes.dataset.prompt = prompt.id;
  takes.replaceChildren(
    make("div.head", {}, make("h1.prompt", { dir: "auto" }, prompt.text), button("compare", "Compare two", duel, { disabled: !comparable })),
    make("ol.takes", {}, items), hints());
}

const hints = () => make("p.keys", {}, [["↑ ↓", "move"], ["space", "play"], ["k", "keep"], ["d", "discard"], ["c", "compare two"], ["/", "new prompt"]]
  .map(([key, what]) => make("span", {}, make("kbd", {}, key), ` ${what}`)));

function drawMaking() {
  const { making, waiting } = state;
  byId("making").hidden = !waiting;
  if (!waiting) return;
  const take = making && state.takes.find((one) => one.id === making.id);
  const doing = !making ? "" : making.step ? `${take ? `${take.system}: ` : ""}step ${making.step} of ${making.steps}` : "loading the model";
  byId("what").textContent = [`${waiting} still to be made`, doing].filter(Boolean).join(" · ");
  const gauge = byId("making").querySelector(".gauge");
  gauge.setAttribute("aria-valuemax", making ? making.steps : 1);
  gauge.setAttribute("aria-valuenow", making ? making.step : 0);
  gauge.firstChild.style.width = making ? `${(100 * making.step) / making.steps}%` : "0";
}

function drawPrompts() {
  byId("earlier").hidden = state.prompts.length < 2;
  byId("earlier").querySelector("ul").replaceChildren(...state.prompts.map((one) => make("li", {},
    make("button.earlier", { type: "button", dir: "auto", "aria-current": `${one.id === state.prompt}`, onclick: () => go(one.id) },
      make("span", {}, one.text), make("small", {}, one.kept ? `${one.kept} of ${one.made} kept` : `${one.made} made`)))));
}

function drawSystems() {
  const field = byId("systems");
  if (field.querySelector("input")) return;
  field.hidden = state.systems.length < 2;
  field.append(...state.systems.map((one) => make("label.chip", {}, make("input", { type: "checkbox", name: "system", value: one.name, checked: true }), make("span", {}, one.name))));
  for (const name of ["steps", "guidance"]) {
    const values = [...new Set(state.systems.map((one) => one[name]))];
    form.elements[name].placeholder = values.length === 1 ? `${values[0]}` : "its own";
  }
}

function draw(answer) {
  state = answer;
  shown = state.prompt;
  drawSystems();
  drawMaking();
  drawPrompts();
  if (!duelling) drawTakes();
}

async function go(prompt) {
  stopDuel();
  shown = prompt;
  history.replaceState(null, "", `#${prompt}`);
  await change("GET", `/state?prompt=${prompt}`);
  scrollTo({ top: takes.offsetTop - 20, behavior: "instant" });
}

const decide = (take, kept) => change("PUT", `/takes/${take.id}`, { kept: take.kept === kept ? null : kept });

// Two takes, whose makers are not named, until there are none left or one has had enough.
async function duel() {
  const found = await tell("GET", `/duel?prompt=${shown}`);
  if (!found.refused) face(found);
}

function face(found) {
  if (sounding) sounding();
  if (!found.left) {
    stopDuel();
    notice("Every two takes that are not discarded have been compared.");
    return;
  }
  const sound = (side) => player(`${here}/takes/${found[side].id}/sound`, side.toUpperCase());
  const [a, b] = ["a", "b"].map(sound);
  const answer = async (better) => {
    const next = await tell("PUT", "/duel", { a: found.a.id, b: found.b.id, better });
    if (!next.refused && duelling) face(next);
  };
  const choices = [["a", "A is better"], ["same", "No difference"], ["b", "B is better"]]
    .map(([value, label]) => button("choice", label, () => answer(value)));
  duelling = { a: a.toggle, b: b.toggle, answer };
  document.body.classList.add("duelling");
  const prompt = state.prompts.find((one) => one.id === shown);
  delete takes.dataset.prompt;
  show(make("div.card.duel", {}, make("p.step", {}, `Which would you rather have? ${found.left} ${found.left > 1 ? "comparisons" : "comparison"} left`),
    make("h1.prompt", { dir: "auto" }, prompt.text), make("div.two", {}, a.element, b.element), make("div.choices", {}, choices),
    make("div.ends", {}, button("back", "Enough", stopDuel)),
    make("p.keys", {}, [["a", "play A"], ["b", "play B"], ["1", "A better"], ["2", "no difference"], ["3", "B better"], ["esc", "enough"]]
      .map(([key, what]) => make("span", {}, make("kbd", {}, key), ` ${what}`)))));
}

function stopDuel() {
  if (!duelling) return;
  if (sounding) sounding();
  duelling = null;
  document.body.classList.remove("duelling");
  cards.clear();
  drawTakes();
}

function move(by) {
  const all = [...takes.querySelectorAll(".take")];
  const next = all[all.indexOf(document.activeElement.closest(".take")) + by] || (by < 0 ? all[0] : all.at(-1));
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
  c: () => { const compare = takes.querySelector(".compare"); if (compare && !compare.disabled) duel(); },
  "/": () => byId("words").focus(),
};
const DUEL = {
  a: () => duelling.a(), b: () => duelling.b(), Escape: stopDuel,
  1: () => duelling.answer("a"), 2: () => duelling.answer("same"), 3: () => duelling.answer("b"),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select")) return;
  if (event.target === byId("words")) {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); form.requestSubmit(); }
    else if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === " " && event.target.closest("button, a")) return; // the browser presses what is focused
  const does = (duelling ? DUEL : KEYS)[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!does || event.repeat) return;
  event.preventDefault();
  does();
});

const number = (name) => (form.elements[name].value === "" ? null : Number(form.elements[name].value));

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const systems = state.systems.length < 2 ? state.systems.map((one) => one.name) : [...form.querySelectorAll("[name=system]:checked")].map((one) => one.value);
  const order = { prompt: form.elements.prompt.value, systems, count: number("count") };
  for (const name of ["steps", "guidance", "seed"]) order[name] = number(name);
  stopDuel();
  const answer = await tell("POST", "/takes", order);
  if (answer.refused) return;
  history.replaceState(null, "", `#${answer.prompt}`);
  draw(answer);
  byId("words").blur();
});
byId("cancel").addEventListener("click", () => change("DELETE", `/takes?prompt=${shown}`));

async function watch() {
  for (;;) {
    if (document.visibilityState === "visible") {
      const asked = shown;
      const answer = await ask("GET", `/state?prompt=${asked}`);
      if (answer.refused) notice(answer.refused);
      else if (asked === shown || !state) draw(answer);
    }
    await wait(state?.waiting ? 400 : 4000);
  }
}
watch();
