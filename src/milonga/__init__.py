"""Milonga: sound from words by latent diffusion, aligned to preferences it builds itself, measured with error bars.

Importing the package is instant: torch and its kin are imported when a name that needs them is used.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milonga.core.config import Strategy, Threshold
    from milonga.core.protocols import Engine
    from milonga.core.store import Run
    from milonga.data.pairs import read_pairs
    from milonga.experiment.recipe import Online, Recipe
    from milonga.experiment.run import align_online
    from milonga.models.tango import TangoPipeline
    from milonga.preference.build import build_pairs
    from milonga.preference.candidates import best_of
    from milonga.preference.repair import repair
    from milonga.reports.leaderboard import evaluate
    from milonga.training.align import AlignConfig, AlignTrainer
    from milonga.training.trainer import TrainerCallback

    __version__: str

__all__ = [
    "AlignConfig",
    "AlignTrainer",
    "Online",
    "Recipe",
    "Strategy",
    "TangoPipeline",
    "Threshold",
    "TrainerCallback",
    "__version__",
    "align_online",
    "best_of",
    "build_pairs",
    "evaluate",
    "load",
    "read_pairs",
    "repair",
    "run",
]


def load(
    name: str | Path = "nano",
    *,
    revision: str | None = None,
    scheduler: str | None = None,
    dtype: Any = None,
    device: Any = "auto",
    tokenizer: str | None = None,
    precision: str = "fp32",
) -> Any:
    """A model by name: `nano` (ships), a run's system (`runs/demo/aligned`), a folder, or a repository on the Hub.

    The result is a `TangoPipeline`, for a folder or repository in diffusers' layout or one of the original Tango's.
    Stable Audio Open, TangoFlux, AudioLDM and AudioLDM 2, and `package.module:Class@FOLDER`, give a `DenoiserModel`,
    which is called alike and has `generate(requests)`. A folder is preferred to a repository of the same name; of a
    repository (`user/name`) only the needed files are fetched, at a branch, tag or commit named by `revision`.
    `scheduler` is one of `ddpm`, `ddim`, `dpm++`, `unipc` and `compat`, the original's timesteps; for a model that
    predicts a flow `euler`, `dpm++` and `unipc`; for a distilled one `lcm`. `dtype` is torch's or its name, such as
    "bfloat16" (default: float32); `device` is torch's or its name, or "auto": CUDA where there is one, else Apple's
    MPS, else the CPU. `tokenizer` is a folder or repository with the text encoder's tokenizer, which the original's
    repositories leave out. `precision` is "fp32", "bf16" (the U-Net's products alone) or "auto", whichever this machine
    was measured to be faster in. Raises RecipeError for an unknown name, scheduler, dtype, device or precision;
    CheckpointError when weights cannot be fetched or used.
    """
    from milonga.models.load import load_public

    return load_public(str(name), revision, scheduler, dtype, device, tokenizer, precision)


def run(
    recipe: "Recipe | str | Path",
    out: Path | str | None = None,
    *,
    until: str | None = None,
    only: str | None = None,
    engine: "Engine | str" = "local",
    changes: Sequence[str] = (),
    parts: Mapping[str, Any] | None = None,
) -> "Run":
    """Runs a recipe's stages in the run folder `out` (default runs/NAME), as the command `milonga run` does.

    `recipe` is a file, a shipped recipe's name, or a `Recipe`; `changes` are `key=value` as after `--set` and need a
    file or a name. `parts` are objects by the names that the recipe has for them: a pipeline, a scorer, a tagger, a
    perturber, a list of captions. `engine` is `local`, `ray`, or an object. Raises RecipeError for a recipe that is
    wrong, StoreError for a folder that does not fit it.
    """
    from milonga.core.errors import RecipeError
    from milonga.experiment import run as experiment
    from milonga.experiment.recipe import Recipe, load_recipe
    from milonga.experiment.registry import Registry

    if isinstance(recipe, Recipe) and changes:
        raise RecipeError("changes are for a recipe's file or name: make another Recipe with model_copy instead")
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, changes)
    where = experiment.engine_named(engine, chosen.workers) if isinstance(engine, str) else engine
    return experiment.run(
        chosen, None if out is None else Path(out), until, only, where, Registry(parts, chosen.workers.device)
    )


# Where the other public names are defined; each is imported when it is first used.
_HOMES = {
    "AlignConfig": "milonga.training.align",
    "AlignTrainer": "milonga.training.align",
    "Online": "milonga.experiment.recipe",
    "Recipe": "milonga.experiment.recipe",
    "Strategy": "milonga.core.config",
    "TangoPipeline": "milonga.models.tango",
    "Threshold": "milonga.core.config",
    "TrainerCallback": "milonga.training.trainer",
    "align_online": "milonga.experiment.run",
    "best_of": "milonga.preference.candidates",
    "build_pairs": "milonga.preference.build",
    "evaluate": "milonga.reports.leaderboard",
    "read_pairs": "milonga.data.pairs",
    "repair": "milonga.preference.repair",
}


def __getattr__(name: str) -> Any:
    """The public names that are not functions here, looked up when they are first used (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("milonga")
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'milonga' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
