"""Agreement with people: equal to scipy's numbers, and intervals that cover."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as untyped

from milonga.core.errors import DataError
from milonga.maths.agreement import (
    STATISTICS,
    Opinions,
    ceiling,
    clip_agreement,
    correlations,
    ordered_alike,
    system_agreement,
)

stats: Any = untyped  # its results are not typed


def drawn_opinions(
    seed: int, captions: int = 40, systems: int = 3, raters: int = 15, each: int = 4, taste: float = 0.0
):
    """A metric and the opinions of raters, some strict and some mild, on clips of captions by systems; each rater's
    `taste` follows the metric more or less."""
    rng = np.random.default_rng(seed)
    caption, system = np.divmod(np.arange(captions * systems), systems)
    truth = 0.7 * rng.normal(size=captions)[caption] + 0.7 * rng.normal(size=len(caption)) + 0.4 * system
    metric = 0.6 * truth + 0.7 * rng.normal(size=len(caption))
    mild, slope = 0.5 * rng.normal(size=raters), taste * rng.normal(size=raters)
    who = np.argsort(rng.random((captions, raters)), axis=1)[:, :each][caption]
    clip = np.repeat(np.arange(len(caption)), each)
    rater = who.ravel()
    values = truth[clip] + mild[rater] + slope[rater] * metric[clip] + 0.8 * rng.normal(size=len(clip))
    return metric, Opinions(values, clip, rater, caption, system)


def test_correlations_are_those_of_scipy_with_ties_and_without():
    rng = np.random.default_rng(0)
    for digits in (0, 5):
        x = rng.normal(size=60).round(digits)
        y = (x + rng.normal(size=60)).round(digits)
        expected = [stats.spearmanr(x, y).statistic, stats.kendalltau(x, y).statistic, stats.pearsonr(x, y).statistic]
        np.testing.assert_allclose(correlations(x, y), expected, atol=1e-12)
    assert np.isnan(correlations(np.ones(5), np.arange(5.0))).all()


def test_clip_agreement_has_scipys_values_and_counts_what_is_measured():
    metric, opinions = drawn_opinions(1)
    holes = metric.copy()
    holes[::4] = np.nan
    result = clip_agreement(np.stack([metric, holes]), opinions, seed=0, draws=20)
    people, held = opinions.means(), np.isfinite(holes)
    for row, x, y in zip(result.rows, (metric, holes[held]), (people, people[held]), strict=True):
        assert row["srcc"].value == pytest.approx(stats.spearmanr(x, y).statistic)
        assert row["kendall"].value == pytest.approx(stats.kendalltau(x, y).statistic)
        assert row["pearson"].value == pytest.approx(stats.pearsonr(x, y).statistic)
        assert row["srcc"].n == len(x)
        assert row["srcc"].low < row["srcc"].value < row["srcc"].high
    assert result.rows[0]["pairs"].n == 40 * 3


def test_pairs_are_of_one_caption_and_a_metric_that_is_indifferent_gets_half():
    opinions = Opinions(
        np.array([1.0, 2, 3, 3, 5, 4]), np.arange(6), np.zeros(6, int), np.array([0, 0, 1, 1, 2, 2]), np.zeros(6, int)
    )
    first, second = opinions.pairs()
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1), (2, 3), (4, 5)]
    people = opinions.means()
    metric = np.array([0.0, 1, 0, 1, 2, 2])  # right; a tie of people, which does not count; a tie of the metric
    assert ordered_alike(metric[first] - metric[second], people[first] - people[second]) == 0.75


def test_comparisons_count_by_their_majority():
    values, which = np.array([1.0, 1, 0, 0, 0, 0.5]), np.array([0, 0, 0, 1, 1, 1])
    opinions = Opinions(
        values, which, np.array([0, 1, 2, 0, 1, 2]), np.arange(5), np.zeros(5, int), np.array([0, 2]), np.array([1, 3])
    )
    row = clip_agreement(np.array([[1.0, 0, 1, 0, 0]]), opinions, seed=0, draws=20).rows[0]
    assert row["pairs"].value == 0.5  # the first pair as the majority, the second against it
    assert row["pairs"].n == 2
    assert math.isnan(row["srcc"].value)


def test_the_ceiling_is_what_the_truth_correlates_with_the_means():
    rng = np.random.default_rng(2)
    truth = rng.normal(size=3000)
    clip = np.repeat(np.arange(3000), 4)
    values = truth[clip] + 1.5 * rng.normal(size=len(clip))
    means = np.bincount(clip, values) / 4
    assert ceiling(values, clip) == pytest.approx(np.corrcoef(truth, means)[0, 1], abs=0.02)
    assert ceiling(rng.normal(size=400), np.repeat(np.arange(100), 4)) < 0.35
    assert math.isnan(ceiling(truth, np.arange(3000)))


@pytest.mark.parametrize(
    ("taste", "worlds", "draws", "least"),
    [(0.5, 10, 20, 0.7), pytest.param(0.0, 300, 150, 0.93, marks=pytest.mark.slow),
     pytest.param(0.5, 300, 150, 0.92, marks=pytest.mark.slow)],
)  # fmt: skip
@pytest.mark.timeout(7200)
def test_intervals_cover(taste, worlds, draws, least):
    """95 % intervals hold what other captions and raters give on average, also where raters share a taste."""
    others = [drawn_opinions(seed, taste=taste) for seed in range(900, 1000)]
    expected = np.mean([correlations(metric, opinions.means()) for metric, opinions in others], axis=0)
    held = []
    for seed in range(worlds):
        metric, opinions = drawn_opinions(seed, taste=taste)
        row = clip_agreement(metric[None], opinions, seed, draws=draws).rows[0]
        held += [row[name].low <= expected[k] <= row[name].high for k, name in enumerate(STATISTICS[:3])]
    assert least < np.mean(held) < (1.01 if worlds < 100 else 0.98)


@pytest.mark.slow
def test_the_worse_of_two_metrics_is_behind_and_an_equal_one_is_not():
    metric, opinions = drawn_opinions(3, captions=80)
    rng = np.random.default_rng(0)
    worse, equal = metric + 2 * rng.normal(size=len(metric)), metric + 0.01 * rng.normal(size=len(metric))
    behind = clip_agreement(np.stack([metric, worse, equal]), opinions, seed=0, draws=100).behind
    assert np.isnan(behind).sum() == 1
    assert behind[1] < 0.01
    assert np.nanmax(behind[[0, 2]]) > 0.05


def test_systems_are_ranked_by_metrics_of_clips_and_of_sets():
    metric, opinions = drawn_opinions(4, captions=100, systems=5)
    nothing, of_sets = np.full(len(metric), np.nan), np.array([0.0, 1, 2, 3, 4])
    scores, fixed = np.stack([metric, nothing]), np.stack([np.full(5, np.nan), of_sets])
    clips, sets = system_agreement(scores, fixed, opinions, seed=0, draws=50)
    people = [opinions.means()[opinions.system == s].mean() for s in range(5)]
    own = [metric[opinions.system == s].mean() for s in range(5)]
    assert clips["pearson"].value == pytest.approx(stats.pearsonr(own, people).statistic)
    assert sets["kendall"].value == pytest.approx(stats.kendalltau(of_sets, people).statistic)
    assert sets["pairs"].value == sets["kendall"].value / 2 + 0.5
    assert clips["srcc"].n == 5
    two = Opinions(opinions.values, opinions.clip, opinions.rater, opinions.caption, opinions.system % 2)
    with pytest.raises(DataError, match="3 systems"):
        system_agreement(scores, fixed[:, :2], two, seed=0)


def test_too_few_rated_clips_are_refused():
    opinions = Opinions(np.arange(3.0), np.arange(3), np.zeros(3, int), np.arange(3), np.zeros(3, int))
    with pytest.raises(DataError, match="5 rated clips, not 3"):
        clip_agreement(np.zeros((1, 3)), opinions, seed=0)
