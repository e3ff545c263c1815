"""What every step of a run is given: the recipe, the run folder, the parts by name, and where work runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from milonga.core.config import Asking
from milonga.core.protocols import Engine, Model, Perturber, Scorer, Tagger, TextEmbedder
from milonga.core.records import Clip, Pair, Prompt
from milonga.core.store import Run
from milonga.experiment.recipe import Recipe
from milonga.preference.build import PairBuilder, shards_left


class Parts(Protocol):
    """Every part by its name in the recipe; `milonga.experiment.registry` is one. Unknown names raise RecipeError."""

    def load(self, name: str, scheduler: str | None = None) -> Model: ...
    def scorer(self, name: str) -> Scorer: ...
    def tagger(self, name: str) -> Tagger: ...
    def prompt_source(self, source: str) -> list[Prompt]: ...
    def text_embedder(self, name: str) -> TextEmbedder: ...
    def perturber(self, name: str, asking: Asking | None = None) -> Perturber: ...
    def load_denoiser(self, name: str, trained: Path | None = None) -> Any:
        """A model to be trained (`models.denoiser.Denoiser`), fresh weights each time."""
        ...

    def examples(self, name: str, run: Run, pairs: Sequence[Pair], prior: int = 0) -> Any:
        """The pairs' latents and encoded captions (`data.examples.Examples`), from the clips of a run, and `prior` real
        clips for the prior-preservation term.
        """
        ...

    def generator_of(self, name: str, denoiser: Any) -> Model:
        """A model that generates with the weights that a denoiser has at the moment of each call."""
        ...

    def tuned(self, name: str, trained: Path, scheduler: str | None = None) -> Model:
        """A model with a trained network from another folder."""
        ...

    def reference(self, prompt: Prompt) -> Clip:
        """A real clip of what a prompt asks for; DataError where there is none."""
        ...

    def fingerprint(self, name: str) -> str:
        """A hash of a model's or listener's weights, without loading them."""
        ...


@dataclass(frozen=True)
class Context:
    """One run in progress."""

    recipe: Recipe
    run: Run
    parts: Parts
    engine: Engine

    def over_shards(self, stage: str, sizes: Mapping[str, int], work: Callable[[str], int]) -> None:
        """Does `work` for each shard of `sizes` (shard: items) that `stage` does not have yet, showing progress."""
        with shards_left(self.run, stage, sizes) as (left, advance):
            for shard, _ in self.engine.run(work, left):
                advance(sizes[shard])

    def pair_builder(self) -> PairBuilder:
        """The stages from prompts to pairs with this recipe's values."""
        recipe, parts = self.recipe, self.parts
        models = recipe.models
        return PairBuilder(
            run=self.run,
            engine=self.engine,
            load_model=partial(parts.load, models.model, models.scheduler),
            load_scorers=partial(_scorers, parts, models.scorers),
            load_perturber=partial(parts.perturber, recipe.plan.perturber, recipe.plan.llm),
            strategies=recipe.plan.strategies,
            thresholds=recipe.pair.thresholds,
            rank_by=recipe.pair.rank_by,
            losers=recipe.pair.losers,
            seed=recipe.seed,
            shard_size=recipe.plan.shard_size,
            generate_batch_size=recipe.generate.batch_size,
            score_batch_size=recipe.score.batch_size,
        )


def _scorers(parts: Parts, names: Sequence[str]) -> list[Scorer]:
    return [parts.scorer(name) for name in names]
