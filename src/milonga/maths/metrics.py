"""Metrics as pure functions: of a set of clips' features, or of the events in one clip whose scene is known.

Sets: Fréchet distance, KL divergence and inception score as the AudioLDM toolkit defines them, checked against its
recorded numbers. The features decide the number: the paper's FAD takes VGGish rows, KL and IS take PANNs logits.
One clip (§5.3): which events of its caption were detected, and in what order.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from milonga.core.errors import DataError
from milonga.core.records import Event, Scene

KL_FLOOR = 1e-6  # the toolkit adds it to the generated probabilities only, and does not renormalise


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two sets of feature rows (Na, D) and (Nb, D): |μa−μb|² + tr Σa + tr Σb − 2 tr (ΣaΣb)^½.

    Exact also where rows are fewer than dimensions, and free of matrix roots: with Σ = RᵀR, the last trace is the sum
    of the singular values of Ra·Rbᵀ, whose sides are min(N, D). Covariances are unbiased (N − 1). Its expectation
    falls with N, so only equal N compare. Raises DataError for rows that are not finite, too few, or do not match.
    """
    a, b = _rows(a, "features"), _rows(b, "features")
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise DataError(f"a Fréchet distance needs two or more rows a side, equally wide, not {a.shape} and {b.shape}")
    gap = a.mean(axis=0) - b.mean(axis=0)
    root_a, root_b = _root(a), _root(b)
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = gap @ gap + np.square(root_a).sum() + np.square(root_b).sum() - 2 * overlap
    return max(float(distance), 0.0)


def kl_softmax(reference_logits: np.ndarray, generated_logits: np.ndarray) -> np.ndarray:
    """KL(reference ‖ generated) per clip, in nats, shape (N,), from class logits (N, K).

    Row i is the same clip in both. p = softmax(reference), q = softmax(generated) + 1e-6; where that takes the
    divergence below zero (by 1e-6 K at most), it is zero. The published figure is the mean of these. Raises DataError
    for logits that are not finite or do not match.
    """
    reference, generated = _rows(reference_logits, "logits"), _rows(generated_logits, "logits")
    if reference.shape != generated.shape:
        raise DataError(f"reference logits {reference.shape} and generated logits {generated.shape} differ in shape")
    log_p = log_softmax(reference)
    log_q = np.log(np.exp(log_softmax(generated)) + KL_FLOOR)
    return np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0)


def kl_sigmoid(reference_logits: np.ndarray, generated_logits: np.ndarray) -> np.ndarray:
    """The toolkit's "KL" of independent classes per clip, shape (N,), from logits (N, K): Σ p (ln p − ln(q + 1e-6)).

    p and q are sigmoids, and the terms of (1 − p) are left out, so this is no divergence: it may be negative and grows
    with the number of classes. It is here to be compared with numbers that were published so. Raises as `kl_softmax`.
    """
    reference, generated = _rows(reference_logits, "logits"), _rows(generated_logits, "logits")
    if reference.shape != generated.shape:
        raise DataError(f"reference logits {reference.shape} and generated logits {generated.shape} differ in shape")
    log_p = -np.logaddexp(0, -reference)
    log_q = np.log(np.exp(-np.logaddexp(0, -generated)) + KL_FLOOR)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """Inception score of class logits (N, K): mean and standard deviation (ddof 0) over `splits` parts.

    Each part scores exp(mean KL(p_i ‖ mean p)); clips are dealt to parts by the toolkit's permutation (seed 2020). No
    part can score more than N/splits, so compare only equal N and splits. Raises DataError if there are fewer clips
    than splits, or logits are not finite.
    """
    logits = _rows(logits, "logits")
    if not 1 <= splits <= len(logits):
        raise DataError(f"an inception score of {len(logits)} clips cannot have {splits} splits: lower the splits")
    order = np.random.RandomState(seed).permutation(len(logits))
    log_p = log_softmax(logits[order])
    edges = np.arange(splits + 1) * len(logits) // splits
    scores = [_specificity(log_p[start:stop]) for start, stop in pairwise(edges)]
    return float(np.mean(scores)), float(np.std(scores))


def feature_rows(values: np.ndarray) -> np.ndarray:
    """Features as a float64 matrix (N, D). Raises DataError, which counts the rows, where some are not finite."""
    return _rows(values, "features")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of each row of logits (N, K), in nats, without overflow."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def event_recall(scene: Scene, events: Sequence[Event]) -> float:
    """The share of a scene's events that were detected, 0 to 1.

    A class that the scene names k times counts k times and must be detected k times. Raises DataError for an empty
    scene.
    """
    onsets = [onset for group in _onsets(scene, events) for onset in group]
    return sum(onset is not None for onset in onsets) / len(onsets)


def full_recall(scene: Scene, events: Sequence[Event]) -> bool:
    """Whether every event of the scene was detected, in whatever order."""
    return event_recall(scene, events) == 1.0


def extra_events(scene: Scene, events: Sequence[Event]) -> int:
    """The number of classes that were detected and are not in the scene; several events of one class count once."""
    return len({event.label for event in events} - {label for group in scene for label in group})


def order_accuracy_detected(scene: Scene, events: Sequence[Event]) -> bool | None:
    """Whether the events come in the scene's order; None if some event of the scene was not detected at all.

    Every event of a group must begin strictly before every event of the next. A class stands where it is first
    detected; one that the scene repeats stands, at its k-th mention, where it is detected for the k-th time (so a
    sound that is detected in pieces can fail a scene that repeats it). A scene of one group is in order once all of
    it is detected.
    """
    onsets = _onsets(scene, events)
    detected = [[onset for onset in group if onset is not None] for group in onsets]
    if sum(map(len, detected)) < sum(map(len, onsets)):
        return None
    return all(max(first) < min(then) for first, then in pairwise(detected))


def order_accuracy(scene: Scene, events: Sequence[Event]) -> bool:
    """Whether all events of the scene were detected in its order: a missing event counts as wrong."""
    return order_accuracy_detected(scene, events) is True


def exact_match(scene: Scene, events: Sequence[Event]) -> bool:
    """Whether the events are exactly the scene: all of it, in its order, and no other class."""
    return order_accuracy(scene, events) and extra_events(scene, events) == 0


def _onsets(scene: Scene, events: Sequence[Event]) -> list[list[float | None]]:
    """For each group, the onset of each of its mentions in seconds: the k-th mention of a class has its k-th onset."""
    if not scene or not all(scene):
        raise DataError(f"a scene needs at least one event in every group, not {scene!r}")
    detected: dict[str, list[float]] = {}
    for event in sorted(events, key=lambda event: event.onset):
        detected.setdefault(event.label, []).append(event.onset)
    left = {label: iter(onsets) for label, onsets in detected.items()}
    return [[next(left.get(label, iter(())), None) for label in group] for group in scene]


def _rows(values: np.ndarray, what: str) -> np.ndarray:
    """A float64 matrix (N, D) of finite numbers, or a DataError that says what is wrong with it."""
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or rows.size == 0:
        raise DataError(f"{what} must be a matrix with one row per clip, not of shape {rows.shape}")
    bad = int((~np.isfinite(rows)).any(axis=1).sum())
    if bad:
        raise DataError(f"{bad} of {len(rows)} rows of {what} are not finite: look for silent or broken clips")
    return rows


def _root(rows: np.ndarray) -> np.ndarray:
    """R with RᵀR = the unbiased covariance of `rows` (N, D); at most D rows, by QR where N is larger."""
    centred = (rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(rows) > rows.shape[1] else centred


def _specificity(log_p: np.ndarray) -> float:
    """exp(mean KL(p_i ‖ mean p)) of log-probabilities (n, K): 1 if all clips are alike, up to min(n, K)."""
    p = np.exp(log_p)
    mean = p.mean(axis=0)
    terms = np.where(p > 0, p * (log_p - np.log(np.where(mean > 0, mean, 1.0))), 0.0)
    return float(np.exp(terms.sum(axis=1).mean()))
