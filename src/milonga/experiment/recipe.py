"""A recipe: one page of TOML with every number of an experiment, read strictly; each table with its defaults.

`load_recipe` reports any mistake in one line: an unknown key with its nearest known one, malformed TOML with its line,
a wrong value with its key and what is allowed.
"""

import json
import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_serializer, field_validator, model_validator

from milonga.core.config import Asking, Phase, RewardModel, Settings, Strategy, Threshold, Workers
from milonga.core.errors import MilongaWarning, RecipeError
from milonga.core.records import Record
from milonga.core.weights import RANKERS
from milonga.experiment.overrides import apply_override, explain, modern_override, modernised, to_toml
from milonga.perturbers.endpoint import Endpoint
from milonga.scorers.load import tagger_of

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
Tracker = Literal["tensorboard", "wandb", "trackio"]
# The names of `models.schedulers`, which imports torch.
Scheduler = Literal["ddpm", "ddim", "dpm++", "unipc", "compat", "euler", "lcm"]
Split = Literal["overall", "temporal", "non-temporal", "multi-concept", "single-concept"]
# Folders of a run beside which a trained system's clips are stored.
RESERVED = ("base", "reference", "prompts")
TAGGER = "tagger"  # of label.sources: the run's own clips, labelled by its tagger
RENAMED = {"tango2-paper": "tango2"}  # shipped recipes by their old names, which are read for one version
OWN = "run"  # of train.pairs: the pairs that this run makes


class Models(Record):
    """`[models]`: the generator, the scorers that rank and filter, the judge that only evaluates, the event tagger."""

    model: Name = "nano"
    scheduler: Scheduler | None = None
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    seconds: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    scorers: tuple[Name, ...] = Field(default=RANKERS, min_length=1)
    judge: Name = "nano-judge"
    tagger: Name = "nano-tagger"

    @property
    def loading(self) -> tuple[str | None, str, float | None]:
        """How the model is loaded to generate: its scheduler, precision and seconds."""
        return self.scheduler, self.precision, self.seconds


class Prompts(Record):
    """`[prompts]`: sources of captions, the k-means selection of τ1 (0 clusters: all), and where τ2 is taken from."""

    sources: tuple[Name, ...] = ()
    embedder: Name = "tfidf-svd"
    clusters: int = Field(default=0, ge=0)
    per_cluster: Count = 70
    nearest: bool = True
    temporal: Literal["all", "selected"] = "all"


class Plan(Record):
    """`[plan]`: the strategies, the perturber of captions, and the number of clips in a shard."""

    perturber: Name = "rules"
    shard_size: Count = 64
    llm: Asking = Asking()
    strategies: tuple[Strategy, ...] = ()

    @field_validator("perturber")
    @classmethod
    def _is_valid(cls, name: str) -> str:
        """A language model's name is checked before a run stores it: a URL may hold a password."""
        if name.startswith("llm:"):
            Endpoint.of(name)
        return name


class Batch(Record):
    """`[generate]` and `[score]`: clips in one batch; results do not depend on it."""

    batch_size: Count = 16


class Pairing(Record):
    """`[pair]`: the scorer that ranks (`mean`: their mean), which candidates lose, and what a pair must meet."""

    rank_by: Name = "mean"
    losers: Literal["all", "worst"] = "all"
    thresholds: tuple[Threshold, ...] = ()


class Labels(Record):
    """`[label]`: where labels of good clips come from: `tagger`, or folders that `milonga listen export` wrote."""

    sources: tuple[Name, ...] = Field(default=(TAGGER,), min_length=1)


class System(Record):
    """`[[train.systems]]`: a model trained by phases, from the base or from the system `start` before it, and its data.

    `pairs` and `groups` (all clips of a caption, for group-wise losses), of `strategies` where some are named;
    `clips`: real clips with captions; `rewards`: the run's own clips, each with its reward; `labels`: labelled clips;
    `online`: clips by the latest policy, iteration after iteration; `captions`: captions alone, of `sources` or the
    run's own, whose clips the trainer samples and `scorers` (none: those of `models`) reward. A key in `settings`
    replaces `[train]`'s; `steps` are those of its clips in the evaluation (None: `evaluate.steps`).
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    data: Literal["pairs", "groups", "clips", "rewards", "labels", "online", "captions"] = "pairs"
    strategies: tuple[Name, ...] = ()
    start: Name | None = None
    sources: tuple[Name, ...] = ()
    scorers: tuple[Name, ...] = ()
    phases: tuple[Phase, ...] = Field(min_length=1)
    settings: Settings = Settings()
    steps: Count | None = None

    @field_serializer("settings")
    def _only_set_keys(self, settings: Settings) -> dict[str, Any]:
        """Keys that a system leaves to `[train]` stay out when a recipe is written back."""
        return settings.model_dump(exclude_unset=True)

    @model_validator(mode="after")
    def _strategies_need_pairs(self) -> Self:
        if self.strategies and self.data not in ("pairs", "groups"):
            raise ValueError(f'strategies choose among pairs or groups, and {self.name} is trained on "{self.data}"')
        if (self.sources or self.scorers) and self.data != "captions":
            raise ValueError(f'sources and scorers are for captions, and {self.name} is trained on "{self.data}"')
        if self.start and self.data == "online":
            raise ValueError(f"{self.name} is trained online, from models.model: name the model to start from there")
        return self


class Train(Settings):
    """`[train]`: the trainer's settings, the systems to train, and their data.

    `pairs` are sources of pairs: `run` (this run's own), folders of runs or data sets (`split`: of that split's files).
    `clips` is a source of captioned clips, for systems trained on clips and for prior preservation; `mix_ratio` adds so
    many mixes of two clips for each, others in each of `mix_epochs` epochs, and `legacy` reads them as the original
    code does. `val_fraction` of the captions are only measured on. `trackers` get every step, beside the run's curves.
    `allow_missing` trains also where more than half of a data set's clips or pairs cannot be used.
    """

    val_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    trackers: tuple[Tracker, ...] = ()
    pairs: tuple[Name, ...] = Field(default=(OWN,), min_length=1)
    split: Name | None = None
    clips: Name | None = None
    mix_ratio: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    mix_epochs: int = Field(default=10, ge=1)
    legacy: bool = False
    allow_missing: bool = False
    systems: tuple[System, ...] = ()

    def settings(self, system: System) -> Settings:
        """The trainer's settings alone, with a system's own in their places."""
        own = {name: getattr(system.settings, name) for name in system.settings.model_fields_set}
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields} | own)

    @model_validator(mode="after")
    def _fits_every_system(self) -> Self:
        for place, system in enumerate(self.systems):
            if system.start is not None:
                _one_of(f"{system.name}: start", system.start, {one.name for one in self.systems[:place]})
            try:
                self.settings(system)
            except ValidationError as error:
                message = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"settings of {system.name}: {message}") from error
        return self


class Online(Record):
    """`[online]`: generate, score and train with the latest policy, iteration after iteration.

    An iteration draws captions anew: of `sources`, or `captions` of the run's own (0: all). Of each it generates
    `clips` clips by the latest policy (`steps`, `guidance`, `scheduler`); with 0 clips, those of `strategies` or of
    `[plan]`. With `score_mels` groups are scored without a vocoder. With `overlap` the next iteration's clips are made
    while one trains, by the policy that it began with. Losses of groups train on all of them, losses of pairs on what
    `pair` keeps. The `reference` is the policy of the iteration before or the base. Every `every` iterations the judge
    scores the policy on `prompts`, `noises` clips each; it stops after `patience` judgements in a row that gain no more
    than `min_gain` over the best.
    """

    iterations: Count = 4
    sources: tuple[Name, ...] = ()
    captions: int = Field(default=0, ge=0)
    clips: int = Field(default=0, ge=0)
    steps: Count = 8
    guidance: float = Field(default=3.0, ge=0.0, allow_inf_nan=False)
    scheduler: Scheduler | None = None
    score_mels: bool = False
    overlap: bool = False
    strategies: tuple[Strategy, ...] = ()
    pair: Pairing | None = None
    reference: Literal["previous", "base"] = "previous"
    prompts: tuple[Name, ...] = ()
    noises: Count = 2
    every: Count = 1
    patience: Count = 1
    min_gain: float = Field(default=0.0, ge=0.0, le=2.0)


class Search(Record):
    """`[[evaluate.search]]`: a system by search, the best of `n` clips of the base or of a trained system.

    Chosen by `scorers` (none: those of `models`); neither the judge nor the tagger, which measure the result.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    system: Name = "base"
    n: int = Field(default=8, ge=2)
    scorers: tuple[Name, ...] = ()


class EvaluatedModel(Record):
    """`[[evaluate.models]]`: another model by its name or folder as a row of every table, called `name`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    model: Name
    note: str = ""


class Evaluate(Record):
    """`[evaluate]`: held-out prompts, the sampling of the systems' clips, and the resamples of the bootstrap.

    Of each prompt every system makes `noises` clips; a metric is their mean, and intervals are over prompts.
    """

    prompts: tuple[Name, ...] = ()
    noises: Count = 1
    steps: Count = 200
    guidance: float = Field(default=3.0, ge=0.0, allow_inf_nan=False)
    splits: tuple[Split, ...] = ("overall", "temporal", "multi-concept")
    resamples: Count = 1000
    pool: Count = 16
    search: tuple[Search, ...] = ()
    models: tuple[EvaluatedModel, ...] = ()

    @model_validator(mode="after")
    def _pool_holds_every_search(self) -> Self:
        for search in self.search:
            if search.n * self.noises > self.pool:
                raise ValueError(
                    f"search: {search.name} takes the best of {search.n} for each of {self.noises} clips of a caption, "
                    f"and pool has {self.pool} clips: {search.n * self.noises} at least"
                )
        return self


class Recipe(Record):
    """A whole recipe; `load_recipe` and `Recipe.from_toml` read one from a file, `to_toml` writes it."""

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
    online: Online = Online()
    evaluate: Evaluate = Evaluate()

    @classmethod
    def from_toml(cls, path_or_name: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """The recipe in a file, a run folder, or the shipped one of that name. Raises as `load_recipe` does."""
        return load_recipe(path_or_name, overrides)

    def to_toml(self) -> str:
        """This recipe as TOML that reads back as the same recipe."""
        return to_toml(self)

    @property
    def needs_captions(self) -> bool:
        """Whether a system is trained on the run's own captions, without clips that the run generates by its plan."""
        online = self.trains_on("online") and not self.online.sources
        return online or any(system.data == "captions" and not system.sources for system in self.train.systems)

    def rewards_of(self, system: System) -> tuple[str, ...]:
        """The scorers that reward the clips which a system's trainer samples: its own, or those of `models`."""
        return system.scorers or self.models.scorers

    def trains_on(self, *kinds: str) -> bool:
        """Whether a system is trained on data of one of these kinds (`pairs`, `clips`, `rewards`, …)."""
        return any(system.data in kinds for system in self.train.systems)

    @property
    def sampled_source(self) -> str | None:
        """The source of the captions that `train.sample_every` makes clips of; None where there is none."""
        own = (source for system in self.train.systems for source in system.sources)
        return next(iter((*self.prompts.sources, *self.online.sources, *own)), None)

    @property
    def makes_clips(self) -> bool:
        """Whether the run generates training clips by its plan; else they come from elsewhere, or online."""
        only_measures = bool(self.evaluate.search or self.evaluate.models) and not self.plan.strategies
        on_pairs = OWN in self.train.pairs and (self.trains_on("pairs") or not (self.train.systems or only_measures))
        on_labels = TAGGER in self.label.sources and self.trains_on("labels")
        return on_pairs or on_labels or self.trains_on("rewards", "groups")

    @property
    def sampled_systems(self) -> tuple[str, ...]:
        """The systems whose clips evaluation samples: the base, those that are trained, and other models."""
        trained = (system.name for system in self.train.systems)
        return ("base", *trained, *(model.name for model in self.evaluate.models))

    def sampling_steps(self, system: str) -> int:
        """The steps that evaluation samples a system with: its own, such as a distilled one's, or those of all."""
        return next((one.steps for one in self.train.systems if one.name == system and one.steps), self.evaluate.steps)

    def search_scorers(self, search: Search) -> tuple[str, ...]:
        """The scorers that a search chooses by: its own, or those of `models`."""
        return search.scorers or self.models.scorers

    @model_validator(mode="after")
    def _searches_are_measured_by_others(self) -> Self:
        systems = set(self.sampled_systems)
        _distinct("evaluate.models", list(self.sampled_systems[1:]))
        _distinct("evaluate.search", [*systems, *RESERVED[1:], *(search.name for search in self.evaluate.search)])
        for search in self.evaluate.search:
            _one_of("evaluate.search: system", search.system, systems)
            for name in self.search_scorers(search):
                if {name, *name.split(":")[1:]} & {self.models.judge, self.models.tagger}:
                    raise ValueError(f"evaluate.search: {search.name} chooses by {name}, which measures the result")
        return self

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        scorers = set(self.models.scorers)
        _distinct("models.scorers", list(self.models.scorers))
        _measures_alone(self.models, "models.scorers", self.models.scorers)
        for system in self.train.systems:
            _measures_alone(self.models, f"train.systems: {system.name}: scorers", system.scorers)
        _distinct("train.systems", [system.name for system in self.train.systems])
        for where, strategies in (("plan", self.plan.strategies), ("online", self.online.strategies)):
            _distinct(f"{where}.strategies", [strategy.name for strategy in strategies])
        for where, pairing in (("pair", self.pair), ("online.pair", self.online.pair)):
            if pairing is not None:
                _fits(where, pairing, scorers)
        if self.train.pairs == (OWN,):
            known = {strategy.name for strategy in self.plan.strategies}
            for name in {name for system in self.train.systems for name in system.strategies}:
                _one_of("train.systems: strategies", name, known)
        if self.reward.scorer is not None:
            _one_of("reward.scorer", self.reward.scorer, scorers)
        for name in {*self.sampled_systems[1:]} & set(RESERVED):
            raise ValueError(f'train.systems, evaluate.models: "{name}" is a name that evaluation uses; choose another')
        self._check_needed_tables()
        return self

    def _check_needed_tables(self) -> None:
        """ValueError for an empty table that a system, or the run itself, needs."""
        online = self.trains_on("online")
        own_strategies = online and not (self.online.clips or self.online.strategies)
        if (self.makes_clips or self.needs_captions) and not self.prompts.sources:
            raise ValueError("prompts.sources is missing: this run makes clips of its captions")
        if (self.makes_clips or own_strategies) and not self.plan.strategies:
            raise ValueError("plan.strategies is missing: say how the training clips are generated")
        if any(self.train.settings(one).sample_every for one in self.train.systems) and not self.sampled_source:
            raise ValueError("prompts.sources is missing: train.sample_every makes clips of the first of them")
        if self.trains_on("clips") and self.train.clips is None:
            raise ValueError("train.clips is missing: name a source of clips with captions, such as clips:FOLDER")
        if online and not self.online.prompts:
            raise ValueError(
                "online.prompts is missing: name held-out captions on which the judge decides whether to continue"
            )


def _fits(where: str, pairing: Pairing, scorers: set[str]) -> None:
    """ValueError where a pairing names a scorer that is not of this recipe, or bounds that exclude each other."""
    _distinct(f"{where}.thresholds", [threshold.scorer for threshold in pairing.thresholds])
    _one_of(f"{where}.rank_by", pairing.rank_by, scorers | {"mean"})
    for threshold in pairing.thresholds:
        _one_of(f"{where}.thresholds: scorer", threshold.scorer, scorers)
        if threshold.min_margin > threshold.max_margin:
            raise ValueError(f"{where}.thresholds: {threshold.scorer}'s min_margin is above its max_margin")


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, a run folder, or the shipped one of that name (`smoke`), with overrides applied.

    An override is `key=value`, its key dotted (`train.learning_rate=3e-4`, `plan.strategies.0.guidance=5`) and its
    value TOML; what is not TOML is taken as text. Raises RecipeError, in one line, for anything that is wrong.
    """
    path = find_recipe(path_or_name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}") from error
    return parse_recipe(text, path.name, overrides)


def parse_recipe(text: str, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML text; `source` names it in errors. Raises as `load_recipe` does.

    Keys of the first edition are read with one warning each (`overrides.modernised`).
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{source}: this is not TOML: {error}") from error
    data = modernised(data, source)
    for override in overrides:
        apply_override(data, modern_override(override))
    data = modernised(data, source)  # an override may have brought a whole table
    try:
        return Recipe.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise RecipeError(f"{source}: {explain(error, Recipe)}") from error


def stored_recipe(table: dict[str, Any]) -> Recipe:
    """The recipe in a run's manifest; ValidationError where a key of its time is gone since."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MilongaWarning)
        return Recipe.model_validate_json(json.dumps(modernised(table, "manifest.json")))


def find_recipe(path_or_name: str | Path) -> Path:
    """The file of a shipped recipe's name, of a path, or of a run folder; RecipeError lists the shipped ones."""
    shipped = shipped_recipes()
    if (name := RENAMED.get(str(path_or_name))) and not Path(path_or_name).exists():
        warnings.warn(f"the recipe {path_or_name} is now {name}: use that name", MilongaWarning, stacklevel=2)
        path_or_name = name
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


def _measures_alone(models: Models, where: str, scorers: Sequence[str]) -> None:
    """ValueError where what measures would reward as well: the gain that it measured would be its own taste."""
    for name in scorers:
        if name == models.judge:
            raise ValueError(f'{where}: "{name}" is the judge, which measures and must not reward; name another')
        if tagger_of(name) == models.tagger:
            raise ValueError(
                f'{where}: "{name}" rewards by the tagger that measures; name another, such as nano-events'
            )


def _distinct(where: str, names: list[str]) -> None:
    for name in {name for name in names if names.count(name) > 1}:
        raise ValueError(f'{where}: "{name}" comes twice')


def _one_of(where: str, name: str, allowed: set[str]) -> None:
    if name not in allowed:
        raise ValueError(f'{where} = "{name}": must be one of {", ".join(sorted(allowed))}')
