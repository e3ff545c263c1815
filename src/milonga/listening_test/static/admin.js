"use strict";
// Progress of the test: raters per prompt, and every rater's link and progress. Refreshed every few seconds.

let drawn = ""; // the state on the screen, so that an unchanged page is not redrawn
const cell = (text, name) => make("td", { "data-name": name }, `${text}`);

function tile(value, label) {
  return make("div.tile", {}, make("b", {}, `${value}`), make("span", {}, label));
}

function coverage(state) {
  const reached = state.covered.filter((count) => count >= state.target).length;
  const cells = state.covered.map((count, place) => {
    const one = make("span.prompt-cell", { title: `prompt ${place + 1}: ${count} of ${state.target} raters` }, `${count}`);
    one.dataset.level = count >= state.target ? "full" : count ? "some" : "none";
    return one;
  });
  return make("section", {}, make("h2", {}, "Raters per prompt"),
    make("p", {}, `${reached} of ${state.prompts} prompts have the target of ${state.target} raters. All clips of a prompt go to the same raters; raters who fail the checks do not count.`),
    make("div.cells", { role: "img", "aria-label": `${reached} of ${state.prompts} prompts covered` }, cells));
}

function progressOf(rater) {
  if (rater.excluded) return ["bad", rater.excluded];
  if (rater.trials && rater.judged === rater.trials) return ["good", "finished"];
  return ["", rater.judged ? "in progress" : rater.seen ? "opened" : "not opened yet"];
}

function row(rater) {
  const link = new URL(`/r/${rater.token}`, location.href).href;
  const [kind, text] = progressOf(rater);
  const copy = make("button.copy", { type: "button", "aria-label": `Copy the link of ${rater.name}`, onclick: async () => {
    try {
      await navigator.clipboard.writeText(link);
      copy.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(copy.previousSibling); // no clipboard without https: select it instead
    }
  } }, "copy");
  const done = make("progress", { max: Math.max(1, rater.trials), value: rater.judged, "aria-label": `Progress of ${rater.name}` });
  const state = make("td.state", {}, text);
  if (kind) state.classList.add(kind);
  return make("tr", {}, make("th", { scope: "row" }, rater.name), make("td.progress", {}, done, ` ${rater.judged}/${rater.trials || "–"}`),
    cell(rater.tones === null ? "–" : `${rater.tones}/6`, "tones"), cell(rater.checks ? `${rater.checks - rater.failed}/${rater.checks}` : "–", "checks"), state,
    cell(rater.seen ? rater.seen.slice(0, 16).replace("T", " ") : "–", "last seen (UTC)"), make("td.link", {}, make("code", {}, link), copy));
}

function draw(state) {
  if (state.refused) { notice(state.refused); return; }
  const now = JSON.stringify({ ...state, now: "" });
  if (now === drawn) return;
  drawn = now;
  const [focused, scrolled] = [document.activeElement?.getAttribute("aria-label"), document.querySelector(".scroll")?.scrollLeft];
  byId("title").textContent = `${state.title} · progress`;
  const ratings = state.raters.reduce((sum, one) => sum + one.judged, 0);
  const finished = state.raters.filter((one) => one.trials && one.judged === one.trials).length;
  const number = make("input", { type: "number", min: "1", max: "100", value: "1", id: "number" });
  const invite = make("div.invite", {}, make("label", { for: "number" }, "New links"), number,
    make("button.go", { type: "button", "aria-label": "Invite", onclick: async () => draw(await ask("POST", "/raters", { count: Number(number.value) })) }, "Invite"));
  const head = make("tr", {}, ["Rater", "Judged", "Tones", "Checks", "State", "Last seen (UTC)", "Link"].map((one) => make("th", { scope: "col" }, one)));
  byId("stage").replaceChildren(
    make("div.tiles", {}, tile(ratings, "ratings saved"), tile(`${finished}/${state.raters.length}`, "raters finished"),
      tile(state.raters.filter((one) => one.excluded).length, "excluded so far"), tile(state.more, "more sessions needed")),
    make("p", {}, `Systems: ${state.systems.join(", ")}. Raters never see these names.`),
    coverage(state),
    make("section", {}, make("h2", {}, "Raters"), invite,
      state.raters.length ? make("div.scroll", { role: "region", tabindex: "0", "aria-label": "Raters" }, make("table.raters", {}, make("thead", {}, head), make("tbody", {}, state.raters.map(row))))
        : make("p.hint", {}, "No raters yet. Create links and give one to each rater.")));
  if (scrolled) document.querySelector(".scroll").scrollLeft = scrolled;
  [...byId("stage").querySelectorAll("[aria-label]")].find((one) => one.getAttribute("aria-label") === focused)?.focus({ preventScroll: true });
}

async function watch() {
  for (;;) {
    const busy = ["number"].includes(document.activeElement?.id) || !getSelection().isCollapsed;
    if (!busy && document.visibilityState === "visible") draw(await ask("GET", "/state"));
    await wait(5000);
  }
}
watch();
