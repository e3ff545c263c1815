"""Set metrics of many bootstrap draws at once: the values of `maths.metrics` for each draw, in a fraction of the time.

A draw of N clips with replacement holds 63 % of them, some several times. Its covariance is therefore a weighted one
of fewer rows, and draws are spread over as many threads as the linear algebra may use. Values equal those of the plain
form up to rounding.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from milonga.maths.metrics import log_softmax

Advance = Callable[[int], None]
CHUNK = 16  # draws between two reports of progress
NARROW = 1e-10  # directions of less than this share of the widest one's spread are rounding


def no_progress(done: int) -> None:
    """Ignores a report of progress."""


def counts(indices: np.ndarray, n: int) -> np.ndarray:
    """How often each of `n` clips is in each draw: (R, N) places → (R, n), int32."""
    return np.stack([np.bincount(draw, minlength=n) for draw in indices]).astype(np.int32)


def frechet_draws(
    a: np.ndarray, b: np.ndarray, in_a: np.ndarray, in_b: np.ndarray, advance: Advance = no_progress
) -> np.ndarray:
    """`frechet_distance` of R draws, shape (R,), of the rows `a` (Na, D) and `b` (Nb, D), finite.

    `in_a` (R, Na) and `in_b` (R, Nb) are how often each row is in each draw (`counts`); rows of one clip count alike.
    `advance` is called after every few draws.

    Of one draw, let w (Na,) and v (Nb,) be those counts, n = Σw, μ = wᵀa / n. Then Σa = Rᵀ R with rows
    Ra = √(w/(n−1)) · (a − μ), and the distance is |μa − μb|² + tr Σa + tr Σb − 2 tr (ΣaΣb)^½, where
    tr Σa = (w·|a|² − n |μ|²) / (n−1), and tr (ΣaΣb)^½ is the sum of the singular values of Ra·Rbᵀ:
    - fewer rows than dimensions: Ra·Rbᵀ is a·bᵀ, centred by w and v on both sides and scaled by √(w/(n−1)) and
      √(v/(m−1)), so that one product serves all draws (`_by_products`);
    - more rows than dimensions: with Σb = LLᵀ the singular values are the roots of the eigenvalues of LᵀΣaL, a D × D
      problem (`_by_covariances`). Directions in which `b` does not spread add nothing and are left out first.
    """
    a, b = (np.asarray(rows, dtype=np.float64) for rows in (a, b))
    middle = b.mean(axis=0)
    a, b = a - middle, b - middle  # so that weighted moments lose no digits to a common offset
    _, sizes, directions = np.linalg.svd(b, full_matrices=False)
    span = directions[sizes > NARROW * max(sizes[0], 1e-300)].T  # (D, r): the directions in which `b` spreads at all
    overlap = (
        _by_products(a @ b.T)
        if span.shape[1] >= min(len(a), len(b)) - 1
        else _by_covariances(np.ascontiguousarray(a @ span), np.ascontiguousarray(b @ span))
    )
    squares = np.square(a).sum(axis=1), np.square(b).sum(axis=1)

    def one(place: int) -> float:
        w, v = in_a[place].astype(np.float64), in_b[place].astype(np.float64)
        mean_a, mean_b = w @ a / w.sum(), v @ b / v.sum()
        gap = mean_a - mean_b
        traces = sum(
            (weights @ square - weights.sum() * (mean @ mean)) / (weights.sum() - 1)
            for weights, square, mean in ((w, squares[0], mean_a), (v, squares[1], mean_b))
        )
        return max(float(gap @ gap + traces - 2 * overlap(w, v)), 0.0)

    return _in_threads(one, len(in_a), advance)


def inception_draws(logits: np.ndarray, indices: np.ndarray, splits: int = 10, seed: int = 2020) -> np.ndarray:
    """The mean of `inception_score` of each draw, shape (R,): logits (N, K), places of the clips drawn (R, N)."""
    log_p = log_softmax(np.asarray(logits, dtype=np.float64))
    p = np.exp(log_p)
    sureness = np.where(p > 0, p * log_p, 0.0).sum(axis=1)
    places = indices[:, np.random.RandomState(seed).permutation(indices.shape[1])]
    edges = np.arange(splits + 1) * places.shape[1] // splits
    total = np.zeros(len(places))
    for start, stop in pairwise(edges):
        part = counts(places[:, start:stop], len(p)) / (stop - start)
        mean = part @ p
        spread = np.where(mean > 0, mean * np.log(np.where(mean > 0, mean, 1.0)), 0.0).sum(axis=1)
        total += np.exp(part @ sureness - spread)
    return total / splits


def _by_covariances(a: np.ndarray, b: np.ndarray) -> Callable[[np.ndarray, np.ndarray], float]:
    """tr (ΣaΣb)^½ of weighted rows, for more rows than dimensions: with Σb = LLᵀ, from the eigenvalues of LᵀΣaL."""

    def overlap(w: np.ndarray, v: np.ndarray) -> float:
        root_a, root_b = _weighted(a, w), _weighted(b, v)
        try:
            lower = np.linalg.cholesky(root_b.T @ root_b)
        except np.linalg.LinAlgError:  # the draw holds too few different clips to fill the space
            return float(np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum())
        half = root_a @ lower
        return float(np.sqrt(np.linalg.eigvalsh(half.T @ half).clip(min=0)).sum())  # negative by rounding alone

    return overlap


def _by_products(products: np.ndarray) -> Callable[[np.ndarray, np.ndarray], float]:
    """tr (ΣaΣb)^½ of weighted rows, for fewer rows than dimensions, from their products a·bᵀ (Na, Nb) alone."""

    def overlap(w: np.ndarray, v: np.ndarray) -> float:
        held_a, held_b = w > 0, v > 0
        p, q = w[held_a], v[held_b]  # the counts of the rows that are in the draw
        part = products[np.ix_(held_a, held_b)]
        by_row, by_column = part @ q / q.sum(), p @ part / p.sum()
        centred = part - by_row[:, None] - by_column + p @ by_row / p.sum()
        scaled = np.sqrt(p / (p.sum() - 1))[:, None] * centred * np.sqrt(q / (q.sum() - 1))
        return float(np.linalg.svd(scaled, compute_uv=False).sum())  # exact where centring leaves it short of rank

    return overlap


def _weighted(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """R with RᵀR = the unbiased covariance of the rows (N, D), each counted `weights` (N,) times; no empty rows."""
    held = weights > 0
    centred, times = rows[held], weights[held]
    centred -= times @ centred / times.sum()
    centred *= np.sqrt(times / (times.sum() - 1))[:, None]
    return centred


def _in_threads(one: Callable[[int], float], total: int, advance: Advance) -> np.ndarray:
    """`one(place)` for every place, on as many threads as the linear algebra may use, each with a thread of its own."""
    from threadpoolctl import threadpool_info, threadpool_limits

    def chunk(start: int) -> list[float]:
        return [one(place) for place in range(start, min(start + CHUNK, total))]

    workers = max([pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"], default=1)
    values: list[float] = []
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as threads:
        for part in threads.map(chunk, range(0, total, CHUNK)):
            values += part
            advance(len(part))
    return np.array(values)
