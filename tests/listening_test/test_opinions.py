"""Mean opinions: the analysis of variance as closed form, laws, and coverage over simulated raters and prompts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t, ttest_1samp

from milonga.core.errors import DataError
from milonga.evaluation.opinions import components, mean_opinion, opinion_difference

SIMULATIONS = 500


def layout(raters: int, prompts: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Rater and prompt of every judgement when each rater judges the `each` prompts that were judged least so far."""
    rng, judged, pairs = np.random.default_rng(0), np.zeros(prompts), []
    for rater in range(raters):
        least = np.lexsort((rng.uniform(size=prompts), judged))[:each]
        judged[least] += 1
        pairs += [(rater, prompt) for prompt in least]
    return np.array(pairs).T


def simulated(rng: np.random.Generator, i: np.ndarray, j: np.ndarray, sizes: tuple[float, float, float]) -> np.ndarray:
    """Judgements about zero with effects of rater, prompt and chance of these standard deviations."""
    strict, hard, rest = sizes
    raters, prompts = rng.normal(size=i.max() + 1)[i], rng.normal(size=j.max() + 1)[j]
    return strict * raters + hard * prompts + rest * rng.normal(size=len(i))


def on_the_scale(latent: np.ndarray) -> np.ndarray:
    """What a rater marks: the nearest of 1 to 5."""
    return np.clip(np.rint(3.4 + latent), 1, 5)


def test_where_all_judge_all_it_is_the_analysis_of_variance():
    rng, (raters, prompts) = np.random.default_rng(0), (20, 15)
    y = rng.normal(size=(raters, 1)) + 0.7 * rng.normal(size=(1, prompts)) + rng.normal(size=(raters, prompts))
    i, j = np.indices(y.shape).reshape(2, -1)
    rest = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()
    squares = [prompts * y.mean(1).var(ddof=1), raters * y.mean(0).var(ddof=1), (rest**2).sum() / (19 * 14)]
    found = components(y.ravel(), i, j)
    assert found.rest == pytest.approx(squares[2])
    assert found.rater == pytest.approx((squares[0] - squares[2]) / prompts)
    assert found.prompt == pytest.approx((squares[1] - squares[2]) / raters)
    assert found.error**2 == pytest.approx((squares[0] + squares[1] - squares[2]) / y.size)


def test_raters_alone_give_the_textbook_t_interval_of_their_means():
    """Where only raters differ, twenty judgements of one rater say no more than one."""
    means = np.random.default_rng(1).normal(3, 1, 8)
    i, j = np.indices((8, 20)).reshape(2, -1)
    found = mean_opinion(means[i], i, j)
    half = t.ppf(0.975, 7) * means.std(ddof=1) / np.sqrt(8)
    assert (found.low, found.high) == pytest.approx((means.mean() - half, means.mean() + half))
    assert opinion_difference(means[i], i, j).p == pytest.approx(ttest_1samp(means, 0).pvalue)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 10**6), st.floats(-3, 3), st.floats(0.1, 5))
def test_shift_scale_order_and_names_do_what_they_should(raters, prompts, seed, shift, scale):
    rng = np.random.default_rng(seed)
    i, j = layout(raters, prompts, prompts)
    y = simulated(rng, i, j, (1, 1, 1))
    found = mean_opinion(y, i, j)
    assert found.low <= found.value <= found.high
    order = rng.permutation(len(y))
    again = mean_opinion((shift + scale * y)[order], np.array([f"r{one}" for one in i])[order], -j[order])
    moved = [shift + scale * edge for edge in (found.value, found.low, found.high)]
    assert (again.value, again.low, again.high) == pytest.approx(moved, rel=1e-5, abs=1e-6)
    swapped = mean_opinion(y, j, i)
    assert (swapped.low, swapped.high) == pytest.approx((found.low, found.high), rel=1e-5, abs=1e-6)


def coverage(i: np.ndarray, j: np.ndarray, sizes: tuple[float, float, float], graded: bool) -> float:
    """Share of simulations whose interval holds the truth, for latent or for marked judgements."""
    truth, hits = 0.0, 0
    if graded:
        total = np.sqrt(sum(size**2 for size in sizes))
        truth = float(on_the_scale(total * np.random.default_rng(99).normal(size=2_000_000)).mean())
    for seed in range(SIMULATIONS):
        y = simulated(np.random.default_rng(seed), i, j, sizes)
        found = mean_opinion(on_the_scale(y) if graded else y, i, j)
        hits += found.low <= truth <= found.high
    return hits / SIMULATIONS


@pytest.mark.slow
@pytest.mark.parametrize("graded", [False, True], ids=["latent", "marked"])
@pytest.mark.parametrize("sizes", [(0.6, 0.4, 0.8), (0.2, 0.8, 0.8), (0.5, 0.0, 1.0)], ids=str)
@pytest.mark.parametrize(("raters", "prompts", "each"), [(20, 25, 8), (20, 12, 12), (12, 30, 10)])
def test_intervals_cover_the_truth_as_often_as_they_say(raters, prompts, each, sizes, graded):
    assert 0.93 <= coverage(*layout(raters, prompts, each), sizes, graded) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(0.6, 0.4, 0.8), (0.3, 0.3, 1.0)], ids=str)
def test_with_few_raters_intervals_are_on_the_safe_side(sizes):
    assert coverage(*layout(8, 10, 5), sizes, graded=True) >= 0.93


@pytest.mark.slow
def test_a_difference_that_is_not_there_is_called_one_in_twenty_times():
    i, j = layout(20, 25, 8)
    called = [
        opinion_difference(simulated(np.random.default_rng(seed), i, j, (0.3, 0.3, 1.0)), i, j).p < 0.05
        for seed in range(SIMULATIONS)
    ]
    assert 0.03 <= np.mean(called) <= 0.07


def test_a_difference_that_is_there_is_found_with_its_sign():
    i, j = layout(20, 25, 8)
    found = opinion_difference(0.6 + simulated(np.random.default_rng(3), i, j, (0.3, 0.3, 1.0)), i, j)
    assert found.better() == "a"
    assert found.p < 0.01


def test_one_rater_or_one_prompt_says_nothing_about_others():
    for i, j in (([0, 0, 0], [0, 1, 2]), ([0, 1, 2], [0, 0, 0])):
        found = mean_opinion(np.array([1.0, 2.0, 3.0]), np.array(i), np.array(j))
        assert found.value == 2
        assert np.isnan(found.low)
        assert np.isnan(opinion_difference(np.zeros(3), np.array(i), np.array(j)).p)


def test_judgements_that_are_all_alike():
    i, j = layout(4, 4, 4)
    assert opinion_difference(np.zeros(16), i, j).p == 1
    assert opinion_difference(np.ones(16), i, j).p == 2 * 0.5**4  # a sign test of four raters
    assert mean_opinion(np.full(16, 3.0), i, j).low == 3


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.nan], [1.0, np.inf]])
def test_what_cannot_be_averaged_is_refused(values):
    with pytest.raises(DataError):
        mean_opinion(np.array(values), np.array([0, 1]), np.array([0, 1]))
