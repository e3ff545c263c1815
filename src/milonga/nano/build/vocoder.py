"""The vocoder's lesson: a small HiFi-GAN generator (Kong et al. 2020) that turns log-mel pictures into sound.

Departures: no discriminators, and few, large upsamplings (4, then 64): the last transposed convolution is a learnt
dictionary of short waveforms, which is cheap on a CPU. The loss is the mel distance at three resolutions. It is what
the tagger can tell; noises come out buzzier than with an adversary. Half of what it learns from are pictures that went
through the VAE, as all its input will.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from milonga.maths.mel import log_mel, normalise
from milonga.nano.build.corpus import FRAMES, MEL, Corpus
from milonga.nano.build.task import Lesson, Loss, generator
from milonga.nano.world import render

VOCODER: dict[str, Any] = {
    "model_in_dim": MEL.bands,
    "sampling_rate": MEL.rate,
    "upsample_initial_channel": 64,
    "upsample_rates": [4, 64],
    "upsample_kernel_sizes": [8, 128],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1]],
    "normalize_before": False,
}
LESSON = Lesson("vocoder", steps=8000, batch=16, rate=3e-3, average=0.995)
CROP = 32
CLIPS = 3000
# The front end's own picture, a finer one in frequency and a finer one in time.
PICTURES = (MEL, replace(MEL, fft=2048, bands=128), replace(MEL, fft=512, hop=64, bands=40))


def new_vocoder() -> SpeechT5HifiGan:
    """An untrained vocoder of nano's size."""
    return SpeechT5HifiGan(SpeechT5HifiGanConfig(**VOCODER))


def waveforms(corpus: Corpus, seeds: list[int]) -> Tensor:
    """The waveforms of a corpus's first clips, rendered again from their seeds, shape (len(seeds), samples) float16."""
    waves = [
        normalise(render(corpus.scenes[place], seed, corpus.counts[place]).clip.waveform).astype(np.float16)
        for place, seed in enumerate(seeds)
    ]
    return torch.from_numpy(np.stack(waves))


def mel_distances(made: Tensor, real: Tensor) -> list[Tensor]:
    """The mean absolute log-mel difference of waveforms (B, samples) in each of `PICTURES`."""
    return [(log_mel(made, picture) - log_mel(real, picture)).abs().mean() for picture in PICTURES]


def vocoder_loss(vocoder: nn.Module, mels: Tensor, rebuilt: Tensor, waves: Tensor, seed: int) -> Loss:
    """The loss of a step, from true pictures `mels` and those that went through the VAE, both (N, 256, 64)."""

    def loss(step: int) -> dict[str, Tensor]:
        rng = generator(seed, LESSON.name, step)
        chosen, start = rng.integers(0, len(waves), LESSON.batch), int(rng.integers(0, FRAMES - CROP + 1))
        source = torch.where(torch.from_numpy(rng.random((LESSON.batch, 1, 1)) < 0.5), rebuilt[chosen], mels[chosen])
        made = vocoder(source[:, start : start + CROP].float())
        real = waves[chosen, start * MEL.hop : (start + CROP) * MEL.hop].float()
        mel, fine, quick = mel_distances(made, real)
        return {"loss": mel + 0.5 * fine + 0.5 * quick, "mel": mel}

    return loss
