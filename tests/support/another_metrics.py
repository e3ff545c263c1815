"""The metrics of `another_evaluation` by plain float64 formulas, and new sets for them."""

from typing import Any

import numpy as np


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The trace of (Σ₁Σ₂)^½ is the sum of the singular values of A·Bᵀ, each side centred and over √(n − 1)."""
    means = [x.mean(0, dtype=np.float64) for x in (a, b)]
    first, second = ((x - mean) / np.sqrt(len(x) - 1) for x, mean in zip((a, b), means, strict=True))
    root = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return float(((means[0] - means[1]) ** 2).sum() + (first**2).sum() + (second**2).sum() - 2 * root)


def mmd(kernel: Any, a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared discrepancy under a kernel."""
    within = [(kernel(x, x).sum() - np.trace(kernel(x, x))) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(sum(within) - 2 * kernel(a, b).mean())


def kid(a: np.ndarray, b: np.ndarray, subset: int) -> float:
    chance, size = np.random.RandomState(2020), min(subset, len(a), len(b))
    rows = [[x[chance.choice(len(x), size, replace=False)].astype(np.float64) for x in (a, b)] for _ in range(100)]
    return float(np.mean([mmd(lambda x, y: (x @ y.T / a.shape[1] + 1) ** 3, *two) for two in rows]))


def kad(a: np.ndarray, b: np.ndarray) -> float:
    def squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return ((x[:, None].astype(np.float64) - y[None]) ** 2).sum(-1)

    apart = np.sort(np.sqrt(squares(b, b)[np.triu_indices(len(b), 1)]))
    width = apart[(len(apart) - 1) // 2]
    return 100 * mmd(lambda x, y: np.exp(-squares(x, y) / (2 * width**2)), a, b)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def divergences(real: np.ndarray, own: np.ndarray) -> tuple[float, float]:
    """KL(reference ‖ generated) by softmax and by sigmoid, ε on the generated side (EVALUATION §4)."""
    real, own = real.astype(np.float64), own.astype(np.float64)
    found = []
    for chances in (softmax, lambda logits: 1 / (1 + np.exp(-logits))):
        p, q = chances(real), chances(own) + 1e-6
        found.append(float((p * (np.log(p) - np.log(q))).sum(1).mean()))
    return found[0], found[1]


def inception(logits: np.ndarray, splits: int = 10) -> tuple[float, float]:
    order = np.random.RandomState(2020).permutation(len(logits))
    p, scores = softmax(logits[order].astype(np.float64)), []
    if len(p) < splits:
        return float("nan"), float("nan")
    for part in range(splits):
        chunk = p[part * len(p) // splits : (part + 1) * len(p) // splits]
        scores.append(np.exp((chunk * (np.log(chunk) - np.log(chunk.mean(0)))).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def functions() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    chance, arrays, numbers, kads = np.random.RandomState(8), {}, {}, {}
    for name, (many, few, width) in {"wide": (40, 33, 64), "narrow": (90, 120, 7)}.items():
        case, sides = f"fd/{name}", (("gen", many), ("ref", few))
        own, real = (arrays.setdefault(f"{case}/{side}", chance.randn(rows, width).astype(np.float32) * 1.5 + (
            side == "gen")) for side, rows in sides)  # fmt: skip
        distance = frechet(own, real)
        numbers[case] = dict.fromkeys(("fd", "fad", "exact_float64"), distance)
        for subset in (20, 1000):
            numbers[case][f"kid_subset{subset}"] = {"kernel_inception_distance_mean": kid(own, real, subset)}
        kads[case] = {"float64_bw_ref": kad(own, real)}
    for name, count in {"some": 23, "few": 4}.items():
        case, order = f"logits/{name}", chance.permutation(count)
        own, real = (chance.randn(count, 527).astype(np.float32) * 2 for _ in range(2))
        arrays |= {f"{case}/gen": own, f"{case}/ref": real[order], f"{case}/ref_names_idx": order}
        soft, sigmoid = divergences(real, own)
        mean, spread = inception(own)
        numbers[case] = {
            "kullback_leibler_divergence_softmax": soft, "kullback_leibler_divergence_sigmoid": sigmoid,
            "inception_score_mean": mean, "inception_score_std": spread, "is_splits1_mean": inception(own, 1)[0],
        }  # fmt: skip
    return arrays, numbers, kads
