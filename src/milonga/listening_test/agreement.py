"""How far raters agree: Krippendorff's α, whatever the number of raters and whoever is missing.

K. Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": α = 1 − observed / expected disagreement, over all
pairs of ratings of the same unit, each unit's pairs weighed by 1/(m − 1) for its m ratings.
"""

from typing import Literal

import numpy as np

from milonga.core.errors import DataError
from milonga.maths.statistics import LEVEL, Interval

Scale = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(ratings: np.ndarray, scale: Scale = "ordinal") -> float:
    """α of ratings, shape (raters, units), NaN where a rater did not judge a unit. 1: full agreement; 0: chance.

    NaN where no unit has two ratings, or all ratings are one value, so that nothing could have disagreed. Raises
    DataError for another shape.
    """
    pairs, values = _coincidences(ratings)
    return float(_alpha(pairs.sum(0)[None], values, scale)[0])


def alpha_interval(ratings: np.ndarray, seed: int, scale: Scale = "ordinal", resamples: int = 1000) -> Interval:
    """α with its bootstrap interval over units (percentiles); arguments and errors as for `krippendorff_alpha`.

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


def _coincidences(ratings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each unit with two ratings or more its pairs of values (U, V, V), and the V values that occur in pairs."""
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
    apart = _distances(totals, values, scale)
    observed = (pairs * apart).sum((1, 2))
    expected = (totals[:, :, None] * totals[:, None, :] * apart).sum((1, 2)) / np.maximum(totals.sum(1) - 1, 1)
    return 1 - np.divide(observed, expected, out=np.full(len(pairs), np.nan), where=expected > 0)


def _distances(totals: np.ndarray, values: np.ndarray, scale: Scale) -> np.ndarray:
    """Squared distances (B, V, V) between values; ordinal ones count the ratings that lie between, totals (B, V)."""
    if scale == "nominal":
        return np.broadcast_to(1 - np.eye(len(values)), (len(totals), len(values), len(values)))
    places = values[None] if scale == "interval" else np.cumsum(totals, axis=1) - totals / 2
    return np.square(places[:, :, None] - places[:, None, :])
