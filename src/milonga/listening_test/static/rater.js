"use strict";
// A session: welcome, headphone check, examples, trials, thanks. The server stores its progress, so a reload resumes
// there; the page only holds what is on the screen.

const SCALES = {
  ovl: {
    title: "Overall quality", about: "How good is the sound quality, whatever the content?",
    marks: ["Bad", "Poor", "Fair", "Good", "Excellent"],
  },
  rel: {
    title: "Fit to the text", about: "Does it contain everything in the text, in the right order, and nothing else?",
    marks: ["None of it", "A little", "About half", "Most of it", "All of it"],
  },
};
const CHOICES = [["a", "A is better"], ["same", "No difference"], ["b", "B is better"]];
let onKey = () => {};

function progress(state) {
  byId("title").textContent = state.title;
  document.title = state.title;
  const bar = byId("bar");
  bar.hidden = false;
  bar.setAttribute("aria-valuemax", state.total);
  bar.setAttribute("aria-valuenow", state.answered);
  bar.firstChild.style.width = `${(100 * state.answered) / state.total}%`;
}

const paragraph = (text) => make("p", {}, text);
const list = (...items) => make("ul", {}, items.map((item) => make("li", {}, item)));
const go = (label, onclick, properties = {}) => make("button.go", { type: "button", onclick, ...properties }, label);
const keys = (...pairs) => make("p.keys", {}, pairs.map(([key, what]) => make("span", {}, make("kbd", {}, key), ` ${what}`)));

function turn(...children) {
  if (stopPlaying) stopPlaying();
  onKey = () => {};
  show(...children);
}

function next(state) {
  if (state.refused) {
    turn(make("h1", {}, "The session cannot continue"), paragraph(state.refused));
    return;
  }
  progress(state);
  if (state.tones.answered < state.tones.total) {
    if (state.tones.answered === 0) welcome(state);
    else tones(state);
  } else if (state.next === null) thanks();
  else if (state.next.first && !state.next.given) examples(state);
  else trial(state, state.next);
}

function welcome(state) {
  const minutes = Math.max(5, Math.round((state.total * 20) / 60 / 5) * 5);
  const start = go("Begin", () => tones(state));
  turn(make("h1", {}, "Welcome, and thank you for listening"),
    paragraph(`You will hear ${state.total} short sounds or pairs of sounds and judge them. It takes about ${minutes} minutes.`),
    list("Wear headphones and sit somewhere quiet. Please do not use loudspeakers.",
      "Every answer is saved immediately. You may close this page and return with the same link.",
      "Trust your own ears. Apart from a few obvious ones, there are no right answers."),
    paragraph("We do not ask for a name or address. Only your answers and their times are stored."), start);
  start.focus({ preventScroll: true });
}

function tones(state) {
  const item = state.tones.answered;
  const buttons = [1, 2, 3].map((which) => make("button.choice", { type: "button", disabled: true, onclick: () => answer(which) },
    make("b", {}, `${which}`), make("small", {}, ["first", "second", "third"][which - 1])));
  const sound = player(`${here}/tones/${item}`, "Play the three tones", () => buttons.forEach((one) => { one.disabled = false; }));
  let sent = false;
  const answer = async (which) => {
    if (sent || buttons[0].disabled) return;
    sent = true;
    next(await ask("PUT", `/tones/${item}`, { answer: which }));
  };
  turn(make("p.step", {}, `Headphone check · ${item + 1} of ${state.tones.total}`), make("h1", {}, "Which tone is the quietest?"),
    paragraph("Put your headphones on and set a comfortable volume. You will hear three tones, one after another."),
    sound.element, make("div.choices", { role: "group", "aria-label": "The quietest tone" }, buttons),
    keys(["space", "play"], ["1–3", "answer"]));
  onKey = (key) => {
    if (key === " ") sound.toggle();
    else if ("123".includes(key)) answer(Number(key));
    else return false;
    return true;
  };
}

// The instructions of a part, with a good and a broken sound as the ends of the range.
function examples(state) {
  const rating = state.next.kind === "rate";
  const start = go(state.answered ? "Continue" : "Start", () => trial(state, state.next));
  const scale = ({ title, about, marks }) => make("div.anchors", {}, make("h2", {}, title), paragraph(about),
    make("ol", {}, marks.map((mark, place) => make("li", {}, make("b", {}, `${place + 1}`), ` ${mark}`))));
  const part = state.kinds.length > 1 ? make("p.step", {}, `Part ${state.kinds.indexOf(state.next.kind) + 1} of ${state.kinds.length}`) : "";
  const good = player(`${here}/examples/good`, "A good one", () => {});
  const bad = player(`${here}/examples/broken`, "A broken one", () => {});
  turn(part, make("h1", {}, rating ? "Rate single sounds" : "Which of two is better?"),
    ...(rating
      ? [paragraph("You read a text, hear a sound that was generated for it, and rate it from 1 to 5 on two scales."), make("div.two", {}, Object.values(SCALES).map(scale))]
      : [paragraph("You read a text and hear two sounds that were generated for it. Choose the one that you prefer for that text: fit and quality both count. If you hear no difference, say so.")]),
    make("h2", {}, "Listen to the range first"),
    make("p", {}, "Two sounds for the text ", make("q", {}, state.example), rating ? ": the first deserves high ratings, the second the lowest." : ": the first is clearly better than the second."),
    make("div.two", {}, good.element, bad.element), start);
  onKey = (key) => {
    if (key === "Enter") start.click();
    else if (key === "a") good.toggle();
    else if (key === "b") bad.toggle();
    else return false;
    return true;
  };
}

function trial(state, one) {
  const started = performance.now();
  const sides = one.kind === "rate" ? ["a"] : ["a", "b"];
  const left = new Set(one.given ? [] : sides);
  const answers = { ovl: null, rel: null, better: null, ...one.given };
  const scales = one.kind === "rate" ? ["ovl", "rel"] : ["better"];
  const done = go("Next", () => send(), { disabled: true });
  const hint = make("p.hint", { "aria-live": "polite" });
  const due = () => scales.find((name) => answers[name] === null);
  const refresh = () => {
    form.querySelectorAll("fieldset").forEach((field, place) => { field.classList.toggle("due", !left.size && scales[place] === due()); });
    form.querySelectorAll("input").forEach((input) => { input.disabled = left.size > 0; });
    done.disabled = left.size > 0 || due() !== undefined;
    hint.textContent = left.size ? (sides.length > 1 ? "Listen to both sounds to the end, then answer." : "Listen to the sound to its end, then answer.") : "";
  };
  const players = sides.map((side) => player(`${here}/trials/${one.place}/${side}`, sides.length > 1 ? `Sound ${side.toUpperCase()}` : "Play the sound",
    () => { left.delete(side); refresh(); }));
  const mark = (name, value) => {
    if (left.size) return;
    answers[name] = value;
    form.querySelector(`input[name="${name}"][value="${value}"]`).checked = true;
    refresh();
  };
  const field = (name, title, about, options) => make("fieldset", {}, make("legend", {}, title, make("small", {}, about)),
    make("div.options", {}, options.map(([value, big, small]) => make("label", {},
      make("input", { type: "radio", name, value: `${value}`, checked: answers[name] === value, onchange: () => mark(name, value) }),
      make("b", {}, big), make("small", {}, small)))));
  const form = make("div.form", {}, one.kind === "rate"
    ? Object.entries(SCALES).map(([name, scale]) => field(name, scale.title, scale.about, scale.marks.map((text, place) => [place + 1, `${place + 1}`, text])))
    : field("better", "Which one do you prefer for this text?", "", CHOICES.map(([value, text]) => [value, value === "same" ? "=" : value.toUpperCase(), text])));
  let sent = false;
  const send = async () => {
    if (sent || done.disabled) return;
    sent = true;
    done.disabled = true;
    const seconds = Math.min(86400, (performance.now() - started) / 1000);
    next(await ask("PUT", `/trials/${one.place}`, { ...answers, seconds }));
  };
  const back = make("button.back", { type: "button", hidden: one.place === 0, onclick: async () => {
    const earlier = await ask("GET", `/trials/${one.place - 1}`);
    if (earlier.refused) notice(earlier.refused);
    else trial(state, earlier);
  } }, "Back");
  turn(make("p.step", {}, `${one.place + 1} of ${state.total}`), make("p.prompt", { dir: "auto" }, one.prompt),
    make(sides.length > 1 ? "div.two" : "div", {}, players.map((each) => each.element)), hint, form,
    make("div.ends", {}, back, done),
    one.kind === "rate"
      ? keys(["space", "play"], ["1–5", "quality, then fit"], ["enter", "next"], ["backspace", "back"])
      : keys(["a", "play A"], ["b", "play B"], ["1", "A better"], ["2", "no difference"], ["3", "B better"], ["enter", "next"], ["backspace", "back"]));
  let again = 0; // once both scales are rated, further digits change them in turn
  onKey = (key) => {
    if (key === "Enter" && done.disabled) return false;
    if (key === "Enter") send();
    else if (key === "Backspace") { if (!back.hidden) back.click(); }
    else if (one.kind === "rate" && key === " ") players[0].toggle();
    else if (one.kind === "rate" && "12345".includes(key)) mark(due() ?? scales[again++ % 2], Number(key));
    else if (one.kind === "compare" && "ab".includes(key)) players["ab".indexOf(key)].toggle();
    else if (one.kind === "compare" && "123".includes(key)) mark("better", CHOICES[Number(key) - 1][0]);
    else return false;
    return true;
  };
  refresh();
}

function thanks() {
  turn(make("h1", {}, "Thank you!"), paragraph("You have finished, and all your answers are saved. You may close this page."));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || event.key.length === 0) return;
  const own = event.target.closest("button");
  // The browser activates a focused button itself; but Enter continues even where the play button was clicked last.
  if (own && (event.key === " " || (event.key === "Enter" && !own.classList.contains("play")))) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (onKey(key)) event.preventDefault();
});

ask("GET", "/state").then(next);
