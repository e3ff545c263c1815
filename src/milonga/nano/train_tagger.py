"""The tagger's lesson: frame-level binary cross-entropy on rendered scenes, at any loudness."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from milonga.nano.corpus import Corpus
from milonga.nano.lesson import Lesson, Loss, generator

TAGGER = {"channels": [8, 24, 48, 96], "pools": [[2, 2], [2, 2], [1, 2], [1, 2]]}
LESSON = Lesson("tagger", steps=1500, batch=48, rate=3e-3)
QUIETEST = -11.5129  # ln 1e-5, the floor of the mel front end


def louder_or_softer(mels: Tensor, rng_values: Tensor) -> Tensor:
    """Shifts log-mel pictures (B, T, F) by (B, 1, 1) nepers and keeps them above the front end's floor."""
    return (mels + rng_values).clamp(min=QUIETEST)


def tagger_loss(network: nn.Module, corpus: Corpus, seed: int) -> Loss:
    """The loss of a step for `network` (mels (B, 256, 64) → logits (B, 64, classes)) on `corpus`."""

    def loss(step: int) -> dict[str, Tensor]:
        rng = generator(seed, LESSON.name, step)
        chosen = rng.integers(0, len(corpus), LESSON.batch)
        gain = torch.from_numpy(rng.uniform(-1.5, 1.0, (LESSON.batch, 1, 1))).float()
        logits = network(louder_or_softer(corpus.mels[chosen].float(), gain))
        return {"loss": binary_cross_entropy_with_logits(logits, corpus.truth[chosen].float())}

    return loss
