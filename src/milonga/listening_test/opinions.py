"""What people's judgements say on average: mean opinion scores and win rates, with intervals for people and prompts.

Judgements are neither independent nor alike: a rater is strict or mild on everything, a prompt is easy or hard for
everyone. All intervals hold 95 % and are for other raters *and* other prompts of the same kind.
"""

from dataclasses import dataclass

import numpy as np

from milonga.core.errors import DataError
from milonga.maths.statistics import LEVEL, Difference, Interval


@dataclass(frozen=True)
class Components:
    """Variances of rater, prompt and what is left; the standard error of the mean, and its degrees of freedom."""

    rater: float
    prompt: float
    rest: float
    error: float
    freedom: float


def mean_opinion(values: np.ndarray, raters: np.ndarray, prompts: np.ndarray) -> Interval:
    """The mean of judgements (N,) with a t interval, rater and prompt (both (N,), any labels) as random effects.

    MOS of OVL or REL (1 to 5); a win rate, where a judgement is 1, 0 or ½. Low and high are NaN where fewer than two
    raters or two prompts took part: nothing is then known about others. Raises DataError for lengths that differ, no
    judgement, or one that is not finite.
    """
    values, raters, prompts = _judgements(values, raters, prompts)
    found = components(values, raters, prompts)
    half = _quantile(found.freedom) * found.error
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half, len(values))


def opinion_difference(values: np.ndarray, raters: np.ndarray, prompts: np.ndarray) -> Difference:
    """The mean of differences (N,), each one rater's on one prompt, with interval and two-sided p as `mean_opinion`'s.

    What a rater or prompt does to both systems alike cancels before the interval is made. p is 1 where all differences
    are zero, NaN where there is no interval.
    """
    from scipy.stats import t

    whole = mean_opinion(values, raters, prompts)
    found = components(*_judgements(values, raters, prompts))
    p = 2 * float(t.sf(abs(whole.value) / found.error, found.freedom)) if found.error > 0 else _certain(whole)
    return Difference(whole.value, whole.low, whole.high, p, whole.n)


def components(values: np.ndarray, raters: np.ndarray, prompts: np.ndarray) -> Components:
    """Variance components of value = mean + rater + prompt + rest over N judgements, in any layout, by moments.

    The sums of squares of raters' totals, of prompts' totals and of single judgements about the mean are set to their
    expectations, which are linear in the three variances (Searle, Casella & McCulloch 1992, ch. 5), and solved without
    negative variances. Where every rater judged every prompt once, this is the analysis of variance. The degrees of
    freedom are Satterthwaite's (1946). The error is NaN below two raters or two prompts.
    """
    counts, by_rater, by_prompt = _totals(values, raters, prompts)
    n, people, texts = len(values), len(by_rater), len(by_prompt)
    if people < 2 or texts < 2:
        return Components(np.nan, np.nan, np.nan, np.nan, np.nan)
    of_rater, of_prompt = counts.sum(1), counts.sum(0)
    squares = np.array([np.square(by_rater).sum(), np.square(by_prompt).sum(), np.square(values - values.mean()).sum()])
    sizes = _solved(_expectations(counts), squares)
    shares = sizes * [np.square(of_rater).sum() / n**2, np.square(of_prompt).sum() / n**2, 1 / n]
    freedom = _satterthwaite(shares, people, texts, n)
    rater, prompt, rest = (float(size) for size in sizes)
    return Components(rater, prompt, rest, float(np.sqrt(shares.sum())), freedom)


def _judgements(
    values: np.ndarray, raters: np.ndarray, prompts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = np.asarray(values, dtype=np.float64), np.asarray(raters), np.asarray(prompts)
    if {array.shape for array in arrays} != {(len(arrays[0]),)} or not len(arrays[0]):
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise DataError(f"judgements, their raters and their prompts must be as many, and some: not {shapes}")
    if not np.isfinite(arrays[0]).all():
        raise DataError("judgements must be finite numbers")
    return arrays


def _totals(values: np.ndarray, raters: np.ndarray, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Judgements in each cell (R, P); totals of the centred values by rater (R,) and by prompt (P,)."""
    people, i = np.unique(raters, return_inverse=True)
    texts, j = np.unique(prompts, return_inverse=True)
    counts = np.zeros((len(people), len(texts)))
    np.add.at(counts, (i, j), 1.0)
    centred = values - values.mean()
    return counts, np.bincount(i, centred, len(people)), np.bincount(j, centred, len(texts))


def _expectations(counts: np.ndarray) -> np.ndarray:
    """(3, 3): row k times the variances of (rater, prompt, rest) is what the k-th sum of squares is on average.

    With Z the design of an effect and M = I − 11ᵀ/N, the sum of squares of totals is |ZᵀMy|².
    """
    n, of_rater, of_prompt = counts.sum(), counts.sum(1), counts.sum(0)
    raters = np.diag(of_rater) - np.outer(of_rater, of_rater) / n
    prompts = np.diag(of_prompt) - np.outer(of_prompt, of_prompt) / n
    crossed = np.square(counts - np.outer(of_rater, of_prompt) / n).sum()
    return np.array(
        [
            [np.square(raters).sum(), crossed, np.trace(raters)],
            [crossed, np.square(prompts).sum(), np.trace(prompts)],
            [np.trace(raters), np.trace(prompts), n - 1],
        ]
    )


def _solved(matrix: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """The variances, none below zero, whose expectations come nearest to the sums of squares."""
    from scipy.optimize import nnls

    scale = np.diag(matrix)
    return nnls(matrix / scale[:, None], squares / scale)[0]


def _satterthwaite(shares: np.ndarray, people: int, texts: int, n: int) -> float:
    """Degrees of freedom of the error, as the sum of three mean squares: raters', prompts', less the rest's.

    The mean squares of raters and of prompts hold the rest too; so few of them that this is what must be counted.
    """
    squares = np.array([shares[0] + shares[2], shares[1] + shares[2], shares[2]])
    freedoms = np.array([people - 1, texts - 1, max(1, n - people - texts + 1)])
    total = float((np.square(squares) / freedoms).sum())
    return max(1.0, float(shares.sum() ** 2 / total)) if total > 0 else float(freedoms.min())


def _quantile(freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, freedom))


def _certain(whole: Interval) -> float:
    """p where the differences do not vary at all: 1 for zero, 0 for anything else; NaN without an interval."""
    return np.nan if np.isnan(whole.low) else float(whole.value == 0)
