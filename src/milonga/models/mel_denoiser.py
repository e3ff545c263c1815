"""`MelDenoiser`: what Tango and the AudioLDMs share: a U-Net on latents of log-mel pictures, a VAE and a vocoder."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from milonga.core.audio import beginning, resample
from milonga.core.records import Clip
from milonga.maths.devices import batch_size
from milonga.maths.mel import MelSettings, log_mel, training_wave
from milonga.maths.resampling import windowed_sinc
from milonga.models.denoiser import Posterior
from milonga.models.pipeline_denoiser import PipelineDenoiser

# Latent rows of the trained 10.24 s: `latent_t_size` of both AudioLDMs' original configs. diffusers' `sample_size`
# names another length, which the network does not depend on.
ROWS = 256
ENCODE_BATCH = 8  # clips that pass the VAE at once on a CPU; results do not depend on it
MARGIN = 1.0  # seconds beyond the trained duration that are resampled too, so that the filter ends outside


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
