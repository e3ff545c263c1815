"""Events: how well the sounds that a tagger detects in a clip agree with those that its caption names, in their order.

A caption asks some questions of its clip: is each sound that it names there, is no other there, and of any two sounds
in successive groups, does the earlier begin first? The score is the geometric mean of the probabilities of yes, so it
is smooth, between 0 and 1, and comparable among clips of one caption. Image alignment rewards in the same way by object
detectors (GenEval, Ghosh et al. 2023), there with 0 or 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from milonga.core.records import Clip, Event, Scene
from milonga.scorers.tagger import events_of

FLOOR = 0.01  # of every probability of a score: one certain error must not hide all others
BOUND = math.log((1 - FLOOR) / FLOOR)  # the same, of a logit
SOFTNESS = 0.1  # of an onset, in shares of a sound's maximum
# What a named sound, or an order, weighs in a reward, where all sounds that are not named together weigh 1: a gradient
# removes a sound more easily than it makes one, so with equal weights recall and order do not rise (docs/alignment.md).
NAMED = 3.0


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


@dataclass(frozen=True)
class Fault:
    """What a clip has wrong: a sound of its caption that is missing, begins too late or comes twice, or an extra one.

    `span` are the seconds of it that are wrong (None: missing); faults of one kind and sound are equal.
    """

    kind: Literal["missing", "order", "extra", "doubled"]
    label: str
    span: tuple[float, float] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.label}" + (f" {self.span[0]:.2f}-{self.span[1]:.2f} s" if self.span else "")


@dataclass(frozen=True)
class Diagnosis:
    """A clip's score against its caption, the events in it that are more likely than not, and its faults."""

    score: float
    events: tuple[Event, ...]
    faults: tuple[Fault, ...]


class EventScorer:
    """A `Scorer` of clips by the events that `tagger` detects; `read` gives a caption's scene of the tagger's classes.

    `kin` gives the group of a class: a class is never counted as an extra sound beside one of its group.
    """

    def __init__(
        self, name: str, tagger: FrameTagger, read: Callable[[str], Scene | None], kin: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.tagger = tagger
        self.read = read
        self.kin = dict(kin or {})

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """The score of each clip against its text, shape (N,); NaN where no sound of the text can be read."""
        scenes = {text: self.read(text) for text in dict.fromkeys(texts)}
        rows = zip(self.tagger.posteriors(clips), texts, strict=True)
        return np.array([self._score(posterior, scenes[text]) for posterior, text in rows], dtype=np.float64)

    def diagnose(self, clips: Sequence[Clip], text: str) -> list[Diagnosis]:
        """Score, events and faults of each clip of one caption; no faults where no sound of it can be read."""
        scene, diagnoses = self.read(text), []
        for posterior, clip in zip(self.tagger.posteriors(clips), clips, strict=True):
            events = events_of(posterior, self.tagger.classes, clip.seconds, 0.5)
            faults = self._faults(posterior, events, scene, clip.seconds) if scene else []
            diagnoses.append(Diagnosis(self._score(posterior, scene), tuple(events), tuple(faults)))
        return diagnoses

    def _score(self, posterior: np.ndarray, scene: Scene | None) -> float:
        logits = torch.logit(torch.from_numpy(posterior).double(), eps=1e-12)
        answers = self._answers(logits.clamp(-BOUND, BOUND), scene)
        return self.combine(answers)

    def _faults(self, posterior: np.ndarray, events: Sequence[Event], scene: Scene, seconds: float) -> list[Fault]:
        """The faults of a clip with these frame posteriors (T, K) and events: missing sounds first, doubled ones last.

        A sound is doubled where it ceases, another group's sound is at its height, and it begins again; its weaker
        part is wrong.
        """
        spans = {event.label: (event.onset, event.offset) for event in events}
        places = {label: place for place, label in enumerate(self.tagger.classes)}
        group_of = {label: number for number, group in enumerate(scene) for label in group}
        kin = {self.kin[label] for label in group_of} if self.kin else set()
        faults = [Fault("missing", label) for label in group_of if label not in spans]
        for before, after in pairwise(scene):
            early = max((spans[label][0] for label in before if label in spans), default=-1.0)
            late = [label for label in after if label in spans and spans[label][0] <= early]
            faults += [Fault("order", label, spans[label]) for label in late]
        faults += [
            Fault("extra", label, span)
            for label, span in spans.items()
            if label not in group_of and self.kin.get(label, label) not in kin
        ]
        step = seconds / len(posterior)
        for label in group_of.keys() & spans.keys():
            column = posterior[:, places[label]]
            edges = np.flatnonzero(np.diff(np.pad(column >= 0.5 * column.max(), 1).astype(int))).reshape(-1, 2)
            others = [other for other in spans if group_of.get(other, group_of[label]) != group_of[label]]
            heights = [int(posterior[:, places[other]].argmax()) for other in others]
            for (first, end), (then, last) in pairwise(edges.tolist()):
                if any(end <= height < then for height in heights):
                    weaker = min(((first, end), (then, last)), key=lambda run: column[slice(*run)].max())
                    faults.append(Fault("doubled", label, (weaker[0] * step, weaker[1] * step)))
                    break
        return faults

    def combine(self, answers: Tensor) -> float:
        """The geometric mean of the probabilities (Q,), given as logarithms."""
        return float(answers.mean().exp())

    def wave_rewards(self, waves: Tensor, rate: int, texts: Sequence[str]) -> Tensor:
        """The weighted mean log-probability of yes (B,) of waveforms (B, samples) at `rate` Hz, with gradients by them.

        It differs from the score's logarithm by the weights, and has no bounds on probabilities: within them, an error
        that the tagger is certain of would have no gradient.
        """
        rows = []
        for logits, text in zip(self.tagger.wave_logits(waves, rate), texts, strict=True):
            others, *wanted = self._answers(logits, self.read(text))
            rows.append((others + NAMED * sum(wanted)) / (1 + NAMED * len(wanted)))
        return torch.stack(rows)

    def _answers(self, logits: Tensor, scene: Scene | None) -> Tensor:
        """The log-probability of yes to each question (Q,), that about other sounds first, from frame logits (T, K).

        NaN without a scene.
        """
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
        answers = [logsigmoid(-highest[others]).sum()[None], logsigmoid(highest[sorted(named)])]
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
