"""Backbones at their published sizes: their parameters, and under `slow` a step of everything with random weights."""

import resource
import time
from itertools import pairwise
from pathlib import Path

import full_backbones
import pytest
import torch
from diffusers import AutoencoderOobleck
from full_backbones import FACTS, NETWORKS

from milonga.core.records import Prompt, Request
from milonga.data.examples import PairExamples
from milonga.models.audioldm import AudioLDM2Denoiser, AudioLDMDenoiser
from milonga.models.generator import DenoiserModel
from milonga.models.load import as_denoiser
from milonga.models.networks import BACKBONES
from milonga.models.pipeline_denoiser import ROWS
from milonga.models.tangoflux import PUBLISHED, SECONDS_GENERATED, TangoFluxDenoiser
from milonga.training.align import AlignConfig, AlignTrainer


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
    with torch.device("meta"):
        own = {NETWORKS[kind][0]: full_backbones.network(kind)}
        if "vae" in FACTS[kind]:
            own["vae"] = AutoencoderOobleck(**FACTS[kind]["vae"])
    counted = {name: sum(value.numel() for value in module.parameters()) for name, module in own.items()}
    assert counted == FACTS[kind]["parameters"]


@pytest.mark.slow  # gigabytes, and minutes on a CPU
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_step_of_sampling_and_of_lora_dpo_at_full_size(kind: str, tmp_path: Path) -> None:
    """Random weights, float32 on this CPU, one pair; time, CPU time and peak memory are printed (`pytest -s`)."""
    marks = [(time.monotonic(), time.process_time())]
    denoiser = as_denoiser(full_backbones.make(kind))
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
