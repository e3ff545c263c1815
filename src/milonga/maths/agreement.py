"""How well metrics agree with people: correlations and pairs ordered alike, of clips and of systems, with intervals.

A metric is compared with the mean of people's numbers for each clip. Intervals hold 95 %, for other captions and other
raters of the same kind, with as many ratings a clip. A perfect metric would still miss the mean of so few raters: the
ceiling says by how much.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from milonga.core.errors import DataError
from milonga.maths.bootstrap import Advance, no_progress
from milonga.maths.statistics import LEVEL, Interval, holm

STATISTICS = ("srcc", "kendall", "pearson", "pairs")
RATER_DRAWS = 100  # of raters; their part of an interval is the smaller one
LEAST_CLIPS, LEAST_SYSTEMS = 5, 3  # below which no agreement is computed
EDGE = 1 - 1e-6  # a correlation of 1 has no finite Fisher transform


@dataclass(frozen=True)
class Opinions:
    """N numbers that people gave to C clips on one scale, more being better.

    `values`, `clip` (0…C−1) and `rater` (0…R−1) have shape (N,), `caption` and `system` of the clips shape (C,). With
    `first` and `second` (P,), the numbers are of P comparisons of two clips instead: `clip` then numbers comparisons,
    and a value is 1 where the first was preferred, 0 where the second was, ½ for a tie. Raters are all 0 where a table
    gives means alone.
    """

    values: np.ndarray
    clip: np.ndarray
    rater: np.ndarray
    caption: np.ndarray
    system: np.ndarray
    first: np.ndarray | None = None
    second: np.ndarray | None = None

    @property
    def raters(self) -> int:
        """How many raters there are."""
        return int(self.rater.max()) + 1

    def means(self, weights: np.ndarray | None = None) -> np.ndarray:
        """The weighted mean of each clip's numbers, shape (C,), or of each comparison's (P,); NaN where there is
        none."""
        count = len(self.caption) if self.first is None else len(self.first)
        weights = np.ones(len(self.values)) if weights is None else weights
        totals = np.bincount(self.clip, weights, count)
        sums = np.bincount(self.clip, weights * self.values, count)
        return np.divide(sums, totals, out=np.full(count, np.nan), where=totals > 0)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The clips that are ordered: those of each comparison, else every two clips of one caption, (P,) and (P,)."""
        if self.first is not None and self.second is not None:
            return self.first, self.second
        order = np.argsort(self.caption, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(self.caption[order])) + 1, len(order))
        parts = [group for group in np.split(order, ends[:-1]) if len(group) > 1]
        places = [np.triu_indices(len(group), 1) for group in parts]
        sides = zip(*((group[i], group[j]) for group, (i, j) in zip(parts, places, strict=True)), strict=True)
        first, second = [np.concatenate(side) for side in sides] if parts else [np.empty(0, int)] * 2
        return first, second


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's ρ, Kendall's τ-b and Pearson's r of two columns (n,), ties included; NaN where a column is constant.

    Equal to scipy's `spearmanr`, `kendalltau` and `pearsonr`.
    """
    from scipy.stats import kendalltau

    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.full(3, np.nan)
    tau: Any = kendalltau(x, y)  # its result is not typed
    return np.array([_pearson(_ranks(x), _ranks(y)), tau.statistic, _pearson(x, y)])


def ordered_alike(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The share of pairs with a difference y ≠ 0 whose difference x has its sign; x = 0 counts half. NaN for none."""
    weights = np.ones(len(y)) if weights is None else weights
    counted = np.where(np.isfinite(x) & np.isfinite(y) & (y != 0), weights, 0.0)
    total = counted.sum()
    return float((counted * (0.5 + 0.5 * np.sign(x) * np.sign(y)))[counted > 0].sum() / total) if total else math.nan


def ceiling(values: np.ndarray, groups: np.ndarray) -> float:
    """The correlation that the truth behind group means would have with them: the root of their reliability.

    The reliability of the means of numbers (N,) in groups (N,) is 1 − MS(within) / MS(between), that of a one-way
    analysis of variance, ICC(1, k) of Shrout and Fleiss (1979). 0 where the means differ no more than chance would
    have it, NaN where no group has two numbers.
    """
    sizes = np.bincount(groups)
    held = sizes > 0
    sums = np.bincount(groups, values)[held]
    sizes = sizes[held]
    within_freedom, between_freedom = len(values) - len(sizes), len(sizes) - 1
    if within_freedom < 1 or between_freedom < 1:
        return math.nan
    between = (np.square(sums) / sizes).sum() - values.sum() ** 2 / len(values)
    within = np.square(values).sum() - (np.square(sums) / sizes).sum()
    if between <= 0:
        return 0.0
    return math.sqrt(max(0.0, 1 - (within / within_freedom) / (between / between_freedom)))


@dataclass(frozen=True)
class Agreements:
    """The agreement of M metrics with people: for each a value with interval by statistic.

    `behind` is, for each, the p (Holm) of agreeing less than the first by Spearman's ρ (pairs, where people compared);
    NaN for the first itself.
    """

    rows: list[dict[str, Interval]]
    behind: np.ndarray


def clip_agreement(
    scores: np.ndarray, opinions: Opinions, seed: int, draws: int = 400, advance: Advance = no_progress
) -> Agreements:
    """The agreement of M metrics' numbers (M, C), NaN where unknown, with opinions, clip by clip.

    Correlations are over clips, `pairs` over pairs of clips of one caption, or over those compared. Intervals are
    ± t standard errors, for correlations of Fisher's z. The variance has two parts: that of draws of captions, which
    holds the noise of single ratings too, and what draws of raters exceed draws of single ratings by, which is what
    raters have in common over their clips (two-way clustering as in Cameron, Gelbach and Miller 2011). Raters' part is
    left out where a table names none. Raises DataError below LEAST_CLIPS rated clips.
    """
    rng = np.random.default_rng(seed)
    table, first, second = _Table(scores, opinions), *opinions.pairs()
    value = table.statistics(opinions.means(), first, second)
    captions = np.unique(opinions.caption, return_inverse=True)[1]
    count = int(captions.max()) + 1
    by_caption = []
    for _ in range(draws):
        weights = np.bincount(rng.integers(0, count, count), minlength=count)[captions]
        by_caption.append(table.statistics(opinions.means(), first, second, weights))
        advance(1)
    spread = _variance(by_caption)
    raters, freedom = opinions.raters, np.full(spread.shape, float(count - 1))
    if raters > 1:
        shared, single = [], []
        for _ in range(min(RATER_DRAWS, draws)):
            drawn = np.bincount(rng.integers(0, raters, raters), minlength=raters)[opinions.rater]
            shared.append(table.statistics(opinions.means(drawn.astype(float)), first, second))
            drawn = rng.binomial(raters, 1 / raters, len(opinions.values))
            single.append(table.statistics(opinions.means(drawn.astype(float)), first, second))
            advance(1)
        excess = np.maximum(_variance(shared) - _variance(single), 0.0)
        spread = spread + excess
        freedom = np.where(excess > 0.1 * spread, float(min(count, raters) - 1), freedom)
    sizes = table.sizes(opinions.means(), first, second)
    rows = [_intervals(value[m], np.sqrt(spread[m]), freedom[m], sizes[m]) for m in range(len(scores))]
    lead = 3 if opinions.first is not None else 0
    return Agreements(rows, _behind(value[:, lead], np.array(by_caption)[:, :, lead], lead))


def system_agreement(
    scores: np.ndarray, fixed: np.ndarray, opinions: Opinions, seed: int, draws: int = 1000
) -> list[dict[str, Interval]]:
    """The agreement of M metrics with people by system, as Intervals by statistic; n is the number of systems.

    A system's number is the mean over its clips of `scores` (M, C), or for metrics of sets `fixed` (M, S), NaN for
    others. Intervals are percentiles of joint draws of captions and raters; the systems, and metrics of sets, stay the
    same. Raises DataError for fewer than LEAST_SYSTEMS systems with ratings.
    """
    systems = np.unique(opinions.system[np.isfinite(opinions.means())])
    if len(systems) < LEAST_SYSTEMS:
        raise DataError(f"agreement by system needs {LEAST_SYSTEMS} systems with ratings, not {len(systems)}")
    rng, captions = np.random.default_rng(seed), np.unique(opinions.caption, return_inverse=True)[1]
    count, raters = int(captions.max()) + 1, opinions.raters
    ours, theirs = [], []
    for draw in range(draws + 1):  # the first is of all captions and raters as they are
        weights = np.ones(len(captions))
        people = opinions.means()
        if draw:
            weights = np.bincount(rng.integers(0, count, count), minlength=count)[captions].astype(float)
            drawn = np.bincount(rng.integers(0, raters, raters), minlength=raters) if raters > 1 else np.ones(1)
            people = opinions.means(drawn[opinions.rater].astype(float))
        theirs.append(_system_means(people[None], opinions.system, weights)[0, systems])
        own = _system_means(np.where(np.isfinite(people), scores, np.nan), opinions.system, weights)[:, systems]
        ours.append(np.where(np.isfinite(fixed[:, systems]), fixed[:, systems], own))
    rows = []
    for metric in np.array(ours).transpose(1, 0, 2):
        values = _row_statistics(metric, np.array(theirs))
        low, high = _percentiles(values[1:])
        n = int(np.isfinite(metric[0]).sum())
        rows.append({name: Interval(float(values[0, k]), float(low[k]), float(high[k]), n)
                     for k, name in enumerate(STATISTICS)})  # fmt: skip
    return rows


class _Table:
    """Metrics' numbers beside the people's, computed over the clips that both have."""

    def __init__(self, scores: np.ndarray, opinions: Opinions) -> None:
        rated = np.isfinite(opinions.means()) if opinions.first is None else np.ones(len(opinions.caption), bool)
        if rated.sum() < LEAST_CLIPS:
            raise DataError(f"agreement needs {LEAST_CLIPS} rated clips, not {int(rated.sum())}")
        self.scores, self.compared = scores, opinions.first is not None
        self.captions = opinions.caption

    def statistics(
        self, people: np.ndarray, first: np.ndarray, second: np.ndarray, weights: np.ndarray | None = None
    ) -> np.ndarray:
        """Each metric's four statistics, (M, 4), of the clips drawn `weights` (C,) times; correlations are NaN where
        people compared clips."""
        values = np.full((len(self.scores), len(STATISTICS)), np.nan)
        difference = people - 0.5 if self.compared else people[first] - people[second]
        of_pairs = None if weights is None else weights[first].astype(float)
        for place, own in enumerate(self.scores):
            values[place, 3] = ordered_alike(own[first] - own[second], difference, of_pairs)
            if not self.compared:
                held = np.flatnonzero(np.isfinite(own) & np.isfinite(people))
                held = held if weights is None else np.repeat(held, weights[held])
                values[place, :3] = correlations(own[held], people[held])
        return values

    def sizes(self, people: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """How many clips, and how many pairs, each metric's statistics are over, (M, 2)."""
        difference = people - 0.5 if self.compared else people[first] - people[second]
        clips = (np.isfinite(self.scores) & (True if self.compared else np.isfinite(people))).sum(axis=1)
        gaps = self.scores[:, first] - self.scores[:, second]
        return np.stack([clips, (np.isfinite(gaps) & np.isfinite(difference) & (difference != 0)).sum(axis=1)], axis=1)


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks (n,), of equal numbers their mean; scipy's `rankdata` without its checks, which cost more than the sort."""
    order = np.argsort(x, kind="stable")
    new = np.concatenate([[True], np.diff(x[order]) > 0])
    starts = np.append(np.flatnonzero(new), len(x))
    ranks = np.empty(len(x))
    ranks[order] = (0.5 * (starts[:-1] + starts[1:] - 1))[np.cumsum(new) - 1]
    return ranks


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x @ y) / math.sqrt((x @ x) * (y @ y)), -1, 1))


def _transformed(values: np.ndarray) -> np.ndarray:
    """Fisher's z of the correlations (…, 4); shares of pairs stay as they are."""
    z = np.arctanh(np.clip(values, -EDGE, EDGE))
    return np.concatenate([z[..., :3], values[..., 3:]], axis=-1)


def _variance(draws: Sequence[np.ndarray]) -> np.ndarray:
    """The variance over draws of the transformed statistics, (M, 4); NaN where fewer than two draws have a value."""
    values = _transformed(np.array(draws))
    held = np.isfinite(values).sum(axis=0)
    mean = np.divide(np.nansum(values, axis=0), held, out=np.full(held.shape, np.nan), where=held > 1)
    squares = np.nansum(np.square(values - mean), axis=0)
    return np.divide(squares, held - 1, out=np.full(held.shape, np.nan), where=held > 1)


def _intervals(value: np.ndarray, error: np.ndarray, freedom: np.ndarray, sizes: np.ndarray) -> dict[str, Interval]:
    from scipy.stats import t

    half = t.ppf((1 + LEVEL) / 2, np.maximum(freedom, 1)) * error
    middle = _transformed(value[None])[0]
    rows = {}
    for k, name in enumerate(STATISTICS):
        low, high = middle[k] - half[k], middle[k] + half[k]
        low, high = (np.tanh(low), np.tanh(high)) if k < 3 else (max(low, 0.0), min(high, 1.0))
        rows[name] = Interval(float(value[k]), float(low), float(high), int(sizes[0 if k < 3 else 1]))
    return rows


def _behind(values: np.ndarray, draws: np.ndarray, lead: int) -> np.ndarray:
    """p (Holm), shape (M,), of being as good as the best of M metrics, from values (M,) and paired draws (R, M)."""
    from scipy.stats import norm

    p = np.full(len(values), np.nan)
    if not np.isfinite(values).any():
        return p
    best = int(np.nanargmax(values))
    z, of_draws = (values, draws) if lead == 3 else (np.arctanh(np.clip(part, -EDGE, EDGE)) for part in (values, draws))
    others = [m for m in np.flatnonzero(np.isfinite(values)) if m != best]
    for m in others:
        gaps = (of_draws[:, best] - of_draws[:, m])[np.isfinite(of_draws[:, m])]
        spread = float(gaps.std()) if len(gaps) > 1 else 0.0
        p[m] = float(norm.sf((z[best] - z[m]) / spread)) * 2 if spread > 0 else 1.0
    p[others] = holm(np.minimum(p[others], 1.0)) if others else p[others]
    return p


def _system_means(values: np.ndarray, system: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean of each system's finite numbers: (M, C) → (M, S), NaN where there is none."""
    count, rows = int(system.max()) + 1, []
    for row in values:
        held = np.isfinite(row)
        totals = np.bincount(system[held], weights[held], count)
        sums = np.bincount(system[held], weights[held] * row[held], count)
        rows.append(np.divide(sums, totals, out=np.full(count, np.nan), where=totals > 0))
    return np.array(rows)


def _row_statistics(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The four statistics of each row of x (R, S) with the same row of y, (R, 4); systems without a number drop out."""
    from scipy.stats import rankdata

    held = np.isfinite(x[0]) & np.isfinite(y[0])
    x, y = x[:, held], y[:, held]
    result = np.full((len(x), 4), np.nan)
    if held.sum() < LEAST_SYSTEMS:
        return result

    def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
        size = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
        return np.divide((a * b).sum(axis=1), size, out=np.full(len(a), np.nan), where=size > 0)

    i, j = np.triu_indices(int(held.sum()), 1)
    sign_x, sign_y = np.sign(x[:, i] - x[:, j]), np.sign(y[:, i] - y[:, j])
    size = np.sqrt(np.abs(sign_x).sum(axis=1) * np.abs(sign_y).sum(axis=1))
    result[:, 0] = pearson(rankdata(x, axis=1), rankdata(y, axis=1))
    result[:, 1] = np.divide((sign_x * sign_y).sum(axis=1), size, out=np.full(len(x), np.nan), where=size > 0)
    result[:, 2] = pearson(x, y)
    counted = np.abs(sign_y).sum(axis=1)
    right = (np.abs(sign_y) * (0.5 + 0.5 * sign_x * sign_y)).sum(axis=1)
    result[:, 3] = np.divide(right, counted, out=np.full(len(x), np.nan), where=counted > 0)
    return result


def _percentiles(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tail = (1 - LEVEL) / 2
    low, high = np.full(draws.shape[1], np.nan), np.full(draws.shape[1], np.nan)
    for k, column in enumerate(draws.T):
        if np.isfinite(column).sum() > 1:
            low[k], high[k] = np.nanquantile(column, (tail, 1 - tail))
    return low, high
