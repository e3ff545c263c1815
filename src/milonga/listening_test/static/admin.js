"use strict";
// Progress of the test: raters per prompt, and every rater's link and progress. Refreshed every few seconds.

let drawn = ""; // the version on the screen, so that an unchanged page is not sent or drawn again
let filter = "all";
const cell = (text, name) => make("td", { "data-name": name }, `${text}`);
const button = (label, onclick, properties = {}) => make("button", { type: "button", onclick, ...properties }, label);
const address = (state, path) => (state.url ? `${state.url}/${path}` : new URL(`../${path}`, location.href).href);

function tile(value, label) {
  return make("div.tile", {}, make("b", {}, `${value}`), make("span", {}, label));
}

async function copyText(label, text) {
  try {
    await navigator.clipboard.writeText(text);
    label.textContent = "copied";
  } catch {
    notice("The browser allows copying on https pages only: select the text and copy it."); // no clipboard without https
  }
}

function copyButton(text, properties = {}) {
  const copy = make("button.copy", { type: "button", ...properties, onclick: () => copyText(copy, text()) }, properties.label ?? "copy");
  return copy;
}

function coverage(state) {
  const reached = state.covered.filter((count) => count >= state.target).length;
  const counts = new Map();
  for (const count of state.covered) counts.set(count, (counts.get(count) ?? 0) + 1);
  const cells = state.covered.map((count, place) => {
    const square = make("span.prompt-cell", { title: `prompt ${place + 1}: ${count} of ${state.target} raters` }, `${count}`);
    square.dataset.level = count >= state.target ? "full" : count ? "some" : "none";
    return square;
  });
  const summary = [...counts].sort(([a], [b]) => a - b).map(([count, prompts]) => `${prompts} with ${count}`).join(", ");
  return make("section", {}, make("h2", {}, "Raters per prompt"),
    make("p", {}, `${reached} of ${state.prompts} prompts have reached the target of ${state.target} raters (${summary}). All clips of a prompt go to the same raters; raters who fail the checks do not count.`),
    make("details", {}, make("summary", {}, "Every prompt"), make("div.cells", { role: "img", "aria-label": `${reached} of ${state.prompts} prompts covered` }, cells)));
}

function progressOf(rater) {
  if (rater.revoked) return ["bad", "revoked"];
  if (rater.excluded) return ["bad", rater.excluded];
  if (rater.trials && rater.judged === rater.trials) return ["good", "finished"];
  return ["", rater.judged ? "in progress" : rater.seen ? "opened" : "not opened yet"];
}

function row(state, rater) {
  const link = address(state, `r/${rater.token}`);
  const [kind, text] = progressOf(rater);
  const done = make("progress", { max: Math.max(1, rater.trials), value: rater.judged, "aria-label": `Progress of ${rater.name}` });
  const status = make("td.state", {}, text);
  if (kind) status.classList.add(kind);
  const revoke = make("button.revoke", { type: "button", disabled: Boolean(rater.revoked), "aria-label": `Revoke the link of ${rater.name}`, onclick: async () => {
    if (confirm(`Revoke the link of ${rater.name}? Their answers stay stored and no longer count.`)) draw(await ask("DELETE", `/raters/${rater.number}`));
  } }, "revoke");
  return make("tr", {}, make("th", { scope: "row" }, rater.participant ? `${rater.name} · ${rater.participant}` : rater.name),
    make("td.progress", {}, done, ` ${rater.judged}/${rater.trials || "–"}`),
    cell(rater.tones === null ? "–" : `${rater.tones}/6`, "tones"), cell(rater.checks ? `${rater.checks - rater.failed}/${rater.checks}` : "–", "checks"), status,
    cell(rater.seconds ? `${Math.round(rater.seconds / 60)} min` : "–", "time"), cell(rater.seen ? rater.seen.slice(0, 16).replace("T", " ") : "–", "last seen (UTC)"),
    make("td.link", {}, make("code", {}, link), copyButton(() => link, { "aria-label": `Copy the link of ${rater.name}` }), " ", revoke));
}

function entry(state) {
  const link = address(state, `join/${state.entry}`);
  return make("section", {}, make("h2", {}, "Entry link"),
    make("p", {}, "One link for everybody: whoever opens it gets a session of their own. On a crowd platform add its parameters, such as ?PROLIFIC_PID={{%PROLIFIC_PID%}}."),
    make("p.link", {}, make("code", {}, link), copyButton(() => link, { "aria-label": "Copy the entry link" })),
    make("div.actions", {},
      button(state.closed ? "Open the test again" : "Close the test", async () => {
        if (state.closed || confirm("Close the test? Nobody can join or answer until it is opened again.")) draw(await ask("PUT", "/closed", { closed: !state.closed }));
      }),
      make("a", { href: `${here}/ratings.csv`, download: "ratings.csv" }, "Ratings (CSV)"), make("a", { href: `${here}/raters.csv`, download: "raters.csv" }, "Raters (CSV)"),
      button("Show results", async () => {
        const text = await (await fetch(`${here}/results.txt`)).text();
        byId("results").replaceChildren(make("pre", { tabindex: "0" }, text));
      })),
    make("div", { id: "results" }));
}

const FILTERS = {
  all: () => true, "not opened yet": (rater) => progressOf(rater)[1] === "not opened yet", "in progress": (rater) => ["in progress", "opened"].includes(progressOf(rater)[1]),
  finished: (rater) => progressOf(rater)[1] === "finished", "excluded or revoked": (rater) => progressOf(rater)[0] === "bad",
};

function draw(state) {
  if (state.refused) { notice(state.refused); return; }
  if (state.same || state.version + filter === drawn) return;
  drawn = state.version + filter;
  const [focused, scrolled] = [document.activeElement?.getAttribute("aria-label"), document.querySelector(".scroll")?.scrollLeft];
  const [open, results] = [document.querySelector("details")?.open, byId("results")?.firstChild];
  byId("title").textContent = `${state.title} · progress${state.closed ? " · closed" : ""}`;
  const ratings = state.raters.reduce((sum, rater) => sum + rater.judged, 0);
  const finished = state.raters.filter(FILTERS.finished).length;
  const under_way = state.raters.filter((rater) => FILTERS["in progress"](rater) || FILTERS["not opened yet"](rater)).length;
  const number = make("input", { type: "number", min: "1", max: "500", value: "1", id: "number" });
  const invite = make("div.invite", {}, make("label", { for: "number" }, "New links"), number,
    make("button.go", { type: "button", "aria-label": "Create links", onclick: async () => draw(await ask("POST", "/raters", { count: Number(number.value) })) }, "Create links"));
  const select = make("select", { "aria-label": "Show raters", onchange: () => { filter = select.value; draw(state); } }, Object.keys(FILTERS).map((name) => make("option", { value: name, selected: name === filter }, name)));
  const shown = state.raters.filter(FILTERS[filter]);
  const head = make("tr", {}, ["Rater", "Rated", "Tones", "Checks", "Status", "Time", "Last seen (UTC)", "Link"].map((name) => make("th", { scope: "col" }, name)));
  byId("stage").replaceChildren(
    make("div.tiles", {}, tile(ratings, "ratings saved"), tile(`${finished}/${state.raters.length}`, "raters finished"),
      tile(state.raters.filter(FILTERS["excluded or revoked"]).length, "excluded so far"), tile(state.more, `raters still needed; ${under_way} invited or in progress`)),
    make("p", {}, `Systems: ${state.systems.join(", ")}. Raters never see these names.`),
    coverage(state), entry(state),
    make("section", {}, make("h2", {}, "Raters"), invite,
      make("div.actions", {}, select, copyButton(() => shown.map((rater) => address(state, `r/${rater.token}`)).join("\n"), { label: "Copy all links shown" })),
      shown.length ? make("div.scroll", { role: "region", tabindex: "0", "aria-label": "Raters" }, make("table.raters", {}, make("thead", {}, head), make("tbody", {}, shown.map((rater) => row(state, rater)))))
        : make("p.hint", {}, state.raters.length ? "No such raters." : "No raters yet. Create links and give one to each rater.")));
  document.querySelector("details").open = Boolean(open);
  if (results) byId("results").replaceChildren(results);
  if (scrolled) document.querySelector(".scroll").scrollLeft = scrolled;
  [...byId("stage").querySelectorAll("[aria-label]")].find((element) => element.getAttribute("aria-label") === focused)?.focus({ preventScroll: true });
}

async function watch() {
  let known = "";
  for (;;) {
    const busy = ["number"].includes(document.activeElement?.id) || !getSelection().isCollapsed;
    if (!busy && document.visibilityState === "visible") {
      const state = await ask("GET", `/state?known=${known}`);
      known = state.version ?? known;
      draw(state);
    }
    await wait(5000);
  }
}
watch();
