"""Clips as a model's latents: those stored beside generated clips, and real clips through its mel front end and VAE."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from milonga.core.audio import beginning, resample
from milonga.core.records import Clip
from milonga.core.store import Run
from milonga.maths.mel import MelSettings, log_mel, training_wave

if TYPE_CHECKING:
    import torch

    from milonga.models.tango import TangoPipeline

MARGIN = 1.0  # seconds beyond the trained duration that are resampled too, so that the filter ends outside
BATCH = 8  # clips that pass the VAE at once; results do not depend on it


def front_end(whole: "TangoPipeline") -> MelSettings:
    """The front end whose pictures a pipeline's VAE and vocoder were trained on."""
    return MelSettings(rate=whole.rate, hop=whole.hop, bands=whole.vocoder.config.model_in_dim)


def samples_of(whole: "TangoPipeline") -> int:
    """How many samples of its own rate a model is trained on: its trained duration in whole latent rows."""
    _, rows, _ = whole.latent_shape(whole.config["seconds"])
    return rows * whole.compression * whole.hop


def wave_for(whole: "TangoPipeline", clip: Clip, compat: bool = False) -> "torch.Tensor":
    """A clip as the model is trained on it, (samples,): resampled, level and length brought to the trained ones.

    With `compat` resampler and silence are the original's (FACTS §2); the mono rule is the reader's (`core.audio`).
    """
    import torch

    from milonga.maths.resampling import windowed_sinc

    clip = beginning(clip, samples_of(whole) / whole.rate + MARGIN)
    wave = windowed_sinc(clip.waveform, clip.rate, whole.rate) if compat else resample(clip, whole.rate).waveform
    return torch.from_numpy(training_wave(wave, samples_of(whole), compat, clip.mean))


def moments(whole: "TangoPipeline", waves: Sequence["torch.Tensor"]) -> "tuple[torch.Tensor, torch.Tensor]":
    """Mean and log-variance, each (N, C, T/r, F/r), of the VAE's posterior over waveforms that `wave_for` made."""
    import torch

    found = []
    with torch.no_grad():
        for first in range(0, len(waves), BATCH):
            mel = log_mel(torch.stack(list(waves[first : first + BATCH])), front_end(whole))
            found.append(whole.vae.encode(mel.unsqueeze(1).to(whole.vae.device, whole.vae.dtype)).latent_dist)
    mean, logvar = (torch.cat([getattr(one, name).cpu() for one in found]) for name in ("mean", "logvar"))
    return mean, logvar


def round_trip(whole: "TangoPipeline", clips: Sequence[Clip]) -> list[Clip]:
    """Clips as they come out of VAE and vocoder, by the mean of the posterior, at the model's rate and duration."""
    mean, _ = moments(whole, [wave_for(whole, clip) for clip in clips])
    return [Clip(wave, whole.rate) for wave in whole.decode(mean * whole.vae.config.scaling_factor).numpy()]


def stored_latents(run: Run, wanted: set[str]) -> dict[str, bytes]:
    """The latents that a run's clips with these ids were sampled with, packed; clips that have none are left out."""
    shards, found = run.stage("generate"), {}
    for shard in shards.names():
        table = shards.read_table(shard, ["id", "latents"])
        rows = zip(table["id"].to_pylist(), table["latents"].to_pylist(), strict=True)
        found |= {one: latents for one, latents in rows if one in wanted and latents is not None}
    return found


def unpacked(rows: Sequence[bytes], shape: Sequence[int]) -> "torch.Tensor":
    """Packed latents of one shape (C, H, W) as float16 (N, C, H, W)."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.frombuffer(one, dtype=np.float16).reshape(shape) for one in rows]))


def packed_size(shape: Sequence[int]) -> int:
    """How many bytes latents of this shape have when packed."""
    return 2 * math.prod(shape)  # float16
