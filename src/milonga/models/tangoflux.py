"""TangoFlux behind the `Denoiser` protocol: FLAN-T5 states and the clip's length in, a flow to Oobleck's latents out.

Hung et al. 2024 (arXiv 2412.21037). Its transformer is FLUX's; the projection of the pooled caption and the embedding
of the length are trained with it. The original's training pads the captions of a batch to the longest and attends to
the padding. Here a caption is encoded as it would be alone, as in the original's generation, and padding is masked.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from milonga.core.deferred import deferred_imports
from milonga.core.errors import CheckpointError, brief
from milonga.core.hub import as_repository
from milonga.core.records import Clip
from milonga.core.store import write_json
from milonga.core.weights import TANGOFLUX, check_tensors, fetch_tokenizer, read_weights
from milonga.models import oobleck
from milonga.models.denoiser import SECONDS, Conditioning, Network, Posterior
from milonga.models.original.layout import TEXT_ENCODERS
from milonga.models.original.load import with_tied_embedding
from milonga.models.pipeline_denoiser import PipelineDenoiser

with deferred_imports():
    from diffusers import AutoencoderOobleck, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioNumberConditioner
    from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5Config, T5EncoderModel

MAIN, VAE, CONFIG = TANGOFLUX
MAX_TOKENS = 512  # of a caption in generation, as FLAN-T5's tokenizer has it
SECONDS_GENERATED = 10.0  # the original's default length
# The published config.json; the rotary sizes are FLUX's and not in it.
PUBLISHED: dict[str, Any] = {
    "num_layers": 6, "num_single_layers": 18, "in_channels": 64, "attention_head_dim": 128, "joint_attention_dim": 1024,
    "num_attention_heads": 8, "audio_seq_len": 645, "max_duration": 30, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
OURS, THEIRS = "duration_embedder.", "duration_emebdder."  # the original spells it so
TEXT_ENCODER = "google/flan-t5-large"


class TangoFluxNetwork(ModelMixin, ConfigMixin):
    """All that TangoFlux trains: the transformer, the caption's projection `fc` and the embedding of the length."""

    _supports_gradient_checkpointing = True  # the transformer's blocks do

    @register_to_config
    def __init__(
        self,
        num_layers: int,
        num_single_layers: int,
        in_channels: int,
        attention_head_dim: int,
        joint_attention_dim: int,
        num_attention_heads: int,
        audio_seq_len: int,
        max_duration: float,
        axes_dims_rope: Sequence[int],
    ) -> None:
        super().__init__()
        rope: Any = tuple(axes_dims_rope)
        width = joint_attention_dim  # of FLAN-T5's states, which are attended to as they are
        self.transformer = FluxTransformer2DModel(
            in_channels=in_channels, num_layers=num_layers, num_single_layers=num_single_layers,
            attention_head_dim=attention_head_dim, num_attention_heads=num_attention_heads, joint_attention_dim=width,
            pooled_projection_dim=width, guidance_embeds=False, axes_dims_rope=rope,
        )  # fmt: skip
        self.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.duration_embedder = StableAudioNumberConditioner(width, 0, max_duration)

    def forward(
        self, latents: Tensor, timesteps: Tensor, states: Tensor, pooled: Tensor, seconds: Tensor, mask: Tensor | None
    ) -> Tensor:
        """The flow (B, L, C) at timesteps (B,) of 1000; `mask` (B, T) says which states count, None: all of them."""
        tokens = torch.cat([states, self.duration_embedder(seconds).to(states)], 1)
        attention = {}
        if mask is not None:
            others = mask.new_ones(len(mask), 1 + latents.shape[1])  # the length and the latents
            attention = {"attention_mask": torch.cat([mask, others], 1)[:, None, None]}
        places = torch.arange(latents.shape[1], device=latents.device)[:, None].expand(-1, 3)
        return self.transformer(
            hidden_states=latents,
            timestep=timesteps / 1000,  # which it multiplies by 1000
            pooled_projections=self.fc(pooled),
            encoder_hidden_states=tokens,
            txt_ids=tokens.new_zeros(tokens.shape[1], 3),
            img_ids=places.to(tokens),
            joint_attention_kwargs=attention,
        ).sample


class TangoFluxPipeline(DiffusionPipeline):
    """TangoFlux's parts in one folder of diffusers' layout."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: T5EncoderModel,
        transformer: TangoFluxNetwork,
        vae: AutoencoderOobleck,
        scheduler: FlowMatchEulerDiscreteScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, vae=vae, scheduler=scheduler
        )


class TangoFluxDenoiser(PipelineDenoiser):
    """A `Denoiser` around the `TangoFluxNetwork` of a `TangoFluxPipeline`."""

    network, frozen = "transformer", ("text_encoder", "vae")
    sampling = (25, 4.5)  # the defaults of the original's `generate`
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    time_axis = 0
    latent_scale = 1.0

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(L, C) of a clip of the trained duration."""
        return self.module.config.audio_seq_len, self.module.config.in_channels

    @property
    def fsdp_blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks of two streams and of one."""
        return [*self.module.transformer.transformer_blocks, *self.module.transformer.single_transformer_blocks]

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """FLAN-T5's `states` (B, T, D), which of them are attended to (`mask`), their mean `pooled` (B, D), and
        `clip_seconds` (B,), the original's default length.
        """
        return Conditioning.concat([self._encode(text, None) for text in captions])

    def encode_against(self, negative: Sequence[str], captions: Sequence[str]) -> Conditioning:
        """What captions are guided away from: each padded to its caption's tokens and cut there, as in the original,
        which attends to the padding.
        """
        lengths = [
            len(self.pipe.tokenizer(text, truncation=True, max_length=MAX_TOKENS).input_ids) for text in captions
        ]
        return Conditioning.concat([self._encode(*row) for row in zip(negative, lengths, strict=True)])

    @torch.no_grad()
    def _encode(self, text: str, length: int | None) -> Conditioning:
        """One text, padded or cut to `length` tokens where that is given."""
        encoder = self.pipe.text_encoder
        tokens = self.pipe.tokenizer(
            [text], truncation=True, max_length=length or MAX_TOKENS, padding="max_length" if length else False,
            return_tensors="pt",
        ).to(encoder.device)  # fmt: skip
        states = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        mask = tokens.attention_mask.bool()
        pooled = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        longest = self.latent_shape[0] * self.pipe.vae.hop_length / self.sampling_rate
        seconds = torch.tensor([min(SECONDS_GENERATED, longest)], device=states.device)
        return Conditioning(states=states, mask=torch.ones_like(mask), pooled=pooled, clip_seconds=seconds)

    def prepare_waveform(self, clip: Clip, legacy: bool = False) -> Tensor:
        """A clip as the model is trained on it, (channels, samples), at its own level."""
        return oobleck.prepare(self.pipe.vae, clip, self.latent_shape[0])

    def encode_audio(self, waves: Sequence[Tensor]) -> Posterior:
        """The VAE's posterior of the waveforms, (N, L, C), on the CPU."""
        mean, logvar = oobleck.encode(self.pipe.vae, waves)
        return Posterior(mean.transpose(1, 2), logvar.transpose(1, 2), self.latent_scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Waveforms (B, channels, samples), float32 on the CPU; gradients pass."""
        return oobleck.decode(self.pipe.vae, latents.transpose(1, 2))

    def predict(
        self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> Tensor:
        """The flow, (B, L, C), in the network's own type; `timesteps` are 1000·σ."""
        call, mask = self.module if network is None else network, conditioning["mask"]
        states, pooled = conditioning["states"].to(noisy.dtype), conditioning["pooled"].to(noisy.dtype)
        dense = not mask.is_meta and bool(mask.all())  # a shape has no values to ask
        return call(noisy, timesteps, states, pooled, conditioning[SECONDS], None if dense else mask)

    @classmethod
    def read_published(cls, folder: Path, tokenizer: Path | str | None = None) -> TangoFluxPipeline:
        """The pipeline of a folder with the published files, in float32.

        `tokenizer` is the folder or the hub's name of FLAN-T5's, which is not among them; without it the folder's own
        `tokenizer` is looked for, then the hub's. Raises CheckpointError naming the file and what is wrong with it.
        """
        try:
            config = json.loads((folder / CONFIG).read_text())
            settings = {name: config.get(name, value) for name, value in PUBLISHED.items()}
            text = config.get("text_encoder", TEXT_ENCODERS[TEXT_ENCODER])
            with torch.device("meta"):
                parts: dict[str, Any] = {
                    "transformer": TangoFluxNetwork(**settings),
                    "text_encoder": T5EncoderModel(T5Config.from_dict(dict(text))),
                    "vae": AutoencoderOobleck(**config.get("vae", {})),
                }
        except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{folder / CONFIG} describes no TangoFlux: {brief(error)}") from None
        main = with_tied_embedding(folder / MAIN, read_weights(folder / MAIN))
        for path, tensors, own in (
            (folder / MAIN, main, {"transformer": "", "text_encoder": "text_encoder."}),
            (folder / VAE, read_weights(folder / VAE), {"vae": ""}),
        ):
            names = {(part, key): f"{own[part]}{key}" for part in own for key in parts[part].state_dict()}
            names = {place: name.replace(OURS, THEIRS) for place, name in names.items()}
            check_tensors(path, tensors, {name: parts[part].state_dict()[key] for (part, key), name in names.items()})
            for part in own:
                state = {key: tensors[name].float() for (owner, key), name in names.items() if owner == part}
                parts[part].load_state_dict(state, assign=True)
                parts[part].eval()
        parts["text_encoder"].set_input_embeddings(parts["text_encoder"].shared)
        words = _tokenizer(folder / "tokenizer" if (folder / "tokenizer").is_dir() else TEXT_ENCODER, tokenizer)
        return TangoFluxPipeline(words, scheduler=FlowMatchEulerDiscreteScheduler(), **parts)

    def write_published(self, folder: Path) -> None:
        """Writes the published files into a folder, with the tokenizer beside them.

        config.json also describes text encoder and VAE where they are not the published ones.
        """
        pipe, text = self.pipe, self.pipe.text_encoder.state_dict()
        text.pop("encoder.embed_tokens.weight", None)  # tied, and there once
        main = {key.replace(OURS, THEIRS): value for key, value in self.module.state_dict().items()}
        main |= {f"text_encoder.{key}": value for key, value in text.items()}
        for file, tensors in ((MAIN, main), (VAE, pipe.vae.state_dict())):
            save_file({key: value.contiguous() for key, value in tensors.items()}, folder / file)
        config = {name: self.module.config[name] for name in PUBLISHED}
        described = pipe.text_encoder.config.to_dict()
        if any(described.get(name) != value for name, value in TEXT_ENCODERS[TEXT_ENCODER].items()):
            config["text_encoder"] = described
        with torch.device("meta"):
            standard = AutoencoderOobleck().config
        changed = {name: pipe.vae.config[name] for name in standard if not name.startswith("_")}
        changed = {name: value for name, value in changed.items() if value != standard[name]}
        if changed:
            config["vae"] = changed
        write_json(folder / CONFIG, config)
        pipe.tokenizer.save_pretrained(folder / "tokenizer")


def _tokenizer(standard: Path | str, given: Path | str | None) -> PreTrainedTokenizerBase:
    place = standard if given is None else given
    if not Path(place).is_dir() and as_repository(str(place)):
        place = fetch_tokenizer(str(place))
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=True)
    except Exception as error:  # the Rust tokenizers raise bare Exceptions
        raise CheckpointError(f"{place} holds no usable tokenizer: {brief(error)}") from None
