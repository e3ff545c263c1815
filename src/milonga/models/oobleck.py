"""Oobleck, the waveform autoencoder of Stable Audio and TangoFlux: stereo sound at 44.1 kHz, latents (C, L).

Waveforms are taken at their own level, as both models were trained. Clips pass it one by one: a minute of stereo needs
gigabytes, and a batch is no faster.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milonga.core.audio import beginning, resample
from milonga.core.records import Clip

MARGIN = 1.0  # seconds beyond the trained duration that are resampled too, so that the filter ends outside


def prepare(vae: Any, clip: Clip, rows: int) -> Tensor:
    """A clip as the autoencoder takes it, (channels, samples): resampled, cut or padded with silence to whole `rows`.

    A clip with another number of channels gets the mean of its own in each.
    """
    rate, channels, samples = vae.config.sampling_rate, vae.config.audio_channels, rows * vae.hop_length
    clip = resample(beginning(clip, samples / rate + MARGIN), rate)
    sound = clip.samples if clip.samples.shape[1] == channels else clip.waveform[:, None]
    wave = torch.zeros(channels, samples)
    sound = np.ascontiguousarray(sound[:samples].T, dtype=np.float32)
    wave[:, : sound.shape[1]] = torch.from_numpy(sound)
    return wave


@torch.no_grad()
def encode(vae: Any, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and log-variance (N, C, L) of the posterior of waveforms (channels, samples), on the CPU."""
    posteriors = [vae.encode(wave[None].to(vae.device, vae.dtype)).latent_dist for wave in waves]
    mean, std = (torch.cat([getattr(row, name).float().cpu() for row in posteriors]) for name in ("mean", "std"))
    return mean, 2 * std.log()


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Waveforms (B, channels, samples), float32 on the CPU, of latents (B, C, L); gradients pass."""
    return torch.cat([vae.decode(row[None].to(vae.device, vae.dtype)).sample.float().cpu() for row in latents])
