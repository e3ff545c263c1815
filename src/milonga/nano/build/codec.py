"""Nano's codec: a VAE that reconstructs log-mel pictures (§3.1.3), and a small HiFi-GAN that turns them into sound.

Departures of the VAE from the paper: no adversarial loss, and no attention in the middle. It is trained on whole clips:
its group norms look at a whole picture, so what is learnt on crops does not hold for clips. Departures of the vocoder
(Kong et al. 2020): no discriminators, and few, large upsamplings (4, then 64): the last transposed convolution is a
learnt dictionary of short waveforms, which is cheap on a CPU. Its loss is the mel distance at three resolutions, which
is what the tagger hears; noises come out buzzier than with an adversary. Half of its training pictures went through the
VAE, as all its input will.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from milonga.core.deferred import deferred_imports
from milonga.maths.mel import log_mel, normalise
from milonga.nano.build.corpus import FRAMES, MEL, Corpus, Loss, TrainTask, step_rng
from milonga.nano.world import render

with deferred_imports():
    from diffusers import AutoencoderKL
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

VAE: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 16, 48, 96],
    "layers_per_block": 1,
    "latent_channels": 8,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
VAE_TASK = TrainTask("vae", steps=4000, batch_size=6, lr=2e-3, ema=0.995)
KL_WEIGHT = 2e-3
VAE_CLIPS = 20000
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
VOCODER_TASK = TrainTask("vocoder", steps=8000, batch_size=16, lr=3e-3, ema=0.995)
CROP = 32
VOCODER_CLIPS = 3000
# The front end's own picture, a finer one in frequency and a finer one in time.
PICTURES = (MEL, replace(MEL, fft=2048, bands=128), replace(MEL, fft=512, hop=64, bands=40))


def new_vae() -> AutoencoderKL:
    """An untrained VAE whose last bias is the average log-mel value, so that it need not learn that."""
    vae = AutoencoderKL(**VAE)
    torch.nn.init.constant_(vae.decoder.conv_out.bias, -7.0)  # type: ignore[arg-type]
    return vae


def vae_loss(vae: AutoencoderKL, corpus: Corpus, seed: int) -> Loss:
    """The loss of a step: mean absolute error and squared error of mels in nepers, and the KL to a unit Gaussian."""

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_rng(seed, VAE_TASK.name, step)
        chosen = rng.integers(0, len(corpus), VAE_TASK.batch_size)
        mels = corpus.mels[chosen].float().unsqueeze(1)
        posterior = vae.encode(mels, return_dict=False)[0]
        spread = torch.from_numpy(rng.standard_normal(posterior.mean.shape)).float()
        latents: Any = posterior.mean + posterior.std * spread
        decoded = vae.decode(latents, return_dict=False)[0]
        error = decoded - mels
        rebuilt, kl = error.abs().mean() + 0.25 * error.square().mean(), posterior.kl().mean()
        return {"loss": rebuilt + KL_WEIGHT * kl / FRAMES, "error": error.abs().mean(), "kl": kl}

    return loss


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL, corpus: Corpus) -> float:
    """The factor that brings latents to unit variance as the paper's VAE has it, measured on the first 200 clips."""
    moments = torch.cat(
        [vae.encode(part.float().unsqueeze(1), return_dict=False)[0].sample() for part in corpus.mels[:200].split(20)]
    )
    return float(1 / moments.std())


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


def mel_distances(generated: Tensor, real: Tensor) -> list[Tensor]:
    """The mean absolute log-mel difference of waveforms (B, samples) in each of `PICTURES`."""
    return [(log_mel(generated, picture) - log_mel(real, picture)).abs().mean() for picture in PICTURES]


def vocoder_loss(vocoder: nn.Module, mels: Tensor, rebuilt: Tensor, waves: Tensor, seed: int) -> Loss:
    """The loss of a step, from true pictures `mels` and those that went through the VAE, both (N, 256, 64)."""

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_rng(seed, VOCODER_TASK.name, step)
        chosen, start = rng.integers(0, len(waves), VOCODER_TASK.batch_size), int(rng.integers(0, FRAMES - CROP + 1))
        source = torch.where(
            torch.from_numpy(rng.random((VOCODER_TASK.batch_size, 1, 1)) < 0.5), rebuilt[chosen], mels[chosen]
        )
        generated = vocoder(source[:, start : start + CROP].float())
        real = waves[chosen, start * MEL.hop : (start + CROP) * MEL.hop].float()
        mel, fine, quick = mel_distances(generated, real)
        return {"loss": mel + 0.5 * fine + 0.5 * quick, "mel": mel}

    return loss
