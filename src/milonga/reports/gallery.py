"""The listening gallery: which prompts are shown, and for each system the clip, its mel picture and what was heard.

Half of the prompts are drawn by the hash of their id, so nobody chose them; the rest are the most improved, the most
worsened and the lowest judged ones, and say so.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from milonga.core.audio import from_flac
from milonga.core.ids import content_id
from milonga.core.records import Event, Prompt
from milonga.maths.metrics import correct, order_heard
from milonga.reports.material import Heard, Material
from milonga.reports.pictures import data_uri, mel_picture

CARDS = 24
BUDGET = 11_000_000  # bytes of audio and pictures, as base64: keeps the page near 12 MB
DRAWN, IMPROVED, WORSENED, LOWEST = "drawn by chance", "most improved", "most worsened", "judged lowest"
REASONS = (DRAWN, IMPROVED, WORSENED, LOWEST)


@dataclass(frozen=True)
class Bar:
    """An event on the timeline, in per cent of the clip's length."""

    left: float
    width: float
    title: str


@dataclass(frozen=True)
class Lane:
    """One class on the timeline: asked for (with its colour) or extra (colour −1), and its bars."""

    label: str
    colour: int
    bars: list[Bar]


@dataclass(frozen=True)
class Player:
    """One system's clip of a card, ready to be shown and played."""

    system: str
    audio: str
    picture: str
    seconds: float
    clap: str
    lanes: list[Lane]
    verdict: str
    good: bool
    spoken: str


@dataclass(frozen=True)
class Card:
    """One prompt: its words, what it asks for, why it is here, its players, and the keys that sort and filter it."""

    prompt: Prompt
    reason: str
    players: list[Player]
    score: float
    gain: float
    labels: list[str]
    same_seed: bool

    @property
    def lanes_known(self) -> bool:
        """Whether any event was heard in its clips, or asked for."""
        return any(player.lanes for player in self.players)

    @property
    def size(self) -> int:
        """The bytes that its audio and pictures take in the page."""
        return sum(len(player.audio) + len(player.picture) for player in self.players)


def gallery(material: Material, order: list[str], subject: str) -> list[Card]:
    """Cards for up to CARDS prompts that every system was heard on, within BUDGET bytes; fewer where clips are long."""
    systems = [name for name in order if name in material.heard]
    picked = list(islice(_picks(material, systems, subject), CARDS))
    clips = {name: material.clips(name, {material.heard[name][one].id for one, _ in picked}) for name in systems}
    cards: list[Card] = []
    for prompt_id, reason in picked:
        card = _card(material, systems, subject, prompt_id, reason, clips)
        if sum(one.size for one in cards) + card.size > BUDGET:
            break
        cards.append(card)
    return sorted(cards, key=lambda card: REASONS.index(card.reason))


def _picks(material: Material, systems: list[str], subject: str) -> Iterator[tuple[str, str]]:
    """(prompt id, reason) without repetition: three drawn by chance for each of the three kinds of chosen ones."""
    if not systems:
        return
    shared = [one for one in material.prompts if all(one in material.heard[name] for name in systems)]
    score, gain = _keys(material, subject)
    judged = [one for one in shared if math.isfinite(score(one))]
    gained = [one for one in shared if math.isfinite(gain(one))]
    queues = {
        DRAWN: sorted(shared, key=lambda one: content_id("gallery", one)),
        IMPROVED: sorted((one for one in gained if gain(one) > 0), key=gain, reverse=True),
        WORSENED: sorted((one for one in gained if gain(one) < 0), key=gain),
        LOWEST: sorted(judged, key=score),
    }
    seen: set[str] = set()
    while any(queues.values()):
        for reason in (DRAWN, IMPROVED, DRAWN, WORSENED, DRAWN, LOWEST):
            fresh = [one for one in queues[reason] if one not in seen]
            queues[reason] = fresh[1:]
            if fresh:
                seen.add(fresh[0])
                yield fresh[0], reason


def _keys(material: Material, subject: str) -> tuple[Callable[[str], float], Callable[[str], float]]:
    """The judge's score of the subject's clip, and its gain over the baseline's, by prompt id (NaN where unknown)."""

    def score(prompt_id: str, system: str = subject) -> float:
        heard = material.heard.get(system, {}).get(prompt_id)
        return heard.clap if heard else math.nan

    return score, lambda prompt_id: score(prompt_id) - score(prompt_id, material.baseline)


def _card(
    material: Material,
    systems: list[str],
    subject: str,
    prompt_id: str,
    reason: str,
    clips: dict[str, dict[str, bytes]],
) -> Card:
    prompt = material.prompts[prompt_id]
    heard = {name: material.heard[name][prompt_id] for name in systems}
    players = [_player(name, heard[name], prompt, clips[name]) for name in systems if heard[name].id in clips[name]]
    score, gain = _keys(material, subject)
    made = {heard[name].id for name in systems if name != "reference"}
    return Card(prompt, reason, players, score(prompt_id), gain(prompt_id), asked(prompt), len(made) == 1)


def asked(prompt: Prompt) -> list[str]:
    """The classes that a prompt asks for, in the order of its scene, each once."""
    return list(dict.fromkeys(label for group in prompt.scene or () for label in group))


def _player(system: str, heard: Heard, prompt: Prompt, clips: dict[str, bytes]) -> Player:
    clip = from_flac(clips[heard.id])
    verdict, good = judged(prompt, heard.events)
    spoken = ", ".join(f"{e.label} {e.onset:.1f} to {e.offset:.1f} seconds" for e in heard.events) or "nothing"
    return Player(
        system=system,
        audio=data_uri(clips[heard.id], "audio/flac"),
        picture=data_uri(mel_picture(clip), "image/png"),
        seconds=clip.seconds,
        clap=f"{heard.clap:.2f}".replace("-", "−") if math.isfinite(heard.clap) else "–",
        lanes=lanes(prompt, heard.events, clip.seconds),
        verdict=verdict,
        good=good,
        spoken=f"heard: {spoken}",
    )


def lanes(prompt: Prompt, events: tuple[Event, ...], seconds: float) -> list[Lane]:
    """The timeline: a lane for each class asked for, in that order, heard or not; then one for each that is extra."""
    wanted = asked(prompt)
    extra = list(dict.fromkeys(event.label for event in events if event.label not in wanted))
    found = []
    for place, label in enumerate([*wanted, *extra]):
        bars = [_bar(event, seconds) for event in events if event.label == label]
        asked_for = label in wanted or not prompt.scene  # where nobody knows what was asked, nothing is extra
        found.append(Lane(label, place % 6 if asked_for else -1, bars))
    return found


def _bar(event: Event, seconds: float) -> Bar:
    left = min(max(event.onset / seconds, 0.0), 1.0)
    right = min(max(event.offset / seconds, left), 1.0)
    return Bar(
        round(100 * left, 1), round(100 * max(right - left, 0.015), 1), f"{event.onset:.1f}–{event.offset:.1f} s"
    )


def judged(prompt: Prompt, events: tuple[Event, ...]) -> tuple[str, bool]:
    """In a few words what is wrong with a clip by its events ("Bell missing"), and whether it is just as asked."""
    if not prompt.scene:
        return "", False
    wanted, heard = asked(prompt), {event.label for event in events}
    faults = [f"{label} missing" for label in wanted if label not in heard]
    if order_heard(prompt.scene, events) is False:
        faults.append("wrong order")
    faults += [f"extra {label}" for label in sorted(heard - set(wanted))]
    good = correct(prompt.scene, events)
    return ", ".join(faults) or ("all as asked" if good else "heard too seldom"), good
