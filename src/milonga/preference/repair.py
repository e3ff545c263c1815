"""Repair: where a tagger detects a fault of a clip against its caption, its span is repainted, and the best take kept.

Sounds of the caption that are missing, out of order or doubled, and sounds that it does not name, are faults
(`scorers.events.Fault`). Each is repainted with the clauses of the sounds that belong there, N times. The best take is
accepted only where it has fewer faults, none of them new, and a higher score. Samples outside the region stay as they
are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.audio import read_samples
from milonga.core.errors import DataError, RecipeError
from milonga.core.ids import clip_seed, content_id
from milonga.core.records import Clip, Event, Pair, Scene
from milonga.data.audio_alpaca import PairedClips
from milonga.maths.devices import AUTO
from milonga.models.denoiser import Denoiser
from milonga.models.editing import SPLICE, edit, editable_denoiser
from milonga.nano.reader import clauses
from milonga.preference.candidates import search_scorers
from milonga.scorers.events import Diagnosis, EventScorer, Fault

MARGIN = 0.1  # seconds that are repainted beside an extra sound: it begins and fades out below the tagger's threshold
STRATEGY = "repair"  # of the pairs of repairs
SHORTEST = 0.6  # seconds into which a missing sound is painted at the least


@dataclass(frozen=True)
class Attempt:
    """One fault, the seconds that were repainted for it, with which words and away from which, how often, and the
    score before and of the best take; `refused` says why that was not accepted ("": it was).
    """

    fault: Fault
    region: tuple[float, float]
    words: str
    negative: str
    takes: int
    before: float
    after: float
    refused: str

    def __str__(self) -> str:
        away = f", away from {self.negative!r}" if self.negative else ""
        first, last = self.region
        return (
            f"{self.fault}: {first:.2f}-{last:.2f} s repainted with {self.words!r}{away}; the best of {self.takes} has "
            f"the score {self.after:.3f}, before {self.before:.3f}; {self.refused or 'accepted'}"
        )


@dataclass(frozen=True)
class Repair:
    """Samples (samples, channels), float64, the input's own where nothing was accepted, with what was tried.

    `before` and `after` are the diagnoses of the `original` and of the samples.
    """

    prompt: str
    scorer: str
    steps: int
    seed: int
    original: np.ndarray
    samples: np.ndarray
    rate: int
    before: Diagnosis
    after: Diagnosis
    attempts: tuple[Attempt, ...]

    @property
    def region(self) -> tuple[float, float] | None:
        """The seconds in which the samples differ from the input, but for the splices; None where nothing does."""
        spans = [attempt.region for attempt in self.attempts if not attempt.refused]
        return _union(spans) if spans else None

    def pair(self) -> PairedClips | None:
        """The localised pair of this repair, which differs in one region (splices included); None without a repair."""
        if self.region is None:
            return None
        end = len(self.samples) / self.rate
        region = max(0.0, self.region[0] - SPLICE), min(end, self.region[1] + SPLICE)
        chosen, rejected = _clip(self.samples, self.rate), _clip(self.original, self.rate)
        ids = [content_id(sha256(clip.samples.tobytes()).hexdigest()) for clip in (chosen, rejected)]
        words = " | ".join(attempt.words for attempt in self.attempts if not attempt.refused)
        pair = Pair(
            id=content_id(STRATEGY, *ids), prompt_id=content_id(self.prompt), prompt=self.prompt, strategy=STRATEGY,
            chosen_id=ids[0], rejected_id=ids[1], chosen_words=words, rejected_words="", chosen_steps=self.steps,
            rejected_steps=0, chosen_seed=self.seed, rejected_seed=0,
            chosen_scores={self.scorer: self.after.score}, rejected_scores={self.scorer: self.before.score},
            region=region,
        )  # fmt: skip
        return PairedClips(pair, chosen, rejected)


def repair_samples(
    denoiser: Denoiser,
    samples: np.ndarray,
    rate: int,
    prompt: str,
    scorer: EventScorer,
    *,
    steps: int,
    guidance: float,
    best_of: int = 8,
    seed: int = 0,
) -> Repair:
    """The repair of samples (samples, channels) at a `rate` in Hz: every fault once, with `best_of` takes each.

    Raises RecipeError for a scorer that detects no events, DataError for a prompt none of whose sounds it reads, and
    what `edit` raises.
    """
    if not isinstance(scorer, EventScorer):
        name = getattr(scorer, "name", type(scorer).__name__)
        raise RecipeError(f"{name} detects no events: repair by nano-events or events:TAGGER")
    if best_of < 1:
        raise RecipeError(f"repair needs at least one take of each fault, not {best_of}")
    scene = scorer.read(prompt)
    if not scene:
        raise DataError(f"{scorer.name} reads no sound in {prompt!r}: name the sounds plainly, or another tagger")
    original, attempts, margin = samples, list[Attempt](), max(MARGIN, getattr(scorer.tagger, "resolution", 0.0))
    (before,) = scorer.diagnose([_clip(samples, rate)], prompt)
    state = before
    while fault := next((f for f in state.faults if f not in [attempt.fault for attempt in attempts]), None):
        region, groups = place_of(fault, state.events, scene, len(samples) / rate, margin)
        words = " then ".join(
            " while ".join(dict.fromkeys(_clause(prompt, label, scorer) for label in scene[number]))
            for number in groups
        )
        negative = fault.label.lower() if fault.kind in ("extra", "doubled") and guidance > 1 else ""
        takes = edit(
            denoiser, samples, rate, words, steps=steps, guidance=guidance, negative=negative, region=region,
            seeds=[clip_seed(seed, f"{words} {region}", number) for number in range(best_of)],
        )  # fmt: skip
        results = scorer.diagnose([_clip(take, rate) for take in takes], prompt)
        best = max(range(best_of), key=lambda number: (_improves(results[number], state), results[number].score))
        refused = "" if _improves(results[best], state) else _reason(results[best], state)
        attempts.append(Attempt(fault, region, words, negative, best_of, state.score, results[best].score, refused))
        if not refused:
            samples, state = takes[best], results[best]
    return Repair(prompt, scorer.name, steps, seed, original, samples, rate, before, state, tuple(attempts))


def repair(
    audio: np.ndarray | str | Path,
    prompt: str,
    model: Any = "nano",
    sampling_rate: int | None = None,
    *,
    scorer: Any = None,
    best_of: int = 8,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    device: Any = AUTO,
) -> Repair:
    """A file, or an array (samples,) or (samples, channels) at `sampling_rate` (default: the model's own), repaired.

    `model` and `scorer` are names or objects, as in `best_of`; the scorer is one of events (`events:TAGGER`), by
    default nano's for nano. `steps` and `guidance` are the model's own unless given. Each fault is repainted `best_of`
    times. Raises RecipeError for a model that cannot edit and numbers that make no sense, AudioError for a file that
    cannot be read, and as `repair_samples` does.
    """
    from milonga.models.load import as_model, sampling

    own: Any = as_model(model, device=device)
    own_steps, own_guidance = sampling(model) if steps is None or guidance is None else (steps, guidance)
    denoiser = editable_denoiser(own)
    rate = sampling_rate or own.rate
    samples, rate = (audio, rate) if isinstance(audio, np.ndarray) else read_samples(Path(audio))[:2]
    return repair_samples(
        denoiser, samples[:, None] if samples.ndim == 1 else samples, rate, " ".join(prompt.split()),
        event_scorer_of(model, scorer, device), steps=own_steps if steps is None else steps,
        guidance=own_guidance if guidance is None else guidance, best_of=best_of, seed=seed,
    )  # fmt: skip


def event_scorer_of(model: Any, scorer: Any = None, device: Any = AUTO) -> Any:
    """The scorer of that name, or the object itself; of None, nano's own for nano. Raises as `search_scorers`."""
    from milonga.scorers.load import scorer as load_scorer
    from milonga.scorers.load import tagger_of

    name = scorer or next(name for name in search_scorers(model, ()) if tagger_of(name))
    return load_scorer(name, device) if isinstance(name, str) else name


def place_of(
    fault: Fault, events: Sequence[Event], scene: Scene, seconds: float, margin: float = MARGIN
) -> tuple[tuple[float, float], list[int]]:
    """The seconds that are repainted for a fault, and the groups of the scene that are painted there.

    A missing sound comes between its neighbours, or over the sounds of its own group; where there is no room, with the
    neighbour that lasts longest. Groups that begin in the wrong order are painted together. An extra sound, with a
    `margin` of seconds beside it, makes room for the groups that sound at the same time.
    """
    spans = {event.label: (event.onset, event.offset) for event in events}
    parts = {number: [spans[label] for label in group if label in spans] for number, group in enumerate(scene)}
    own = {number: _union(part) for number, part in parts.items() if part}
    group = next((number for number, labels in enumerate(scene) if fault.label in labels), 0)
    if fault.kind == "order":
        groups = [group - 1, group]
        region = _union([own[number] for number in groups])
    elif fault.kind == "missing" and group in own:
        region, groups = own[group], [group]
    elif fault.kind == "missing":
        first = max((span[1] for number, span in own.items() if number < group), default=0.0)
        last = min((span[0] for number, span in own.items() if number > group), default=seconds)
        region, groups = (first, last), [group]
        if own and last - first < SHORTEST:
            before = [number for number in own if number < group][-1:]
            beside = before + [number for number in own if number > group][:1]
            longest = max(beside, key=lambda number: own[number][1] - own[number][0])
            region = _union([own[longest], (min(first, last), max(first, last))])
            groups = list(range(min(group, longest), max(group, longest) + 1))
    else:
        assert fault.span is not None
        region = fault.span[0] - margin, fault.span[1] + margin
        groups = [
            number
            for number, (first, last) in own.items()
            if fault.label not in scene[number] and min(last, region[1]) - max(first, region[0]) > 2 * margin
        ]
    first, last = max(0.0, region[0]), min(seconds, region[1])
    return ((first, last) if last - first < seconds else (MARGIN, seconds - MARGIN)), groups


def _union(spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The seconds from the first beginning to the last end."""
    return min(first for first, _ in spans), max(last for _, last in spans)


def _clause(prompt: str, label: str, scorer: EventScorer) -> str:
    """The part of a caption that names a sound and no other; else all of it."""
    return next((words for words in clauses(prompt) if scorer.read(words) == ((label,),)), prompt)


def _improves(after: Diagnosis, before: Diagnosis) -> bool:
    fewer = len(after.faults) < len(before.faults) and all(fault in before.faults for fault in after.faults)
    return fewer and after.score > before.score


def _reason(after: Diagnosis, before: Diagnosis) -> str:
    new = [fault for fault in after.faults if fault not in before.faults]
    if new:
        return f"new faults in the best take: {', '.join(map(str, new))}"
    if len(after.faults) == len(before.faults):
        return "the fault remains in the best take"
    return f"the score does not rise ({before.score:.3f} to {after.score:.3f})"


def _clip(samples: np.ndarray, rate: int) -> Clip:
    return Clip.of(samples.astype(np.float32), rate)
