"""Training of nano's tagger: frame-level binary cross-entropy on scenes, half of which went through the codec."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits

from milonga.nano.build.corpus import Corpus, Loss, TrainTask, step_rng

TAGGER = {"channels": [8, 24, 48, 96], "pools": [[2, 2], [2, 2], [1, 2], [1, 2]]}
TASK = TrainTask("tagger", steps=2300, batch_size=24, lr=2e-3, ema=0.99)
CLIPS = 30000
QUIETEST = -11.5129  # ln 1e-5, the floor of the mel front end


def augment(mels: Tensor, rng: np.random.Generator) -> Tensor:
    """Log-mel pictures (B, T, F) at random loudness, half of them blurred and grained as by a poor codec."""
    gain = torch.from_numpy(rng.uniform(-1.5, 1.0, (len(mels), 1, 1))).float()
    times, bands = (int(size) for size in rng.integers(0, [4, 2]))
    smooth = avg_pool2d(mels[:, None], (2 * times + 1, 2 * bands + 1), 1, (times, bands), count_include_pad=False)[:, 0]
    grain = torch.from_numpy(rng.standard_normal(mels.shape, dtype=np.float32)) * float(rng.uniform(0.0, 0.5))
    coded = torch.from_numpy(rng.random((len(mels), 1, 1)) < 0.5)
    return (torch.where(coded, smooth + grain, mels) + gain).clamp(min=QUIETEST)


def mix_coded(clean: Corpus, coded: Corpus, rng: np.random.Generator, batch: int) -> Corpus:
    """`batch` random clips: half as rendered, half from `coded`, which holds clips that went through the codec.

    Generated clips come out of a VAE and a vocoder, which smooth noises and roughen tones: a scorer that only knows
    real clips takes them for other sounds.
    """
    half = batch // 2
    return clean.at(rng.integers(0, len(clean), batch - half)).and_(coded.at(rng.integers(0, len(coded), half)))


def tagger_loss(network: nn.Module, clean: Corpus, coded: Corpus, seed: int) -> Loss:
    """The loss of a step for `network` (mels (B, 256, 64) → logits (B, 64, classes)) on clips as in `mix_coded`."""

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_rng(seed, TASK.name, step)
        clips = mix_coded(clean, coded, rng, TASK.batch_size)
        logits = network(augment(clips.mels.float(), rng))
        return {"loss": binary_cross_entropy_with_logits(logits, clips.truth.float())}

    return loss
