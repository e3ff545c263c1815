"""Results end to end: over 500 simulated tests, with raters and prompts of known effects and the design's own sessions,
the 95 % intervals of opinions, of their differences and of win rates hold the truth as often as they say.
"""

from collections import Counter

import numpy as np
import pytest
from test_design import plan, sessions

from milonga.core.records import Rating
from milonga.listening_test import results
from milonga.listening_test.records import Test, Trial
from milonga.listening_test.results import compute_results
from milonga.maths.statistics import Interval

SIMULATIONS, RATERS = 500, 20
MEANS = {"s0": 4.1, "s1": 3.0, "s2": 3.2, "s3": 2.4}  # of the systems' opinions, before they become marks
RATER, PROMPT, TASTE, FIT, NOISE = 0.4, 0.4, 0.3, 0.4, 0.7  # spreads: of each, and of either with a system
TIE = 0.25  # two sounds that are nearer than this are called alike


class World:
    """One draw of raters and prompts; every system has its own effect with each of them."""

    def __init__(self, test: Test, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        names = [one.id for one in test.prompts]
        self.rater, self.prompt = rng.normal(0, RATER, RATERS), {one: rng.normal(0, PROMPT) for one in names}
        self.taste = {system: rng.normal(0, TASTE, RATERS) for system in MEANS}
        self.fit = {system: {one: rng.normal(0, FIT) for one in names} for system in MEANS}

    def worth(self, rater: int, prompt: str, system: str) -> float:
        own = self.taste[system][rater] + self.fit[system][prompt] + self.rng.normal(0, NOISE)
        return MEANS[system] + self.rater[rater] + self.prompt[prompt] + own

    def rating(self, rater: int, place: int, trial: Trial) -> Rating:
        """A rating as the server keeps it."""
        a, answer = self.worth(rater, trial.prompt_id, trial.a), {"ovl": None, "rel": None, "better": None}
        if trial.kind == "rate":
            answer |= {"ovl": mark(a), "rel": mark(a)}
        else:
            lead = a - self.worth(rater, trial.prompt_id, trial.b)
            answer["better"] = "same" if abs(lead) < TIE else "a" if lead > 0 else "b"
        rest = {"rater": f"r{rater}", "place": place, "prompt": "", "seconds": 1.0, "given": ""}
        return Rating.model_construct(**trial.model_dump(), **answer, **rest)


def mark(worth: float) -> int:
    return int(np.clip(np.rint(worth), 1, 5))


def truths() -> dict[str, float]:
    """Expected marks and win rates over all raters and prompts that there could be."""
    rng, count = np.random.default_rng(1), 2_000_000
    shared = rng.normal(0, np.hypot(RATER, PROMPT), count)
    own = {system: rng.normal(mean, np.sqrt(TASTE**2 + FIT**2 + NOISE**2), count) for system, mean in MEANS.items()}
    found = {one: float(np.clip(np.rint(own[one] + shared), 1, 5).mean()) for one in MEANS}
    for a in MEANS:
        for b in MEANS:
            lead = own[a] - own[b]
            found[f"{a}>{b}"] = float(np.mean((lead >= TIE) + 0.5 * (np.abs(lead) < TIE)))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_intervals_cover_the_truth_in_a_whole_test(monkeypatch) -> None:
    monkeypatch.setattr(results, "alpha_interval", lambda table, seed: Interval(0.0, 0.0, 0.0, 0))  # has its own test
    test, truth = plan(prompts=20, per_rater=8), truths()
    trials = [[one for one in own if not one.check] for own in sessions(test, RATERS)]
    hits: Counter[str] = Counter()
    tried: Counter[str] = Counter()

    def count(kind: str, low: float, value: float, high: float) -> None:
        hits[kind] += low <= value <= high
        tried[kind] += 1

    for seed in range(SIMULATIONS):
        world = World(test, seed)
        ratings = [world.rating(r, place, one) for r, own in enumerate(trials) for place, one in enumerate(own)]
        found = compute_results(test, ratings, [])
        for one in found.summary:
            if one.metric == "ovl":
                count("opinion", one.low, truth[one.system], one.high)
        for one in found.comparisons:
            if one.metric == "ovl":
                count("difference", one.low, truth[one.a] - truth[one.b], one.high)
        for one in found.preferences:
            count("win rate", one.low, truth[f"{one.a}>{one.b}"], one.high)
    shares = {kind: hits[kind] / tried[kind] for kind in tried}
    assert tried == {"opinion": 4 * SIMULATIONS, "difference": 6 * SIMULATIONS, "win rate": 3 * SIMULATIONS}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares
