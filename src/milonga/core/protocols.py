"""The parts that a run is put together from, as Protocols: the smallest thing each stage asks for.

A stage receives its parts as arguments; which class stands behind one is decided on the top floor (`app.registry`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from milonga.core.records import Clip, Event, Prompt, Request


class Model(Protocol):
    """Makes clips from requests."""

    name: str
    rate: int

    def generate(self, requests: Sequence[Request]) -> list[Clip]:
        """One clip per request, each from its own words, steps, guidance and seed, whatever else is in the batch."""
        ...


class WatchedModel(Model, Protocol):
    """A model whose work can be watched, and ended, between its denoising steps."""

    def generate(self, requests: Sequence[Request], on_step: Callable[[int], None] | None = None) -> list[Clip]:
        """As `Model.generate`; `on_step` is given the steps done, from 1 on, and what it raises ends the work."""
        ...


class Scorer(Protocol):
    """Says how well a clip fits a text."""

    name: str

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """Cosine similarities, shape (N,), of N clips with N texts; NaN where a clip cannot be judged."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Places clips and texts in one space, where near means that they fit: what a CLAP does before it scores."""

    name: str

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-norm rows, shape (N, D)."""
        ...

    def embed_clips(self, clips: Sequence[Clip]) -> np.ndarray:
        """Unit-norm rows, shape (N, D)."""
        ...


class Tagger(Protocol):
    """Hears which events are in a clip, and when."""

    name: str
    classes: tuple[str, ...]

    def detect(self, clips: Sequence[Clip]) -> list[list[Event]]:
        """The events heard in each of N clips, sorted by onset."""
        ...

    def features(self, clips: Sequence[Clip]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (N, D) and class logits (N, K) of N clips."""
        ...


class TextEmbedder(Protocol):
    """Places sentences in a space where near means alike."""

    name: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """One unit-norm row per text, shape (N, D)."""
        ...


class Perturber(Protocol):
    """Rewrites a caption into close but wrong ones."""

    name: str

    def perturb(self, prompt: Prompt, count: int, temporal: bool, seed: int) -> list[str]:
        """Up to `count` distinct wrong captions of similar length; `temporal` asks for changes of order as well.

        Fewer than `count` (even none) come back when the caption does not allow more; the caller records that, and
        keeps the reason of a DataError, which says that this caption is refused.
        """
        ...


@runtime_checkable
class ConcurrentPerturber(Perturber, Protocol):
    """A perturber that may be asked by several threads at once, and answers each as if it were alone."""

    concurrency: int

    def stop(self) -> None:
        """Lets every call that is under way end soon, by an error; there will be no further one."""
        ...


@runtime_checkable
class PaidPerturber(Perturber, Protocol):
    """A perturber that uses a service which counts, and may bill, what it is asked."""

    def spent(self) -> dict[str, Any]:
        """What was used so far: `requests`, `tokens_in`, `tokens_out`, `cached` answers, `cost` (None: not known)."""
        ...


class Engine(Protocol):
    """Where sharded work runs."""

    name: str

    def run(self, work: Callable[[str], int], shards: Sequence[str]) -> Iterable[tuple[str, int]]:
        """Calls `work(shard)` once for each shard and yields (shard, items done) as each finishes.

        Order is not promised. An exception in any piece of work stops the rest and is raised to the caller.
        """
        ...
