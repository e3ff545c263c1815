"""Backbones at their published sizes: their parameters, and under `slow` a step of everything with random weights."""

import json
import resource
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
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

from milonga.core.records import Prompt, Request
from milonga.data.examples import PairExamples
from milonga.models.audioldm import AudioLDM2Denoiser, AudioLDMDenoiser
from milonga.models.generator import DenoiserModel
from milonga.models.load import BACKBONES, as_denoiser
from milonga.models.mel_denoiser import ROWS
from milonga.models.original.layout import TEXT_ENCODERS, VOCODER
from milonga.models.tangoflux import PUBLISHED, SECONDS_GENERATED, TangoFluxDenoiser, TangoFluxNetwork
from milonga.training.align import AlignConfig, AlignTrainer

FACTS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "published_backbones.json").read_text())
NETWORKS: dict[str, tuple[str, Any]] = {
    "StableAudioPipeline": ("transformer", StableAudioDiTModel),
    "TangoFluxPipeline": ("transformer", lambda **sizes: TangoFluxNetwork(**PUBLISHED | sizes)),
    "AudioLDMPipeline": ("unet", lambda **sizes: UNet2DConditionModel(**LEVELS, **sizes)),
    "AudioLDM2Pipeline": ("unet", lambda **sizes: AudioLDM2UNet2DConditionModel(**LEVELS, **sizes)),
}
LEVELS: dict[str, Any] = {
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
}


def test_every_backbone_has_its_facts() -> None:
    assert set(FACTS) == set(NETWORKS) == set(BACKBONES)
    for kind in ("AudioLDMPipeline", "AudioLDM2Pipeline"):
        assert FACTS[kind]["latent_t_size"] == ROWS
    flux = FACTS["TangoFluxPipeline"]
    assert {name: PUBLISHED[name] for name in flux["transformer"]} == flux["transformer"]
    assert TangoFluxDenoiser.sampling == (flux["sampling"]["steps"], flux["sampling"]["guidance_scale"])
    assert flux["sampling"]["duration"] == SECONDS_GENERATED
    assert (AudioLDMDenoiser.sampling[0], AudioLDM2Denoiser.sampling[0]) == (200, 200)


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_of_the_published_sizes_have_the_published_parameters(kind: str) -> None:
    part, network = NETWORKS[kind]
    with torch.device("meta"):
        own = {part: network(**FACTS[kind][part])}
        if "vae" in FACTS[kind]:
            own["vae"] = AutoencoderOobleck(**FACTS[kind]["vae"])
    counted = {name: sum(value.numel() for value in module.parameters()) for name, module in own.items()}
    assert counted == FACTS[kind]["parameters"]


def others(kind: str) -> dict[str, torch.nn.Module]:
    """The parts that are not trained, at their published sizes; tokenizers stay small."""
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


@pytest.mark.slow  # gigabytes, and minutes on a CPU
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_step_of_sampling_and_of_lora_dpo_at_full_size(kind: str, tmp_path: Path) -> None:
    """Random weights, float32 on this CPU, one pair; time, CPU time and peak memory are printed (`pytest -s`)."""
    facts, (part, network), marks = FACTS[kind], NETWORKS[kind], [(time.monotonic(), time.process_time())]
    pipe = small_backbones.make(kind)
    parts = {part: network(**facts[part]), **others(kind)}
    pipe.register_modules(**{name: module.eval() for name, module in parts.items()})
    if kind == "StableAudioPipeline":
        pipe.tokenizer.model_max_length = facts["max_tokens"]
    denoiser = as_denoiser(pipe)
    marks.append((time.monotonic(), time.process_time()))
    words = "a dog barks"
    request = Request.of(1, Prompt.of(words, "test"), words, 1, 1.0)
    clip = DenoiserModel(kind, denoiser, seconds=1.0).generate([request])[0]
    assert len(clip.samples) == denoiser.sampling_rate
    marks.append((time.monotonic(), time.process_time()))
    winner, loser = torch.randn(2, 1, *denoiser.latent_shape).unbind(0)
    examples = PairExamples(winner, loser, denoiser.encode_text([words]))
    config = AlignConfig(
        output_dir=tmp_path, phases=["dpo:1"], beta=2000, lora_rank=8, batch_size=1, gradient_checkpointing=True,
        save_whole_model=False,
    )  # fmt: skip
    AlignTrainer(denoiser, examples, config).train()
    marks.append((time.monotonic(), time.process_time()))
    took = [f"{b[0] - a[0]:.0f} s ({b[1] - a[1]:.0f} of CPU)" for a, b in pairwise(marks)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\n{kind}: load {took[0]}, a step of sampling, decoded, {took[1]}, a step of LoRA DPO on one pair {took[2]}, "
        f"peak {peak:.1f} GiB"
    )
