"""The rule perturber: close but wrong captions without a language model, the same for the same seed.

It stands in for the paper's GPT-4 prompts (Table 1). Five kinds of change: another speaker, one sound replaced by one
of its kin, one dropped, one added, and the order changed. Kinds take turns, so five captions are five kinds where the
caption allows. Similar length (Table 1, "of similar length to the original caption") means here: the numbers of words
differ by at most four or by half of the original's, whichever is more.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, permutations, zip_longest

import numpy as np

from milonga.core.records import Prompt
from milonga.perturbers.phrases import (
    SOUNDS,
    Phrase,
    Sound,
    begins_with_participle,
    begins_with_verb,
    is_clause,
    joined,
    lacks_subject,
    split_phrases,
    timeline,
)

_SPEAKERS: dict[str, tuple[str, ...]] = {
    "man": ("woman", "child"),
    "woman": ("man", "child"),
    "boy": ("man", "woman"),
    "girl": ("man", "woman"),
    "child": ("man", "woman"),
    "men": ("women", "children"),
    "women": ("men", "children"),
    "children": ("men", "women"),
    "male": ("female",),
    "female": ("male",),
}
_PRONOUN = re.compile(r"\b(he|she|him|his|hers?|himself|herself)\b", re.IGNORECASE)
_SPEAKER = re.compile(rf"\b({'|'.join(_SPEAKERS)})\b", re.IGNORECASE)

_BINDING = ("before", "after", "while", "as")  # "before sneezing" has its subject elsewhere

Change = Callable[[list[Phrase], np.random.Generator], Iterable[str]]


class RulePerturber:
    """Rewrites any English caption by rules; it needs neither a scene nor a network."""

    name = "rules"

    def perturb(self, prompt: Prompt, count: int, temporal: bool, seed: int) -> list[str]:
        """Up to `count` distinct wrong captions of similar length, none equal to the prompt's.

        With `temporal`, every one changes the order of events or the events of an ordered caption (Table 1, strategy
        3). A caption without a word gives none.
        """
        phrases = split_phrases(prompt.text)
        if not phrases:
            return []
        rng = np.random.default_rng(seed)
        changes = (_reordered, _moved, _reordered, _added_in_time) if temporal else _CHANGES
        fitting = [(text for text in change(phrases, rng) if similar_length(text, prompt.text)) for change in changes]
        distinct: dict[str, str] = {}
        for text in filter(None, chain.from_iterable(zip_longest(*fitting))):  # one of each kind of change in turns
            if len(distinct) == count:
                break
            if wording(text) != wording(prompt.text):
                distinct.setdefault(wording(text), text[0].upper() + text[1:])
        return list(distinct.values())


def similar_length(text: str, original: str) -> bool:
    """Whether two captions' numbers of words differ by at most four, or by at most half of the original's."""
    return abs(len(text.split()) - len(original.split())) <= most_difference(original)


def most_difference(original: str) -> int:
    """By how many words a caption of similar length may differ: four, or half of the original's if that is more."""
    return max(4, len(original.split()) // 2)


def wording(text: str) -> str:
    """A caption's words alone: two captions of the same wording differ in capitals and stops at most."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def _another_speaker(phrases: list[Phrase], rng: np.random.Generator) -> Iterable[str]:
    """ "A man speaks" -> "A woman speaks": one speaker changed, the rest left alone; none where a pronoun means one."""
    text = joined(phrases)
    if _PRONOUN.search(text):
        return
    for match in _shuffled(list(_SPEAKER.finditer(text)), rng):
        for other in _shuffled(_SPEAKERS[match[1].lower()], rng):
            yield text[: match.start()] + other + text[match.end() :]


def _replaced(phrases: list[Phrase], rng: np.random.Generator) -> Iterable[str]:
    """One phrase replaced by a sound of its kin first, then by any other that the caption does not hold."""
    for place, sound in _crossed(phrases, rng):
        yield joined(_with_sound(phrases, place, sound))


def _dropped(phrases: list[Phrase], rng: np.random.Generator) -> Iterable[str]:
    """One phrase left out, connective and all; what would be left without a subject is not offered."""
    if len(phrases) < 2:
        return
    for place in _shuffled(range(len(phrases)), rng):
        rest = [*phrases[:place], *_after(phrases, place)]
        # "After a, b": the "after" stays only where its comma does.
        rest[0] = Phrase(phrases[0].link if any(phrase.link == "," for phrase in rest[1:]) else "", rest[0].text)
        if not lacks_subject(rest[0].text) and rest[0].text:
            yield joined(rest)


def _added(phrases: list[Phrase], rng: np.random.Generator) -> Iterable[str]:
    """One more sound, together with the rest or after it."""
    text, clause = joined(phrases), is_clause(phrases[-1].text)
    for sound in _absent(text, rng):
        links = ("and", "while", "then") if clause else ("and", "followed by", "with")
        yield f"{text} {_one_of(_others(links, phrases[-1].link), rng)} {sound.said(clause)}"


def _reordered(phrases: list[Phrase], rng: np.random.Generator) -> Iterable[str]:
    """The same events in another order of time; overlapping ones come one after the other."""
    groups = timeline(phrases)
    in_time = len(groups) > 1
    if len(groups) == 1:
        groups = [phrase.text for phrase in phrases]
    bound = any(phrase.link in _BINDING and begins_with_participle(phrase.text) for phrase in phrases)
    if bound or not 2 <= len(groups) <= 4 or any(lacks_subject(text) for text in groups):
        return
    orders = [order for order in permutations(groups) if list(order) != groups or not in_time]
    for order in _shuffled(orders, rng):
        yield from _sequences(order, rng)


def _moved(phrases: list[Phrase], rng: np.random.Generator) -> Iterable[str]:
    """Another order and another sound: strategy 3's captions are wrong in both ways (Table 1)."""
    for place, sound in _crossed(phrases, rng):
        changed = _with_sound(phrases, place, sound)
        yield next(iter(_reordered(changed, rng)), joined(changed))


def _added_in_time(phrases: list[Phrase], rng: np.random.Generator) -> Iterable[str]:
    """A new event before or after those of the caption."""
    text, clause = joined(phrases), is_clause(phrases[-1].text)
    next_link = phrases[1].link if len(phrases) > 1 else ""
    for sound in _absent(text, rng):
        if rng.random() < 0.5 and not phrases[0].link and not lacks_subject(text):
            begins = is_clause(phrases[0].text)
            link = _others((", then", " before" if begins else " followed by"), next_link)[0]
            yield f"{sound.said(begins)}{link} {text}"
        else:
            link = _others(("then", "followed by") if clause else ("followed by", "then"), phrases[-1].link)[0]
            yield f"{text}, {link} {sound.said(clause and link == 'then')}"


_CHANGES: tuple[Change, ...] = (_another_speaker, _replaced, _dropped, _added, _reordered, _replaced)


def _sequences(order: tuple[str, ...], rng: np.random.Generator) -> Iterable[str]:
    """Ways to say that phrases follow each other; "followed by" and "then" as the phrase after them allows."""
    if len(order) == 2 and is_clause(order[1]):
        first, second = order
        yield from _shuffled(
            [
                f"{first} then {second}",
                f"{first} before {second}",
                f"{second} after {first}",
                f"after {first}, {second}",
            ],
            rng,
        )
        return
    text, last = order[0], ""
    for phrase in order[1:]:
        links = _others(("then", "before", "and then") if is_clause(phrase) else ("followed by", "then"), last)
        last = _one_of(links, rng) if is_clause(phrase) else links[0]
        text += f" {last} {phrase}"
    yield text


def _crossed(phrases: list[Phrase], rng: np.random.Generator) -> Iterator[tuple[int, Sound]]:
    """(place, sound to put there), every place taking its turn, kin before strangers.

    A stranger is not put where nothing else of the caption would be left.
    """
    caption = joined(phrases)
    places = _shuffled(range(len(phrases)), rng)
    queues = []
    for place in places:
        kin = {sound.kin for sound in SOUNDS if sound.keys.search(phrases[place].text)}
        fitting = [
            sound for sound in _absent(caption, rng) if sound.kin in kin or len(_with_sound(phrases, place, sound)) > 1
        ]
        queues.append([(place, sound) for sound in sorted(fitting, key=lambda sound: sound.kin not in kin)])
    for row in zip_longest(*queues):
        yield from (pair for pair in row if pair)


def _with_sound(phrases: list[Phrase], place: int, sound: Sound) -> list[Phrase]:
    new = Phrase(phrases[place].link, sound.said(_wants_clause(phrases[place])))
    rest = phrases[place + 1 :]
    if rest and lacks_subject(rest[0].text):
        rest = rest[1:]  # "a man speaks and laughs": the second verb goes with its subject
    return [*phrases[:place], new, *rest]


def _after(phrases: list[Phrase], place: int) -> list[Phrase]:
    """What follows a phrase that is left out: "a with b and c" goes on as "a with c"."""
    rest = phrases[place + 1 :]
    if place and rest and rest[0].link in ("and", ","):
        return [Phrase(phrases[place].link, rest[0].text), *rest[1:]]
    return rest


def _others(links: tuple[str, ...], used: str) -> tuple[str, ...]:
    """The connectives that do not repeat the one used just before ("and then" is a "then"), all where none is left."""
    plain = used.removeprefix("and ")
    return tuple(link for link in links if plain not in link or not plain) or links


def _wants_clause(phrase: Phrase) -> bool:
    """Whether a clause fits in a phrase's place: after "while" always, after "followed by" never."""
    if phrase.link in ("while", "as"):
        return not begins_with_participle(phrase.text)
    clause = is_clause(phrase.text) or begins_with_verb(phrase.text)
    return clause and phrase.link not in ("followed by", "with", "over")


def _absent(text: str, rng: np.random.Generator) -> list[Sound]:
    """The sounds that the text does not mention, shuffled."""
    return _shuffled([sound for sound in SOUNDS if not sound.keys.search(text)], rng)


def _shuffled(things, rng: np.random.Generator) -> list:
    things = list(things)
    return [things[i] for i in rng.permutation(len(things))]


def _one_of(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
