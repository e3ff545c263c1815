"""The vocoder's lesson: a small HiFi-GAN generator (Kong et al. 2020) that turns log-mel pictures into sound.

Departure from the paper: no discriminators. The loss is the mel distance and spectral distances at three resolutions,
which is enough for events to be told apart by ear and tagger, at a hundredth of the cost; hiss sounds a little rougher
than with an adversary. Half of what it learns from are pictures that went through the VAE, as all its input will.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from milonga.maths.mel import log_mel, normalise
from milonga.nano.corpus import FRAMES, MEL, Corpus
from milonga.nano.lesson import Lesson, Loss, generator
from milonga.nano.world import render

VOCODER: dict[str, Any] = {
    "model_in_dim": MEL.bands,
    "sampling_rate": MEL.rate,
    "upsample_initial_channel": 128,
    "upsample_rates": [4, 4, 4, 4],
    "upsample_kernel_sizes": [8, 8, 8, 8],
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
    "normalize_before": False,
}
LESSON = Lesson("vocoder", steps=900, batch=12, rate=2e-3, average=0.99)
CROP = 32
CLIPS = 3000
RESOLUTIONS = ((2048, 512), (512, 128), (128, 32))


def new_vocoder() -> SpeechT5HifiGan:
    """An untrained vocoder of nano's size."""
    return SpeechT5HifiGan(SpeechT5HifiGanConfig(**VOCODER))


def waveforms(corpus: Corpus, seeds: list[int], clips: int = CLIPS) -> Tensor:
    """The waveforms of a corpus's first clips, rendered again from their seeds, shape (clips, samples) float16."""
    waves = [
        normalise(render(corpus.scenes[place], seeds[place], corpus.counts[place]).clip.waveform).astype(np.float16)
        for place in range(clips)
    ]
    return torch.from_numpy(np.stack(waves))


def spectral_distance(made: Tensor, real: Tensor) -> Tensor:
    """The mean over resolutions of log-magnitude distance plus spectral convergence (Yamamoto et al. 2020)."""
    distances = []
    for size, hop in RESOLUTIONS:
        window = torch.hann_window(size)
        a, b = (torch.stft(wave, size, hop, window=window, return_complex=True).abs() + 1e-5 for wave in (made, real))
        distances.append((a.log() - b.log()).abs().mean() + (a - b).norm() / b.norm())
    return torch.stack(distances).mean()


def vocoder_loss(vocoder: nn.Module, mels: Tensor, rebuilt: Tensor, waves: Tensor, seed: int) -> Loss:
    """The loss of a step, from true pictures `mels` and those that went through the VAE, both (N, 256, 64)."""

    def loss(step: int) -> dict[str, Tensor]:
        rng = generator(seed, LESSON.name, step)
        chosen, start = rng.integers(0, len(waves), LESSON.batch), int(rng.integers(0, FRAMES - CROP + 1))
        source = torch.where(torch.from_numpy(rng.random((LESSON.batch, 1, 1)) < 0.5), rebuilt[chosen], mels[chosen])
        made = vocoder(source[:, start : start + CROP].float())
        real = waves[chosen, start * MEL.hop : (start + CROP) * MEL.hop].float()
        mel = (log_mel(made, MEL) - log_mel(real, MEL)).abs().mean()
        return {"loss": mel + spectral_distance(made, real), "mel": mel}

    return loss
