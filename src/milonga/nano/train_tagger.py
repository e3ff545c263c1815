"""The tagger's lesson: frame-level binary cross-entropy on rendered scenes, clean and as a codec leaves them."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits

from milonga.nano.corpus import Corpus
from milonga.nano.lesson import Lesson, Loss, generator

TAGGER = {"channels": [8, 24, 48, 96], "pools": [[2, 2], [2, 2], [1, 2], [1, 2]]}
LESSON = Lesson("tagger", steps=1200, batch=48, rate=3e-3)
CLIPS = 30000
QUIETEST = -11.5129  # ln 1e-5, the floor of the mel front end


def disturbed(mels: Tensor, rng: np.random.Generator) -> Tensor:
    """Log-mel pictures (B, T, F) at any loudness, and half of them blurred and grained as a codec would leave them.

    What a model generates went through a VAE and a vocoder, which smooth noises and roughen tones: a listener that
    only knows real clips hears other things in them.
    """
    gain = torch.from_numpy(rng.uniform(-1.5, 1.0, (len(mels), 1, 1))).float()
    times, bands = (int(size) for size in rng.integers(0, [4, 2]))
    smooth = avg_pool2d(mels[:, None], (2 * times + 1, 2 * bands + 1), 1, (times, bands), count_include_pad=False)[:, 0]
    grain = torch.from_numpy(rng.standard_normal(mels.shape, dtype=np.float32)) * float(rng.uniform(0.0, 0.5))
    coded = torch.from_numpy(rng.random((len(mels), 1, 1)) < 0.5)
    return (torch.where(coded, smooth + grain, mels) + gain).clamp(min=QUIETEST)


def tagger_loss(network: nn.Module, corpus: Corpus, seed: int) -> Loss:
    """The loss of a step for `network` (mels (B, 256, 64) → logits (B, 64, classes)) on `corpus`."""

    def loss(step: int) -> dict[str, Tensor]:
        rng = generator(seed, LESSON.name, step)
        chosen = rng.integers(0, len(corpus), LESSON.batch)
        logits = network(disturbed(corpus.mels[chosen].float(), rng))
        return {"loss": binary_cross_entropy_with_logits(logits, corpus.truth[chosen].float())}

    return loss
