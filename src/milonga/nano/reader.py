"""Reader of human captions: the scene that a caption describes, where the small world has all its sounds.

A caption is cut at its connectives into segments; each segment must be exactly one known sound (`vocabulary`), and the
connectives determine which sounds overlap and which follow each other. A caption that does not fit is not read at all:
precision comes before recall. Limits: captions with a repeated sound or more than three sounds are not read; "a barks
while b sings, then c" is read literally, although b may continue during c.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from milonga.core.records import Prompt, Scene
from milonga.nano.vocabulary import FILLERS, KNOWN, lemmas

# Connectives become signs: ">" then, "<" after, "&" together, "+" and, "," a bare comma. Order of the rules matters.
_REWRITE: tuple[tuple[str, str], ...] = (
    (r"\b(?:over|on|into|in|through|at) (?:a|the) (?:microphone|mic)\b|\bat the same time\b|\bsimultaneously\b", ""),
    (r"\btick[- ]?toc?k(ing|s)?\b", r"ticktock"),
    (r"\bas well as\b|\balong with\b|\baccompanied by\b|\balongside\b|\btogether with\b", " & "),
    (r"\b(?:is |are )?(?:then )?(?:immediately |shortly |closely |quickly )?followed "
     r"(?:shortly |closely |immediately |quickly )?(?:after )?(?:by|with)\b", " > "),
    (r"\b(?:then|finally|lastly|before|prior to)\b", " > "),
    (r"\b(?:shortly |right )?after\b", " < "),
    (r"\b(?:while|whilst|as|with|over)\b", " & "),
    (r"\band\b", " + "),
    (r"[,;]", " , "),
)  # fmt: skip
_STRENGTH = ",+&<>"
_PREFIX = re.compile(r"^(?:at )?(first|after|before|as|while|with)\b\s*")

Segment = tuple[str, list[str]]


def read_scene(text: str) -> Scene | None:
    """The scene of a caption, or None where a sound is unknown or the order is ambiguous."""
    plain, prefix, pieces = _pieces(text)
    segments = _segments(pieces)
    # A horn beside a train is most likely the train's, which this world does not have.
    if segments is None or ("train" in plain and re.search(r"(?<!car )(?<!vehicle )\bhorn", plain)):
        return None
    ordered = _in_order(segments, prefix, background="background" in plain)
    if ordered is None:
        return None
    groups = [_labels(group) for group in ordered]
    scene = tuple(group for group in groups if group)
    labels = [label for group in scene for label in group]
    plain_order = len(scene) == len(ordered) and 1 <= len(labels) <= 3 and len(set(labels)) == len(labels)
    return scene if plain_order else None


def read_captions(texts: Iterable[str], source: str) -> list[Prompt]:
    """The captions whose scenes can be read, each once, in order, as prompts of `source`."""
    first: dict[str, Prompt] = {}
    for text in texts:
        scene = read_scene(text)
        if scene is not None:
            prompt = Prompt.of(text, source=source, scene=scene)
            first.setdefault(prompt.id, prompt)
    return list(first.values())


def read_groups(text: str, labels_of: Callable[[str], Sequence[str]]) -> Scene | None:
    """The scene of any caption whose sounds `labels_of` names in a segment's words; None where there is none.

    Words that name no sound are passed over. Sounds whose order is ambiguous, and one that comes twice, are together
    with all others: then only their presence is known.
    """
    plain, prefix, pieces = _pieces(text)
    segments = [(sign, list(labels_of(words))) for sign, words in pieces]
    groups = _in_order(segments, prefix, background="background" in plain) or [segments]
    labels = [[label for _, labels in group for label in labels] for group in groups]
    flat = [label for group in labels for label in group]
    scene = tuple(tuple(dict.fromkeys(group)) for group in labels if group)
    if sum(map(len, scene)) > len(set(flat)):
        scene = (tuple(dict.fromkeys(flat)),)
    return scene or None


def clauses(text: str) -> list[str]:
    """A caption's segments between its connectives, in plain words."""
    return [" ".join(words.split()) for _, words in _pieces(text)[2]]


def _pieces(text: str) -> tuple[str, str, list[tuple[str, str]]]:
    """A caption in plain words, the connective that it begins with, and its segments with the signs before each."""
    plain = re.sub(r"'s\b|['\".!]", "", text.lower()).strip()
    match = _PREFIX.match(plain)
    rest = plain[match.end() :] if match else plain
    for pattern, sign in _REWRITE:
        rest = re.sub(pattern, sign, rest)
    pieces: list[tuple[str, str]] = []
    for signs, words in re.findall(r"([,+&<>\s]*)([^,+&<>]+)", rest):
        if words.strip():
            pieces.append((max(signs.replace(" ", "") or ",", key=_STRENGTH.index) if pieces else "", words))
    return plain, match[1] if match else "", pieces


def _segments(pieces: list[tuple[str, str]]) -> list[Segment] | None:
    """(preceding connective, content words) of each segment; None where a word is unknown."""
    segments: list[Segment] = []
    for strongest, words in pieces:
        content = [lemmas().get(word, "") for word in re.findall(r"[^\s-]+", words) if word not in FILLERS]
        if not all(content):
            return None
        sign = strongest if segments else ""
        if not content and sign in ("<", ">"):
            return None  # "barks and then is quiet"
        if content or not segments:
            segments.append((sign, content))
    return segments if segments and segments[0][1] else segments[1:] or None


def _in_order(segments: list[Segment], prefix: str, background: bool) -> list[list[Segment]] | None:
    """The segments as groups in order of time; None where the order is ambiguous."""
    signs = [sign for sign, _ in segments[1:]]
    sequence = prefix in ("first", "after", "before") or "<" in signs or ">" in signs
    if sequence and background:
        return None  # a background sound may continue throughout
    if prefix in ("after", "before"):
        return _inverted(segments, prefix)
    if prefix in ("as", "while", "with"):
        return None if sequence else [segments]
    if "," in signs and (sequence or signs[-1] == ","):
        return None
    if "<" in signs and (signs.count("<") > 1 or ">" in signs[: signs.index("<")]):
        return None
    groups = _cut(segments, "<>")
    return [groups[1], groups[0], *groups[2:]] if "<" in signs else groups


def _inverted(segments: list[Segment], prefix: str) -> list[list[Segment]] | None:
    """ "After a, b then c" is a b c; "before c, a then b" is a b c; both need exactly one comma."""
    signs = [sign for sign, _ in segments]
    if signs.count(",") != 1 or "<" in signs or ">" in signs[: signs.index(",")]:
        return None
    first, *rest = _cut(segments, ",>")
    return [first, *rest] if prefix == "after" else [*rest, first]


def _cut(segments: list[Segment], signs: str) -> list[list[Segment]]:
    """The segments, split into groups at each of `signs`."""
    groups: list[list[Segment]] = []
    for segment in segments:
        if not groups or segment[0] in signs:
            groups.append([])
        groups[-1].append(segment)
    return groups


def _labels(group: list[Segment]) -> tuple[str, ...]:
    """The sounds of overlapping segments; empty where one of them is not exactly one known sound."""
    labels: list[str] = []
    for place, (sign, words) in enumerate(group):
        if place and labels and sign == "+" and _same_subject(labels[-1], words):
            continue
        follower = group[place + 1] if place + 1 < len(group) else ("", [])
        fits = [label for label in KNOWN if _fits(label, words, follower[1] if follower[0] in ("+", ",") else [])]
        if len(fits) != 1:
            return ()
        labels.append(fits[0])
    return tuple(labels)


def _same_subject(label: str, words: list[str]) -> bool:
    """Whether these are only further verbs of the previous sound: "birds chirp and tweet"."""
    followers = {word for need in KNOWN[label].needs for part in need[1:] for word in part}
    return bool(followers) and set(words) <= followers


def _fits(label: str, words: list[str], borrowed: list[str]) -> bool:
    """Whether the words are this sound, possibly with the verb of the next segment: "a man and a woman talk"."""
    known, own = KNOWN[label], set(words)
    if not own <= known.allowed:
        return False
    if any(all(own & part for part in need) for need in known.needs):
        return True
    return any(
        own & need[0] and len(own - need[0]) <= 1 and set(borrowed) & need[1] for need in known.needs if len(need) == 2
    )
