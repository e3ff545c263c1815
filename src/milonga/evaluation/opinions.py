"""Statistics of people's judgements: opinion scores, tests of systems, win rates, strengths, agreement of raters.

Judgements are neither independent nor identically distributed: a rater is strict or mild on everything, and a prompt is
easy or hard for everyone. All intervals are 95 % intervals for other raters *and* other prompts of the same kind.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from milonga.core.errors import DataError
from milonga.maths.statistics import LEVEL, Difference, Interval

Scale = Literal["nominal", "ordinal", "interval"]
MAX_STEP = 1.0  # of one strength in one Newton step: the first steps must not overshoot
NEWTON_STEPS = 200
LARGE_SAMPLE = 1.96  # the t quantile of a 95 % interval with many degrees of freedom


@dataclass(frozen=True)
class Components:
    """Variances of rater, prompt and residual; the standard error of the mean, and its degrees of freedom."""

    rater: float
    prompt: float
    rest: float
    error: float
    freedom: float


def mean_opinion(values: np.ndarray, raters: np.ndarray, prompts: np.ndarray) -> Interval:
    """The mean of judgements (N,) with a t interval, rater and prompt (both (N,), any labels) as random effects.

    It is the MOS of OVL or REL (1 to 5), or a win rate, where a judgement is 1, 0 or ½. Low and high are NaN with fewer
    than two raters or two prompts, because nothing is then known about others. Raises DataError for different lengths,
    no judgement, or a judgement that is not finite.
    """
    values, raters, prompts = _judgements(values, raters, prompts)
    spread = components(values, raters, prompts)
    half = _t_quantile(spread.freedom) * spread.error
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half, len(values))


def opinion_difference(values: np.ndarray, raters: np.ndarray, prompts: np.ndarray) -> Difference:
    """The mean of differences (N,), each of one rater on one prompt, with interval and two-sided p as `mean_opinion`.

    An effect of rater or prompt that both systems share cancels before the interval is computed. p is 1 where all
    differences are zero, and that of a sign test where they are all the same other number, over as many signs as there
    are raters or prompts, whichever are fewer; NaN without an interval.
    """
    from scipy.stats import t

    mean = mean_opinion(values, raters, prompts)
    spread = components(*_judgements(values, raters, prompts))
    if spread.error > 0:
        p = 2 * float(t.sf(abs(mean.value) / spread.error, spread.freedom))
    else:
        p = np.nan if np.isnan(mean.low) else _sign_test(mean.value, raters, prompts)
    return Difference(mean.value, mean.low, mean.high, p, mean.n)


def _sign_test(value: float, raters: np.ndarray, prompts: np.ndarray) -> float:
    """Two-sided p of differences that are all alike, with the smaller of the numbers of raters and prompts as N."""
    return min(1.0, 2 * 0.5 ** min(len(np.unique(raters)), len(np.unique(prompts)))) if value else 1.0


@dataclass(frozen=True)
class Omnibus:
    """A test of "all systems are alike": F with its degrees of freedom, and p."""

    f: float
    between: float
    within: float
    p: float


def omnibus(values: np.ndarray, systems: np.ndarray, raters: np.ndarray, prompts: np.ndarray) -> Omnibus:
    """The ANOVA-type test of N judgements (all (N,)) with rater and prompt, and each one's taste, as random effects.

    The means of K systems give Q = Σₖ(mₖ − m̄)². Under "all alike" E[Q] = tr(S), the covariance S of the centred means;
    F = Q / tr(S) is taken as F-distributed with tr(S)² / tr(S²) and f₂ degrees of freedom (Brunner, Dette & Munk 1997,
    *JASA* 92, section 2). S follows from the variances D of all differences of two systems, which come from
    `components` over the same rater and prompt: S = −½ P D P with P = I − 1/K. With ν the harmonic mean of their
    Satterthwaite degrees of freedom, weighted by D, f₂ = ν tr(S)² / tr(S²), as of the trace of a Wishart matrix. NaN
    with fewer than two systems, raters or prompts in common.
    """
    from scipy.stats import f as f_distribution

    table: dict[str, dict[tuple[str, str], float]] = {}
    for value, system, rater, prompt in zip(values, systems, raters, prompts, strict=True):
        table.setdefault(str(system), {})[str(rater), str(prompt)] = float(value)
    count = len(table)
    means, variances, inverse_freedom = np.zeros((count, count)), np.zeros((count, count)), np.zeros((count, count))
    cells: list[tuple[str, str]] = []
    for (i, one), (j, other) in combinations(enumerate(table.values()), 2):
        cells = [cell for cell in one if cell in other]
        if not cells:
            return Omnibus(np.nan, np.nan, np.nan, np.nan)
        differences = np.array([one[cell] - other[cell] for cell in cells])
        spread = components(differences, *(np.array(labels) for labels in zip(*cells, strict=True)))
        means[i, j], means[j, i] = differences.mean(), -differences.mean()
        variances[i, j] = variances[j, i] = spread.error**2
        inverse_freedom[i, j] = inverse_freedom[j, i] = 1 / spread.freedom
    if count < 2 or np.isnan(variances).any():
        return Omnibus(np.nan, np.nan, np.nan, np.nan)
    centre = np.eye(count) - 1 / count
    eigenvalues = np.linalg.eigvalsh(-0.5 * centre @ variances @ centre).clip(min=0)
    q = float(np.square(means.mean(axis=1)).sum())
    if eigenvalues.sum() <= 0:
        return Omnibus(np.inf if q else 0.0, count - 1, np.nan, _sign_test(q, *map(np.array, zip(*cells, strict=True))))
    between = float(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum())
    within = between * float(variances.sum() / (variances * inverse_freedom).sum())
    f = q / float(eigenvalues.sum())
    return Omnibus(f, between, within, float(f_distribution.sf(f, between, within)))


def raters_needed(width: float, spread: Components, prompts: int, per_rater: int, most: int = 10_000) -> int | None:
    """The number of raters with which the 95 % interval of a mean is ± `width`; None where no number up to `most` is.

    `spread` has the variances of rater, prompt and residual of single judgements; every rater judges `per_rater` of the
    `prompts`. The error cannot fall below what the prompts leave, so it may take more of them.
    """
    for raters in range(2, most + 1):
        n = raters * min(per_rater, prompts)
        shares = np.array([spread.rater / raters, spread.prompt / prompts, spread.rest / n])
        if _t_quantile(_satterthwaite(shares, raters, prompts, n)) * np.sqrt(shares.sum()) <= width:
            return raters
        if LARGE_SAMPLE * np.sqrt(shares[1]) > width:
            return None
    return None


def components(values: np.ndarray, raters: np.ndarray, prompts: np.ndarray) -> Components:
    """Variance components of value = mean + rater + prompt + residual over N judgements, in any layout, by moments.

    The sums of squares of raters' totals, of prompts' totals and of single judgements about the mean are set to their
    expectations, which are linear in the three variances (Searle, Casella & McCulloch 1992, ch. 5), and solved without
    negative variances. Where every rater judged every prompt once, this is the analysis of variance. The degrees of
    freedom are Satterthwaite's (1946). The error is NaN below two raters or two prompts.
    """
    from scipy.optimize import nnls

    people, i = np.unique(raters, return_inverse=True)
    texts, j = np.unique(prompts, return_inverse=True)
    n = len(values)
    if min(len(people), len(texts)) < 2:
        return Components(np.nan, np.nan, np.nan, np.nan, np.nan)
    counts = np.zeros((len(people), len(texts)))
    np.add.at(counts, (i, j), 1.0)
    centred = values - values.mean()
    totals = np.bincount(i, centred, len(people)), np.bincount(j, centred, len(texts)), centred
    squares = np.array([np.square(total).sum() for total in totals])
    matrix = _expectations(counts)
    scale = np.diag(matrix)
    variances = nnls(matrix / scale[:, None], squares / scale)[0]
    shares = variances * [np.square(counts.sum(1)).sum() / n**2, np.square(counts.sum(0)).sum() / n**2, 1 / n]
    rater, prompt, rest = (float(variance) for variance in variances)
    freedom = _satterthwaite(shares, len(people), len(texts), n)
    return Components(rater, prompt, rest, float(np.sqrt(shares.sum())), freedom)


def _judgements(
    values: np.ndarray, raters: np.ndarray, prompts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = np.asarray(values, dtype=np.float64), np.asarray(raters), np.asarray(prompts)
    if {array.shape for array in arrays} != {(len(arrays[0]),)} or not len(arrays[0]):
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise DataError(f"judgements, raters and prompts must have the same length and not be empty, not {shapes}")
    if not np.isfinite(arrays[0]).all():
        raise DataError("judgements must be finite numbers")
    return arrays


def _expectations(counts: np.ndarray) -> np.ndarray:
    """(3, 3): row k times the variances of (rater, prompt, residual) is the expectation of the k-th sum of squares.

    `counts` (R, P) is the number of judgements per cell. With Z the design of an effect and M = I − 11ᵀ/N, the sum of
    squares of totals is |ZᵀMy|².
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


def _satterthwaite(shares: np.ndarray, people: int, texts: int, n: int) -> float:
    """Degrees of freedom of the error, as the sum of three mean squares: raters + prompts − residual.

    The mean squares of raters and of prompts contain the residual too.
    """
    squares = np.array([shares[0] + shares[2], shares[1] + shares[2], shares[2]])
    freedoms = np.array([people - 1, texts - 1, max(1, n - people - texts + 1)])
    total = float((np.square(squares) / freedoms).sum())
    return max(1.0, float(shares.sum() ** 2 / total)) if total > 0 else float(freedoms.min())


def _t_quantile(freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, freedom))


def bradley_terry(
    first: np.ndarray, second: np.ndarray, won: np.ndarray, raters: np.ndarray, prompts: np.ndarray, systems: int
) -> list[Interval]:
    """Each system's strength s (Bradley & Terry 1952) with its 95 % interval; n is its number of comparisons.

    P(i beats j) = 1/(1 + exp(sⱼ − sᵢ)), and the strengths sum to 0. `first` and `second` (N,) number the two systems of
    N comparisons; `won` (N,) is 1 where the first won, 0 where the second did and ½ for a tie; `raters` and `prompts`
    (N,) are labels. Every two systems that met get half a win each on top (Haldane's correction), so that one that
    never lost has a finite strength: of two systems s₁ − s₂ = log((w + ½)/(l + ½)). The intervals allow for raters and
    prompts that favour a system (Cameron, Gelbach & Miller 2011) and use t quantiles; they are NaN below two raters or
    two prompts. Everything is NaN where comparisons do not connect all systems.
    """
    won = np.asarray(won, dtype=np.float64)
    counts = np.bincount(np.concatenate([first, second]), minlength=systems)
    wins = np.zeros((systems, systems))
    np.add.at(wins, (first, second), won)
    np.add.at(wins, (second, first), 1 - won)
    met = (wins + wins.T) > 0
    steps = (met | np.eye(systems, dtype=bool)).astype(float)
    if not (np.linalg.matrix_power(steps, max(1, systems - 1)) > 0).all():
        return [Interval(np.nan, np.nan, np.nan, int(count)) for count in counts]
    strengths, inverse = _fit_strengths(wins + 0.5 * met)
    expected = 1 / (1 + np.exp(strengths[second] - strengths[first]))
    gradients = (won - expected)[:, None] * (np.eye(systems)[first] - np.eye(systems)[second])
    half = _half_widths(gradients @ inverse, np.asarray(raters), np.asarray(prompts))
    rows = zip(strengths, half, counts, strict=True)
    return [Interval(float(s), float(s - h), float(s + h), int(count)) for s, h, count in rows]


def _fit_strengths(wins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maximum-likelihood strengths (S,) of wins (S, S) by Newton's method, and the inverse of their information."""
    games, strengths = wins + wins.T, np.zeros(len(wins))
    for _ in range(NEWTON_STEPS):
        expected = 1 / (1 + np.exp(strengths[None] - strengths[:, None]))
        weights = games * expected * (1 - expected)
        inverse = np.linalg.pinv(np.diag(weights.sum(1)) - weights)
        step = inverse @ (wins - games * expected).sum(1)
        strengths = strengths + step * min(1.0, MAX_STEP / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-10:
            break
    return strengths, inverse


def _half_widths(influence: np.ndarray, raters: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Half the interval of each strength (S,) from the influence of every comparison on it, (N, S).

    Two-way clustered variance: by rater + by prompt − by cell.
    """
    people, i = np.unique(raters, return_inverse=True)
    texts, j = np.unique(prompts, return_inverse=True)
    if min(len(people), len(texts)) < 2:
        return np.full(influence.shape[1], np.nan)

    def clustered(groups: np.ndarray) -> np.ndarray:
        """Sums of squares (S,) of the groups' totals, with the usual G/(G − 1) for G groups."""
        count = int(groups.max()) + 1
        totals = np.zeros((count, influence.shape[1]))
        np.add.at(totals, groups, influence)
        return np.square(totals).sum(0) * count / max(1, count - 1)

    cells = np.unique(i * len(texts) + j, return_inverse=True)[1]
    by_rater, by_prompt, by_cell = clustered(i), clustered(j), clustered(cells)
    # One clustering's own variance is a lower bound; the difference may fall below it by chance.
    variance = np.maximum(by_rater + by_prompt - by_cell, np.maximum(by_rater, by_prompt))
    return _t_quantile(min(len(people), len(texts)) - 1) * np.sqrt(variance)


def krippendorff_alpha(ratings: np.ndarray, scale: Scale = "ordinal") -> float:
    """Krippendorff's α of ratings (raters, units), NaN for units not judged. 1 is full agreement, 0 is chance.

    K. Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": α = 1 − observed / expected disagreement, over
    all pairs of ratings of the same unit, each unit's pairs weighted by 1/(m − 1) for its m ratings. NaN where no unit
    has two ratings, or all ratings are one value. Raises DataError for another shape.
    """
    pairs, values = _coincidences(ratings)
    return float(_alpha(pairs.sum(0)[None], values, scale)[0])


def alpha_interval(ratings: np.ndarray, seed: int, scale: Scale = "ordinal", resamples: int = 1000) -> Interval:
    """α with its percentile bootstrap interval over units; arguments and errors as for `krippendorff_alpha`.

    n is the number of units with two ratings or more; the limits are NaN below two such units or where α is NaN.
    """
    pairs, values = _coincidences(ratings)
    alpha, units = float(_alpha(pairs.sum(0)[None], values, scale)[0]), len(pairs)
    if units < 2 or np.isnan(alpha):
        return Interval(alpha, np.nan, np.nan, units)
    draws = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=resamples)
    alphas = _alpha(np.tensordot(draws.astype(float), pairs, axes=1), values, scale)
    low, high = np.nanquantile(alphas, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(alpha, float(low), float(high), units)


def intraclass(values: np.ndarray, raters: np.ndarray, clips: np.ndarray, seed: int, resamples: int = 200) -> Interval:
    """ICC(A,1) of judgements (N,): the share of the variance that is the clips', of one rating by any rater.

    McGraw & Wong 1996, *Psychological Methods* 1, case 2A, from `components` with clips in the place of prompts, which
    allows for clips that only some raters judged. The interval is a percentile bootstrap over clips; n is their number.
    NaN below two raters or two clips.
    """
    values, raters, clips = _judgements(values, raters, clips)
    numbers = np.unique(clips, return_inverse=True)[1]
    rows = [np.flatnonzero(numbers == clip) for clip in range(numbers.max() + 1)]

    def share(spread: Components) -> float:
        total = spread.rater + spread.prompt + spread.rest
        return spread.prompt / total if total > 0 else np.nan

    value = share(components(values, raters, numbers))
    if np.isnan(value):
        return Interval(np.nan, np.nan, np.nan, len(rows))
    draws = []
    for drawn in np.random.default_rng(seed).integers(len(rows), size=(resamples, len(rows))):
        index = np.concatenate([rows[clip] for clip in drawn])
        labels = np.repeat(np.arange(len(drawn)), [len(rows[clip]) for clip in drawn])
        draws.append(share(components(values[index], raters[index], labels)))
    low, high = np.nanquantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value, float(low), float(high), len(rows))


def _coincidences(ratings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of values (U, V, V) of each unit with two ratings or more, and the V values that occur in pairs."""
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2:
        raise DataError(f"ratings have shape (raters, units), not {table.shape}")
    table = table[:, (~np.isnan(table)).sum(0) > 1]
    values = np.unique(table[~np.isnan(table)])
    counts = (table[:, :, None] == values).sum(0).astype(float)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(values))
    return pairs / (counts.sum(1) - 1)[:, None, None], values


def _alpha(pairs: np.ndarray, values: np.ndarray, scale: Scale) -> np.ndarray:
    """α (B,) of B matrices of coincidences (B, V, V) between V values."""
    totals = pairs.sum(2)
    if scale == "nominal":
        squared = np.broadcast_to(1 - np.eye(len(values)), (len(totals), len(values), len(values)))
    else:  # ordinal distances count the ratings that lie between two values
        places = values[None] if scale == "interval" else np.cumsum(totals, axis=1) - totals / 2
        squared = np.square(places[:, :, None] - places[:, None, :])
    observed = (pairs * squared).sum((1, 2))
    expected = (totals[:, :, None] * totals[:, None, :] * squared).sum((1, 2)) / np.maximum(totals.sum(1) - 1, 1)
    return 1 - np.divide(observed, expected, out=np.full(len(pairs), np.nan), where=expected > 0)
