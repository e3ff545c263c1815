"""Stable Audio Open behind the `Denoiser` protocol: T5 states and the clip's length in, latents of a waveform VAE out.

Evans et al. 2024 (arXiv 2407.14358). A diffusion transformer of continuous time t ∈ (0, 1) with √ᾱ = cos(πt/2)
predicts v. It always sees latents of its whole trained length, and is told where the clip ends. Text tokens beyond a
caption's are zero vectors, which it attends to. The empty caption is the null condition, zeros in the place of all
tokens that are attended to, while the length stays: so diffusers' pipeline guides where it has no negative prompt.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from milonga.core.deferred import deferred_imports
from milonga.core.records import Clip
from milonga.models import oobleck
from milonga.models.denoiser import SECONDS, Conditioning, Network, Posterior
from milonga.models.pipeline_denoiser import PipelineDenoiser

with deferred_imports():
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

# Its sampler's noise asks for times at the edge of its own interval, rounded: harmless, and said for every step.
warnings.filterwarnings("ignore", "Should have t[ab]", UserWarning, "torchsde")


class StableAudioDenoiser(PipelineDenoiser):
    """A `Denoiser` around the `StableAudioDiTModel` of a `StableAudioPipeline`."""

    network, frozen = "transformer", ("text_encoder", "projection_model", "vae")
    sampling = (100, 7.0)  # the defaults of diffusers' pipeline
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    time_axis = 1
    latent_scale = 1.0

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, L) of a clip of the trained duration."""
        return self.module.config.in_channels, self.module.config.sample_size

    @property
    def fsdp_blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks."""
        return list(self.module.transformer_blocks)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """T5's projected `states` (B, T, D), zero beyond each caption's tokens; `given` (B,) bool, false for the empty
        caption; and `clip_seconds` (B,), the trained duration.
        """
        tokenizer, encoder = self.pipe.tokenizer, self.pipe.text_encoder
        tokens = tokenizer(
            list(captions), padding=True, truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
        ).to(encoder.device)
        states = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        states = self.pipe.projection_model(text_hidden_states=states).text_hidden_states
        given = torch.tensor([bool(text) for text in captions], device=states.device)
        length = self.latent_shape[1] * self.pipe.vae.hop_length / self.sampling_rate
        seconds = torch.full((len(captions),), length, device=states.device)
        return Conditioning(states=states * tokens.attention_mask[:, :, None], given=given, clip_seconds=seconds)

    def prepare_waveform(self, clip: Clip, legacy: bool = False) -> Tensor:
        """A clip as the model is trained on it, (channels, samples), at its own level."""
        return oobleck.prepare(self.pipe.vae, clip, self.latent_shape[1])

    def encode_audio(self, waves: Sequence[Tensor]) -> Posterior:
        """The VAE's posterior of the waveforms, (N, C, L), on the CPU."""
        return Posterior(*oobleck.encode(self.pipe.vae, waves), self.latent_scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Waveforms (B, channels, samples), float32 on the CPU."""
        return oobleck.decode(self.pipe.vae, latents)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> Tensor:
        """The transformer's v, (B, C, L), in its own type; `timesteps` are times t ∈ (0, 1)."""
        transformer, projection = self.module if network is None else network, self.pipe.projection_model
        seconds = conditioning[SECONDS].to(projection.device)
        with torch.no_grad():
            ends = projection(start_seconds=torch.zeros_like(seconds), end_seconds=seconds)
        lengths = [ends.seconds_start_hidden_states.to(noisy.device), ends.seconds_end_hidden_states.to(noisy.device)]
        states = conditioning["states"]
        states = pad(states, (0, 0, 0, self.pipe.tokenizer.model_max_length - states.shape[1]))
        attended = torch.cat([states, *(length.to(states) for length in lengths)], 1)
        attended = attended * conditioning["given"][:, None, None]
        places = noisy.shape[-1] + 1  # the length is one more position, before the latents
        rotary = get_1d_rotary_pos_embed(
            self.module.config.attention_head_dim // 2, places, use_real=True, repeat_interleave_real=False
        )
        return transformer(
            noisy,
            timesteps,
            encoder_hidden_states=attended.to(noisy.dtype),
            global_hidden_states=torch.cat(lengths, 2).to(noisy.dtype),
            rotary_embedding=tuple(part.to(noisy.device) for part in rotary),
        ).sample
