"""Results end to end: over simulated tests, with raters and prompts of known effects and the design's own sessions, the
95 % intervals hold the truth as often as they say, and the tests of "all alike" are wrong as often as they say.
"""

from collections import Counter

import pytest
from simulated_raters import MEANS, coverage, plan, simulated_results, true_values

from milonga.listening_test import results
from milonga.maths.statistics import Interval

ALIKE = dict.fromkeys(MEANS, 3.0)


@pytest.fixture(autouse=True)
def without_agreement(monkeypatch) -> None:
    """Agreement has tests of its own, and takes most of the time."""
    for name in ("alpha_interval", "intraclass"):
        monkeypatch.setattr(results, name, lambda *_: Interval(0.0, 0.0, 0.0, 0))


def shares(simulations: int, raters: int) -> tuple[dict[str, float], float]:
    """The share of intervals of each kind that hold the truth, and that of false alarms of the test of all systems."""
    test, truth = plan(prompts=20, per_rater=8), true_values()
    hits: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    alarms = 0
    for seed in range(simulations):
        for kind, holds in coverage(simulated_results(test, raters, seed), truth):
            hits[kind] += holds
            tried[kind] += 1
        alarms += simulated_results(test, raters, seed, ALIKE).tests[0].p < 0.05
    return {kind: hits[kind] / tried[kind] for kind in tried}, alarms / simulations


@pytest.mark.slow
def test_a_few_simulations_cover_the_truth_and_raise_few_false_alarms() -> None:
    covered, alarms = shares(12, 20)
    assert set(covered) == {"opinion", "difference", "win rate"}
    assert all(share >= 0.85 for share in covered.values()), covered
    assert alarms <= 3 / 12


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_intervals_cover_the_truth_in_a_whole_test() -> None:
    covered, alarms = shares(500, 20)
    assert all(0.93 <= share <= 0.97 for share in covered.values()), covered
    assert 0.03 <= alarms <= 0.07
