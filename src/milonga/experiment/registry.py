"""Every part of a run by its name in the recipe, and what each stage is given: recipe, run folder, parts and engine."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milonga.core.config import Asking
from milonga.core.protocols import Engine, Model, Perturber, Scorer, Tagger, TextEmbedder
from milonga.core.records import Clip, Prompt
from milonga.core.store import Run
from milonga.data import captions
from milonga.experiment.recipe import Recipe
from milonga.maths.devices import AUTO
from milonga.models import load as models
from milonga.perturbers import llm as perturbers
from milonga.preference import select
from milonga.preference.build import PairBuilder, shards_left
from milonga.scorers import load as scorers

if TYPE_CHECKING:
    from milonga.models.denoiser import Denoiser


class Registry:
    """Parts by name: an object given under that name, else what the name loads (it ships, or is a folder or a file).

    `objects` may hold models (a pipeline, a `Denoiser`, a `Model`), scorers, taggers, perturbers, text embedders and
    lists of prompts; they stay where they are. What has a name is loaded on `device`. Unknown names raise RecipeError,
    weights that cannot be used CheckpointError.
    """

    def __init__(self, objects: Mapping[str, Any] | None = None, device: Any = AUTO) -> None:
        self.objects, self.device = dict(objects or {}), device

    def load(
        self, name: str, scheduler: str | None = None, precision: str = "fp32", seconds: float | None = None
    ) -> Model:
        """A model ready to generate, with its own scheduler and length or with these. An object keeps its precision,
        and one that is a `Model` already its length.
        """
        if name not in self.objects:
            return models.load(name, scheduler, seconds, self.device, precision)
        return models.as_model(self.objects[name], scheduler, seconds=seconds)

    def choose_precision(self, name: str) -> str:
        """The precision, "fp32" or "bf16", in which a model samples faster on this machine; "fp32" for an object."""
        return "fp32" if name in self.objects else models.choose_precision(name, self.device)

    def load_denoiser(
        self, name: str, trained: Path | None = None, parts: Sequence[str] = models.NETWORKS
    ) -> "Denoiser":
        """A model to encode data with and to train, on the CPU, fresh weights each time; `trained` replaces the
        network's. Of what has a name only `parts` may be loaded (`models.load.load_denoiser`).
        """
        if name not in self.objects:
            return models.load_denoiser(name, trained, parts=parts)
        denoiser = models.as_denoiser(copy.deepcopy(self.objects[name]))
        if trained is not None:
            denoiser.load(trained)
        return denoiser

    def generator_of(
        self, name: str, denoiser: "Denoiser", seconds: float | None = None, scheduler: str | None = None
    ) -> Model:
        """A model that generates with the weights that a denoiser has at the moment of each call."""
        from milonga.models.generator import generator_of

        return generator_of(name, denoiser, self.device, seconds, scheduler)

    def tuned(
        self,
        name: str,
        trained: Path,
        scheduler: str | None = None,
        precision: str = "fp32",
        seconds: float | None = None,
    ) -> Model:
        """A model with a trained network from another folder."""
        if name not in self.objects:
            return models.tuned(name, trained, scheduler, seconds, self.device, precision)
        return self.generator_of(name, self.load_denoiser(name, trained), seconds, scheduler)

    def scorer(self, name: str) -> Any:
        """A scorer."""
        return self.objects[name] if name in self.objects else scorers.scorer(name, self.device)

    def tagger(self, name: str) -> Tagger:
        """A tagger of events."""
        return self.objects[name] if name in self.objects else scorers.tagger(name, self.device)

    def perturber(self, name: str, asking: Asking | None = None) -> Perturber:
        """A perturber of captions; `asking` says how a language model's server is called."""
        return self.objects[name] if name in self.objects else perturbers.perturber(name, asking)

    def text_embedder(self, name: str) -> TextEmbedder:
        """A sentence embedder."""
        return self.objects[name] if name in self.objects else select.text_embedder(name, self.device)

    def prompt_source(self, source: str, draw: int | None = None) -> list[Prompt]:
        """The captions of a source; a seed `draw` chooses others where the source has a COUNT."""
        if source not in self.objects:
            return captions.prompt_source(source, draw)
        given = self.objects[source]
        return [Prompt.of(text, source) if isinstance(text, str) else text for text in given]

    def reference(self, prompt: Prompt) -> Clip:
        """A real clip of a prompt; DataError where there is none."""
        return captions.reference(prompt)

    def sampling(self, name: str) -> tuple[int, float]:
        """The steps and the guidance that a model is best sampled with."""
        return models.sampling(name)

    def fingerprint(self, name: str) -> str:
        """A hash of a part's weights, without loading them where it is named."""
        if name in self.objects:
            return models.object_fingerprint(self.objects[name])
        system = models.run_system(name)
        return system.fingerprint() if system else scorers.fingerprint(name)


DEFAULT = Registry()


@dataclass(frozen=True)
class Context:
    """One run in progress."""

    recipe: Recipe
    run: Run
    parts: Registry
    engine: Engine

    def over_shards(self, stage: str, sizes: Mapping[str, int], work: Callable[[str], int]) -> None:
        """Does `work` for each shard of `sizes` (shard: items) that `stage` does not have yet, showing progress."""
        with shards_left(self.run, stage, sizes) as (left, advance):
            for shard, _ in self.engine.run(work, left):
                advance(sizes[shard])

    def pair_builder(self) -> PairBuilder:
        """The stages from prompts to pairs with this recipe's values."""
        recipe, parts = self.recipe, self.parts
        return PairBuilder(
            run=self.run,
            engine=self.engine,
            load_model=partial(parts.load, recipe.models.model, *recipe.models.loading),
            load_scorers=partial(_scorers, parts, recipe.models.scorers),
            load_perturber=partial(parts.perturber, recipe.plan.perturber, recipe.plan.llm),
            strategies=recipe.plan.strategies,
            thresholds=recipe.pair.thresholds,
            rank_by=recipe.pair.rank_by,
            losers=recipe.pair.losers,
            seed=recipe.seed,
            shard_size=recipe.plan.shard_size,
            generate_batch_size=recipe.generate.batch_size,
            score_batch_size=recipe.score.batch_size,
            precision=recipe.models.precision,
            device=parts.device,
        )


def _scorers(parts: Registry, names: Sequence[str]) -> list[Scorer]:
    return [parts.scorer(name) for name in names]
