"""Tango's U-Net behind the `Denoiser` protocol: T5 states in, latents of a mel VAE out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from milonga.models.denoiser import Conditioning, Network, Precision
from milonga.models.mel_denoiser import MelDenoiser

if TYPE_CHECKING:
    from milonga.models.tango import TangoPipeline

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


class TangoDenoiser(MelDenoiser):
    """A `Denoiser` around a `UNet2DConditionModel` with cross-attention to text states."""

    frozen = ("text_encoder", "vae")

    @property
    def sampling(self) -> tuple[int, float]:  # type: ignore[override]
        """The steps and the guidance in the pipeline's config."""
        return self.pipe.config["steps"], self.pipe.config["guidance"]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, T/r, F/r) of a clip of the trained duration."""
        return self.pipe.latent_shape(self.pipe.config["seconds"])

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """T5's `states` (B, L, D) and `mask` (B, L) bool, padded to the longest caption."""
        states, mask = self.pipe.encode_prompt(captions)
        return Conditioning(states=states, mask=mask)

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
        super().prepare(precision, shape)
        if precision == "bf16" and self.module.device.type == "cpu" and shape[1] * shape[2] <= SMALL:
            from diffusers.models.attention_processor import AttnProcessor

            self.module.set_attn_processor(AttnProcessor())
