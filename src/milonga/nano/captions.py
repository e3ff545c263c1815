"""The caption grammar: English in the manner of AudioCaps for a scene of known sounds.

A scene is a sequence of groups in order of time; the sounds of one group overlap. A sound becomes a clause ("a dog
barks") or a noun phrase ("a dog barking", "the barking of a dog"); templates join sounds to groups and groups to
captions. In a template `{c0}` is part 0 as a clause, `{n0}` is part 0 as a noun phrase. Difference from AudioCaps: no
sound outside `lexicon.CLASSES`, no misspellings.
"""

from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import TypeVar

import numpy as np

from milonga.core.errors import DataError
from milonga.core.ids import content_id
from milonga.core.records import Scene
from milonga.nano.lexicon import VOICES, Form, Voice, participle, third_person

T = TypeVar("T")
Say = Callable[[str], str]
TRIES = 1000  # captions drawn for one scene before the search for its split fails

_NUMBERS = ("", "a single", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_TIMES = ("", "once", "twice", *(f"{word} times" for word in _NUMBERS[3:]))


def _templates(text: str) -> tuple[str, ...]:
    return tuple(template.strip() for template in text.replace("\n", "|").split("|") if template.strip())


# Sounds that overlap. The sounds of a group are shuffled first, so part 0 is any of them.
_TOGETHER_CLAUSE = {
    2: _templates("""
        {c0} while {c1} | {c0} while {c1} | {c0} as {c1} | {c0} as {c1} | {c0} and {c1} | {c0} with {n1}
        {c0} with {n1} in the background | {n0} in the background while {c1}
        {n0} in the background as {c1} | {c0} over the sound of {n1} | as {c0}, {c1} | while {c0}, {c1}
        {c0} and {c1} at the same time
    """),
    3: _templates("""
        {c0} and {c1} while {c2} | {c0} while {c1} and {c2} | {c0} as {c1} and {c2}
        {c0} with {n1} and {n2} | {c0} as {c1} with {n2} in the background
        {n0} in the background while {c1} and {c2} | {c0}, {c1} and {c2}
    """),
}
_TOGETHER_NOUN = {
    2: _templates("""
        {n0} and {n1} | {n0} with {n1} | {n0} with {n1} in the background | {n0} while {c1}
        {n0} as {c1} | {n0} over {n1}
    """),
    3: _templates("""
        {n0}, {n1} and {n2} | {n0} and {n1} with {n2} in the background | {n0} with {n1} and {n2}
    """),
}
# A group inside a sequence uses the tighter connectives only, so that "before" never binds to half of it.
_TIGHT_CLAUSE = {2: ("{c0} and {c1}", "{c0} while {c1}", "{c0} as {c1}", "{c0} with {n1}")}
_TIGHT_NOUN = {2: ("{n0} and {n1}", "{n0} with {n1}", "{n0} while {c1}")}

# Sequences; in about two of five the order of words is not the order of time.
_THEN = {
    2: _templates("""
        {c0} then {c1} | {c0}, then {c1} | {c0} and then {c1} | {n0} then {n1} | {n0} and then {n1}
        {c0} followed by {n1} | {n0} followed by {n1} | {c0}, followed by {n1} | {n0}, followed by {n1}
        {c0} before {c1} | {n0} before {n1} | first {c0}, then {c1} | after {c0}, {c1}
        after {n0}, {c1} | {c1} after {c0} | {c1} after {c0} | {n1} after {n0} | {c1} after {n0}
        before {c1}, {c0} | before {n1}, {c0}
    """),
    3: _templates("""
        {c0}, then {c1}, and finally {c2} | first {c0}, then {c1}, and finally {c2}
        {n0}, then {n1}, and finally {n2} | {c0} followed by {n1} and then {n2}
        {n0} followed by {n1} then {n2} | {c0}, followed by {n1}, and then {n2}
        {c0} then {c1} followed by {n2} | {c0} before {c1}, then {c2} | after {c0}, {c1}, then {c2}
        after {c0}, {c1} followed by {n2} | {c1} after {c0}, then {c2}
        {c1} after {c0}, followed by {n2} | before {c2}, {c0} followed by {n1}
        before {c2}, {c0} and then {c1}
    """),
}
_THEN_MIXED = {
    2: _templates("""
        {c0}, then {c1} | {c0}, and then {c1} | {c0}, followed by {n1} | {n0}, followed by {n1}
        {n0}, then {n1} | first {c0}, then {c1} | after {c0}, {c1} | before {c1}, {c0}
        {c1}, after {c0}
    """)
}


def caption(scene: Scene, counts: Mapping[str, int] | None, rng: np.random.Generator) -> str:
    """A random caption of `scene` among many paraphrases; `counts` gives the number of a countable sound.

    Scenes hold one to three sounds in any grouping. KeyError for a class outside `lexicon.CLASSES`, ValueError for more
    sounds than three.
    """
    if not 1 <= sum(len(group) for group in scene) <= 3 or not all(scene):
        raise ValueError(f"a caption has one to three sounds in groups that are not empty; got {scene}")
    counts = counts or {}
    if len(scene) == 1:
        text = _group(scene[0], _one_of(rng, "ccn"), counts, rng, tight=False)
    else:
        mixed = any(len(group) > 1 for group in scene)
        template = _one_of(rng, (_THEN_MIXED if mixed else _THEN)[len(scene)])
        text = _fill(template, [_sayer(group, counts, rng) for group in scene])
    return text[0].upper() + text[1:] + ("." if rng.random() < 0.1 else "")


def caption_in(split: str, scene: Scene, counts: Mapping[str, int] | None, rng: np.random.Generator) -> str:
    """A caption of `scene` that belongs to `split` ("train", "tune" or "test"), by repeated draws.

    Raises DataError after TRIES draws: a scene of one sound has few captions, which may all belong to another split.
    """
    for _ in range(TRIES):
        text = caption(scene, counts, rng)
        if split_of(text) == split:
            return text
    raise DataError(f"none of {TRIES} captions of {scene} is in {split}: use another scene")


def split_of(text: str) -> str:
    """ "train" (80 %), "tune" (10 %) or "test" (10 %), by the text's hash, so no caption is in two splits.

    Case, spacing and a closing full stop do not count, so near-copies share their split.
    """
    bucket = int(content_id("split", " ".join(text.lower().split()).rstrip(" .")), 16) % 10
    return "test" if bucket == 0 else "tune" if bucket == 1 else "train"


def _one_of(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def _fill(template: str, parts: Sequence[Say]) -> str:
    """The template with each slot `{c0}` or `{n0}` filled by its part, as a clause or a noun phrase."""
    slots = [name for _, name, _, _ in Formatter().parse(template) if name]
    return template.format_map({slot: parts[int(slot[1:])](slot[0]) for slot in slots})


def _sayer(group: Sequence[str], counts: Mapping[str, int], rng: np.random.Generator) -> Say:
    return lambda way: _group(group, way, counts, rng, tight=True)


def _group(group: Sequence[str], way: str, counts: Mapping[str, int], rng: np.random.Generator, tight: bool) -> str:
    """Overlapping sounds as a clause ("c") or a noun phrase ("n")."""
    if len(group) == 1:
        return _sound(group[0], way, counts, rng)
    shuffled = [str(label) for label in rng.permutation(list(group))]
    tables = (_TIGHT_CLAUSE, _TIGHT_NOUN) if tight else (_TOGETHER_CLAUSE, _TOGETHER_NOUN)
    template = _one_of(rng, tables["cn".index(way)][len(group)])
    return _fill(template, [_sayer((label,), counts, rng) for label in shuffled])


def _sound(label: str, way: str, counts: Mapping[str, int], rng: np.random.Generator) -> str:
    """One sound as a clause or a noun phrase, counted where a count is given and the sound is countable."""
    voice, count = VOICES[label], counts.get(label, 0)
    if voice.counted and 1 <= count < len(_NUMBERS):
        return _counted(voice, count, way, rng)
    if way == "c":
        return _clause(voice, rng)
    if rng.random() < 0.4:
        return _one_of(rng, voice.nouns)
    return _participial(voice, rng)


def _counted(voice: Voice, count: int, way: str, rng: np.random.Generator) -> str:
    if voice.counted and rng.random() < 0.4:
        noun = f"{_NUMBERS[count]} {voice.counted[count > 1]}"
        return noun if way == "n" else f"{noun} {_one_of(rng, ('can be', 'are' if count > 1 else 'is'))} heard"
    form = voice.forms[0]  # singular for every countable sound, and something that can do it again
    verb = _one_of(rng, form.verbs)
    said = third_person(verb) if way == "c" else participle(verb)
    return f"{_one_of(rng, form.subjects)} {said} {_TIMES[count]}"


def _clause(voice: Voice, rng: np.random.Generator) -> str:
    """ "a dog barks", "dogs are barking loudly", "the barking of a dog can be heard"."""
    if rng.random() < 0.06:
        return f"{_one_of(rng, voice.nouns)} can be heard"
    form = _form(voice, rng)
    verb = _one_of(rng, form.verbs)
    if rng.random() < 0.3:
        said = f"{'are' if form.plural else 'is'} {participle(verb)}"
    else:
        said = verb if form.plural else third_person(verb)
    return f"{_one_of(rng, form.subjects)} {said}{_adverb(voice, verb, rng)}"


def _participial(voice: Voice, rng: np.random.Generator) -> str:
    """ "a dog barking", "dog barking loudly" (captions often drop the article), "the sound of a dog barking"."""
    form = _form(voice, rng)
    verb, subject, chance = _one_of(rng, form.verbs), _one_of(rng, form.subjects), rng.random()
    if chance < 0.1:
        subject = subject.removeprefix("a ").removeprefix("an ").removeprefix("the ")
    elif chance < 0.2:
        subject = f"the sound of {subject}"
    return f"{subject} {participle(verb)}{_adverb(voice, verb, rng)}"


def _form(voice: Voice, rng: np.random.Generator) -> Form:
    """A form of the voice: the first and most common one half of the time, else any."""
    return voice.forms[0] if rng.random() < 0.5 else _one_of(rng, voice.forms)


def _adverb(voice: Voice, verb: str, rng: np.random.Generator) -> str:
    # "walks around nearby" or "passes by in the distance" is English, "patters on a roof steadily" hardly.
    return f" {_one_of(rng, voice.adverbs)}" if " " not in verb and rng.random() < 0.2 else ""
