"use strict";
// Forms of the studio: values as the server takes them, errors at their fields, and the dialogs to edit and to rename.

const VARIATION = 0.4; // the strength of a variation, as of `milonga edit --variation`
const EDITS = [["region", "Repaint a region"], ["continue", "Continue the clip"], ["loop", "Make a loop"], ["vary", "Vary the whole clip"]];
const EDIT_FIELDS = { region: ["start", "stop", "words", "strength"], continue: ["seconds", "words"], loop: ["words"], vary: ["strength", "words"] };

const button = (kind, label, onclick, properties = {}) => make(`button.${kind}`, { type: "button", onclick, ...properties }, label);
const field = (label, input) => make("label", {}, `${label} `, input);

// An input's text as a number: null where it is empty, NaN where it is no number.
const number = (form, name) => {
  const text = form.elements[name].value.trim();
  return text === "" && form.elements[name].validity.valid ? null : Number(text === "" ? NaN : text);
};

function clearErrors(form) {
  form.querySelectorAll(".error").forEach((one) => { one.hidden = true; });
  form.querySelectorAll("[aria-invalid]").forEach((one) => one.removeAttribute("aria-invalid"));
}

// Shows an error beside its field, or at the end of the form where it belongs to none, and puts the focus there.
function showError(form, { refused, field: name }) {
  clearErrors(form);
  const input = name && (form.elements[name] instanceof RadioNodeList ? form.elements[name][0] : form.elements[name]);
  if (!input) {
    const general = form.querySelector(".error[role=alert]");
    general.textContent = refused;
    general.hidden = false;
    return;
  }
  const place = input.closest("fieldset") || input.closest("label") || input;
  const id = `${form.id}-${name}-error`;
  const message = byId(id) || make("p.error", { id });
  message.textContent = refused;
  message.hidden = false;
  place.after(message);
  input.setAttribute("aria-invalid", "true");
  input.setAttribute("aria-describedby", id);
  input.closest("details")?.setAttribute("open", "");
  input.focus();
}

// The values of a form; an error is shown, and null returned, where a number is none.
function values(form, numbers, texts) {
  const order = {};
  for (const name of numbers) {
    order[name] = number(form, name);
    if (Number.isNaN(order[name])) {
      showError(form, { refused: "This is no number.", field: name });
      return null;
    }
  }
  for (const name of texts) order[name] = form.elements[name].value;
  return order;
}

let schedulerNames = null; // asked for once, when they are first needed: the server loads its models' library for them

async function fillSchedulers(select) {
  if (!select.options.length) select.append(new Option("default", ""));
  schedulerNames ||= ask("GET", "/schedulers");
  const names = await schedulerNames;
  if (select.options.length === 1) select.append(...names.map((name) => new Option(name, name)));
}

// The dialog that edits a take: its player, on which a region is dragged, and what is to be done.
function openEditor(take, region) {
  const dialog = byId("editor");
  const name = title(take);
  const input = (kind, attributes) => make("input", { name: kind, ...attributes });
  const real = (kind, attributes) => input(kind, { type: "number", step: "any", ...attributes });
  const fields = {
    start: field("From, s", real("start", { min: "0" })), stop: field("To, s", real("stop", { min: "0" })),
    seconds: field("Seconds to add", real("seconds", { min: "0.1", max: "120", value: "2" })),
    strength: field("Strength", real("strength", { min: "0.01", max: "1" })),
    words: make("label.wide", {}, "What it should sound like ", input("words", { maxlength: "500", placeholder: state.prompt.text })),
  };
  const kinds = make("select", { name: "edit" }, EDITS.map(([value, label]) => new Option(label, value)));
  const systems = make("select", { name: "systems" }, state.systems.map((one) => new Option(shownName(one.name), one.name, false, one.name === take.system)));
  const scheduler = make("select", { name: "scheduler" });
  fillSchedulers(scheduler);
  const form = make("form", { id: "editing", autocomplete: "off", novalidate: true });
  const sound = soundPlayer({ url: `${here}/takes/${take.id}/sound`, view: `${here}/takes/${take.id}/view`, label: name, onRegion: (span) => {
    if (!span) return;
    kinds.value = "region";
    [form.elements.start.value, form.elements.stop.value] = span.map((edge) => edge.toFixed(2));
    choose();
  } });
  const choose = () => {
    for (const [kind, label] of Object.entries(fields)) label.hidden = !EDIT_FIELDS[kinds.value].includes(kind);
    form.elements.strength.placeholder = kinds.value === "vary" ? `${VARIATION}` : "1";
  };
  const select = () => {
    const [start, stop] = [number(form, "start"), number(form, "stop")];
    if (start !== null && stop > start) sound.group.region = [start, stop];
    sound.refresh();
  };
  form.append(make("h2", { id: "editor-title" }, `Edit ${name}`), sound.element,
    make("p.hint", {}, "Drag on the waveform to choose a region. Everything outside it stays as it is."),
    make("div.numbers", {}, make("label.wide", {}, "What to do ", kinds), ...Object.values(fields)),
    make("details", {}, make("summary", {}, "More settings"), make("div.numbers", {}, field("Model", systems),
      field("Variations", input("count", { type: "number", min: "1", max: "16", value: "1" })),
      field("Steps", input("steps", { type: "number", min: "1", max: "1000", placeholder: "default" })),
      field("Guidance", real("guidance", { min: "0", max: "100", placeholder: "default" })),
      field("Seed", input("seed", { inputmode: "numeric", placeholder: "random" })), field("Scheduler", scheduler),
      make("label.wide", {}, "Negative prompt ", input("negative", { maxlength: "500" })))),
    make("p.error", { role: "alert", hidden: true }),
    make("div.ends", {}, button("back", "Close", () => dialog.close()), make("button.go", {}, "Generate")));
  kinds.addEventListener("change", choose);
  for (const edge of ["start", "stop"]) form.elements[edge].addEventListener("change", select);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const kind = kinds.value;
    const order = values(form, ["count", "steps", "guidance", "seed", ...["start", "stop", "seconds", "strength"].filter((one) => EDIT_FIELDS[kind].includes(one))],
      ["words", "negative", "scheduler", "edit"]);
    if (!order) return;
    if (kind === "vary") order.strength ??= VARIATION;
    const answer = await ask("POST", "/takes", { ...order, source: take.id, systems: [systems.value] });
    if (answer.refused) return showError(form, answer);
    dialog.close();
    draw(answer);
    notice(`Queued: an edit of ${name}.`);
  });
  dialog.replaceChildren(form);
  choose();
  dialog.showModal();
  if (region) sound.setRegion(region);
  else form.elements.edit.focus();
}

function openRenamer(take) {
  const dialog = byId("renamer");
  const input = make("input", { name: "title", maxlength: "200", value: take.title });
  const form = make("form", { id: "renaming", autocomplete: "off", novalidate: true }, make("h2", { id: "renamer-title" }, `Rename ${title(take)}`),
    field("Name", input), make("p.error", { role: "alert", hidden: true }),
    make("div.ends", {}, button("back", "Close", () => dialog.close()), make("button.go", {}, "Rename")));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const answer = await ask("PUT", `/takes/${take.id}`, { title: input.value });
    if (answer.refused) return showError(form, answer);
    dialog.close();
    cards.delete(take.id);
    draw(answer);
  });
  dialog.replaceChildren(form);
  dialog.showModal();
  input.select();
}

for (const name of ["editor", "renamer"]) byId(name).addEventListener("close", () => { stopSound(); byId(name).replaceChildren(); });
