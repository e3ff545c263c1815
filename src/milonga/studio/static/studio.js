"use strict";
// One prompt: its takes appear as they are generated, and each is edited, kept or discarded, or compared with another. The
// server stores requests and decisions, so a reload, or another device, shows the same.

const form = byId("ask");
const stage = byId("stage");
let state = null;
let shown = location.hash.slice(1); // the prompt whose takes are on the screen
let comparing = null;
let all = false; // whether the takes after the best are shown too
let stamp = ""; // of the history that is shown
let first = 0; // the place of the first prompt of the history that is shown

const remember = (name, value) => { try { localStorage.setItem(`studio-${name}`, value ? "1" : ""); } catch { /* a private window stores nothing */ } };
const recall = (name) => { try { return localStorage.getItem(`studio-${name}`) === "1"; } catch { return false; } };
const blind = () => recall("blind");
const shortcuts = () => !recall("shortcuts-off");

async function request(method, path, body) {
  const answer = await ask(method, path, body);
  if (answer.refused) notice(answer.refused);
  return answer;
}

async function change(method, path, body) {
  const answer = await request(method, path, body);
  if (!answer.refused) draw(answer);
  return !answer.refused;
}

function drawProgress() {
  const { current, waiting } = state;
  const own = state.takes.filter((take) => !take.generated && !take.trouble && take.offered).length;
  byId("progress").hidden = !waiting;
  byId("cancel").hidden = !own;
  byId("disk").hidden = !state.trouble;
  byId("disk").textContent = state.trouble && `Nothing can be written at the moment: ${state.trouble}. Trying again …`;
  if (!waiting) return;
  const of = current && current.prompt !== state.prompt?.text ? ` of “${current.prompt}”` : "";
  const step = !current ? "" : current.loading ? "loading the model" : `step ${current.step} of ${current.steps}${of}`;
  byId("what").textContent = [`${waiting} in the queue`, step].filter(Boolean).join(" · ");
  const gauge = byId("progress").querySelector(".gauge");
  gauge.setAttribute("aria-valuemax", current ? current.steps : 1);
  gauge.setAttribute("aria-valuenow", current ? current.step : 0);
  gauge.firstChild.style.width = current ? `${(100 * current.step) / current.steps}%` : "0";
}

async function drawHistory() {
  const words = byId("find").value;
  const history = await ask("GET", `/history?start=${first}&words=${encodeURIComponent(words)}`);
  if (history.refused || words !== byId("find").value) return;
  const last = first + history.prompts.length;
  byId("history").hidden = !words && !history.total;
  byId("history").querySelector("ul").replaceChildren(...history.prompts.map((one) => make("li", {},
    make("button.earlier", { type: "button", dir: "auto", "aria-current": `${one.id === state?.prompt?.id}`, onclick: () => go(one.id) },
      make("span", {}, one.text), make("small", {}, one.num_waiting ? `${one.num_waiting} queued` : one.num_kept ? `${one.num_kept} of ${one.num_generated} kept` : `${one.num_generated} generated`)))));
  byId("page").textContent = history.total ? `${first + 1} to ${last} of ${history.total}` : "No matching prompts";
  byId("newer").disabled = first === 0;
  byId("older").disabled = last >= history.total;
  byId("newer").onclick = () => { first = Math.max(0, first - history.size); drawHistory(); };
  byId("older").onclick = () => { first = last; drawHistory(); };
}

function drawSystems() {
  const chips = byId("systems");
  byId("best").hidden = !state.scorers.length;
  if (chips.querySelector("input")) return;
  chips.hidden = state.systems.length < 2;
  chips.append(...state.systems.map((one) => make("label.chip", {}, make("input", { type: "checkbox", name: "systems", value: one.name, checked: true }), make("span", {}, one.name))));
  for (const name of ["steps", "guidance"]) {
    const defaults = [...new Set(state.systems.map((one) => one[name]))];
    form.elements[name].placeholder = defaults.length === 1 ? `${defaults[0]}` : "default";
  }
}

function draw(answer) {
  state = answer;
  shown = state.prompt?.id || "";
  if (shown && location.hash.slice(1) !== shown) history.replaceState(null, "", `#${shown}`);
  drawSystems();
  drawProgress();
  if (!comparing) drawTakes();
  const current = `${state.stamp} ${shown}`;
  if (current === stamp) return;
  stamp = current;
  drawHistory();
}

async function go(prompt) {
  stopComparing();
  stopSound();
  all = false;
  shown = prompt;
  await change("GET", `/state?prompt=${prompt}`);
  scrollTo({ top: stage.offsetTop - 20, behavior: "instant" });
}

const decide = (take, keep) => change("PUT", `/takes/${take.id}`, { keep: take.keep === keep ? null : keep });

function offerUndo(text, undo) {
  notice(text);
  byId("notice").append(" ", button("plain", "Undo", async () => { if (await undo()) notice(""); }));
}

async function deleteTake(take) {
  cards.get(take.id)?.sound?.pause();
  if (await change("PUT", `/takes/${take.id}`, { deleted: true })) offerUndo(`${title(take)} is deleted.`, () => change("PUT", `/takes/${take.id}`, { deleted: false }));
}

async function deletePrompt() {
  const { id, text } = state.prompt;
  stopSound();
  if (await change("PUT", `/prompts/${id}`, { deleted: true })) offerUndo(`“${text.slice(0, 60)}” is deleted.`, () => change("PUT", `/prompts/${id}`, { deleted: false }));
}

// Four close variations of a take.
async function moreLikeThis(take) {
  const offered = state.systems.map((one) => one.name);
  const order = { edit: "vary", source: take.id, strength: VARIATION, count: 4, systems: [offered.includes(take.system) ? take.system : offered[0]], scheduler: take.scheduler, negative: take.negative };
  if (take.edit !== "upload") Object.assign(order, { steps: take.steps, guidance: take.guidance });
  if (await change("POST", "/takes", order)) notice("Queued: 4 variations.");
}

// Puts a take's prompt, seed and settings into the form.
async function useSettings(take) {
  if (take.scheduler) await fillSchedulers(form.elements.scheduler);
  form.elements.prompt.value = state.prompt.text;
  for (const name of ["seed", "steps", "guidance", "negative", "scheduler"]) form.elements[name].value = take[name];
  form.elements.seconds.value = take.edit === "" ? take.seconds ?? "" : "";
  byId("more").open = true;
  form.scrollIntoView({ block: "start" });
  byId("words").focus();
}

async function upload(file) {
  if (!file) return;
  stopComparing();
  notice(`Reading ${file.name} …`);
  const query = new URLSearchParams({ name: file.name, prompt: byId("words").value });
  const answer = await ask("POST", `/upload?${query}`, file.slice(0, file.size, ""));
  byId("file").value = "";
  if (answer.refused) return showError(form, { refused: `${file.name}: ${answer.refused}` });
  clearErrors(form);
  draw(answer);
  notice(`${file.name} is here: edit it, or ask for more like it.`);
}

function move(by) {
  const items = [...stage.querySelectorAll(".take")];
  const next = items[items.indexOf(document.activeElement.closest(".take")) + by] || (by < 0 ? items[0] : items.at(-1));
  if (!next) return;
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

const current = () => document.activeElement.closest(".take") || stage.querySelector(".take");
const KEYS = {
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  " ": () => current()?.sound?.toggle(),
  k: () => current()?.keep?.click(),
  d: () => current()?.drop?.click(),
  e: () => { const item = current(); if (item?.sound) openEditor(item.take, item.sound.group.region); },
  m: () => { const item = current(); if (item?.sound) moreLikeThis(item.take); },
  c: () => { const compare = stage.querySelector(".compare"); if (compare && !compare.disabled) compareTwo(); },
  "/": () => byId("words").focus(),
};
const COMPARISON_KEYS = {
  a: () => comparing.a(), b: () => comparing.b(), u: () => comparing.undo(), Escape: stopComparing,
  1: () => comparing.answer("a"), 2: () => comparing.answer("same"), 3: () => comparing.answer("b"),
};

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select, dialog")) return;
  if (event.target === byId("words")) {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); form.requestSubmit(); }
    else if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === " " && event.target.closest("button, a, summary")) return; // the browser activates the focused element
  const menu = event.target.closest(".menu[open]");
  if (event.key === "Escape" && menu) {
    menu.open = false;
    menu.querySelector("summary").focus();
    return;
  }
  const action = (comparing ? COMPARISON_KEYS : KEYS)[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || event.repeat || (event.key.length === 1 && event.key !== " " && !shortcuts())) return;
  event.preventDefault();
  action();
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  clearErrors(form);
  const order = values(form, ["count", "steps", "guidance", "seconds"], ["prompt", "negative", "scheduler"]);
  if (!order) return;
  const seed = form.elements.seed.value.trim();
  if (seed && !(Number.isSafeInteger(Number(seed)) && Number(seed) >= 0)) return showError(form, { refused: `A seed is a whole number from 0 to ${Number.MAX_SAFE_INTEGER}.`, field: "seed" });
  order.seed = seed ? Number(seed) : null;
  order.systems = state.systems.length < 2 ? state.systems.map((one) => one.name) : [...form.querySelectorAll("[name=systems]:checked")].map((one) => one.value);
  stopComparing();
  all = false;
  const answer = await ask("POST", "/takes", order);
  if (answer.refused) return showError(form, answer);
  notice("");
  draw(answer);
  byId("words").blur();
});
form.addEventListener("input", (event) => {
  if (event.target.getAttribute("aria-invalid")) clearErrors(form);
  if (event.target.name !== "best" || !state || comparing) return;
  all = false;
  drawTakes();
});
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll(".menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
byId("more").addEventListener("toggle", () => fillSchedulers(form.elements.scheduler));
byId("cancel").addEventListener("click", () => change("DELETE", `/prompts/${shown}/queue`));
byId("find").addEventListener("input", () => { first = 0; drawHistory(); });
byId("file").addEventListener("change", (event) => upload(event.target.files[0]));
for (const name of ["dragover", "drop"]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    if (name === "drop") upload(event.dataTransfer.files[0]);
  });
}

async function watch() {
  for (;;) {
    if (document.visibilityState === "visible" && !document.querySelector("dialog[open]")) {
      const prompt = shown;
      const answer = await ask("GET", `/state?prompt=${prompt}`);
      if (answer.refused) notice(answer.refused);
      else if (prompt === shown || !state) draw(answer);
    }
    await wait(state?.waiting ? 400 : 4000);
  }
}
watch();
