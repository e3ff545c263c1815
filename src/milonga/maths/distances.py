"""Distances of two sets without the Fréchet distance's bias at small N or its normal model.

FD∞ (Chong and Forsyth 2020; Gui et al. 2024 for audio) extrapolates to infinite N; KAD (Chung et al. 2025) is an
unbiased kernel distance without a normal model. Numpy only.
"""

import numpy as np

from milonga.core.errors import DataError
from milonga.maths.bootstrap import Advance, counts, frechet_draws, no_progress
from milonga.maths.metrics import feature_rows

SCALE = 100  # KAD is published in hundredths
SIZES, REPEATS = 12, 4
SMALLEST_SHARE = 0.5  # of all clips, in the smallest part that FD∞ looks at


def frechet_infinity(
    a: np.ndarray, b: np.ndarray, owner: np.ndarray | None = None, seed: int = 0, advance: Advance = no_progress
) -> float:
    """FD∞ of generated rows `a` (Na, D) against `b` (Nb, D): the distance extrapolated to infinitely many clips.

    Distances of parts of `a` fall as 1/n; a straight line through those of parts from half to all of the clips, drawn
    without replacement, by clip and several times, is read where 1/n is 0. `owner` (Na,) says which clip a row is of
    (each its own). The reference's own N still biases it. Raises DataError for fewer than ten clips.
    """
    rows, real = feature_rows(a), feature_rows(b)
    clips = np.arange(len(rows)) if owner is None else np.asarray(owner)
    total = int(clips.max()) + 1
    if total < 10:
        raise DataError(f"FD∞ needs ten clips to see how the distance falls with their number, not {total}")
    sizes = np.repeat(np.unique(np.linspace(SMALLEST_SHARE * total, total, SIZES).astype(int)), REPEATS)
    generator = np.random.default_rng(seed)
    held = np.stack([np.bincount(generator.permutation(total)[:size], minlength=total) for size in sizes])
    every = np.ones((len(sizes), len(real)), dtype=np.int32)
    return _extrapolated(frechet_draws(rows, real, held[:, clips], every, advance)[None], sizes)[0]


def frechet_infinity_draws(
    a: np.ndarray, b: np.ndarray, indices: np.ndarray, in_b: np.ndarray, owner: np.ndarray | None = None,
    advance: Advance = no_progress,
) -> np.ndarray:  # fmt: skip
    """FD∞ of each draw of clips (R, N), shape (R,): a draw's first n clips are its part of n. `in_b` (R, Nb) counts."""
    clips = np.arange(len(a)) if owner is None else np.asarray(owner)
    total = indices.shape[1]
    sizes = np.unique(np.linspace(SMALLEST_SHARE * total, total, 4).astype(int))
    held = np.concatenate([counts(indices[:, :size], total)[:, clips] for size in sizes])
    distances = frechet_draws(a, b, held, np.tile(in_b, (len(sizes), 1)), advance)
    return _extrapolated(distances.reshape(len(sizes), -1).T, sizes)


def _extrapolated(distances: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Where straight lines through distances (R, S) of parts of `sizes` (S,) meet 1/n = 0, shape (R,)."""
    design = np.stack([np.ones(len(sizes)), 1 / sizes], axis=1)
    return np.linalg.lstsq(design, distances.T, rcond=None)[0][0]


class KernelDistance:
    """KAD of two sets and of any draws of their rows; the kernels are computed once.

    KAD is 100 × the unbiased squared MMD of rows (Na, D) and (Nb, D) under a Gaussian kernel, and may be negative. The
    bandwidth is the median distance between two rows of the reference `b`, as the paper says; the published code takes
    that of the generated ones. Raises DataError where rows are too few, not finite, or all alike.
    """

    def __init__(self, a: np.ndarray, b: np.ndarray) -> None:
        a, b = feature_rows(a), feature_rows(b)
        if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
            raise DataError(f"a kernel distance needs two or more rows a side, equally wide: {a.shape}, {b.shape}")
        within = _squares(b, b)
        apart = np.sqrt(within[np.triu_indices(len(b), 1)])
        width = float(np.quantile(apart, 0.5, method="lower"))  # the published code's median of an even number
        if width == 0:
            raise DataError("the reference's rows are all alike: a kernel distance has no measure there")

        def kernel(squares: np.ndarray) -> np.ndarray:
            return np.exp(-squares / (2 * width**2))

        self.kernels = kernel(_squares(a, a)), kernel(within), kernel(_squares(a, b))
        self.value = float(self.of_draws(np.ones((1, len(a))), np.ones((1, len(b))))[0])

    def of_draws(self, in_a: np.ndarray, in_b: np.ndarray) -> np.ndarray:
        """KAD of R draws, shape (R,), which hold each row `in_a` (R, Na) and `in_b` (R, Nb) times."""
        within_a, within_b, across = self.kernels
        w, v = in_a.astype(np.float64), in_b.astype(np.float64)
        n, m = w.sum(axis=1), v.sum(axis=1)
        of_a = (((w @ within_a) * w).sum(axis=1) - n) / (n * (n - 1))
        of_b = (((v @ within_b) * v).sum(axis=1) - m) / (m * (m - 1))
        return SCALE * (of_a + of_b - 2 * ((w @ across) * v).sum(axis=1) / (n * m))


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (Na, Nb); none negative by rounding."""
    return (np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T).clip(min=0)
