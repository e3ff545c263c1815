"""The tagger's lesson: frame-level binary cross-entropy on rendered scenes, a half of which went through the codec."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits

from milonga.nano.build.corpus import Corpus
from milonga.nano.build.task import Lesson, Loss, generator

TAGGER = {"channels": [8, 24, 48, 96], "pools": [[2, 2], [2, 2], [1, 2], [1, 2]]}
LESSON = Lesson("tagger", steps=2300, batch=24, rate=2e-3, average=0.99)
CLIPS = 30000
QUIETEST = -11.5129  # ln 1e-5, the floor of the mel front end


def disturbed(mels: Tensor, rng: np.random.Generator) -> Tensor:
    """Log-mel pictures (B, T, F) at any loudness, and half of them blurred and grained, as a poor codec's would be."""
    gain = torch.from_numpy(rng.uniform(-1.5, 1.0, (len(mels), 1, 1))).float()
    times, bands = (int(size) for size in rng.integers(0, [4, 2]))
    smooth = avg_pool2d(mels[:, None], (2 * times + 1, 2 * bands + 1), 1, (times, bands), count_include_pad=False)[:, 0]
    grain = torch.from_numpy(rng.standard_normal(mels.shape, dtype=np.float32)) * float(rng.uniform(0.0, 0.5))
    coded = torch.from_numpy(rng.random((len(mels), 1, 1)) < 0.5)
    return (torch.where(coded, smooth + grain, mels) + gain).clamp(min=QUIETEST)


def mixed(clean: Corpus, coded: Corpus, rng: np.random.Generator, batch: int) -> Corpus:
    """`batch` clips by chance: a half as rendered, a half from `coded`, which holds clips that went through the codec.

    What a model generates comes out of a VAE and a vocoder, which smooth noises and roughen tones: a listener that
    only knows real clips hears other things in them.
    """
    half = batch // 2
    return clean.at(rng.integers(0, len(clean), batch - half)).and_(coded.at(rng.integers(0, len(coded), half)))


def tagger_loss(network: nn.Module, clean: Corpus, coded: Corpus, seed: int) -> Loss:
    """The loss of a step for `network` (mels (B, 256, 64) → logits (B, 64, classes)) on clips as in `mixed`."""

    def loss(step: int) -> dict[str, Tensor]:
        rng = generator(seed, LESSON.name, step)
        clips = mixed(clean, coded, rng, LESSON.batch)
        logits = network(disturbed(clips.mels.float(), rng))
        return {"loss": binary_cross_entropy_with_logits(logits, clips.truth.float())}

    return loss
