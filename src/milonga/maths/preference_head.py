"""A linear head learnt from people: their ratings of single clips, and their choices between two.

Ratings give two terms (Takano et al. 2026, SPO for CLAPScore): a clip's prediction lies within a margin of its rating,
and so does the difference of two clips' predictions of that of their ratings. Choices give Bradley and Terry's (1952).
"""

from dataclasses import dataclass

import numpy as np

from milonga.core.errors import DataError

MARGIN = 0.2  # of a standard deviation of ratings: what a prediction may miss without loss
PARTNERS = 20  # clips that each clip is compared with
ITERATIONS = 100
LIGHT = 0.01  # the share of the decay that falls on a feature that is known to say something
SPREAD = 1e-6  # a feature that varies less than this says nothing
POOLED = 5  # ratings below which a rater's own spread is not known, and that of all raters is taken


@dataclass(frozen=True)
class Choices:
    """P choices between the clips `first` and `second` (P,): `points` (P,) is 1 for the first, 0 for the second, ½ for
    neither."""

    first: np.ndarray
    second: np.ndarray
    points: np.ndarray


@dataclass(frozen=True)
class LinearHead:
    """A number for a feature row (F,): `weights` · (row − `mean`) / `spread` + `bias`; all float64."""

    weights: np.ndarray
    bias: float
    mean: np.ndarray
    spread: np.ndarray

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of feature rows (N, F), shape (N,): in standard deviations of ratings, more being better."""
        return (rows - self.mean) / self.spread @ self.weights + self.bias


def z_scores(values: np.ndarray, raters: np.ndarray) -> np.ndarray:
    """Ratings (N,) in standard deviations about each rater's (N,) mean; of a rater with fewer than POOLED ratings, or
    who gives one number alone, in the spread of all raters about their own means."""
    raters = np.unique(raters, return_inverse=True)[1]
    counts = np.bincount(raters)
    gaps = values - (np.bincount(raters, values) / counts)[raters]
    squares = np.bincount(raters, np.square(gaps))
    pooled = float(np.sqrt(squares.sum() / max(1, len(values) - len(counts)))) or 1.0
    own = np.sqrt(squares / np.maximum(counts - 1, 1))
    return gaps / np.where((counts >= POOLED) & (own > 0), own, pooled)[raters]


def fit_head(
    rows: np.ndarray, ratings: np.ndarray, weights: np.ndarray, choices: Choices, decay: float, seed: int,
    trusted: np.ndarray | None = None,
) -> LinearHead:  # fmt: skip
    """The head of feature rows (N, F) for z-scored ratings (N,), NaN where a clip was only compared, and choices.

    `weights` (N,) say how much a rating counts, such as its number of raters. `decay` times the mean square of the
    weights holds the head back, those of `trusted` features (F,) LIGHT times as much, so that of few ratings a mix of
    these remains and not noise. The optimum is found by L-BFGS in float64, the same for the same seed. Raises DataError
    where there is neither a rating nor a choice.
    """
    import torch
    from torch.nn.functional import relu, softplus

    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread = np.where(spread > SPREAD, spread, np.inf)
    rated = np.flatnonzero(np.isfinite(ratings))
    if not len(rated) and not len(choices.first):
        raise DataError("a head is learnt from ratings or choices, and there are none")
    table = torch.from_numpy((rows - mean) / spread)
    target, counts = torch.from_numpy(ratings[rated]), torch.from_numpy(weights[rated] / max(weights[rated].sum(), 1))
    a, b = np.random.default_rng(seed).integers(0, max(len(rated), 1), (2, PARTNERS * len(rated)))
    first, second, points = (torch.from_numpy(part) for part in (choices.first, choices.second, choices.points))
    held = torch.ones(rows.shape[1], dtype=torch.float64)
    if trusted is not None:
        held[torch.from_numpy(trusted)] = LIGHT
    head = torch.zeros(rows.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([head], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = decay * (held * head[:-1].square()).mean()
        answers = table @ head[:-1] + head[-1]
        if len(rated):
            own = answers[rated]
            gaps = (own[a] - own[b] - target[a] + target[b]).abs()
            value = value + relu(gaps - MARGIN).mean() / 2
            value = value + (counts * relu((own - target).abs() - MARGIN).square()).sum()
        if len(points):
            margin = answers[first] - answers[second]
            value = value + (points * softplus(-margin) + (1 - points) * softplus(margin)).mean()
        value.backward()
        return value

    optimizer.step(loss)
    fitted = head.detach().numpy()
    return LinearHead(fitted[:-1].copy(), float(fitted[-1]), mean, spread)
