"""What a language model is asked for wrong captions, and how its answer is read and checked.

The request has the requirements of Table 1 for strategies 2 and 3 in our own words. Departures: the number of captions
and the length are given in figures, since the answer is checked against them, and a model whose answer was unusable is
told why when it is asked again. An answer is checked for its form: number, length, wording, and whether something other
than the caption is said. Whether a caption is wrong about the recording and still near to it, only the model can see.
"""

import json
import re
import unicodedata
from collections.abc import Sequence

from milonga.perturbers.phrases import split_phrases, timeline
from milonga.perturbers.rules import most_difference, similar_length, wording

LONGEST = 20_000  # characters of an answer that are looked at

_CLOSE = "Stay near to the recording and to its caption: a reader sees at once that both speak of similar things."
_ORDER = "Tell the events in another order than the caption does."
_WRONG = "Be wrong in part: say something that does not hold for this recording."
_IDEAS = "Keep some of the caption's ideas: a caption about something quite different is of no use."

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


def request(caption: str, count: int, temporal: bool, problem: str = "") -> str:
    """The request for `count` wrong captions; `temporal` asks for another order of events too (Table 1, strategy 3).

    `problem` says why the last answer could not be used.
    """
    n = len(caption.split())
    room = most_difference(caption)
    length = f"Be about as long as the caption: {max(1, n - room)} to {n + room} words."
    requirements = [_CLOSE, *([_ORDER] if temporal else []), _WRONG, _IDEAS, length]
    text = "\n".join(
        (
            f"This is the caption of a sound recording: {caption}",
            "",
            f"Write {count} other captions, no two alike. Every one of them has to meet all of these requirements:",
            *(f"- {requirement}" for requirement in requirements),
            "",
            f"A program reads your answer: give the {count} captions, each on a line of its own, and not a word more.",
        )
    )
    return f"{text}\n\nYour last answer could not be used: {problem}." if problem else text


def usable_captions(answer: str, caption: str, count: int, temporal: bool) -> tuple[list[str], str]:
    """The first `count` usable captions of an answer and "", or none and why: (captions, problem)."""
    texts = parse_captions(answer, count)
    if not texts:
        return [], f"no list of {count} captions in {shortened(answer)}"
    problems = []
    good: dict[str, str] = {}
    for text in texts:
        problem = _problem(text, caption, temporal) or ("comes twice" if wording(text) in good else "")
        if problem:
            problems.append(f"{shortened(text)} {problem}")
        else:
            good[wording(text)] = text
    if len(good) >= count:
        return list(good.values())[:count], ""
    return [], f"{len(good)} usable captions instead of {count}{': ' if problems else ''}{'; '.join(problems[:2])}"


def parse_captions(answer: str, count: int) -> list[str]:
    """The lines of an answer that are meant as captions, unwrapped; empty where a list cannot be told from prose.

    Numbered lines are the list where there are any, else bulleted ones; else the lines that are left without
    introduction, if they are `count`, or the one paragraph of `count` lines.
    """
    text = _THOUGHT.sub("", answer[:LONGEST]).strip()
    array = _json_list(text)
    if array is not None:
        return [_unwrapped(item) for item in array]
    lines = [line for line in text.splitlines() if not line.strip().startswith("```")]
    for mark in (_NUMBER, _BULLET):
        parts = [part for line in lines for part in (_NEXT.split(line) if _NUMBER.fullmatch(line) else [line])]
        items = [match[1] for part in parts if (match := mark.fullmatch(part))]
        if items:
            return [_unwrapped(item) for item in items]
    return [_unwrapped(line) for line in _plain_list(lines, count)]


def shortened(text: str, most: int = 60) -> str:
    """A text on one line between quotes, cut to `most` characters, what cannot be printed escaped."""
    line = " ".join(text[: 4 * most].split())
    return repr(line if len(line) <= most else f"{line[: most - 1]}…")


def _problem(text: str, caption: str, temporal: bool) -> str:
    """Why one text cannot be a wrong caption, or ""."""
    # Letters of the Latin alphabet for the most part, and few signs.
    letters = sum(unicodedata.name(letter, "").startswith("LATIN") for letter in text)
    shown = sum(not letter.isspace() for letter in text)
    if not text.isprintable() or not wording(text) or letters < 0.8 * shown:
        return "is no caption"
    if not similar_length(text, caption):
        return f"has {len(text.split())} words, the caption {len(caption.split())}"
    if wording(text) == wording(caption):
        return "is the caption itself"
    if _events(text) == _events(caption):
        return f"tells the same events{' in the same order' if temporal else ''}"
    return ""


def _events(text: str) -> tuple[tuple[str, ...], ...]:
    """The events of a caption in order of time: stems of its words; those of one moment are sorted."""
    phrases = split_phrases(text)
    moments = (timeline(phrases) or [text]) if phrases else [text]
    stems = [sorted(_stem(word) for word in wording(moment).split() if word not in _IDLE) for moment in moments]
    return tuple(tuple(words) for words in stems if words)


def _stem(word: str) -> str:
    """A word without the endings that verbs and plurals take: "barks", "barking" and "barked" are one."""
    word = re.sub(r"ies$", "y", word)
    short = re.sub(r"(ing|ed|es|s|e)$", "", word)
    return re.sub(r"([b-df-hj-np-tv-z])\1$", r"\1", short) if len(short) > 2 else word


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
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


def _unwrapped(text: str) -> str:
    """A caption without emphasis, quotes around it, or a comma after them; apostrophes inside stay."""
    text = text.strip().rstrip(",").strip().strip("*_").strip()
    while len(text) > 1 and _PAIRED.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return text
