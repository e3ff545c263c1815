"""Reward: a small network that says how likely a clip is to be called good, taught from labels (BATON's first step).

BATON (arXiv 2402.00744) learns people's judgement of how well a clip fits its prompt, on features of CLAP, and weighs
each clip's denoising error by the score. So here, and where it differs: the two embeddings are joined by their product
and their distance as well as laid side by side, under two hidden layers and not one; labels may be the tagger's, as one
yes or no for events and order together; captions are held out; and a clip's weight is the network's answer, labelled or
not.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from milonga.core.config import RewardModel
from milonga.core.errors import DataError
from milonga.core.ids import content_id
from milonga.core.records import Label, Record, RewardReport
from milonga.maths.noise import seeded
from milonga.maths.statistics import proportion


class Reward(Record):
    """How likely a clip is to be called good, 0 to 1: its weight where training is weighted."""

    id: str
    prompt_id: str
    reward: float


def joined(clips: np.ndarray, texts: np.ndarray) -> Tensor:
    """What the network sees of N clips with their texts, from unit-norm embeddings (N, D) each: (N, 4D) float32.

    Clip, text, their product and their distance, each times √D so that its entries are about one.
    """
    rows = np.concatenate([clips, texts, clips * texts, np.abs(clips - texts)], axis=1) * np.sqrt(clips.shape[1])
    return torch.from_numpy(rows.astype(np.float32))


def is_held_out(prompt_id: str, share: float) -> bool:
    """Whether a caption's labels only measure: its own hash decides, whatever other captions there are."""
    return int(content_id("reward", prompt_id), 16) < share * 2**64


def teach(features: Tensor, labels: Sequence[Label], settings: RewardModel, seed: int) -> nn.Module:
    """A network (N, 4D) → logits (N,), taught by cross-entropy on the labels of captions that are not held out.

    Raises DataError unless there are labels of both kinds to learn from, and labels of both kinds to measure on.
    """
    held = torch.tensor([is_held_out(label.prompt_id, settings.held_out) for label in labels])
    answers = torch.tensor([float(label.desirable) for label in labels])
    for what, part in (("to learn from", answers[~held]), ("held out", answers[held])):
        if len(part.unique()) < 2:
            raise DataError(
                f"of {len(part)} labels {what}, {int(part.sum())} call their clip good: a reward model needs both "
                "kinds there; label more clips, or change reward.held_out"
            )
    return _descended(_network(features.shape[1], settings.width, seed), features[~held], answers[~held], settings)


def rewards(network: nn.Module, features: Tensor) -> np.ndarray:
    """The network's probability of "good" for each row (N, 4D), shape (N,)."""
    with torch.no_grad():
        return torch.sigmoid(network(features).squeeze(1)).numpy().astype(np.float64)


def measure(
    found: np.ndarray, cosines: np.ndarray, labels: Sequence[Label], settings: RewardModel, scorer: str
) -> RewardReport:
    """A report on rewards (N,) of N labelled clips, with the CLAP's cosines (N,) beside them."""
    held = np.array([is_held_out(label.prompt_id, settings.held_out) for label in labels])
    truth = np.array([label.desirable for label in labels])[held]
    right = proportion(((found[held] > 0.5) == truth).astype(float))
    return RewardReport(
        scorer=scorer,
        taught=int((~held).sum()),
        held_out=int(held.sum()),
        desirable=float(truth.mean()),
        accuracy=right.value,
        low=right.low,
        high=right.high,
        majority=float(max(truth.mean(), 1 - truth.mean())),
        auc=_above(found[held], truth),
        cosine_auc=_above(cosines[held], truth),
    )


def _network(width: int, hidden: int, seed: int) -> nn.Module:
    """Two hidden layers, started from the seed alone."""
    layers = nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
    generator = seeded(seed, "reward model")
    for layer in layers:
        bound = layer.in_features**-0.5
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def _descended(network: nn.Module, features: Tensor, answers: Tensor, settings: RewardModel) -> nn.Module:
    """The network after its steps over all rows at once."""
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    for _ in range(settings.steps):
        loss = nn.functional.binary_cross_entropy_with_logits(network(features).squeeze(1), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def _above(values: np.ndarray, truth: np.ndarray) -> float:
    """The share of (good, bad) couples in which the good one has the higher value, ties a half: the area under ROC."""
    from scipy.stats import rankdata

    good = int(truth.sum())
    above = rankdata(values)[truth].sum() - good * (good + 1) / 2
    return float(above / (good * (len(truth) - good)))
