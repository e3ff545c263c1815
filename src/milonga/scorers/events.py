"""Events: how well the sounds that a tagger detects in a clip agree with those that its caption names, in their order.

A caption asks some questions of its clip: is each sound that it names there, is no other there, and of any two sounds
in successive groups, does the earlier begin first? The score is the geometric mean of the probabilities of yes, so it
is smooth, between 0 and 1, and comparable among clips of one caption. Image alignment rewards in the same way by object
detectors (GenEval, Ghosh et al. 2023), there with 0 or 1.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product
from typing import Protocol

import numpy as np

from milonga.core.records import Clip, Scene

FLOOR = 0.01  # of every probability: one certain error must not hide all others
SOFTNESS = 0.1  # of an onset, in shares of a sound's maximum


class FrameTagger(Protocol):
    """A tagger that gives posteriors over time."""

    name: str
    classes: tuple[str, ...]

    def posteriors(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        """Each clip's frame posteriors, shape (T, K)."""
        ...


class EventScorer:
    """A `Scorer` of clips by the events that `tagger` detects; `read` gives a caption's scene of the tagger's classes.

    `kin` gives the group of a class: a class is never counted as an extra sound beside one of its group.
    """

    def __init__(
        self,
        name: str,
        tagger: FrameTagger,
        read: Callable[[str], Scene | None],
        kin: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.tagger = tagger
        self.read = read
        self.kin = dict(kin or {})

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """The score of each clip against its text, shape (N,); NaN where no sound of the text can be read."""
        scenes = {text: self.read(text) for text in dict.fromkeys(texts)}
        rows = zip(self.tagger.posteriors(clips), texts, strict=True)
        return np.array([self._agreement(posterior, scenes[text]) for posterior, text in rows], dtype=np.float64)

    def _agreement(self, posterior: np.ndarray, scene: Scene | None) -> float:
        if not scene:
            return np.nan
        places = {label: place for place, label in enumerate(self.tagger.classes)}
        groups = [[places[label] for label in group] for group in scene]
        named = {place for group in groups for place in group}
        kin = {self.kin[self.tagger.classes[place]] for place in named} if self.kin else set()
        others = [
            place for label, place in places.items() if place not in named and self.kin.get(label, label) not in kin
        ]
        highest = posterior.max(axis=0).clip(FLOOR, 1 - FLOOR)
        answers = [np.log(highest[sorted(named)]), [np.log1p(-highest[others]).sum()]]
        answers += [
            [np.log(begins_first(posterior[:, a], posterior[:, b]))]
            for before, after in pairwise(groups)
            for a, b in product(before, after)
            if a != b
        ]
        return float(np.exp(np.concatenate(answers).mean()))


def begins_first(a: np.ndarray, b: np.ndarray) -> float:
    """The probability that a sound with frame posteriors `a` (T,) begins before one with `b` (T,), at least `FLOOR`.

    A sound begins where its posterior first passes half of its maximum (`tagger.events_of`), here softly; beginnings
    in one frame count half.
    """
    first, then = (_begun(column) for column in (a, b))
    density = np.diff(first, prepend=0.0)
    later = 1 - then + np.diff(then, prepend=0.0) / 2
    return float(np.clip((density * later).sum(), FLOOR, 1 - FLOOR))


def _begun(column: np.ndarray) -> np.ndarray:
    """The probability that a sound has begun by each frame, shape (T,): 1 in the last."""
    passed = 1 / (1 + np.exp((0.5 - column / column.max()) / SOFTNESS))
    begun = np.maximum.accumulate(passed)
    return begun / begun[-1]
