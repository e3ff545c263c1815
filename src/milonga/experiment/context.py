"""What every step of a run is given: the recipe, the run folder, the parts by name, and where work runs."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from milonga.core.config import Asking
from milonga.core.errors import StoreError
from milonga.core.progress import tracked
from milonga.core.protocols import Engine, Model, Perturber, Scorer, Tagger, TextEmbedder
from milonga.core.records import Clip, Pair, Prompt
from milonga.core.store import Run, Shards, complete
from milonga.experiment.recipe import Recipe


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

    def over_shards(self, stage: str, sizes: Mapping[str, int], work: Callable[[str], int], label: str = "") -> None:
        """Does `work` for each shard of `sizes` (shard: items) that `stage` does not have yet, showing progress."""
        shards = self.run.stage(stage)
        finished = set(shards.names())
        left = [name for name in sizes if name not in finished]
        begun = partial(_where_the_run_is, self.run.path, work)
        done = sum(size for name, size in sizes.items() if name in finished)
        if left:
            with tracked(label or stage, sum(sizes.values()), done) as advance:
                for shard, _ in self.engine.run(begun, left):
                    advance(sizes[shard])


def _where_the_run_is(path: Path, work: Callable[[str], int], shard: str) -> int:
    """`work(shard)`, where the run folder can be seen: a worker on another machine might make clips for nobody."""
    if not (path / "manifest.json").exists():
        raise StoreError(f"{path} is not to be seen on {os.uname().nodename}: put the run where all machines see it")
    return work(shard)


def needed(context: Context, stage: str) -> Shards:
    """The shards of an earlier stage; StoreError when it is not complete."""
    shards = context.run.stage(stage)
    if not complete(shards):
        raise StoreError(f"{context.run.path} has no complete {stage} yet: run `milonga run` without --only first")
    return shards
