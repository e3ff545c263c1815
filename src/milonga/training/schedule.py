"""What a training does and in which order: its plan, checked before it starts, and its steps.

Phase, epoch, examples and learning rate of a step are functions of the step's number. Nothing is counted up while
training, so a resumed run, or another rank, cannot disagree about any of it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch

from milonga.core.config import Phase, Settings
from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.store import read_json, write_json
from milonga.data.examples import Examples, fingerprint
from milonga.maths.losses import LOSSES, LossSpec
from milonga.maths.noise import seeded
from milonga.models.denoiser import Denoiser, module_hash

# Settings that change no number of a training.
UNPLANNED = {"checkpoint_every", "save_total_limit", "sample_every", "fsdp", "gradient_checkpointing"}


@dataclass(frozen=True)
class Step:
    """One optimizer step: its number from 0 of `total`, its phase, its epoch through all phases, its examples, and
    whether it is the last one of its epoch and of its phase.
    """

    number: int
    total: int
    phase: Phase
    epoch: int
    indices: tuple[int, ...]
    ends_epoch: bool
    ends_phase: bool


def phase_steps(phase: Phase, examples: int, settings: Settings) -> int:
    """The exact number of a phase's optimizer steps; an epoch's last step may have fewer examples."""
    return phase.steps or phase.epochs * ceil(examples / _examples_per_step(settings))


def count_steps(phases: Sequence[Phase], examples: int, settings: Settings) -> int:
    """The exact number of optimizer steps of all phases."""
    return sum(phase_steps(phase, examples, settings) for phase in phases)


def count_epochs(phases: Sequence[Phase], examples: int, settings: Settings) -> int:
    """The number of passes over the examples, begun ones included, through all phases."""
    per_epoch = ceil(examples / _examples_per_step(settings))
    return sum(ceil(phase_steps(phase, examples, settings) / per_epoch) for phase in phases)


def steps(phases: Sequence[Phase], examples: int, settings: Settings, seed: int, start: int) -> Iterator[Step]:
    """All optimizer steps from number `start` on; each epoch's order depends on (seed, epoch) alone.

    A phase of so many steps ends its last epoch early.
    """
    size, total = _examples_per_step(settings), count_steps(phases, examples, settings)
    per_epoch, begin, epoch = ceil(examples / size), 0, 0
    for phase in phases:
        end = begin + phase_steps(phase, examples, settings)
        while begin < end:
            stop = min(begin + per_epoch, end)
            if start < stop:
                order = torch.randperm(examples, generator=seeded(seed, "order", epoch)).tolist()
            for number in range(max(start, begin), stop):
                rows = tuple(order[(number - begin) * size : (number - begin + 1) * size])
                ends = number + 1 == stop
                yield Step(number, total, phase, epoch, rows, ends_epoch=ends, ends_phase=ends and stop == end)
            begin, epoch = stop, epoch + 1


def learning_rate(step: Step, settings: Settings) -> float:
    """The learning rate of a step: its phase's own, or the settings', times `lr_factor`."""
    peak = settings.learning_rate if step.phase.learning_rate is None else step.phase.learning_rate
    return peak * lr_factor(step.number, step.total, settings)


def lr_factor(number: int, total: int, settings: Settings) -> float:
    """The learning rate after `number` steps over its peak: up in `warmup_steps`, then "constant" or "linear" down.

    Linear decay reaches exactly `min_lr_ratio` (default 0) after the last step, whatever accumulation, ranks or
    warm-up; the released trainer's stops at 82 % of its peak.
    """
    if number < settings.warmup_steps:
        return (number + 1) / (settings.warmup_steps + 1)
    if settings.schedule == "constant":
        return 1.0
    left = (total - number) / max(1, total - settings.warmup_steps)
    return left if settings.min_lr_ratio == 0 else settings.min_lr_ratio + (1 - settings.min_lr_ratio) * left


def loss_spec(name: str) -> LossSpec:
    """The loss of a phase; "ldm" (Eq. 4, on any clips) is what "sft" takes of winners. RecipeError when unknown."""
    spec = LOSSES.get("sft" if name == "ldm" else name)
    if spec is None:
        raise RecipeError(f"no loss is called {name!r}: choose one of {', '.join(['ldm', *LOSSES])}")
    return spec


def check_training(
    examples: Examples, phases: Sequence[Phase], settings: Settings, val: Examples | None = None
) -> None:
    """Finds before the first step what would otherwise fail in a later phase.

    Raises RecipeError for a phase or settings that cannot be, DataError for examples that lack what a phase needs.
    """
    if not phases:
        raise RecipeError("training needs at least one phase, for example loss = 'sft', epochs = 1")
    for phase in phases:
        if loss_spec(phase.loss).needs_beta and phase.beta <= 0:
            raise RecipeError(f"phase {phase.loss!r} needs a beta above zero (the paper has 2000)")
    if len(examples) == 0:
        raise DataError("there is nothing to train on: no pair was kept; lower the thresholds or make more candidates")
    if settings.prior_weight > 0 and examples.num_prior == 0:
        raise DataError("prior_weight is above zero but there are no real clips: give some, or set prior_weight = 0")
    first = examples.batch([0], 0)
    distils = [loss_spec(phase.loss).distils for phase in phases]
    if any(distils) and not all(distils):
        raise RecipeError("a teacher is the model as given: distil in a training of its own, after the other phases")
    for phase in phases:
        spec = loss_spec(phase.loss)
        if spec.needs_loser and first.loser is None and not (spec.labels and first.desirable is not None):
            needed = "pairs, or clips with labels" if spec.labels else "pairs"
            raise DataError(
                f"{phase.loss!r} compares winners with losers, but the examples have no losers: give {needed}"
            )
        if spec.groups != (first.advantages is not None):
            kind = "groups of clips with rewards" if spec.groups else "pairs or clips, and these examples are groups"
            raise DataError(f"{phase.loss!r} needs {kind}")
        if spec.groups and settings.reference == "cached":
            raise RecipeError(f'{phase.loss!r} has no table of reference errors: set reference = "copy"')
        if spec.samples != (first.texts is not None):
            kind = "captions alone" if spec.samples else "clips, and these examples are captions alone"
            raise DataError(f"{phase.loss!r} needs {kind}")
        if spec.distils and (settings.reference == "cached" or settings.lora_rank):
            raise RecipeError(
                f'{phase.loss!r} asks its teacher at each step and trains all weights: set reference = "copy" and '
                "lora_rank = 0"
            )
        if spec.needs_weights and first.weights is None:
            raise DataError(f"{phase.loss!r} weighs each example by a reward, but the examples have none: give weights")
    if settings.pair_weights == "gap":
        _check_gaps(examples)
    if settings.patience and val is None:
        raise RecipeError("patience needs validation pairs, but there are none: set val_fraction")
    if val is not None and (len(val) == 0 or val.batch([0], 0).loser is None):
        raise DataError("validation examples must be pairs, and at least one: give some, or leave them out")


def _check_gaps(examples: Examples) -> None:
    """Raises DataError where some pair has no score to weigh it by."""
    gaps = [examples.batch([place], 0).gaps for place in range(len(examples))]
    missing = sum(gap is None or not bool(gap.isfinite()) for gap in gaps)
    if missing:
        raise DataError(
            f'pair_weights = "gap" weighs pairs by their scores, and {missing} of {len(gaps)} examples have none: '
            'score them, or set pair_weights = "equal"'
        )


def training_plan(
    denoiser: Denoiser, examples: Examples, phases: Sequence[Phase], settings: Settings, seed: int
) -> dict[str, Any]:
    """All that decides the numbers of a training, as flat JSON values, with the hash of the starting weights."""
    facts: dict[str, Any] = {"seed": seed, "examples": len(examples), "prior clips": examples.num_prior}
    facts |= {"data contents": fingerprint(examples), "prediction": denoiser.process.prediction}
    facts |= {f"settings.{name}": value for name, value in settings.model_dump(exclude=UNPLANNED).items()}
    for number, phase in enumerate(phases):
        facts |= {f"phases.{number}.{name}": value for name, value in phase.model_dump().items()}
    return facts | {"starting weights": module_hash(denoiser.module)}


def check_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Writes a plan into a new training's folder; StoreError, naming what differs, when it holds another one's.

    The data of a training that is older than the hash of their contents may differ.
    """
    path = folder / "plan.json"
    if not path.exists():
        write_json(path, plan)
        return
    stored = read_json(path)
    # A setting that is newer than the training had its default value then.
    phases = {name.rpartition(".")[0] for name in stored if name.startswith("phases.")}
    known = {f"{phase}.{name}": value for phase in phases for name, value in Phase(loss="sft").model_dump().items()}
    known |= {f"settings.{name}": value for name, value in Settings().model_dump(exclude=UNPLANNED).items()}
    stored = known | {name: value for name, value in stored.items() if name.removeprefix("settings.") not in UNPLANNED}
    for name in sorted((stored.keys() | plan.keys()) - {"data"} - ({"data contents"} - stored.keys())):
        if stored.get(name) != json.loads(json.dumps(plan.get(name))):
            raise StoreError(
                f"{folder} holds a training with {name} = {stored.get(name)}, not {plan.get(name)}: "
                "choose another folder, or delete it to train again"
            )


def _examples_per_step(settings: Settings) -> int:
    return settings.batch_size * settings.gradient_accumulation_steps
