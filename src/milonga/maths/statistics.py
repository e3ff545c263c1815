"""Error bars: intervals for one system, and differences between two systems over the same prompts. All seeded.

A value that could not be measured is NaN. NaN are dropped, pairwise where there are pairs, and `n` says how many values
are left; if fewer than two are, that is a DataError that counts them. All intervals hold 95 %, over prompts: they say
nothing about another training run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal

import numpy as np

from milonga.core.errors import DataError

LEVEL = 0.95
CHUNK = 512  # resamples in memory at once
SMALLEST_P = 1e-6  # a normal tail is not trusted below this
INDIFFERENT = 1e-6  # of the largest score: a spread below this is rounding
FLIPS = 10_000  # random signs of one sign-flip test
RADEMACHER = 3.18  # Bentkus and Dzindzalieta 2015: P(Σ ±d ≥ t·|d|) ≤ 3.18 · P(N(0, 1) ≥ t) for any differences d


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval, from `n` measured clips."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """a − b over `n` shared prompts with its 95 % interval, and the two-sided p of "no difference" for it alone."""

    value: float
    low: float
    high: float
    p: float
    n: int

    def better(self, higher: bool = True) -> Literal["a", "b", "neither"]:
        """Which system is better (`higher`: more is), "neither" where the interval touches zero or p is above 0.05.

        Both are needed, because a bootstrap is too sure of itself where few clips differ: of yes or no on 180 clips,
        four changes to yes give an interval above zero, and chance does so once in eight. A p of NaN is ignored.
        """
        if not (self.low > 0 or self.high < 0) or self.p > 1 - LEVEL:  # so that an interval of NaN is no verdict
            return "neither"
        return "a" if (self.low > 0) == higher else "b"


def bootstrap(values: np.ndarray, seed: int, resamples: int = 2000) -> Interval:
    """The mean of per-clip values (N,) with its BCa bootstrap interval by clip.

    BCa rather than percentile, because scores of clips are skewed (cosines pile up near the top) and BCa shifts for
    that; for a mean it costs nothing. Values that are all alike give an interval of no width: for yes/no values, where
    that is too sure, use `proportion`.
    """
    measured = _measured(np.asarray(values, dtype=np.float64))
    low, high = _bca(measured, seed, resamples)
    return Interval(float(measured.mean()), low, high, len(measured))


def proportion(values: np.ndarray) -> Interval:
    """The share of yes among yes/no values (N,) (1 and 0; NaN: not measured) with its Wilson interval.

    It keeps its width when every clip says yes, where a bootstrap would claim certainty. Raises DataError for others.
    """
    from scipy.stats import binomtest

    measured = _measured(np.asarray(values, dtype=np.float64))
    if not np.isin(measured, (0.0, 1.0)).all():
        raise DataError("a proportion needs values of 0 and 1 only: use bootstrap for graded values")
    limits = binomtest(int(measured.sum()), len(measured)).proportion_ci(LEVEL, method="wilson")
    return Interval(float(measured.mean()), float(limits.low), float(limits.high), len(measured))


def draw_clips(n: int, seed: int, resamples: int) -> np.ndarray:
    """`resamples` draws of n clips with replacement, as their places, shape (resamples, n)."""
    return np.random.default_rng(seed).integers(n, size=(resamples, n))


def interval_of(value: float, draws: np.ndarray, n: int) -> Interval:
    """The interval of a metric of a whole set, from its value over `n` clips and over each draw of them (resamples,).

    Repeated clips bias such metrics (FD rises), so the draws serve for their spread alone: they are centred on the
    value (basic interval), which is then for the metric *at this N*.
    """
    low, high = _centred(value, draws)
    return Interval(value, low, high, n)


def difference_of(value: float, draws: np.ndarray, n: int) -> Difference:
    """The difference of a set metric over `n` shared prompts, from its value and the value in each draw (resamples,).

    One draw of clips serves both systems and their references. The interval is that of `interval_of`; p is the share
    of centred draws at least as far from zero as the value. Where no draw is, p is the normal tail of their spread,
    down to SMALLEST_P: a few hundred draws could never pass a correction for many comparisons.
    """
    from scipy.stats import norm

    low, high = _centred(value, draws)
    spread = np.abs(draws - draws.mean())
    p = _beyond(spread, abs(value))
    if spread.max() < abs(value) and spread.max() > 0:
        p = min(p, max(SMALLEST_P, 2 * float(norm.sf(abs(value) / draws.std()))))
    return Difference(value, low, high, p, n)


def paired(a: np.ndarray, b: np.ndarray, seed: int, resamples: int = 10_000) -> Difference:
    """Mean of a − b for two systems' values (N,) over the same prompts, with BCa interval and sign-flip p.

    p is the share of random sign changes of the N differences whose mean is at least as far from zero (+1 on both
    sides of the fraction, so never 0), over at least FLIPS of them: exact if the two systems are alike, whatever the
    values' distribution. Beyond what the flips can resolve, p is an upper bound of the exact one (`RADEMACHER`), down
    to SMALLEST_P, so that a clear difference passes a correction for thousands of comparisons.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise DataError(f"paired values must cover the same prompts, not {a.shape} and {b.shape}")
    differences = _measured(a - b)
    low, high = _bca(differences, seed, resamples)
    p = _sign_flip(differences, seed, max(resamples, FLIPS))
    return Difference(float(differences.mean()), low, high, p, len(differences))


def mean_z_scores(scores: np.ndarray) -> np.ndarray:
    """What best of N ranks by, shape (N,): each scorer's numbers (N, S) in standard deviations among the N clips, mean.

    A scorer that is indifferent to the clips (all alike but for rounding) adds 0, and one that can score none of them,
    such as one that does not understand the caption, is left out. A clip that another scorer could not score is NaN,
    and leaves no trace in the others' numbers.
    """
    scores = np.asarray(scores, dtype=np.float64)
    scores = scores[:, np.isfinite(scores).any(axis=0)]
    if not scores.size:
        return np.full(len(scores), np.nan)
    scored = np.isfinite(scores).all(axis=1)
    result = np.full(len(scores), np.nan)
    if scored.any():
        gaps = scores[scored] - scores[scored].mean(axis=0)
        spread, size = gaps.std(axis=0), np.abs(scores[scored]).max(axis=0)
        differs = spread > INDIFFERENT * size
        result[scored] = np.where(differs, gaps / np.where(differs, spread, 1.0), 0.0).mean(axis=1)
    return result


def expected_best(ranking: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The expected value of the best of N clips for N = 1 … M, shape (M,), from one pool of M clips of a caption.

    `ranking` (M,) is the score that selects, `values` (M,) what is measured of the selected clip. Of the clips in
    ascending order of their rank, clip i is the best of N in C(i−1, N−1) of the C(M, N) subsets, so

        E[best of N] = Σᵢ C(i−1, N−1) / C(M, N) · yᵢ,

    the mean over all subsets, which is unbiased for N fresh clips (the estimator of pass@k, Chen et al. 2021,
    arXiv 2107.03374, with a selecting score in place of a test). Clips that rank equally share their places, as if
    each order of them were equally likely; a rank of NaN comes last. NaN where a value is NaN. Raises DataError for
    arrays that do not match.
    """
    ranking, values = np.asarray(ranking, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if ranking.shape != values.shape or ranking.ndim != 1 or not len(ranking):
        raise DataError(f"a pool needs one rank and one value a clip, not {ranking.shape} and {values.shape}")
    places, counts = np.unique(np.where(np.isnan(ranking), -np.inf, ranking), return_inverse=True)[1], len(values)
    shared = np.bincount(places, weights=values) / np.bincount(places)
    ordered = shared[np.sort(places)]
    sizes = range(1, counts + 1)
    weights = np.array([[comb(i - 1, n - 1) / comb(counts, n) for i in sizes] for n in sizes])
    return weights @ ordered


def holm(pvalues: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values, shape (K,), in the order given: hold below 0.05 those that survive K comparisons.

    Raises DataError for a p that is no probability.
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError(f"p-values must lie between 0 and 1, not {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return adjusted


def _measured(values: np.ndarray) -> np.ndarray:
    """The values (N,) that are not NaN, or a DataError that counts those that are; infinities are refused."""
    if values.ndim != 1 or np.isinf(values).any():
        raise DataError(f"values must be one finite number (or NaN) per clip, not shape {values.shape} with infinities")
    measured = values[~np.isnan(values)]
    if len(measured) < 2:
        raise DataError(f"an interval needs two measured clips: {len(values) - len(measured)} of {len(values)} are NaN")
    return measured


def _bca(values: np.ndarray, seed: int, resamples: int) -> tuple[float, float]:
    """The BCa interval of the mean; a point where all values are alike but for rounding, where BCa is not defined."""
    from scipy.stats import bootstrap as resample

    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        return float(values.mean()), float(values.mean())
    generator = np.random.default_rng(seed)
    result = resample((values,), np.mean, n_resamples=resamples, batch=CHUNK, confidence_level=LEVEL, rng=generator)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _centred(value: float, draws: np.ndarray) -> tuple[float, float]:
    """The basic interval around `value` from the spread of `draws` about their own mean."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws - draws.mean(), (tail, 1 - tail))
    return value - float(high), value - float(low)


def _sign_flip(differences: np.ndarray, seed: int, flips: int) -> float:
    """Two-sided p of the mean under random signs of the differences (N,), by `flips` of them or the tail's bound."""
    from scipy.stats import norm

    generator, n = np.random.default_rng(seed), len(differences)
    length = float(np.linalg.norm(differences))
    if length == 0:
        return 1.0
    sums = []
    for done in range(0, flips, CHUNK):
        packed = generator.integers(0, 256, size=(min(CHUNK, flips - done), (n + 7) // 8), dtype=np.uint8)
        sums.append((2.0 * np.unpackbits(packed, axis=1, count=n) - 1.0) @ differences)
    total = abs(float(differences.sum()))
    bound = 2 * RADEMACHER * float(norm.sf(total / length))
    return min(_beyond(np.abs(np.concatenate(sums)), total), max(SMALLEST_P, bound))


def _beyond(draws: np.ndarray, observed: float) -> float:
    """(1 + draws at least as large as `observed`) / (1 + draws); ties lost to rounding still count as ties."""
    return float(1 + (draws >= observed * (1 - 1e-12)).sum()) / (1 + len(draws))
