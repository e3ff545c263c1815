"""What stages take, counted in passes of the network that denoises one clip: the unit of both a plan and a rehearsal.

A step of sampling with guidance is two passes. Training on a clip is three (forward, and backward at twice its cost),
and one more for a reference. Encoders, vocoder and scorers are not counted.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from milonga.core.config import Phase
from milonga.core.errors import MilongaError
from milonga.core.records import Request
from milonga.core.store import Run, complete
from milonga.data.audio_alpaca import alpaca_files, count_pairs
from milonga.experiment.recipe import OWN, Recipe
from milonga.experiment.registry import Registry

if TYPE_CHECKING:
    from milonga.models.denoiser import Denoiser

SUSTAINED = 1e14  # FLOP/s that hours are projected with: a third of an A100's peak in bfloat16
TRAINED, COMPARED = 3, 1  # passes of a clip in training, and by a reference
LATENT_BYTES, SAMPLE_BYTES = 2, 3  # float16; FLAC of 24 bits takes at most that


def sampling_passes(requests: Sequence[Request]) -> int:
    """Passes of the network for clips of these requests."""
    return sum(request.steps * (2 if request.guidance > 1 else 1) for request in requests)


def training_passes(phases: Sequence[Phase], examples: int, batch: int, clips: int = 1) -> int:
    """Passes of all phases on `examples` pairs, or groups of `clips`; phases by steps take `batch` examples each."""
    from milonga.training.schedule import loss_spec

    passes = 0
    for phase in phases:
        spec = loss_spec(phase.loss)
        each = TRAINED + COMPARED * (spec.needs_reference or spec.needs_old)
        width = clips if spec.groups else 2 if spec.needs_loser else 1
        passes += each * width * (phase.steps * batch if phase.steps else phase.epochs * examples)
    return passes


def pass_flops(denoiser: "Denoiser") -> float:
    """FLOP of one pass for one clip of the trained length, counted on shapes: its networks lose their weights."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    words = denoiser.encode_text(["a dog barks then a bell rings"]).to(torch.device("meta"))
    for network in (denoiser.module, *denoiser.others):  # some have a part in a pass
        network.to("meta")
    latents = torch.empty(1, *denoiser.latent_shape, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        denoiser.predict(latents, torch.zeros(1, dtype=torch.long, device="meta"), words)
    return float(counter.get_total_flops())


def clip_bytes(denoiser: "Denoiser") -> int:
    """The most that one generated clip takes on disk: its latents and its samples."""
    from milonga.models.editing import samples_per_row

    samples = samples_per_row(denoiser) * denoiser.latent_shape[denoiser.time_axis]
    return LATENT_BYTES * math.prod(denoiser.latent_shape) + SAMPLE_BYTES * samples


def num_pairs(recipe: Recipe, run: Run) -> int | None:
    """The pairs that a recipe trains on; None while they are not known, or not on this machine."""
    counts = []
    for source in recipe.train.pairs:
        shards = (run if source == OWN else Run(Path(source))).stage("pair")
        if complete(shards):
            counts.append(sum(map(shards.rows, shards.names())))
        elif source != OWN and Path(source).exists():
            try:
                counts.append(count_pairs(alpaca_files(Path(source), recipe.train.split)))
            except MilongaError:
                return None
        else:
            return None
    return sum(counts)


def projection(recipe: Recipe, run: Run, parts: Registry) -> list[str]:
    """What a planned run will still take, in lines: its clips with their GPU-hours and disk, and its training."""
    lines, planned, pairs = [], run.stage("plan"), num_pairs(recipe, run)
    denoiser = parts.load_denoiser(recipe.models.model, parts=("text_encoder",))
    size, flops = clip_bytes(denoiser), pass_flops(denoiser)
    if complete(planned):
        requests = planned.read_records(Request)
        passes, disk = sampling_passes(requests), f"at most {len(requests) * size / 1e9:,.1f} GB"
        lines.append(f"generate: {len(requests):,} clips, {passes:,} passes, {_hours(passes * flops)}, {disk}")
        lines.append(f"score: {len(requests):,} clips by {len(recipe.models.scorers)} scorers")
    for system in recipe.train.systems:
        if system.data != "pairs":
            continue
        settings = recipe.train.settings(system)
        batch = settings.batch_size * settings.gradient_accumulation_steps
        passes = training_passes(system.phases, pairs or 1000, batch)
        of = f"{pairs:,} pairs" if pairs is not None else "every 1,000 pairs"
        lines.append(f"train {system.name}: of {of} {passes:,} passes, {_hours(passes * flops)}")
    return lines


def _hours(flops: float) -> str:
    return f"{flops:.1e} FLOP = {flops / SUSTAINED / 3600:,.1f} GPU-hours at {SUSTAINED / 1e12:.0f} TFLOP/s"
