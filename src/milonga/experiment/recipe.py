"""A recipe: one page of TOML with every number of an experiment, read strictly.

What a recipe does not say has the value given here. `load_recipe` tells any mistake in one line: an unknown key with
its nearest known one, malformed TOML with its line, a wrong value with its key and what is allowed.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from milonga.core.config import RewardModel, Workers
from milonga.core.errors import RecipeError
from milonga.core.records import Record
from milonga.experiment.overrides import apply_override, explain
from milonga.experiment.recipe_tables import (
    RESERVED,
    Batch,
    Evaluate,
    Labels,
    Models,
    Pairing,
    Plan,
    Prompts,
    Rounds,
    Train,
)

R = TypeVar("R", bound=Record)


class Recipe(Record):
    """A whole recipe."""

    name: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    models: Models = Models()
    prompts: Prompts = Prompts()
    plan: Plan = Plan()
    workers: Workers = Workers()
    generate: Batch = Batch()
    score: Batch = Batch()
    pair: Pairing = Pairing()
    train: Train = Train()
    label: Labels = Labels()
    reward: RewardModel = RewardModel()
    rounds: Rounds = Rounds()
    evaluate: Evaluate = Evaluate()

    def trains_on(self, *kinds: str) -> bool:
        """Whether a system is trained on data of one of these kinds (`pairs`, `rewards`, `labels`, `rounds`)."""
        return any(system.data in kinds for system in self.train.systems)

    @property
    def makes_clips(self) -> bool:
        """Whether the run makes clips to learn from, by its plan; else they come from elsewhere, or in rounds."""
        on_pairs = "run" in self.train.pairs and (self.trains_on("pairs") or not self.train.systems)
        on_labels = "truth" in self.label.sources and self.trains_on("labels")
        return on_pairs or on_labels or self.trains_on("rewards")

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        scorers = set(self.models.scorers)
        _distinct("models.scorers", list(self.models.scorers))
        _distinct("train.systems", [system.name for system in self.train.systems])
        for where, strategies in (("plan", self.plan.strategies), ("rounds", self.rounds.strategies)):
            _distinct(f"{where}.strategies", [strategy.name for strategy in strategies])
        for where, pairing in (("pair", self.pair), ("rounds.pair", self.rounds.pair)):
            if pairing is not None:
                _fits(where, pairing, scorers)
        if self.train.pairs == ("run",):
            known = {strategy.name for strategy in self.plan.strategies}
            for name in {name for system in self.train.systems for name in system.strategies}:
                _one_of("train.systems: strategies", name, known)
        if self.reward.scorer is not None:
            _one_of("reward.scorer", self.reward.scorer, scorers)
        for name in {system.name for system in self.train.systems} & set(RESERVED):
            raise ValueError(f'train.systems: "{name}" is a name that evaluation uses; choose another')
        self._has_what_it_needs()
        return self

    def _has_what_it_needs(self) -> None:
        """ValueError for a table that a system, or the run itself, cannot do without and that says nothing."""
        rounds = self.trains_on("rounds")
        if (self.makes_clips or rounds) and not self.prompts.sources:
            raise ValueError(
                'prompts.sources is missing: this run makes clips (it would not without "run" in train.pairs)'
            )
        if (self.makes_clips or (rounds and not self.rounds.strategies)) and not self.plan.strategies:
            raise ValueError("plan.strategies is missing: say how the clips are made that this run learns from")
        if any(self.train.settings(one).sample_every for one in self.train.systems) and not self.prompts.sources:
            raise ValueError("prompts.sources is missing: train.sample_every makes clips of the first of them")
        if rounds and not self.rounds.prompts:
            raise ValueError("rounds.prompts is missing: name held-out captions on which the judge decides to go on")


def _fits(where: str, pairing: Pairing, scorers: set[str]) -> None:
    """ValueError where a pairing asks for what no scorer gives."""
    _distinct(f"{where}.thresholds", [threshold.scorer for threshold in pairing.thresholds])
    _one_of(f"{where}.rank_by", pairing.rank_by, scorers | {"mean"})
    for threshold in pairing.thresholds:
        _one_of(f"{where}.thresholds: scorer", threshold.scorer, scorers)
        if threshold.delta_low > threshold.delta_high:
            raise ValueError(f"{where}.thresholds: {threshold.scorer}'s delta_low is above its delta_high")


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or the shipped one of that name (`smoke`), with `key=value` overrides applied.

    An override's key is dotted (`train.learning_rate=3e-4`, `plan.strategies.0.guidance=5`) and its value TOML; what
    is not TOML is taken as text. Raises RecipeError, in one line, for anything that is wrong.
    """
    path = find_recipe(path_or_name)
    return parse_recipe(_read(path), path.name, overrides)


def parse_recipe(text: str, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML text; `source` names it in errors. Raises as `load_recipe` does."""
    return parse_as(Recipe, text, source, overrides)


def parse_as(kind: type[R], text: str, source: str, overrides: Sequence[str] = ()) -> R:
    """A recipe of some kind in a TOML text. Raises as `load_recipe` does."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{source}: this is not TOML: {error}") from error
    for override in overrides:
        apply_override(data, override)
    try:
        return kind.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise RecipeError(f"{source}: {explain(error, kind)}") from error


def find_recipe(path_or_name: str | Path) -> Path:
    """The file of a shipped recipe's name, of a path, or of a run folder; RecipeError lists the shipped ones."""
    return find_in(path_or_name, shipped_recipes())


def find_in(path_or_name: str | Path, shipped: Mapping[str, Path]) -> Path:
    """The file of one of `shipped`, of a path, or of a run folder. Raises as `find_recipe` does."""
    if str(path_or_name) in shipped:
        return shipped[str(path_or_name)]
    given = Path(path_or_name)
    given = given / "recipe.toml" if given.is_dir() else given
    if given.is_file():
        return given
    raise RecipeError(f"no recipe {path_or_name}: give a .toml file or one of {', '.join(shipped) or 'none shipped'}")


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with Milonga, by name: beside `src/` in a checkout, inside an installed package."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "recipes", package.parents[1] / "recipes")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.toml"))}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}") from error


def _distinct(where: str, names: list[str]) -> None:
    for name in {name for name in names if names.count(name) > 1}:
        raise ValueError(f'{where}: "{name}" comes twice')


def _one_of(where: str, name: str, allowed: set[str]) -> None:
    if name not in allowed:
        raise ValueError(f'{where} = "{name}": must be one of {", ".join(sorted(allowed))}')
