"""Tango's U-Net behind the `Denoiser` protocol: T5 states in, latents of a mel VAE out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from milonga.core.audio import beginning, resample
from milonga.core.errors import RecipeError
from milonga.core.ids import content_id
from milonga.core.records import Clip
from milonga.core.weights import fingerprint as weights_fingerprint
from milonga.maths.mel import MelSettings, log_mel, training_wave
from milonga.maths.resampling import windowed_sinc
from milonga.models.denoiser import Conditioning, Network, Posterior, Precision, Process, module_hash

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from milonga.models.tango import TangoPipeline

ENCODE_BATCH = 8  # clips that pass the VAE at once; results do not depend on it
MARGIN = 1.0  # seconds beyond the trained duration that are resampled too, so that the filter ends outside
GUIDANCE_WIDTH = 256  # of a guidance scale's embedding, as in diffusers' distilled models
STUDENT_STEPS = 4  # that a distilled model is sampled with by default
SMALL = 512  # positions of a latent up to which plain attention is faster in bfloat16 on a CPU


def takes_guidance(unet: Any) -> bool:
    """Whether a U-Net has an input for the guidance scale."""
    return unet.config.get("time_cond_proj_dim") is not None


def guidance_embedding(guidance: Tensor, width: int) -> Tensor:
    """Sines and cosines (B, width) of guidance scales (B,), as diffusers' pipelines embed them: of a thousand times the
    scale less 1.
    """
    from diffusers.models.embeddings import get_timestep_embedding

    return get_timestep_embedding(1000 * (guidance.float() - 1), width, downscale_freq_shift=1)


def as_student(pipe: "TangoPipeline") -> None:
    """Sets the scheduler and the steps of a pipeline with a distilled U-Net."""
    pipe.set_scheduler("lcm").register_to_config(steps=STUDENT_STEPS)


class TangoDenoiser:
    """A `Denoiser` around a `UNet2DConditionModel` with cross-attention to text states.

    `TangoDenoiser.of(pipeline)` is the whole model. Without a pipeline only the network is there: it can be trained on
    examples that are already encoded, and saved.
    """

    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    time_axis = 1

    def __init__(
        self, unet: "UNet2DConditionModel", process: Process, empty: Conditioning, pipe: "TangoPipeline | None" = None
    ) -> None:
        self.module: Any = unet
        self.process, self.empty, self._pipe = process, empty, pipe
        self._name: str | None = None
        self._fingerprint: str | None = None

    @classmethod
    def of(cls, pipe: "TangoPipeline", name: str | None = None) -> "TangoDenoiser":
        """The denoiser of a pipeline, whose U-Net it shares; `name` is the model's, where it has been loaded by one."""
        states, mask = pipe.encode_prompt([""])
        denoiser = cls(pipe.unet, Process.of(pipe.scheduler), Conditioning(states=states, mask=mask), pipe)
        denoiser._name = name
        return denoiser

    @property
    def pipe(self) -> "TangoPipeline":
        """The whole pipeline; RecipeError where there is only the network."""
        if self._pipe is None:
            raise RecipeError("this denoiser is a network alone, without text encoder and VAE: use TangoDenoiser.of")
        return self._pipe

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, T/r, F/r) of a clip of the trained duration."""
        return self.pipe.latent_shape(self.pipe.config["seconds"])

    @property
    def latent_scale(self) -> float:
        """The VAE's scaling factor."""
        return self.pipe.vae.config.scaling_factor

    @property
    def sampling_rate(self) -> int:
        """Of the waveforms, in Hz."""
        return self.pipe.sampling_rate

    @property
    def num_samples(self) -> int:
        """Samples of a clip of the trained duration, in whole latent rows."""
        return self.latent_shape[1] * self.pipe.compression * self.pipe.hop

    @property
    def mel_config(self) -> MelSettings:
        """The mel front end that the VAE and the vocoder were trained on."""
        return self.pipe.mel_config

    @property
    def fsdp_blocks(self) -> Sequence[nn.Module]:
        """The U-Net's levels and its middle."""
        return [*self.module.down_blocks, self.module.mid_block, *self.module.up_blocks]

    @property
    def fingerprint(self) -> str:
        """A hash of the weights that the model was loaded from, or else of its text encoder and VAE."""
        if self._fingerprint is None and self._name is not None:
            self._fingerprint = weights_fingerprint(self._name)
        elif self._fingerprint is None:
            self._fingerprint = content_id(module_hash(self.pipe.text_encoder), module_hash(self.pipe.vae))
        return self._fingerprint

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """T5's `states` (B, L, D) and `mask` (B, L) bool, padded to the longest caption."""
        states, mask = self.pipe.encode_prompt(captions)
        return Conditioning(states=states, mask=mask)

    def prepare_waveform(self, clip: Clip, legacy: bool = False) -> Tensor:
        """A clip as the model is trained on it, (samples,): resampled, level and length brought to the trained ones.

        With `legacy` the resampler and the treatment of silence are the original code's.
        """
        rate = self.sampling_rate
        clip = beginning(clip, self.num_samples / rate + MARGIN)
        wave = windowed_sinc(clip.waveform, clip.rate, rate) if legacy else resample(clip, rate).waveform
        return torch.from_numpy(training_wave(wave, self.num_samples, legacy, clip.mean))

    @torch.no_grad()
    def encode_audio(self, waves: Sequence[Tensor]) -> Posterior:
        """The VAE's posterior of the waveforms' log-mel spectrograms, (N, C, T/r, F/r), on the CPU."""
        vae, parts = self.pipe.vae, []
        for first in range(0, len(waves), ENCODE_BATCH):
            mel = log_mel(torch.stack(list(waves[first : first + ENCODE_BATCH])), self.mel_config)
            parts.append(vae.encode(mel.unsqueeze(1).to(vae.device, vae.dtype)).latent_dist)
        mean, logvar = (torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("mean", "logvar"))
        return Posterior(mean, logvar, self.latent_scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Waveforms (B, samples), float32 on the CPU, by VAE and vocoder; gradients pass where they are enabled."""
        return self.pipe.waveforms(latents)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> Tensor:
        """The U-Net's answer, (B, C, H, W), in its own type."""
        unet = self.module if network is None else network
        states, mask = conditioning["states"], conditioning["mask"]
        scale = None
        if "guidance" in conditioning:
            scale = guidance_embedding(conditioning["guidance"], GUIDANCE_WIDTH).to(noisy.dtype)
        return unet(
            noisy, timesteps, encoder_hidden_states=states, encoder_attention_mask=mask, timestep_cond=scale
        ).sample

    @property
    def guidance_input(self) -> bool:
        """Whether the U-Net is told the guidance scale, as a distilled one is, and so needs no second pass for it."""
        return takes_guidance(self.module)

    def add_guidance_input(self) -> None:
        """Gives the U-Net an input for the guidance scale (diffusers' `timestep_cond`) that has no effect yet."""
        if self.guidance_input:
            return
        teacher = self.module
        config = {key: value for key, value in teacher.config.items() if not key.startswith("_")}  # those name defaults
        unet = (
            type(teacher)
            .from_config(config | {"time_cond_proj_dim": GUIDANCE_WIDTH})
            .to(teacher.device, teacher.dtype)
            .eval()
        )
        torch.nn.init.zeros_(unet.time_embedding.cond_proj.weight)
        unet.load_state_dict(teacher.state_dict(), strict=False)
        self.module = unet
        if self._pipe is not None:
            self._pipe.register_modules(unet=unet)
            as_student(self._pipe)

    def prepare(self, precision: Precision, shape: Sequence[int]) -> None:
        """Freezes what is not trained, and replaces torch's fused attention where it is slower: bfloat16 on a CPU with
        small latents.

        Its backward pass there costs some 12 ms a call however small the input, two fifths of nano's step (torch 2.13).
        Latents (C, H, W) = `shape` of Tango's own size are faster with it. The numbers agree up to rounding.
        """
        if self._pipe is not None:
            for part in (self._pipe.text_encoder, self._pipe.vae, self._pipe.vocoder):
                part.requires_grad_(False)
        if precision == "bf16" and self.module.device.type == "cpu" and shape[1] * shape[2] <= SMALL:
            from diffusers.models.attention_processor import AttnProcessor

            self.module.set_attn_processor(AttnProcessor())

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Writes the U-Net in diffusers' layout."""
        unet = self.module
        if weights is not None:
            unet = type(unet).from_config(unet.config)
            unet.load_state_dict(weights)
        unet.eval().save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Takes the weights of a folder that `save` wrote; raises as diffusers does for anything else."""
        weights = type(self.module).from_pretrained(folder, local_files_only=True).state_dict()
        self.module.load_state_dict(weights)

    def save_model(self, folder: Path) -> None:
        """Writes the whole pipeline in diffusers' layout, with the U-Net as it is now."""
        self.pipe.save_pretrained(folder)
