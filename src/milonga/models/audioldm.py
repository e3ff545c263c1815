"""AudioLDM and AudioLDM 2 behind the `Denoiser` protocol, by the encoders of diffusers' own pipelines.

AudioLDM (Liu et al. 2023, arXiv 2301.12503) conditions its U-Net on CLAP's embedding of the caption; AudioLDM 2 (arXiv
2308.05734) on FLAN-T5's states and on eight states that a GPT-2 makes of T5's and CLAP's. Captions are encoded one by
one: within a batch the pipelines pad them, and GPT-2 hears the padding. No choice is made among several candidates,
which AudioLDM's published numbers have and Tango's have not.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from milonga.models.denoiser import Conditioning, Network
from milonga.models.pipeline_denoiser import MelDenoiser


class AudioLDMDenoiser(MelDenoiser):
    """A `Denoiser` around the U-Net of an `AudioLDMPipeline`."""

    frozen = ("text_encoder", "vae")
    sampling = (200, 2.5)  # the Tango 2 paper's steps (§5.4); diffusers' own default is 10

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """CLAP's unit-norm `embeddings` (B, D)."""
        device, encode = self.pipe.text_encoder.device, self.pipe._encode_prompt
        return Conditioning(embeddings=torch.cat([encode(text, device, 1, False) for text in captions]))

    def predict(
        self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> Tensor:
        """The U-Net's ε, (B, C, H, W), in its own type."""
        unet = self.module if network is None else network
        labels = conditioning["embeddings"].to(noisy.dtype)
        return unet(noisy, timesteps, encoder_hidden_states=None, class_labels=labels).sample


class AudioLDM2Denoiser(MelDenoiser):
    """A `Denoiser` around the U-Net of an `AudioLDM2Pipeline` for sound and music."""

    frozen = ("text_encoder", "text_encoder_2", "projection_model", "language_model", "vae")
    sampling = (200, 3.5)  # the defaults of diffusers' pipeline

    def enable_gradient_checkpointing(self) -> None:
        """Keeps activations between the transformers' blocks alone; the others are computed again in the backward pass.

        diffusers 0.42 passes each transformer its arguments in a wrong order where the levels around it are
        checkpointed, so these are not.
        """
        self.module.enable_gradient_checkpointing()
        for level in (*self.module.down_blocks, self.module.mid_block, *self.module.up_blocks):
            level.gradient_checkpointing = False

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """FLAN-T5's `states` (B, T, D) and their `mask` (B, T) bool, and GPT-2's `generated` states (B, 8, E)."""
        return Conditioning.concat([self._encoded(text) for text in captions])

    def encode_against(self, negative: Sequence[str], captions: Sequence[str]) -> Conditioning:
        """What captions are guided away from: each padded to its caption's tokens, as in the pipeline."""
        return Conditioning.concat([self._encoded(*row) for row in zip(captions, negative, strict=True)])

    @torch.no_grad()
    def _encoded(self, text: str, negative: str | None = None) -> Conditioning:
        """The conditioning of a text, or of what it is guided away from."""
        device: Any = self.pipe.text_encoder_2.device
        states, mask, generated = self.pipe.encode_prompt(
            text, device, 1, negative is not None, negative_prompt=negative
        )  # with guidance the negative's rows come first
        return Conditioning(states=states[:1], mask=mask[:1].bool(), generated=generated[:1])

    def predict(
        self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> Tensor:
        """The U-Net's ε, (B, C, H, W), in its own type."""
        unet = self.module if network is None else network
        return unet(
            noisy,
            timesteps,
            encoder_hidden_states=conditioning["generated"].to(noisy.dtype),
            encoder_hidden_states_1=conditioning["states"].to(noisy.dtype),
            encoder_attention_mask_1=conditioning["mask"],
        ).sample
