"""Events: how well the sounds that a tagger detects in a clip agree with those that its caption names, in their order.

A caption asks some questions of its clip: is each sound that it names there, is no other there, and of any two sounds
in successive groups, does the earlier begin first? The score is the geometric mean of the probabilities of yes, so it
is smooth, between 0 and 1, and comparable among clips of one caption. Image alignment rewards in the same way by object
detectors (GenEval, Ghosh et al. 2023), there with 0 or 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from milonga.core.records import Clip, Scene

FLOOR = 0.01  # of every probability of a score: one certain error must not hide all others
BOUND = math.log((1 - FLOOR) / FLOOR)  # the same, of a logit
SOFTNESS = 0.1  # of an onset, in shares of a sound's maximum


class FrameTagger(Protocol):
    """A tagger that gives posteriors over time."""

    name: str
    classes: tuple[str, ...]

    def posteriors(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        """Each clip's frame posteriors, shape (T, K)."""
        ...

    def wave_logits(self, waves: Tensor, rate: int) -> Tensor:
        """The logits of waveforms (B, samples) at `rate` Hz, shape (B, T, K), with gradients by them."""
        ...


class EventScorer:
    """A `Scorer` of clips by the events that `tagger` detects; `read` gives a caption's scene of the tagger's classes.

    `kin` gives the group of a class: a class is never counted as an extra sound beside one of its group. With
    `arithmetic` the score is the plain mean of the probabilities, as the rubric of an audio model is.
    """

    def __init__(
        self,
        name: str,
        tagger: FrameTagger,
        read: Callable[[str], Scene | None],
        kin: Mapping[str, str] | None = None,
        arithmetic: bool = False,
    ) -> None:
        self.name = name
        self.tagger = tagger
        self.read = read
        self.kin = dict(kin or {})
        self.arithmetic = arithmetic

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """The score of each clip against its text, shape (N,); NaN where no sound of the text can be read."""
        scenes = {text: self.read(text) for text in dict.fromkeys(texts)}
        scores = []
        for posterior, text in zip(self.tagger.posteriors(clips), texts, strict=True):
            logits = torch.logit(torch.from_numpy(posterior).double(), eps=1e-12)
            answers = self._answers(logits.clamp(-BOUND, BOUND), scenes[text])
            scores.append(float(answers.exp().mean() if self.arithmetic else answers.mean().exp()))
        return np.array(scores, dtype=np.float64)

    def wave_rewards(self, waves: Tensor, rate: int, texts: Sequence[str]) -> Tensor:
        """The mean log-probability of yes (B,) of waveforms (B, samples) at `rate` Hz, with gradients by them.

        It is the logarithm of the score without the bounds on probabilities: within them, an error that the tagger is
        certain of would have no gradient.
        """
        rows = zip(self.tagger.wave_logits(waves, rate), texts, strict=True)
        return torch.stack([self._answers(logits, self.read(text)).mean() for logits, text in rows])

    def _answers(self, logits: Tensor, scene: Scene | None) -> Tensor:
        """The log-probability of yes to each question (Q,), from frame logits (T, K); NaN without a scene."""
        if not scene:
            return logits.new_tensor([torch.nan])
        places = {label: place for place, label in enumerate(self.tagger.classes)}
        groups = [[places[label] for label in group] for group in scene]
        named = {place for group in groups for place in group}
        kin = {self.kin[self.tagger.classes[place]] for place in named} if self.kin else set()
        others = [
            place for label, place in places.items() if place not in named and self.kin.get(label, label) not in kin
        ]
        highest, frames = logits.amax(0), torch.sigmoid(logits)
        answers = [logsigmoid(highest[sorted(named)]), logsigmoid(-highest[others]).sum()[None]]
        answers += [
            begins_first(frames[:, a], frames[:, b]).log()[None]
            for before, after in pairwise(groups)
            for a, b in product(before, after)
            if a != b
        ]
        return torch.cat(answers)


def begins_first(a: Tensor, b: Tensor) -> Tensor:
    """The probability that a sound with frame posteriors `a` (T,) begins before one with `b` (T,), `FLOOR` to 1 − it.

    A sound begins where its posterior first passes half of its maximum (`tagger.events_of`), here softly; beginnings
    in one frame count half.
    """
    first, then = (_begun(column) for column in (a, b))
    density, begun = (torch.diff(part, prepend=part.new_zeros(1)) for part in (first, then))
    return FLOOR + (1 - 2 * FLOOR) * (density * (1 - then + begun / 2)).sum().clamp(0, 1)


def _begun(column: Tensor) -> Tensor:
    """The probability that a sound has begun by each frame, shape (T,): 1 in the last."""
    passed = torch.sigmoid((column / column.amax() - 0.5) / SOFTNESS)
    begun = passed.cummax(0).values
    return begun / begun[-1]
