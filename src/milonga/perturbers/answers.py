"""A language model's answer as captions: found in whatever stands around them, and each checked before it is used.

What is checked is form: number, length, wording, and whether something other than the caption is said. That a caption
is wrong about the recording, and still near to it, only the model can see to.
"""

import json
import re
import unicodedata
from collections.abc import Sequence

from milonga.perturbers.phrases import phrases, timeline
from milonga.perturbers.rules import similar_length, wording

LONGEST = 20_000  # characters of an answer that are looked at

_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>|^.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"\s*[*_#]*(?:caption\s*)?\(?\d{1,3}\s*[.):\]-][*_]*\s+(?=\S)(.*)", re.IGNORECASE)
_BULLET = re.compile(r"\s*[-*•‣–—]\s+(?=\S)(.*)")
_NEXT = re.compile(r"\s+(?=\(?[2-9][.)]\s+\S)")  # "1. Rain falls. 2. Hail falls."
_PAIRED = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "`": "`"}
_IDLE_WORDS = """
a an the some is are was were be being been has have can and or then while as before after with followed by over
of in on at to from it its his her their there heard sound sounds
"""
_IDLE = frozenset(_IDLE_WORDS.split())


def captions_in(answer: str, count: int) -> list[str]:
    """The lines of an answer that are meant as captions, unwrapped; empty where no list can be told from prose.

    Numbered lines are the list where there are any, else bulleted ones; else the lines that are left without
    introduction, if they are `count`, or the one paragraph of `count` lines.
    """
    text = _THOUGHT.sub("", answer[:LONGEST]).strip()
    array = _json_list(text)
    if array is not None:
        return [_unwrapped(one) for one in array]
    lines = [line for line in text.splitlines() if not line.strip().startswith("```")]
    for mark in (_NUMBER, _BULLET):
        found = [match[1] for line in lines for part in _cut(line) if (match := mark.fullmatch(part))]
        if found:
            return [_unwrapped(one) for one in found]
    return [_unwrapped(one) for one in _plain_list(lines, count)]


def accepted(answer: str, caption: str, count: int, temporal: bool) -> tuple[list[str], str]:
    """The first `count` captions of an answer that will do and "", or none and why: (captions, problem)."""
    found = captions_in(answer, count)
    if not found:
        return [], f"no list of {count} captions in {shortened(answer)}"
    problems = []
    good: dict[str, str] = {}
    for text in found:
        problem = _problem(text, caption, temporal) or ("comes twice" if wording(text) in good else "")
        if problem:
            problems.append(f"{shortened(text)} {problem}")
        else:
            good[wording(text)] = text
    if len(good) >= count:
        return list(good.values())[:count], ""
    return [], f"{len(good)} usable captions instead of {count}{': ' if problems else ''}{'; '.join(problems[:2])}"


def shortened(text: str, most: int = 60) -> str:
    """A text on one line between quotes, cut to `most` characters, what cannot be printed escaped."""
    line = " ".join(text[: 4 * most].split())
    return repr(line if len(line) <= most else f"{line[: most - 1]}…")


def _problem(text: str, caption: str, temporal: bool) -> str:
    """Why one text cannot be a wrong caption, or ""."""
    if not text.isprintable() or not _is_language(text):
        return "is no caption"
    if not similar_length(text, caption):
        return f"has {len(text.split())} words, the caption {len(caption.split())}"
    if wording(text) == wording(caption):
        return "is the caption itself"
    if _told(text) == _told(caption):
        return f"tells the same events{' in the same order' if temporal else ''}"
    return ""


def _is_language(text: str) -> bool:
    """Whether a text is made of English words for the most part: letters of the Latin alphabet, and few signs."""
    letters = sum(unicodedata.name(letter, "").startswith("LATIN") for letter in text)
    shown = sum(not letter.isspace() for letter in text)
    return bool(wording(text)) and letters >= 0.8 * shown


def _told(text: str) -> tuple[tuple[str, ...], ...]:
    """What a caption tells, in order of time: its words without form, those of one moment in no order."""
    found = phrases(text)
    moments = (timeline(found) or [text]) if found else [text]
    stems = (sorted(_stem(word) for word in wording(one).split() if word not in _IDLE) for one in moments)
    return tuple(tuple(one) for one in stems if one)


def _stem(word: str) -> str:
    """A word without the endings that verbs and plurals take: "barks", "barking" and "barked" are one."""
    word = re.sub(r"ies$", "y", word)
    short = re.sub(r"(ing|ed|es|s|e)$", "", word)
    return re.sub(r"([b-df-hj-np-tv-z])\1$", r"\1", short) if len(short) > 2 else word


def _cut(line: str) -> list[str]:
    return _NEXT.split(line) if _NUMBER.fullmatch(line) else [line]


def _plain_list(lines: Sequence[str], count: int) -> list[str]:
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if not line.strip():
            paragraphs.append([])
        elif not line.rstrip().endswith(":"):
            paragraphs[-1].append(line)
    everything = [line for part in paragraphs for line in part]
    fitting = [part for part in [everything, *paragraphs] if len(part) == count]
    return fitting[0] if fitting and (count > 1 or len(everything) == 1) else []


def _json_list(text: str) -> list[str] | None:
    """The texts of an answer that is a JSON list, with or without a fence around it."""
    body = re.sub(r"^```\w*\s*|\s*```$", "", text)
    if not body.startswith("["):
        return None
    try:
        value = json.loads(body)
    except ValueError:
        return None  # then it is read line by line as any other
    return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else None


def _unwrapped(text: str) -> str:
    """A caption without emphasis, quotes around it, or a comma after them; apostrophes inside stay."""
    text = text.strip().rstrip(",").strip().strip("*_").strip()
    while len(text) > 1 and _PAIRED.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return text
