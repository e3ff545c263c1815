"""Denoisers around a pipeline of diffusers: its parts, their hash, its files; with a vocoder, mel pictures too."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from milonga.core.audio import beginning, resample
from milonga.core.errors import RecipeError
from milonga.core.ids import content_id
from milonga.core.records import Clip
from milonga.core.weights import fingerprint as weights_fingerprint
from milonga.maths.devices import batch_size
from milonga.maths.mel import MelSettings, log_mel, training_wave
from milonga.maths.resampling import windowed_sinc
from milonga.models.denoiser import Conditioning, Posterior, Precision, Process, module_hash

# Latent rows of the trained 10.24 s: `latent_t_size` of both AudioLDMs' original configs. diffusers' `sample_size`
# names another length, which the network does not depend on.
ROWS = 256
ENCODE_BATCH = 8  # clips that pass the VAE at once on a CPU; results do not depend on it
MARGIN = 1.0  # seconds beyond the trained duration that are resampled too, so that the filter ends outside
PIPELINE = '''"""Where diffusers finds this model's pipeline: `pip install milonga`."""

from {module} import {kind}

__all__ = ["{kind}"]
'''


class PipelineDenoiser:
    """A `Denoiser` of which one part of a pipeline is trained; its subclasses say how words and sounds are encoded.

    `Subclass.of(pipeline)` is the whole model. Without a pipeline only the network is there: it can be trained on
    examples that are already encoded, and saved.
    """

    network: ClassVar[str]  # the name of the part that is trained
    frozen: ClassVar[Sequence[str]]  # the names of the parts by which data is encoded
    sampling: ClassVar[tuple[int, float]]  # the steps and the guidance that the model is best sampled with

    def __init__(self, module: Any, process: Process, empty: Conditioning, pipe: Any = None) -> None:
        self.module = module
        self.process, self.empty, self._pipe = process, empty, pipe
        self._name: str | None = None
        self._fingerprint: str | None = None

    @classmethod
    def of(cls, pipe: Any, name: str | None = None) -> Self:
        """The denoiser of a pipeline, whose network it shares; `name` is what the model was loaded by, if anything."""
        denoiser = cls(getattr(pipe, cls.network), Process.of(pipe.scheduler), Conditioning(), pipe)
        denoiser.empty, denoiser._name = denoiser.encode_text([""]), name
        return denoiser

    @property
    def pipe(self) -> Any:
        """The whole pipeline; RecipeError where there is only the network."""
        if self._pipe is None:
            kind = type(self).__name__
            raise RecipeError(f"this denoiser is a network alone, without text encoder and VAE: use {kind}.of")
        return self._pipe

    @property
    def sampling_rate(self) -> int:
        """Of the waveforms, in Hz; here that of a VAE which makes them."""
        return self.pipe.vae.config.sampling_rate

    @property
    def others(self) -> Sequence[nn.Module]:
        """All networks of the pipeline but the one that is trained."""
        parts = () if self._pipe is None else self._pipe.components.values()
        return [part for part in parts if isinstance(part, nn.Module) and part is not self.module]

    @property
    def fingerprint(self) -> str:
        """A hash of the weights that the model was loaded from, or else of the parts by which data is encoded."""
        if self._fingerprint is None and self._name is not None:
            self._fingerprint = weights_fingerprint(self._name)
        elif self._fingerprint is None:
            self._fingerprint = content_id(*(module_hash(getattr(self.pipe, part)) for part in self.frozen))
        return self._fingerprint

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """As the protocol has it."""
        raise NotImplementedError

    def prepare(self, precision: Precision, shape: Sequence[int]) -> None:
        """The frozen parts keep no gradients of their own: those of a reward pass through them to the latents."""
        for part in self.others:
            part.requires_grad_(False)

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Writes the network in diffusers' layout."""
        network = self.module
        if weights is not None:
            network = type(network).from_config(network.config)
            network.load_state_dict(weights)
        network.eval().save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Takes the weights of a folder that `save` wrote; raises as diffusers does for anything else."""
        weights = type(self.module).from_pretrained(folder, local_files_only=True).state_dict()
        self.module.load_state_dict(weights)

    def save_model(self, folder: Path) -> None:
        """Writes the whole pipeline in diffusers' layout, with the network as it is now, and where diffusers finds a
        class that is not its own.
        """
        self.pipe.save_pretrained(folder)
        kind = type(self.pipe)
        if kind.__module__.startswith("milonga."):
            lines = PIPELINE.format(module=kind.__module__, kind=kind.__name__)
            (folder / "pipeline.py").write_text(lines, encoding="utf-8")


class MelDenoiser(PipelineDenoiser):
    """A `PipelineDenoiser` whose pipeline has `unet`, `vae` and `vocoder`; latents are (C, T/r, F/r)."""

    network = "unet"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    time_axis = 1
    any_length = True  # a U-Net takes fewer rows than it was trained on

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, T/r, F/r) of a clip of the trained duration."""
        return self.pipe.unet.config.out_channels, ROWS, self.mel_config.bands // self._compression

    @property
    def _compression(self) -> int:
        return 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)

    @property
    def latent_scale(self) -> float:
        """The VAE's scaling factor."""
        return self.pipe.vae.config.scaling_factor

    @property
    def sampling_rate(self) -> int:
        """Of the waveforms, in Hz."""
        return self.pipe.vocoder.config.sampling_rate

    @property
    def mel_config(self) -> MelSettings:
        """The mel front end that the VAE and the vocoder were trained on."""
        config = self.pipe.vocoder.config
        return MelSettings(rate=config.sampling_rate, hop=math.prod(config.upsample_rates), bands=config.model_in_dim)

    @property
    def num_samples(self) -> int:
        """Samples of a clip of the trained duration, in whole latent rows."""
        return self.latent_shape[1] * self._compression * self.mel_config.hop

    @property
    def fsdp_blocks(self) -> Sequence[nn.Module]:
        """The U-Net's levels and its middle."""
        return [*self.module.down_blocks, self.module.mid_block, *self.module.up_blocks]

    def prepare_waveform(self, clip: Clip, legacy: bool = False) -> Tensor:
        """A clip as the model is trained on it, (samples,): resampled, level and length brought to the trained ones.

        With `legacy` the resampler and the treatment of silence are the original Tango's.
        """
        rate = self.sampling_rate
        clip = beginning(clip, self.num_samples / rate + MARGIN)
        wave = windowed_sinc(clip.waveform, clip.rate, rate) if legacy else resample(clip, rate).waveform
        return torch.from_numpy(training_wave(wave, self.num_samples, legacy, clip.mean))

    @torch.no_grad()
    def encode_audio(self, waves: Sequence[Tensor]) -> Posterior:
        """The VAE's posterior of the waveforms' log-mel spectrograms, (N, C, T/r, F/r), on the CPU."""
        vae, parts = self.pipe.vae, []
        size = batch_size(ENCODE_BATCH, vae.device)
        for first in range(0, len(waves), size):
            mel = log_mel(torch.stack(list(waves[first : first + size])).to(vae.device), self.mel_config)
            parts.append(vae.encode(mel.unsqueeze(1).to(vae.dtype)).latent_dist)
        mean, logvar = (torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("mean", "logvar"))
        return Posterior(mean, logvar, self.latent_scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Waveforms (B, samples), float32 on the CPU, through VAE and vocoder; gradients pass.

        The published vocoder ends with some samples more than its mel frames last; they are cut off.
        """
        vae, vocoder = self.pipe.vae, self.pipe.vocoder
        waves, samples = [], latents.shape[2] * self._compression * self.mel_config.hop
        for row in latents.split(1):
            mel = vae.decode(row.to(vae.device, vae.dtype) / self.latent_scale).sample
            waves.append(vocoder(mel.squeeze(1).to(vocoder.dtype)).reshape(1, -1)[:, :samples].float().cpu())
        return torch.cat(waves)
