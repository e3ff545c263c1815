"""Reward model: a small network that predicts how likely a clip is to be labelled good (BATON's first step).

BATON (arXiv 2402.00744) learns people's judgement of how well a clip fits its prompt from CLAP features, and weighs
each clip's denoising error by the score. This file does the same and differs in five things: the input also has the
product and the distance of the two embeddings; there are two hidden layers; labels may be the tagger's, one yes or no
for events and order together; some captions are held out; a clip's weight is the network's output, labelled or not.
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


def reward_features(clips: np.ndarray, texts: np.ndarray) -> Tensor:
    """The network's input for N clips with their texts, from unit-norm embeddings (N, D) each: (N, 4D) float32.

    Clip, text, their product and their distance, each times √D so that its entries are about one.
    """
    rows = np.concatenate([clips, texts, clips * texts, np.abs(clips - texts)], axis=1) * np.sqrt(clips.shape[1])
    return torch.from_numpy(rows.astype(np.float32))


def is_held_out(prompt_id: str, share: float) -> bool:
    """Whether a caption's labels are only measured on: its own hash decides, whatever other captions there are."""
    return int(content_id("reward", prompt_id), 16) < share * 2**64


def fit_reward(features: Tensor, labels: Sequence[Label], settings: RewardModel, seed: int) -> nn.Module:
    """A network (N, 4D) → logits (N,), trained by cross-entropy on the labels of captions that are not held out.

    Raises DataError unless there are labels of both kinds to learn from, and labels of both kinds to measure on.
    """
    held = torch.tensor([is_held_out(label.prompt_id, settings.val_fraction) for label in labels])
    answers = torch.tensor([float(label.desirable) for label in labels])
    for what, part in (("to learn from", answers[~held]), ("held out", answers[held])):
        if len(part.unique()) < 2:
            raise DataError(
                f"of {len(part)} labels {what}, {int(part.sum())} call their clip good: a reward model needs both "
                "kinds there; label more clips, or change reward.val_fraction"
            )
    network = _network(features.shape[1], settings.width, seed)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    rows, targets = features[~held], answers[~held]
    for _ in range(settings.steps):
        loss = nn.functional.binary_cross_entropy_with_logits(network(rows).squeeze(1), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def predict_rewards(network: nn.Module, features: Tensor) -> np.ndarray:
    """The network's probability of "good" for each row (N, 4D), shape (N,)."""
    with torch.no_grad():
        return torch.sigmoid(network(features).squeeze(1)).numpy().astype(np.float64)


def reward_report(
    rewards: np.ndarray, cosines: np.ndarray, labels: Sequence[Label], settings: RewardModel, scorer: str
) -> RewardReport:
    """A report on rewards (N,) of N labelled clips, with the CLAP's cosines (N,) beside them."""
    held = np.array([is_held_out(label.prompt_id, settings.val_fraction) for label in labels])
    truth = np.array([label.desirable for label in labels])[held]
    right = proportion(((rewards[held] > 0.5) == truth).astype(float))
    return RewardReport(
        scorer=scorer,
        taught=int((~held).sum()),
        held_out=int(held.sum()),
        desirable=float(truth.mean()),
        accuracy=right.value,
        low=right.low,
        high=right.high,
        majority=float(max(truth.mean(), 1 - truth.mean())),
        auc=_auc(rewards[held], truth),
        cosine_auc=_auc(cosines[held], truth),
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


def _auc(values: np.ndarray, truth: np.ndarray) -> float:
    """The share of (good, bad) couples in which the good one has the higher value, ties a half: the area under ROC."""
    from scipy.stats import rankdata

    good = int(truth.sum())
    above = rankdata(values)[truth].sum() - good * (good + 1) / 2
    return float(above / (good * (len(truth) - good)))
