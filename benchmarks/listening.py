"""Does the listening test keep its word? Simulated raters of known effects, honest and cunning ones, and kills.

    python benchmarks/listening.py coverage [--simulations 500]   # intervals, and false alarms of the tests
    python benchmarks/listening.py ordinal [--simulations 100]    # intervals of the ordinal mixed model
    python benchmarks/listening.py raters [--honest 20]           # with five bots, over HTTP
    python benchmarks/listening.py raters --chromium              # the bots in pages of a real browser
    python benchmarks/listening.py kills [--honest 20]            # kill -9 five times while they rate
    python benchmarks/listening.py loudness TEST                  # of the files that a test plays, as they are

benchmarks/listening.md has the numbers. Prints JSON; exit status 1 where a rule is broken.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))  # the raters

from simulated_raters import MEANS, Bot, Honest, PageBots, coverage, plan, simulated_results, true_values
from small_test import PLAN, served, small_test

from milonga.core.audio import read_audio
from milonga.evaluation.ordinal import fit_ordinal
from milonga.listening_test import results
from milonga.listening_test.material import clip_file, read_test
from milonga.listening_test.sessions import Sessions
from milonga.maths.clip_view import loudness
from milonga.maths.statistics import Interval

BOTS = ("instant", "waits", "double", "random", "five")
ARGUMENTS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]  # of Chromium
KILLS = 5


def simulate(simulations: int) -> dict[str, Any]:
    """Shares of intervals that hold the truth, and of false alarms where all are alike; 20 raters, 20 prompts."""
    for name in ("alpha_interval", "intraclass"):  # most of the time, and not measured here
        setattr(results, name, lambda *_: Interval(0.0, 0.0, 0.0, 0))
    test, truth, alike = plan(prompts=20, per_rater=8), true_values(), dict.fromkeys(MEANS, 3.0)
    hits: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    alarms: Counter[str] = Counter()
    for seed in range(simulations):
        for kind, holds in coverage(simulated_results(test, 20, seed), truth):
            hits[kind] += holds
            tried[kind] += 1
        null = simulated_results(test, 20, seed, alike)
        alarms["omnibus"] += null.tests[0].p < 0.05
        alarms["any difference, Holm"] += any(row.p < 0.05 for row in null.comparisons if row.metric == "ovl")
        alarms["any preference, Holm"] += any(row.p < 0.05 for row in null.preferences)
    shares = {kind: round(hits[kind] / tried[kind], 4) for kind in tried}
    false = {name: count / simulations for name, count in alarms.items()}
    passed = all(0.93 <= share <= 0.97 for share in shares.values()) and 0.03 <= false["omnibus"] <= 0.07
    return {"simulations": simulations, "coverage": shares, "false alarms": false, "passed": passed}


def ordinal(simulations: int) -> dict[str, Any]:
    """Coverage of differences in log odds, of marks drawn from the model itself: 20 raters, 8 of 20 prompts each."""
    truth, hits, errors = np.array([0.0, 0.5, -0.5, 1.0]), [], []
    for seed in range(simulations):
        rng = np.random.default_rng(seed)
        cells = np.concatenate([[(rater, prompt) for prompt in rng.permutation(20)[:8]] for rater in range(20)])
        raters, prompts = np.repeat(cells, 4, axis=0).T
        systems = np.tile(np.arange(4), len(cells))
        taste, fit = rng.normal(0, 0.6, (20, 4)), rng.normal(0, 0.8, (20, 4))
        latent = truth[systems] + rng.normal(0, 0.9, 20)[raters] + rng.normal(0, 0.9, 20)[prompts]
        latent += taste[raters, systems] + fit[prompts, systems] + rng.logistic(size=len(systems))
        marks = 1 + (latent[:, None] > np.array([-2.0, -0.7, 0.7, 2.0])).sum(1)
        model = fit_ordinal(marks, systems, raters, prompts)
        for a in range(4):
            for b in range(a):
                value, error, _ = model.difference(a, b)
                hits.append(abs(value - truth[a] + truth[b]) < 1.96 * error)
                errors.append(value - truth[a] + truth[b])
        print(f"{seed + 1} of {simulations}: coverage {np.mean(hits):.3f}", file=sys.stderr)
    return {
        "simulations": simulations, "coverage": float(np.mean(hits)), "bias": float(np.mean(errors)),
        "passed": bool(np.mean(hits) >= 0.9),
    }  # fmt: skip


def rate(honest: int, seconds: float, chromium: bool) -> dict[str, Any]:
    """Honest raters and bots take one served test at the same time; who is excluded and why.

    The bots are threads that ask over HTTP, or with `chromium` pages of a browser.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "test"
        test = small_test(folder, prompts=15, plan=replace(PLAN, per_rater=8), seconds=seconds)
        sessions = Sessions(folder)
        tokens = sessions.ratings.invite(honest + len(BOTS))
        with served(folder) as (_, link):
            rest = [(link.split("/admin")[0], token, n, test, folder) for n, token in enumerate(tokens, 1)]
            people = [Honest(*own) for own in rest[:honest]]
            bots = [Bot(kind, *own) for kind, own in zip(BOTS, rest[honest:], strict=True)]
            if chromium:
                thread = threading.Thread(target=run_all, args=(people,))
                thread.start()
                with sync_playwright() as playwright:
                    opened = playwright.chromium.launch(executable_path=which("chromium"), args=ARGUMENTS)
                    PageBots(opened, bots).wait(1200)
                thread.join()
            else:
                run_all([*people, *bots])
        reasons = {verdict.rater: verdict.excluded for verdict in sessions.verdicts()}
    caught = {bot.kind: reasons.get(f"r{bot.number}", "") for bot in bots}
    wrong = [f"r{one.number}: {reasons[f'r{one.number}']}" for one in people if reasons[f"r{one.number}"]]
    passed = all(caught.values()) and len(wrong) <= 0.05 * honest
    refused = {bot.kind: bot.refused for bot in bots}
    return {"honest": honest, "honest excluded": wrong, "bots": caught, "answers refused": refused, "passed": passed}


def kill(honest: int, seconds: float) -> dict[str, Any]:
    """The server is killed with -9 five times while raters answer everything and change every fifth answer."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "test"
        test = small_test(folder, prompts=15, plan=replace(PLAN, per_rater=4), seconds=seconds)
        sessions = Sessions(folder)
        tokens = sessions.ratings.invite(honest)
        context = served(folder)
        process, link = context.__enter__()
        base = link.split("/admin")[0]
        raters = [Changing(base, token, number, test, folder) for number, token in enumerate(tokens, 1)]
        thread = threading.Thread(target=run_all, args=(raters,))
        thread.start()
        total = honest * 36
        for number in range(1, KILLS + 1):
            while thread.is_alive() and sum(len(rater.given) for rater in raters) < number * total / (KILLS + 1):
                time.sleep(0.02)
            process.kill()
            process.wait()
            context = served(folder, int(base.rpartition(":")[2]))
            process, _ = context.__enter__()
        thread.join()
        context.__exit__(None, None, None)
        stored: Counter[tuple[int, int]] = Counter()
        lost = 0
        history = sessions.ratings.ratings(test, history=True)
        for row in history:
            stored[int(row.rater[1:]), row.place] += 1
        for rater in raters:
            judged = sessions.ratings.judged(rater.number)
            for place_, given in rater.given.items():
                lost += any(judged.get(place_, {}).get(name) != value for name, value in given.items())
                lost += stored[rater.number, place_] != 1 + rater.changes.get(place_, 0)
    acknowledged = sum(len(rater.given) + sum(rater.changes.values()) for rater in raters)
    return {
        "raters": honest, "kills": KILLS, "acknowledged": acknowledged, "stored": len(history), "lost or wrong": lost,
        "passed": lost == 0 and acknowledged == len(history),
    }  # fmt: skip


class Changing(Honest):
    """An honest rater who goes back and changes every fifth answer once."""

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        self.changes: dict[int, int] = {}

    def answer(self, trial: dict[str, Any], given: dict[str, Any]) -> dict[str, Any] | None:
        """Sends an answer, and for every fifth trial another one after it."""
        state = super().answer(trial, given)
        if trial["place"] % 5 == 0:
            other = {"ovl": 3, "rel": 6 - given["rel"]} if "rel" in given else {"better": "same"}
            state = super().answer(trial, other)
            self.changes[trial["place"]] = int(self.given[trial["place"]] != given)
        return state


def run_all(raters: list[Any]) -> None:
    """All raters' sessions at the same time."""
    threads = [threading.Thread(target=rater.session) for rater in raters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def played(folder: Path) -> dict[str, Any]:
    """Spread of loudness within prompts, and mean loudness by system, measured on the playback files."""
    test = read_test(folder)
    levels: dict[str, dict[str, float]] = {}
    for clip in test.clips:
        level = loudness(read_audio(clip_file(folder, clip)))
        if clip.system in test.systems and level is not None:
            levels.setdefault(clip.prompt_id, {})[clip.system] = level
    spreads = np.array([max(own.values()) - min(own.values()) for own in levels.values()])
    means = {
        system: round(float(np.mean([own[system] for own in levels.values() if len(own) == len(test.systems)])), 3)
        for system in test.systems
    }
    within = float((spreads <= 1).mean())
    return {
        "prompts": len(spreads), "within 1 dB": within, "largest spread": round(float(spreads.max()), 3),
        "means": means,
        "passed": within >= 0.99 and max(means.values()) - min(means.values()) <= 0.1,
    }  # fmt: skip


def main() -> None:
    """Runs one of the benchmarks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("coverage", "ordinal", "raters", "kills", "loudness"))
    parser.add_argument("test", nargs="?", type=Path)
    parser.add_argument("--simulations", type=int, default=500)
    parser.add_argument("--honest", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a clip")
    parser.add_argument("--chromium", action="store_true", help="bots in pages of a browser")
    options = parser.parse_args()
    started = time.time()
    result = {
        "coverage": lambda: simulate(options.simulations),
        "ordinal": lambda: ordinal(options.simulations),
        "raters": lambda: rate(options.honest, options.seconds, options.chromium),
        "kills": lambda: kill(options.honest, options.seconds),
        "loudness": lambda: played(options.test),
    }[options.what]()
    print(json.dumps(result | {"seconds": round(time.time() - started)}, indent=2))
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
