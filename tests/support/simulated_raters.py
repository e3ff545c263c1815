"""Simulated raters: ones with known effects for statistics, and honest and cunning ones who use the server."""

import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from serving import ask
from small_test import Rater

from milonga.core.records import Prompt, Rating
from milonga.listening_test.design import choose_prompts, plan_session
from milonga.listening_test.ratings import Ratings
from milonga.listening_test.records import ANCHOR, BROKEN, Test, Trial
from milonga.listening_test.results import Results, compute_results
from milonga.listening_test.screening import TONE_ITEMS, tone_answer

MEANS = {"s0": 4.1, "s1": 3.0, "s2": 3.2, "s3": 2.4}  # of the systems' opinions, before they become marks
RATER, PROMPT, TASTE, FIT, NOISE = 0.4, 0.4, 0.3, 0.4, 0.7  # spreads: of each, and of either with a system
TIE = 0.25  # two sounds that are nearer than this are called alike


def plan(systems: int = 4, prompts: int = 12, per_rater: int = 6, reference: bool = True, checks: int = 2) -> Test:
    """A test without clips; the first system is the reference."""
    texts = [Prompt.of(f"prompt {number}", "design") for number in range(prompts + checks + 1)]
    return Test(
        title="t", kinds=("rate", "compare"), systems=tuple(f"s{n}" for n in range(systems)),
        reference="s0" if reference else "", prompts=tuple(texts[checks + 1 :]), example=texts[0],
        check_prompts=tuple(texts[1 : checks + 1]), clips=(), per_rater=per_rater, raters_per_clip=4, seed=3,
    )  # fmt: skip


def sessions(test: Test, raters: int) -> list[list[Trial]]:
    """The sessions of raters who come one after another and finish."""
    turns: Counter[str] = Counter()
    found = []
    for rater in range(1, raters + 1):
        picked = choose_prompts(test, rater, turns)
        found.append(plan_session(test, rater, {one: turns[one] for one in picked}))
        turns.update(picked)
    return found


class World:
    """One draw of raters and prompts; every system has its own effect with each of them."""

    def __init__(self, test: Test, raters: int, seed: int, means: dict[str, float]) -> None:
        self.rng = rng = np.random.default_rng(seed)
        names = [prompt.id for prompt in test.prompts]
        self.means, self.rater = means, rng.normal(0, RATER, raters)
        self.prompt = {name: rng.normal(0, PROMPT) for name in names}
        self.taste = {system: rng.normal(0, TASTE, raters) for system in means}
        self.fit = {system: {name: rng.normal(0, FIT) for name in names} for system in means}

    def worth(self, rater: int, prompt: str, system: str) -> float:
        """The opinion of a rater about a system's clip, before it becomes a mark."""
        own = self.taste[system][rater] + self.fit[system][prompt] + self.rng.normal(0, NOISE)
        return self.means[system] + self.rater[rater] + self.prompt[prompt] + own

    def rating(self, rater: int, place: int, trial: Trial) -> Rating:
        """A rating as the server stores it."""
        a, answer = self.worth(rater, trial.prompt_id, trial.a), {"ovl": None, "rel": None, "better": None}
        if trial.kind == "rate":
            answer |= {"ovl": mark(a), "rel": mark(a)}
        else:
            lead = a - self.worth(rater, trial.prompt_id, trial.b)
            answer["better"] = "same" if abs(lead) < TIE else "a" if lead > 0 else "b"
        rest = {"rater": f"r{rater}", "place": place, "prompt": "", "seconds": 1.0, "given": ""}
        return Rating.model_construct(
            kind=trial.kind, check=trial.check, prompt_id=trial.prompt_id, a=trial.a, b=trial.b, score=None,
            elapsed=None, revision=1, **answer, **rest,
        )  # fmt: skip


def mark(worth: float) -> int:
    """The mark from 1 to 5 of an opinion."""
    return int(np.clip(np.rint(worth), 1, 5))


class Honest(Rater):
    """Listens to every clip to its end and rates what the trial holds, with an ear of known noise.

    `worth` gives a system's quality; a wrong caption gets a low REL, once in `slip` trials by mistake a high one.
    """

    worth: ClassVar = {
        "zebra-base": 2.6,
        "zebra-sft": 3.0,
        "zebra-aligned": 3.6,
        "reference": 4.5,
        BROKEN: 1.0,
        ANCHOR: 3.0,
    }
    noise, slip = 0.6, 0.02

    def judgement(self, trial: dict[str, Any]) -> dict[str, Any]:
        """What this rater says about the trial that the page shows."""
        own = self.trials[trial["place"]]
        quality = {side: self.worth[system] + self.noise * self.rng.normal() for side, system in own.sides.items()}
        if trial["kind"] == "mushra":
            return {"scores": {side: int(np.clip(20 * value, 0, 100)) for side, value in quality.items()}}
        if trial["kind"] == "compare":
            lead = quality["a"] - quality["b"]
            return {"better": "same" if abs(lead) < 0.2 else "a" if lead > 0 else "b"}
        wrong = bool(own.shown_id) and self.rng.uniform() > self.slip
        broken = own.a == BROKEN and self.rng.uniform() > self.slip
        relevance = 1.3 + 0.3 * self.rng.normal() if wrong else quality["a"]
        return {"ovl": min(mark(quality["a"]), 2) if broken else mark(quality["a"]), "rel": mark(relevance)}


class Bot(Rater):
    """A script that wants to be paid: passes the headphone check, and answers as its kind does.

    `instant` never waits; `double` plays at twice the speed; `waits` plays everything, recognises damaged clips by
    their sound and calls everything else good; `random` and `five` play everything and answer by chance, and 5.
    """

    def __init__(self, kind: str, *rest: Any) -> None:
        super().__init__(*rest)
        self.kind, self.pace = kind, {"instant": 0.0, "double": 0.5}.get(kind, 1.0)
        self.refused = 0

    def judgement(self, trial: dict[str, Any]) -> dict[str, Any]:
        """What this script sends."""
        if self.kind == "random":
            return super().judgement(trial)
        own = self.trials[trial["place"]]
        damaged = {side: system == BROKEN and self.kind == "waits" for side, system in own.sides.items()}
        if trial["kind"] == "mushra":
            return {"scores": {side: 0 if bad else 100 for side, bad in damaged.items()}}
        if trial["kind"] == "compare":
            return {"better": "b" if damaged["a"] else "a"}
        return {"ovl": 1 if damaged["a"] else 5, "rel": 5}

    def answer(self, trial: dict[str, Any], given: dict[str, Any]) -> dict[str, Any] | None:
        """Sends an answer, a few times where it is refused; None where the server never takes it."""
        path = f"{self.path}/trials/{trial['place']}"
        for _ in range(3):
            status, _, state = ask(self.base, "PUT", path, given | {"seconds": 0.0})
            if status == 200:
                return state
            self.refused += 1
            time.sleep(0.0)
        return None


# A bot's session inside a page: it fetches every sound, plays it `pace` times as long as it lasts (not at all for 0)
# through Web Audio, and sends its answer, up to three times where it is refused. Gives the number of refusals.
IN_PAGE = """async ({ pace, tones, answers }) => {
  const here = location.pathname, context = new AudioContext();
  let refused = 0;
  const send = async (path, body) => {
    const options = { method: "PUT", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const answer = await fetch(here + path, options);
    return answer.ok ? answer.json() : null;
  };
  const play = async (data) => {
    const buffer = await context.decodeAudioData(data);
    const source = new AudioBufferSourceNode(context, { buffer, playbackRate: 1 / pace });
    source.connect(context.destination);
    await new Promise((ended) => { source.onended = ended; source.start(); });
  };
  let state = await (await fetch(`${here}/state`)).json();
  while (state.tones.answered < tones.length) {
    const item = state.tones.answered;
    await fetch(`${here}/tones/${item}`);
    state = await send(`/tones/${item}`, { answer: tones[item] });
  }
  while (state && state.next) {
    const { place, sides } = state.next;
    for (const side of sides) {
      const data = await (await fetch(`${here}/trials/${place}/${side}`)).arrayBuffer();
      if (pace) await play(data);
    }
    state = null;
    for (let attempt = 0; !state && attempt < 3; attempt += 1) {
      state = await send(`/trials/${place}`, { ...answers[place], seconds: 0 });
      refused += state ? 0 : 1;
    }
  }
  await context.close();
  window.refused = refused;
}"""


class PageBots:
    """Bots in pages of a real browser (playwright's `Browser`), all at the same time, in the thread that opened it."""

    def __init__(self, browser: Any, bots: list[Bot]) -> None:
        self.bots, self.pages = bots, [browser.new_page() for _ in bots]
        for bot, page in zip(bots, self.pages, strict=True):
            page.goto(bot.base + bot.path)
            page.wait_for_function("() => document.querySelector('button')")  # the session has begun
            bot.trials = Ratings((bot.folder or Path()) / "ratings.sqlite").trials(bot.number)
            answers = [
                bot.judgement({"place": place, "kind": trial.kind, "sides": list(trial.sides)})
                for place, trial in enumerate(bot.trials)
            ]
            tones = [tone_answer(bot.test.seed, bot.number, item) for item in range(TONE_ITEMS)]
            options = {"pace": bot.pace, "tones": tones, "answers": answers}
            page.evaluate(f"(options) => {{ ({IN_PAGE})(options); }}", options)

    def wait(self, seconds: float) -> None:
        """Waits for all sessions to end, and notes how often each bot was refused."""
        for bot, page in zip(self.bots, self.pages, strict=True):
            page.wait_for_function("() => window.refused !== undefined", timeout=1000 * seconds)
            bot.refused = page.evaluate("() => window.refused")
            page.close()


def simulated_results(test: Test, raters: int, seed: int, means: dict[str, float] = MEANS) -> Results:
    """The results of one test that raters with known effects took, each of them the session that the design gave."""
    world = World(test, raters, seed, means)
    ratings = [
        world.rating(rater, place, trial)
        for rater, trials in enumerate(sessions(test, raters))
        for place, trial in enumerate(trials) if not trial.check
    ]  # fmt: skip
    return compute_results(test, ratings, [])


def true_values(means: dict[str, float] = MEANS) -> dict[str, float]:
    """Expected marks and win rates over all raters and prompts that there could be."""
    rng, count = np.random.default_rng(1), 2_000_000
    shared = rng.normal(0, np.hypot(RATER, PROMPT), count)
    own = {system: rng.normal(mean, np.sqrt(TASTE**2 + FIT**2 + NOISE**2), count) for system, mean in means.items()}
    values = {system: float(np.clip(np.rint(own[system] + shared), 1, 5).mean()) for system in means}
    for a in means:
        for b in means:
            lead = own[a] - own[b]
            values[f"{a}>{b}"] = float(np.mean((lead >= TIE) + 0.5 * (np.abs(lead) < TIE)))
    return values


def coverage(results: Results, truth: dict[str, float]) -> list[tuple[str, bool]]:
    """(kind of interval, whether it holds the truth) for every opinion, difference and win rate."""
    rows = [("opinion", row.low <= truth[row.system] <= row.high) for row in results.summary if row.metric == "ovl"]
    rows += [
        ("difference", row.low <= truth[row.a] - truth[row.b] <= row.high)
        for row in results.comparisons if row.metric == "ovl"
    ]  # fmt: skip
    return rows + [("win rate", row.low <= truth[f"{row.a}>{row.b}"] <= row.high) for row in results.preferences]
