"""The listening gallery: which prompts are shown, and for each system the clip, its mel picture and its events.

Half of the prompts are drawn by the hash of their id, so nobody chose them; the rest are the most improved, the most
worsened and the lowest scored ones, and are labelled so.
"""

import json
import math
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from milonga.core.audio import from_flac
from milonga.core.ids import content_id
from milonga.core.records import Event, Prompt
from milonga.maths.clip_view import clip_view
from milonga.maths.metrics import exact_match, order_accuracy_detected
from milonga.reports.material import ClipView, EvaluationView

CARDS = 24
BUDGET = 11_000_000  # bytes of audio and pictures, as base64: keeps the page near 12 MB
DRAWN, IMPROVED, WORSENED, LOWEST = "drawn at random", "most improved", "most worsened", "scored lowest"
REASONS = (DRAWN, IMPROVED, WORSENED, LOWEST)


@dataclass(frozen=True)
class Bar:
    """An event on the timeline, in per cent of the clip's length."""

    left: float
    width: float
    title: str


@dataclass(frozen=True)
class Lane:
    """One class on the timeline: of the caption (with its colour) or extra (colour −1), and its bars."""

    label: str
    colour: int
    bars: list[Bar]


@dataclass(frozen=True)
class Player:
    """One system's clip of a card, ready to be shown and played; `view` is the JSON of what the player draws."""

    system: str
    audio: str
    picture: str
    view: str
    seconds: float
    clap: str
    lanes: list[Lane]
    verdict: str
    good: bool
    spoken: str


@dataclass(frozen=True)
class Card:
    """One prompt: its words and scene, why it is here, its players, and the keys that sort and filter it."""

    prompt: Prompt
    reason: str
    players: list[Player]
    score: float
    gain: float
    labels: list[str]
    same_seed: bool

    @property
    def lanes_known(self) -> bool:
        """Whether its caption names events, or any was detected in its clips."""
        return any(player.lanes for player in self.players)

    @property
    def size(self) -> int:
        """The bytes that its audio and pictures take in the page."""
        return sum(len(player.audio) + len(player.picture) + len(player.view) for player in self.players)


def gallery(view: EvaluationView, order: list[str], subject: str) -> list[Card]:
    """Cards for up to CARDS prompts of which every system has a clip; fewer where BUDGET bytes hold fewer."""
    read_clips = view.read_clips
    if read_clips is None:
        return []
    systems = [name for name in order if name in view.clips]
    picked = list(islice(_picks(view, systems, subject), CARDS))
    audio = {name: read_clips(name, {view.clips[name][key].id for key, _ in picked}) for name in systems}
    cards: list[Card] = []
    for prompt_id, reason in picked:
        card = _card(view, systems, subject, prompt_id, reason, audio)
        if sum(other.size for other in cards) + card.size > BUDGET:
            break
        cards.append(card)
    return sorted(cards, key=lambda card: REASONS.index(card.reason))


def _picks(view: EvaluationView, systems: list[str], subject: str) -> Iterator[tuple[str, str]]:
    """(prompt id, reason) without repetition: one drawn at random, then one of the extremes, and so on in turn."""
    if not systems:
        return
    shared = [key for key in view.prompts if all(key in view.clips[name] for name in systems)]
    score, gain = _keys(view, subject)
    scored = [key for key in shared if math.isfinite(score(key))]
    gained = [key for key in shared if math.isfinite(gain(key))]
    queues = {
        DRAWN: sorted(shared, key=lambda key: content_id("gallery", key)),
        IMPROVED: sorted((key for key in gained if gain(key) > 0), key=gain, reverse=True),
        WORSENED: sorted((key for key in gained if gain(key) < 0), key=gain),
        LOWEST: sorted(scored, key=score),
    }
    seen: set[str] = set()
    while any(queues.values()):
        for reason in (DRAWN, IMPROVED, DRAWN, WORSENED, DRAWN, LOWEST):
            fresh = [key for key in queues[reason] if key not in seen]
            queues[reason] = fresh[1:]
            if fresh:
                seen.add(fresh[0])
                yield fresh[0], reason


def _keys(view: EvaluationView, subject: str) -> tuple[Callable[[str], float], Callable[[str], float]]:
    """The CLAP score of the subject's clip, and its gain over the baseline's, by prompt id (NaN where unknown)."""

    def score(prompt_id: str, system: str = subject) -> float:
        clip = view.clips.get(system, {}).get(prompt_id)
        return clip.clap if clip else math.nan

    return score, lambda prompt_id: score(prompt_id) - score(prompt_id, view.baseline)


def _card(
    view: EvaluationView, systems: list[str], subject: str, prompt_id: str, reason: str,
    audio: dict[str, dict[str, bytes]],
) -> Card:  # fmt: skip
    prompt = view.prompts[prompt_id]
    clips = {name: view.clips[name][prompt_id] for name in systems}
    players = [_player(view, name, clips[name], prompt, audio[name]) for name in systems
               if clips[name].id in audio[name]]  # fmt: skip
    score, gain = _keys(view, subject)
    requests = {clips[name].id for name in systems if name != "reference"}
    return Card(prompt, reason, players, score(prompt_id), gain(prompt_id), scene_labels(prompt), len(requests) == 1)


def scene_labels(prompt: Prompt) -> list[str]:
    """The classes of a prompt's scene, in its order, each once."""
    return list(dict.fromkeys(label for group in prompt.scene or () for label in group))


def _player(view: EvaluationView, system: str, own: ClipView, prompt: Prompt, audio: dict[str, bytes]) -> Player:
    data, place = audio[own.id], view.place_clip
    clip = from_flac(data)
    drawn = clip_view(clip)
    verdict, good = faults_of(prompt, own.events)
    spoken = ", ".join(f"{e.label} {e.onset:.1f} to {e.offset:.1f} seconds" for e in own.events) or "nothing"
    return Player(
        system=system,
        audio=place(system, own.id, data) if place else data_uri(data, "audio/flac"),
        picture=drawn.pop("picture"),
        view=json.dumps(drawn, separators=(",", ":")),
        seconds=clip.seconds,
        clap=f"{own.clap:.2f}".replace("-", "−") if math.isfinite(own.clap) else "–",
        lanes=lanes(prompt, own.events, clip.seconds),
        verdict=verdict,
        good=good,
        spoken=f"detected: {spoken}",
    )


def lanes(prompt: Prompt, events: tuple[Event, ...], seconds: float) -> list[Lane]:
    """The timeline: a lane for each class of the caption, in that order, detected or not; then one for each extra."""
    wanted = scene_labels(prompt)
    extra = list(dict.fromkeys(event.label for event in events if event.label not in wanted))
    rows = []
    for place, label in enumerate([*wanted, *extra]):
        bars = [_bar(event, seconds) for event in events if event.label == label]
        named = label in wanted or not prompt.scene  # where the scene is not known, nothing is extra
        rows.append(Lane(label, place % 6 if named else -1, bars))
    return rows


def _bar(event: Event, seconds: float) -> Bar:
    left = min(max(event.onset / seconds, 0.0), 1.0)
    right = min(max(event.offset / seconds, left), 1.0)
    return Bar(
        round(100 * left, 1), round(100 * max(right - left, 0.015), 1), f"{event.onset:.1f}–{event.offset:.1f} s"
    )


def faults_of(prompt: Prompt, events: tuple[Event, ...]) -> tuple[str, bool]:
    """The faults of a clip by its events, in a few words ("Bell missing"), and whether it matches its scene exactly."""
    if not prompt.scene:
        return "", False
    wanted, detected = scene_labels(prompt), {event.label for event in events}
    faults = [f"{label} missing" for label in wanted if label not in detected]
    if order_accuracy_detected(prompt.scene, events) is False:
        faults.append("wrong order")
    faults += [f"extra {label}" for label in sorted(detected - set(wanted))]
    good = exact_match(prompt.scene, events)
    return ", ".join(faults) or ("exact match" if good else "too few repetitions"), good


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as a `data:` URI of a media type."""
    return f"data:{kind};base64,{b64encode(data).decode()}"
