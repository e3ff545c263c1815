"use strict";
// A session: welcome with questions, headphone check, examples, trials, thanks. The server stores its progress, so a
// reload resumes there; the page only holds what is on the screen. All words come from the server (texts.json).

const BREAK = 20; // trials between two suggestions of a pause
let texts = {};
let onKey = () => {};
let shortcuts = true;
const drafts = new Map(); // answers that were not sent yet, by place

const t = (name, values = {}) => Object.entries(values).reduce((text, [key, value]) => text.replaceAll(`{${key}}`, value), texts[name] ?? name);
const choices = (name) => t(name).split("|");
const paragraph = (text) => make("p", { dir: "auto" }, text);
const list = (...items) => make("ul", {}, items.map((item) => make("li", {}, item)));
const go = (label, onclick, properties = {}) => make("button.go", { type: "button", onclick, ...properties }, label);
const announce = (text) => { byId("said").textContent = text; };

// Repeats a request until the server answers, so that no answer is lost while the server restarts.
async function request(method, path, body) {
  let failures = 0;
  for (let pause = 500; ; pause = Math.min(pause * 1.6, 8000)) {
    try {
      const options = body === undefined ? { method } : { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
      const answer = await fetch(here + path, options);
      if (answer.ok) {
        notice("");
        return await answer.json();
      }
      failures += answer.status === 503 ? 0 : 1;
      if (answer.status < 500 || failures >= FAILURES) {
        const reason = await answer.json().catch(() => ({}));
        return { refused: typeof reason.error === "string" ? reason.error : t("refused_status", { status: answer.status }) };
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // fetch raises a TypeError where no server answers
    }
    notice(t(method === "GET" ? "no_server" : "not_saved"));
    await wait(pause);
  }
}

// The pages' player without waveform, mel picture and level, which would tell a damaged clip; `onHeard` is called once
// all of the sound has been played. Players of one `group` share their position.
function sound(url, label, onHeard = () => {}, group = playerGroup()) {
  const words = { play: t("play"), pause: t("stop"), loop: t("loop"), position: t("position"), place: t("place"), region: t("region"), trouble: t("not_played") };
  return soundPlayer({ url, view: null, label, group, words, onHeard });
}

function turn(...children) {
  stopSound();
  onKey = () => {};
  show(...children);
}

function keys(...pairs) {
  const hints = make("span", {}, pairs.map(([key, what]) => make("span", {}, make("kbd", {}, key), ` ${t(what)} `)));
  const toggle = make("button.quiet", { type: "button", onclick: () => { shortcuts = !shortcuts; refresh(); } });
  const refresh = () => {
    hints.hidden = !shortcuts;
    toggle.textContent = t(shortcuts ? "keys_off" : "keys_on");
  };
  refresh();
  return make("p.keys", {}, hints, toggle);
}

function next(state) {
  if (state.refused) {
    turn(make("h1", {}, t("wrong")), paragraph(state.refused));
    return;
  }
  byId("title").textContent = state.title;
  document.title = state.title;
  const bar = byId("bar");
  const [done, all] = [state.tones.answered + state.answered, state.tones.total + state.total];
  bar.hidden = false;
  bar.setAttribute("aria-label", t("progress"));
  bar.setAttribute("aria-valuemax", all);
  bar.setAttribute("aria-valuenow", done);
  bar.firstChild.style.width = `${(100 * done) / Math.max(1, all)}%`;
  if (state.stage === "welcome") welcome(state);
  else if (state.stage === "tones") tones(state);
  else if (state.stage === "trials") (state.next.first && !state.next.given ? examples : trial)(state, state.next);
  else ending(state);
}

function welcome(state) {
  const { instructions, consent, contact, questions, platform } = state.welcome;
  const answers = {};
  const fields = questions.map((question) => {
    const id = `q-${question.name}`;
    const take = (event) => { answers[question.name] = event.target.value; refresh(); };
    const field = question.choices.length
      ? make("select", { id, required: question.required, onchange: take }, make("option", { value: "" }, t("choose")), question.choices.map((choice) => make("option", { value: choice }, choice)))
      : make("input", { id, type: "text", maxlength: "2000", required: question.required, oninput: take });
    return make("div.question", {}, make("label", { for: id, dir: "auto" }, question.text), field);
  });
  const agree = make("label.consent", {}, make("input", { type: "checkbox", onchange: (event) => { answers.consent = event.target.checked ? consent : ""; refresh(); } }), make("span", { dir: "auto" }, consent));
  const complete = () => questions.every((question) => !question.required || answers[question.name]) && (!consent || answers.consent);
  const start = go(t("begin"), async () => {
    if (questions.length || consent) {
      const saved = await request("PUT", "/survey", { answers });
      if (saved.refused) { notice(saved.refused); return; }
    }
    tones(state);
  });
  const refresh = () => { start.disabled = !complete(); };
  turn(make("h1", {}, t("welcome")), ...instructions.split("\n\n").filter(Boolean).map(paragraph),
    paragraph(t("welcome_what", { total: state.total, minutes: state.minutes })),
    list(t("welcome_headphones"), t("welcome_volume"), t("welcome_saved"), t("welcome_ears")),
    paragraph(t(platform ? "welcome_privacy_platform" : "welcome_privacy")), ...(contact ? [paragraph(t("contact", { contact }))] : []),
    ...fields, ...(consent ? [agree] : []), start);
  refresh();
  if (!start.disabled) start.focus({ preventScroll: true });
}

function tones(state) {
  const item = state.tones.answered;
  const buttons = [1, 2, 3].map((which) => make("button.choice", { type: "button", disabled: true, onclick: () => answer(which) },
    make("b", {}, `${which}`), make("small", {}, t(["first", "second", "third"][which - 1]))));
  const play = sound(`${here}/tones/${item}`, t("tones_play"), () => {
    buttons.forEach((button) => { button.disabled = false; });
    announce(t("answer_now"));
  });
  let sent = false;
  const answer = async (which) => {
    if (sent || buttons[0].disabled) return;
    sent = true;
    const saved = await request("PUT", `/tones/${item}`, { answer: which });
    sent = false;
    if (saved.refused) notice(saved.refused);
    else next(saved);
  };
  turn(make("p.step", {}, t("tones_step", { item: item + 1, total: state.tones.total })), make("h1", {}, t("tones")),
    paragraph(t("tones_about")), play.element, make("div.choices", { role: "group", "aria-label": t("tones_group") }, buttons),
    keys(["space", "key_play"], ["1–3", "key_answer"]));
  onKey = (key) => {
    if (key === " ") play.toggle();
    else if ("123".includes(key)) answer(Number(key));
    else return false;
    return true;
  };
}

// The instructions of a part, with a good and a damaged sound as the ends of the range.
function examples(state) {
  const kind = state.next.kind;
  const start = go(t(state.answered ? "continue" : "start"), () => trial(state, state.next));
  const scale = (name) => make("div.anchors", {}, make("h2", {}, t(name)), paragraph(t(`${name}_about`)),
    make("ol", {}, choices(`${name}_marks`).map((mark, place) => make("li", {}, make("b", {}, `${place + 1}`), ` ${mark}`))));
  const part = state.kinds.length > 1 ? make("p.step", {}, t("part", { number: state.kinds.indexOf(kind) + 1, total: state.kinds.length })) : "";
  const good = sound(`${here}/examples/good`, t("example_good"));
  const bad = sound(`${here}/examples/broken`, t("example_bad"));
  turn(part, make("h1", {}, t(kind)), paragraph(t(`${kind}_about`)),
    ...(kind === "rate" ? [make("div.two", {}, ["ovl", "rel"].map(scale))] : []), make("h2", {}, t("examples")),
    make("p", {}, `${t("examples_text")} `, make("q", { dir: "auto" }, state.example), ` ${t(kind === "rate" ? "examples_rate" : "examples_compare")}`),
    make("div.two", {}, good.element, bad.element), start);
  onKey = (key) => {
    if (key === "Enter") start.click();
    else if (key === "a") good.toggle();
    else if (key === "b") bad.toggle();
    else return false;
    return true;
  };
}

function trial(state, current) {
  const started = performance.now();
  const { kind, sides, place } = current;
  const draft = drafts.get(place);
  const left = draft ? draft.left : new Set(current.given ? [] : sides);
  const answers = draft ? draft.answers : { ovl: null, rel: null, better: null, scores: kind === "mushra" ? {} : null, ...current.given };
  drafts.set(place, { left, answers });
  const scales = kind === "rate" ? ["ovl", "rel"] : [];
  const done = go(t("next"), () => send(), { disabled: true });
  const hint = make("p.hint", { id: "hint" });
  const letter = (side) => side.toUpperCase();
  const missing = () => {
    if (kind === "rate") return scales.find((name) => answers[name] === null);
    if (kind === "compare") return answers.better === null ? "better" : undefined;
    return sides.find((side) => !(side in answers.scores));
  };
  const refresh = () => {
    form.querySelectorAll("fieldset[data-scale]").forEach((field) => field.classList.toggle("due", !left.size && field.dataset.scale === missing()));
    form.querySelectorAll("input").forEach((input) => { input.disabled = left.size > 0; });
    done.disabled = left.size > 0 || missing() !== undefined;
    hint.textContent = left.size ? t(sides.length > 1 ? "listen_all" : "listen_one") : t("answer_now");
  };
  const group = playerGroup();
  const players = sides.map((side) => sound(`${here}/trials/${place}/${side}`, sides.length > 1 ? t("sound_letter", { letter: letter(side) }) : t("sound"), () => {
    if (left.delete(side) && !left.size) announce(t("answer_now"));
    refresh();
  }, group));
  const mark = (name, value) => {
    if (left.size) return;
    answers[name] = value;
    form.querySelector(`input[name="${name}"][value="${value}"]`).checked = true;
    refresh();
  };
  const field = (name, title, about, options) => make("fieldset", { "data-scale": name }, make("legend", {}, title, make("small", {}, about)),
    make("div.options", {}, options.map(([value, big, small]) => make("label", {},
      make("input", { type: "radio", name, value: `${value}`, checked: answers[name] === value, onchange: () => mark(name, value) }),
      make("b", {}, big), make("small", {}, small)))));
  const slider = (side, number) => {
    const shown = make("output", {}, side in answers.scores ? `${answers.scores[side]}` : "–");
    const input = make("input", { type: "range", min: "0", max: "100", step: "1", "aria-label": t("sound_letter", { letter: letter(side) }), oninput: () => {
      answers.scores[side] = Number(input.value);
      shown.textContent = input.value;
      input.classList.add("set");
      refresh();
    } });
    input.value = answers.scores[side] ?? 50;
    input.classList.toggle("set", side in answers.scores);
    return make("div.slider", {}, players[number].element, make("div.scale", {}, input, make("div.words", { "aria-hidden": "true" }, choices("scores_marks").map((word) => make("span", {}, word)))), shown);
  };
  const parts = {
    rate: () => scales.map((name) => field(name, t(name), t(`${name}_about`), choices(`${name}_marks`).map((text, number) => [number + 1, `${number + 1}`, text]))),
    compare: () => [field("better", t("better"), "", [["a", "A", t("better_a")], ["same", "=", t("better_same")], ["b", "B", t("better_b")]])],
    mushra: () => [make("fieldset", {}, make("legend", {}, t("scores")), sides.map(slider))],
  };
  const form = make("div.form", {}, parts[kind]());
  let sent = false;
  const send = async () => {
    if (sent || done.disabled) return;
    sent = true;
    done.disabled = true;
    const seconds = Math.min(86400, (performance.now() - started) / 1000);
    const saved = await request("PUT", `/trials/${place}`, { ...answers, seconds });
    if (saved.refused) {
      sent = false;
      refresh();
      notice(saved.refused);
      return;
    }
    drafts.delete(place);
    next(saved);
  };
  const back = make("button.back", { type: "button", hidden: place === 0, onclick: async () => {
    const earlier = await request("GET", `/trials/${place - 1}`);
    if (earlier.refused) notice(earlier.refused);
    else trial(state, earlier);
  } }, t("back"));
  const shortcutsOf = {
    rate: [["space", "key_play"], ["1–5", "key_scales"], ["enter", "key_next"], ["backspace", "key_back"]],
    compare: [["a", "sound_a"], ["b", "sound_b"], ["1", "better_a"], ["2", "better_same"], ["3", "better_b"], ["enter", "key_next"], ["backspace", "key_back"]],
    mushra: [[`a–${sides.at(-1)}`, "key_play"], ["enter", "key_next"], ["backspace", "key_back"]],
  };
  texts.sound_a = t("sound_letter", { letter: "A" });
  texts.sound_b = t("sound_letter", { letter: "B" });
  turn(make("p.step", {}, t("trial_step", { item: place + 1, total: state.total })),
    ...(place && place % BREAK === 0 ? [make("p.pause", {}, t("pause"))] : []),
    make("p.prompt", { dir: "auto" }, current.prompt),
    ...(kind === "mushra" ? [] : [make(sides.length > 1 ? "div.two" : "div", {}, players.map((player) => player.element))]),
    hint, form, make("div.ends", {}, back, done), keys(...shortcutsOf[kind]));
  let again = 0; // once both scales are rated, further digits change them in turn
  onKey = (key) => {
    if (key === "Enter" && done.disabled) return false;
    if (key === "Enter") send();
    else if (key === "Backspace") { if (!back.hidden) back.click(); }
    else if (kind === "rate" && key === " ") players[0].toggle();
    else if (kind === "rate" && "12345".includes(key)) mark(missing() ?? scales[again++ % 2], Number(key));
    else if (kind !== "rate" && sides.includes(key)) players[sides.indexOf(key)].toggle();
    else if (kind === "compare" && "123".includes(key)) mark("better", ["a", "same", "b"][Number(key) - 1]);
    else return false;
    return true;
  };
  refresh();
}

// The last screen: finished, ended by the headphone check, or closed.
function ending(state) {
  const { code, url, comment } = state.end;
  const name = { done: "thanks", failed: "failed", closed: "closed" }[state.stage];
  const box = make("textarea", { id: "comment", maxlength: "2000", rows: "4" });
  const send = make("button.back", { type: "button", onclick: async () => {
    const saved = await request("PUT", "/survey", { answers: { comment: box.value } });
    notice(saved.refused ?? "");
    if (!saved.refused) announce(send.textContent = t("comment_sent"));
  } }, t("comment_send"));
  const open = state.stage !== "closed";
  turn(make("h1", {}, t(name)), paragraph(t(`${name}_about`)),
    ...(open && comment ? [make("div.question", {}, make("label", { for: "comment" }, t("comment")), box, send)] : []),
    ...(open && code ? [make("p", {}, `${t("code")} `, make("code.code", {}, code))] : []),
    ...(open && url ? [make("a.go", { href: url, rel: "noreferrer" }, t("return"))] : [paragraph(t("close_page"))]));
}

document.addEventListener("keydown", (event) => {
  if (!shortcuts || event.ctrlKey || event.altKey || event.metaKey || event.repeat || event.key.length === 0) return;
  const { target } = event;
  const own = target.closest("button, a");
  // The browser activates a focused button or choice itself; but Enter continues even where play was clicked last.
  if (own && (event.key === " " || (event.key === "Enter" && !own.classList.contains("play")))) return;
  if (target.matches("input[type=text], textarea, select") || (target.matches("input") && event.key === " ")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (onKey(key)) event.preventDefault();
});

// The entry link makes a session for this participant and goes there; every other link is a session.
async function begin() {
  const answer = await request("GET", "/texts");
  texts = answer.texts ?? {};
  document.documentElement.lang = answer.language ?? "en";
  if (!here.split("/").slice(-2)[0].startsWith("join")) {
    next(await request("GET", "/state"));
    return;
  }
  const joined = await request("POST", "", { parameters: Object.fromEntries(new URLSearchParams(location.search)) });
  if (joined.refused) turn(make("h1", {}, t("test")), paragraph(joined.refused));
  else location.replace(`../r/${joined.token}`);
}
begin();
