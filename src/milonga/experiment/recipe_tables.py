"""The tables of a recipe, each with what a recipe does not say."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_serializer, field_validator, model_validator

from milonga.core.config import Asking, Phase, Settings, Strategy, Threshold
from milonga.core.records import Record
from milonga.perturbers.endpoint import Endpoint

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
Tracker = Literal["tensorboard", "wandb", "trackio"]
# `models.schedules.NAMES`, which stands where torch is.
Scheduler = Literal["ddpm", "ddim", "dpm++", "unipc", "compat", "euler"]
Split = Literal["overall", "temporal", "non-temporal", "multi-concept", "single-concept"]
# Folders of a run beside which a trained system's clips are stored.
RESERVED = ("base", "reference", "prompts")


class Models(Record):
    """`[models]`: who makes the clips, who ranks and filters them, who only ever judges, who hears events."""

    model: Name = "nano"
    scheduler: Scheduler | None = None
    scorers: tuple[Name, ...] = Field(default=("nano-clap-a", "nano-clap-b"), min_length=1)
    judge: Name = "nano-judge"
    tagger: Name = "nano-tagger"


class Prompts(Record):
    """`[prompts]`: where captions come from, the k-means selection of τ1 (0 clusters: all), and what τ2 is taken of."""

    sources: tuple[Name, ...] = ()
    embedder: Name = "tfidf-svd"
    clusters: int = Field(default=0, ge=0)
    per_cluster: Count = 70
    nearest: bool = True
    temporal: Literal["all", "selected"] = "all"


class Plan(Record):
    """`[plan]`: the strategies, who perturbs captions, and how many clips a shard holds."""

    perturber: Name = "rules"
    shard: Count = 64
    llm: Asking = Asking()
    strategies: tuple[Strategy, ...] = ()

    @field_validator("perturber")
    @classmethod
    def _is_sound(cls, name: str) -> str:
        """A language model's name is checked before any run keeps it: a URL may hold a password."""
        if name.startswith("llm:"):
            Endpoint.of(name)
        return name


class Batch(Record):
    """`[generate]` and `[score]`: how many clips are worked on at once; results do not depend on it."""

    batch: Count = 16


class Pairing(Record):
    """`[pair]`: which scorer ranks (`mean`: their mean), who loses to the best, and what a pair must meet."""

    rank_by: Name = "mean"
    losers: Literal["all", "worst"] = "all"
    thresholds: tuple[Threshold, ...] = ()


class Labels(Record):
    """`[label]`: who says which clips are good: `truth`, or folders of labels that `milonga listen export` wrote."""

    sources: tuple[Name, ...] = Field(default=("truth",), min_length=1)


class System(Record):
    """`[[train.systems]]`: a model to be made from the base by training phases, and what it is trained on.

    `pairs`, of some strategies where these are named; `rewards`: the run's own clips, each with its reward; `labels`:
    labelled clips; `rounds`: pairs that the latest policy makes anew, round after round. What `settings` says takes the
    place of `[train]`'s.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    data: Literal["pairs", "rewards", "labels", "rounds"] = "pairs"
    strategies: tuple[Name, ...] = ()
    phases: tuple[Phase, ...] = Field(min_length=1)
    settings: Settings = Settings()

    @field_serializer("settings")
    def _only_what_is_said(self, settings: Settings) -> dict[str, Any]:
        """Keys that a system leaves to `[train]` stay unsaid when a recipe is written back."""
        return settings.model_dump(exclude_unset=True)

    @model_validator(mode="after")
    def _chooses_of_pairs(self) -> Self:
        if self.strategies and self.data != "pairs":
            raise ValueError(f'strategies choose among pairs, and {self.name} learns from "{self.data}"')
        return self


class Train(Settings):
    """`[train]`: the trainer's settings, where pairs come from (`run`: this run's own), the share of captions that is
    only judged, and the systems to train.

    `trackers` are told of every step, beside the run's own curves.
    """

    heldout: float = Field(default=0.0, ge=0.0, lt=1.0)
    trackers: tuple[Tracker, ...] = ()
    pairs: tuple[Name, ...] = Field(default=("run",), min_length=1)
    systems: tuple[System, ...] = ()

    def settings(self, system: System) -> Settings:
        """The trainer's settings alone, with a system's own in their places."""
        own = {name: getattr(system.settings, name) for name in system.settings.model_fields_set}
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields} | own)

    @model_validator(mode="after")
    def _suits_every_system(self) -> Self:
        for system in self.systems:
            try:
                self.settings(system)
            except ValidationError as error:
                told = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"settings of {system.name}: {told}") from error
        return self


class Rounds(Record):
    """`[rounds]`: generate, score, pair and train by the latest policy, again and again (CRPO, arXiv 2412.21037).

    A round makes clips of `captions` of the run's captions (0: of all), drawn anew. After it the judge hears the policy
    on `prompts`; when it gained no more than `least_gain` over the best round `patience` times in a row, that was it.
    """

    count: Count = 4
    captions: int = Field(default=0, ge=0)
    prompts: tuple[Name, ...] = ()
    patience: Count = 1
    least_gain: float = Field(default=0.0, ge=0.0, le=2.0)
    strategies: tuple[Strategy, ...] = ()
    pair: Pairing | None = None


class Evaluate(Record):
    """`[evaluate]`: held-out prompts, how the systems' clips are made, and the bootstrap's resamples."""

    prompts: tuple[Name, ...] = ()
    steps: Count = 200
    guidance: float = Field(default=3.0, ge=0.0, allow_inf_nan=False)
    splits: tuple[Split, ...] = ("overall", "temporal", "multi-concept")
    resamples: Count = 1000
