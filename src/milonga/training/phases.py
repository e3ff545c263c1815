"""What a training is asked to do: checked before it starts, and held to when it resumes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from milonga.core.config import Phase, Settings
from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.store import read_json, write_json
from milonga.data.examples import Batch, Examples
from milonga.maths.losses import LOSSES, LossSpec
from milonga.models.denoiser import Denoiser, module_hash

UNPLANNED = {"checkpoint_every", "keep", "listen_every", "sharded"}


def loss_spec(name: str) -> LossSpec:
    """The loss of a phase; "ldm" (Eq. 4, on any clips) is what "sft" takes of winners. RecipeError when unknown."""
    spec = LOSSES.get("sft" if name == "ldm" else name)
    if spec is None:
        raise RecipeError(f"no loss is called {name!r}: choose one of {', '.join(['ldm', *LOSSES])}")
    return spec


def check(examples: Examples, phases: Sequence[Phase], settings: Settings, heldout: Examples | None) -> None:
    """Finds out before the first step what would otherwise fail in a later phase.

    Raises RecipeError for a phase that cannot be, DataError for examples that do not have what the phases ask for.
    """
    if not phases:
        raise RecipeError("training needs at least one phase, for example loss = 'sft', epochs = 1")
    for phase in phases:
        if loss_spec(phase.loss).needs_beta and phase.beta <= 0:
            raise RecipeError(f"phase {phase.loss!r} needs a beta above zero (the paper has 2000)")
    if len(examples) == 0:
        raise DataError("there is nothing to train on: no pair was kept; lower the thresholds or make more candidates")
    if settings.anchor > 0 and examples.num_prior == 0:
        raise DataError("anchor is above zero but there are no real clips to anchor to: give some, or set anchor = 0")
    _check_examples(examples.batch([0], 0), phases)
    if settings.sharded and settings.listen_every:
        raise RecipeError(
            "a network that is sharded over ranks cannot be sampled: set listen_every = 0 or sharded = false"
        )
    if settings.patience and heldout is None:
        raise RecipeError("patience waits for held-out pairs to be judged better, but there are none: hold some out")
    if heldout is not None and (len(heldout) == 0 or heldout.batch([0], 0).loser is None):
        raise DataError("held-out examples must be pairs, and at least one: give some, or leave them out")


def _check_examples(one: Batch, phases: Sequence[Phase]) -> None:
    """DataError where a phase asks for what an example does not have."""
    for phase in phases:
        spec = loss_spec(phase.loss)
        if spec.needs_loser and one.loser is None and not (spec.labels and one.desirable is not None):
            wanted = "pairs, or clips with labels" if spec.labels else "pairs"
            raise DataError(
                f"{phase.loss!r} compares winners with losers, but the examples have no losers: give {wanted}"
            )
        if spec.needs_weights and one.weights is None:
            raise DataError(f"{phase.loss!r} weighs each example by a reward, but the examples have none: give weights")


def plan(
    denoiser: Denoiser, examples: Examples, phases: Sequence[Phase], settings: Settings, seed: int
) -> dict[str, Any]:
    """All that decides the numbers of a training, as flat JSON values; how often it is saved or heard does not."""
    chosen = settings.model_dump(exclude=UNPLANNED)
    facts: dict[str, Any] = {"seed": seed, "examples": len(examples), "prior clips": examples.num_prior}
    facts["prediction"] = denoiser.process.prediction
    facts |= {f"settings.{name}": value for name, value in chosen.items()}
    for number, phase in enumerate(phases):
        facts |= {f"phases.{number}.{name}": value for name, value in phase.model_dump().items()}
    return facts | {"starting weights": module_hash(denoiser.module)}


def claim(folder: Path, wanted: dict[str, Any]) -> None:
    """Writes a plan into a new training's folder; StoreError, naming what differs, when it holds another one's."""
    path = folder / "plan.json"
    if not path.exists():
        write_json(path, wanted)
        return
    held = read_json(path)
    # A setting that came with a later Milonga was, in a training begun before, what its default is.
    held = {f"settings.{name}": value for name, value in Settings().model_dump(exclude=UNPLANNED).items()} | held
    for name in sorted(held.keys() | wanted.keys()):
        if held.get(name) != json.loads(json.dumps(wanted.get(name))):
            raise StoreError(
                f"{folder} holds a training with {name} = {held.get(name)}, not {wanted.get(name)}: "
                "choose another folder, or delete it to train anew"
            )
