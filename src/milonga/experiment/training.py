"""The door `train`: a run's systems, or a model on data of one's own, on any number of ranks.

Own data are preference pairs in Audio-alpaca's layout, or clips with captions; with both, the clips are anchors. What
passes the VAE and the text encoder is kept in the folder and used again. Under torchrun or `accelerate launch` the
first rank prepares everything, and the others wait for it.
"""

import json
import sys
import tomllib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from milonga.core.config import Phase, Settings
from milonga.core.errors import RecipeError
from milonga.core.records import Record
from milonga.core.store import Run, atomic_dir
from milonga.experiment.recipe import find_in, load_recipe, parse_as, shipped_recipes
from milonga.experiment.recipe_tables import Name, Tracker

if TYPE_CHECKING:
    from milonga.data.examples import Examples
    from milonga.training.distributed import Ranks


TRAINING = "training"  # the folder of checkpoints and of the trained network


class Data(Record):
    """`[data]`: a folder of pairs, or a source of clips with captions and how many mixes of two there are to each clip.

    With both, the clips are anchors. `compat` takes clips as the original does, its defects included.
    """

    pairs: Name | None = None
    split: Name | None = None
    clips: Name | None = None
    mixed: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    compat: bool = False

    @model_validator(mode="after")
    def _is_something(self) -> Self:
        if self.pairs is None and self.clips is None:
            raise ValueError("data: name a folder of pairs or of clips")
        return self


class OwnTrain(Settings):
    """`[train]` of a training on own data: the trainer's settings, the phases, who is judged and who is told."""

    phases: tuple[Phase, ...] = Field(min_length=1)
    heldout: float = Field(default=0.0, ge=0.0, lt=1.0)
    trackers: tuple[Tracker, ...] = ()

    def settings(self) -> Settings:
        """The trainer's settings alone."""
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields})


class Training(Record):
    """A recipe for training a model on own data, without a run."""

    name: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    model: Name = "nano"
    data: Data
    train: OwnTrain


def train(target: str, out: Path | None = None, changes: Sequence[str] = ()) -> list[Path]:
    """Trains what a run's or a training's recipe says, and gives the folders of what was trained.

    `target` is a run folder, a recipe of a run (whose earlier stages are then done first), or a training's recipe; all
    by path or by the name of one that ships. Raises RecipeError for what is none of these, and as `stages.train` does.
    """
    from milonga.training.distributed import Ranks

    ranks, path = Ranks(), find_in(target, shipped_recipes() | shipped_trainings())
    if _is_training(path):
        recipe = parse_as(Training, path.read_text(encoding="utf-8"), path.name, changes)
        return [_own(recipe, out or Path("runs") / recipe.name, ranks)]
    return _run(str(path), Path(target) if Path(target).is_dir() else out, changes, ranks)


def shipped_trainings() -> dict[str, Path]:
    """The recipes for own data that come with Milonga, by name."""
    folders = {path.parent / "training" for path in shipped_recipes().values()}
    return {file.stem: file for folder in sorted(folders) for file in sorted(folder.glob("*.toml"))}


def _is_training(path: Path) -> bool:
    """Whether a file has the table that only a training's recipe has; what is no TOML is told of by its reader."""
    try:
        return "data" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError):
        return False


def _run(recipe_path: str, out: Path | None, changes: Sequence[str], ranks: "Ranks") -> list[Path]:
    """A run's systems; the first rank does all stages before, and notes the recipe."""
    from milonga.experiment import registry
    from milonga.experiment import run as pipeline
    from milonga.experiment.context import Context
    from milonga.experiment.stages import STEPS

    recipe = load_recipe(recipe_path, changes)
    if not recipe.train.systems:
        raise RecipeError(f"{recipe_path} trains no system: add a table [[train.systems]]")
    folder = out or Path("runs") / recipe.name
    if ranks.is_main:
        pipeline.run(recipe, folder, until="reward")  # the last stage before this one
    ranks.wait()
    run = Run(folder)
    with run.lock() if ranks.is_main else nullcontext():
        STEPS["train"](Context(recipe, run, registry, pipeline.engine_named("local")))
    return [folder / "checkpoints" / system.name / "model" for system in recipe.train.systems]


def _own(recipe: Training, out: Path, ranks: "Ranks") -> Path:
    """Trains on own data in `out`; gives the finished model's folder, which `milonga.load` and diffusers read."""
    from milonga.data.examples import train_val_split
    from milonga.experiment import registry
    from milonga.training.trackers import print_betas, show_training
    from milonga.training.trainer import train as trained

    finished, settings = out / "model", recipe.train.settings()
    if not finished.exists():
        all_examples = ranks.main_process_first(lambda: _examples(recipe, out))
        examples, heldout = train_val_split(all_examples, recipe.train.heldout, recipe.seed)
        if ranks.is_main:
            print_betas(recipe.train.phases, examples)
        logs, trackers = out / "metrics", recipe.train.trackers if ranks.is_main else ()
        config = recipe.model_dump(mode="json")
        with show_training(f"train {recipe.name}", recipe.name, logs, trackers, config) as on_step:
            model = registry.load_denoiser(recipe.model)
            trained(
                model, examples, recipe.train.phases, settings, recipe.seed, out / TRAINING, on_step, val=heldout,
                log_path=logs / f"{recipe.name}.jsonl",
            )  # fmt: skip
        if ranks.is_main:
            _ship(recipe, out, finished)
        ranks.wait()
    return finished


def _examples(recipe: Training, out: Path) -> "Examples":
    """What is trained on, encoded where it is not yet."""
    from milonga.data.encode import encode_clips, encode_pairs
    from milonga.data.examples import with_prior_data
    from milonga.models.load import load_denoiser

    data, work, denoiser = recipe.data, out / "encoded", load_denoiser(recipe.model)
    clips = None
    if data.clips is not None:
        clips = encode_clips(denoiser, data.clips, work, data.mixed, data.compat, recipe.seed)
    if data.pairs is None:
        assert clips is not None
        return clips
    _, pairs = encode_pairs(denoiser, Path(data.pairs), work, data.split, recipe.seed)
    return pairs if clips is None else with_prior_data(pairs, clips)


def _ship(recipe: Training, out: Path, finished: Path) -> None:
    """The whole model with its trained network, in diffusers' layout, the recipe that made it, and its card."""
    from milonga.core.store import write_text
    from milonga.experiment.export import facts
    from milonga.experiment.export_system import write_pipeline
    from milonga.experiment.manifest import software
    from milonga.reports.cards import own_model_card

    told = recipe.model_dump(mode="json")
    last = (out / "metrics" / f"{recipe.name}.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    with atomic_dir(finished) as part:
        write_pipeline(part, out / TRAINING / "model", recipe.model)
        write_text(part / "training.json", json.dumps(told, indent=1) + "\n")
        write_text(
            part / "README.md", own_model_card(told, json.loads(last), facts(software() | {"seed": recipe.seed}))
        )
    print(f"milonga: {finished} holds the model: milonga generate PROMPT --model {finished}", file=sys.stderr)
