"""The backbones at their published sizes, with random weights; the tests' data say where the sizes are from."""

import json
from pathlib import Path
from typing import Any

import small_backbones
import torch
from diffusers import (
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    AutoencoderOobleck,
    StableAudioDiTModel,
    StableAudioProjectionModel,
    UNet2DConditionModel,
)
from transformers import (
    ClapConfig,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
)

from milonga.models.original.layout import TEXT_ENCODERS, VOCODER
from milonga.models.tangoflux import PUBLISHED, TangoFluxNetwork

FACTS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "models" / "published_backbones.json").read_text()
)
LEVELS: dict[str, Any] = {
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
}
NETWORKS: dict[str, tuple[str, Any]] = {
    "StableAudioPipeline": ("transformer", StableAudioDiTModel),
    "TangoFluxPipeline": ("transformer", lambda **sizes: TangoFluxNetwork(**PUBLISHED | sizes)),
    "AudioLDMPipeline": ("unet", lambda **sizes: UNet2DConditionModel(**LEVELS, **sizes)),
    "AudioLDM2Pipeline": ("unet", lambda **sizes: AudioLDM2UNet2DConditionModel(**LEVELS, **sizes)),
}


def network(kind: str) -> torch.nn.Module:
    """The network that is trained."""
    part, build = NETWORKS[kind]
    return build(**FACTS[kind][part])


def make(kind: str, trained: torch.nn.Module | None = None) -> Any:
    """A pipeline of that class around its network, or another in its place; tokenizers stay small."""
    pipe = small_backbones.make(kind)
    parts = {NETWORKS[kind][0]: network(kind) if trained is None else trained, **others(kind)}
    pipe.register_modules(**{name: module.eval() for name, module in parts.items()})
    if kind == "StableAudioPipeline":
        pipe.tokenizer.model_max_length = FACTS[kind]["max_tokens"]
    return pipe


def others(kind: str) -> dict[str, torch.nn.Module]:
    """The parts that are not trained, but for tokenizers."""
    facts, flan = FACTS[kind], T5Config.from_dict(dict(TEXT_ENCODERS["google/flan-t5-large"]))
    if kind == "StableAudioPipeline":
        return {
            "vae": AutoencoderOobleck(**facts["vae"]),
            "projection_model": StableAudioProjectionModel(**facts["projection_model"]),
            "text_encoder": T5EncoderModel(T5Config(**facts["text_encoder"])),
        }
    if kind == "TangoFluxPipeline":
        return {"vae": AutoencoderOobleck(), "text_encoder": T5EncoderModel(flan)}
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(128, 256, 512), layers_per_block=2, latent_channels=8,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    sound = {"vae": vae, "vocoder": SpeechT5HifiGan(SpeechT5HifiGanConfig(**VOCODER))}
    if kind == "AudioLDMPipeline":
        return sound | {"text_encoder": ClapTextModelWithProjection(ClapTextConfig())}
    language = GPT2LMHeadModel(GPT2Config())
    language.config.max_new_tokens = 8
    return sound | {
        "text_encoder": ClapModel(ClapConfig()),
        "text_encoder_2": T5EncoderModel(flan),
        "projection_model": AudioLDM2ProjectionModel(512, 1024, 768),
        "language_model": language,
    }
