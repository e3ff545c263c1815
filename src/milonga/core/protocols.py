"""The parts of a run as Protocols: what each stage needs of a model, a scorer, a tagger, a perturber and an engine.

Stages receive their parts as arguments; `experiment.registry` decides which class implements one.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from milonga.core.records import Clip, Event, Prompt, Request

if TYPE_CHECKING:
    from torch import Tensor


class Model(Protocol):
    """Generates clips from requests."""

    name: str
    rate: int

    def generate(self, requests: Sequence[Request]) -> list[Clip]:
        """One clip per request, from its own words, steps, guidance and seed; it does not depend on the batch."""
        ...


class Scorer(Protocol):
    """Scores how well a clip matches a text."""

    name: str

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """Scores, shape (N,), of N clips with N texts, higher for better; NaN where a clip cannot be scored."""
        ...


@runtime_checkable
class DifferentiableScorer(Protocol):
    """A scorer whose scores can be followed uphill: their gradients by the waveforms train a model."""

    name: str

    def wave_rewards(self, waves: "Tensor", rate: int, texts: Sequence[str]) -> "Tensor":
        """Rewards, shape (B,), of waveforms (B, samples) at `rate` Hz, which rise with the scores of these clips.

        They have gradients by the waveforms; NaN without one where a clip cannot be scored.
        """
        ...


@runtime_checkable
class Embedder(Protocol):
    """Embeds clips and texts in one space, in which a clip is near to a text that describes it, as a CLAP does."""

    name: str

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-norm rows, shape (N, D)."""
        ...

    def embed_clips(self, clips: Sequence[Clip]) -> np.ndarray:
        """Unit-norm rows, shape (N, D)."""
        ...


class Tagger(Protocol):
    """Detects which events are in a clip, and when."""

    name: str
    classes: tuple[str, ...]

    def detect(self, clips: Sequence[Clip]) -> list[list[Event]]:
        """The events detected in each of N clips, sorted by onset."""
        ...

    def features(self, clips: Sequence[Clip]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (N, D) and class logits (N, K) of N clips."""
        ...


class TextEmbedder(Protocol):
    """Embeds sentences in a space in which similar ones are near."""

    name: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """One unit-norm row per text, shape (N, D)."""
        ...


class Perturber(Protocol):
    """Rewrites a caption into close but wrong ones.

    A perturber that several threads may call at once also has `concurrency: int` (how many) and `stop()`, which makes
    calls in progress end soon, by an error. One that uses a paid service also has `spent()`: a dict of `requests`,
    `tokens_in`, `tokens_out`, `cached` answers and `cost` (None: not known).
    """

    name: str

    def perturb(self, prompt: Prompt, count: int, temporal: bool, seed: int) -> list[str]:
        """Up to `count` distinct wrong captions of similar length; `temporal` asks for changes of order as well.

        Fewer than `count` (even none) come back when the caption does not allow more; the caller records that. Raises
        DataError, whose text is recorded, where this caption is refused.
        """
        ...


class Engine(Protocol):
    """Runs sharded work."""

    name: str

    def run(self, work: Callable[[str], int], shards: Sequence[str]) -> Iterable[tuple[str, int]]:
        """Calls `work(shard)` once for each shard and yields (shard, items done) as each finishes.

        Order is not promised. An exception in any piece of work stops the rest and is raised to the caller.
        """
        ...
