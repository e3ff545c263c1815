"""Strengths from comparisons (Bradley & Terry 1952): P(i beats j) = 1/(1 + exp(sⱼ − sᵢ)), the strengths adding to 0."""

import numpy as np

from milonga.maths.statistics import LEVEL, Interval

LONGEST_STEP = 1.0  # of one strength in one Newton step: the first steps must not overshoot
STEPS = 200


def bradley_terry(
    first: np.ndarray, second: np.ndarray, won: np.ndarray, raters: np.ndarray, prompts: np.ndarray, systems: int
) -> list[Interval]:
    """Each system's strength with its 95 % interval, from N comparisons; n is how many it took part in.

    `first` and `second` (N,) number the two systems, `won` (N,) is 1 where the first won, 0 where the second did and ½
    for a tie; `raters` and `prompts` (N,) are labels. Every two systems that met get half a win each on top (Haldane's
    correction), so that one that never lost is finite: of two systems s₁ − s₂ = log((w + ½)/(l + ½)). The intervals
    allow for raters and prompts that favour a system (Cameron, Gelbach & Miller 2011) and use t quantiles; NaN below
    two raters or two prompts. All is NaN where comparisons do not link all systems.
    """
    won = np.asarray(won, dtype=np.float64)
    counts = np.bincount(np.concatenate([first, second]), minlength=systems)
    wins = np.zeros((systems, systems))
    np.add.at(wins, (first, second), won)
    np.add.at(wins, (second, first), 1 - won)
    met = (wins + wins.T) > 0
    if not linked(met):
        return [Interval(np.nan, np.nan, np.nan, int(count)) for count in counts]
    strengths, inverse = _fitted(wins + 0.5 * met)
    chance = 1 / (1 + np.exp(strengths[second] - strengths[first]))
    scores = (won - chance)[:, None] * (np.eye(systems)[first] - np.eye(systems)[second])
    half = _half_widths(scores @ inverse, np.asarray(raters), np.asarray(prompts))
    rows = zip(strengths, half, counts, strict=True)
    return [Interval(float(s), float(s - h), float(s + h), int(count)) for s, h, count in rows]


def linked(met: np.ndarray) -> bool:
    """Whether comparisons lead from every system to every other; `met` (S, S) says which two met."""
    reach = np.linalg.matrix_power((met | np.eye(len(met), dtype=bool)).astype(float), max(1, len(met) - 1))
    return bool((reach > 0).all())


def _fitted(wins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest strengths (S,) of wins (S, S), by Newton's method, and the inverse of their information."""
    games, strengths = wins + wins.T, np.zeros(len(wins))
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(strengths[None] - strengths[:, None]))
        weights = games * chance * (1 - chance)
        inverse = np.linalg.pinv(np.diag(weights.sum(1)) - weights)
        step = inverse @ (wins - games * chance).sum(1)
        strengths = strengths + step * min(1.0, LONGEST_STEP / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-10:
            break
    return strengths, inverse


def _half_widths(influence: np.ndarray, raters: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Half the interval of each strength (S,) from what every comparison adds to it, (N, S)."""
    from scipy.stats import t

    people, i = np.unique(raters, return_inverse=True)
    texts, j = np.unique(prompts, return_inverse=True)
    if min(len(people), len(texts)) < 2:
        return np.full(influence.shape[1], np.nan)
    cells = np.unique(i * len(texts) + j, return_inverse=True)[1]
    by_rater, by_prompt, by_cell = (_squares(influence, groups) for groups in (i, j, cells))
    # The variance of one clustering alone is the least that it can be; the difference may fall below by chance.
    variance = np.maximum(by_rater + by_prompt - by_cell, np.maximum(by_rater, by_prompt))
    return float(t.ppf((1 + LEVEL) / 2, min(len(people), len(texts)) - 1)) * np.sqrt(variance)


def _squares(influence: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Sums of squares (S,) of the groups' totals, with the usual G/(G − 1) for G groups."""
    count = int(groups.max()) + 1
    totals = np.zeros((count, influence.shape[1]))
    np.add.at(totals, groups, influence)
    return np.square(totals).sum(0) * count / max(1, count - 1)
