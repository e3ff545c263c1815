"""Captions out of files that people have: CSV tables as AudioCaps', and JSON lines as Tango's."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from milonga.core.errors import DataError
from milonga.core.records import Scene

# What the column of captions is called in the data sets of this field; the first that is there counts.
COLUMNS = ("caption", "captions", "text", "prompt")

_TEMPORAL = re.compile(r"\b(while|as|before|after|then|followed)\b", re.IGNORECASE)  # the evaluation's words, §5.5
_BETWEEN = re.compile(r"\b(?:while|as|before|after|then|followed|and|with|over|during|along|alongside)\b|[,;.]", re.I)
# Words that tell where, how or how often something sounds: a part of a caption with no other word is no sound.
_ASIDE = re.compile(
    r"(?:an?|the|in|on|of|off|by|at|to|it|is|background|foreground|distance|nearby|far|away|very"
    r"|close|closely|loudly|softly|quietly|faintly|distant|distantly|continuously|repeatedly|again|briefly|quickly"
    r"|slowly|rapidly|once|twice|several|times|more|later|soon|shortly|eventually)"
)


def caption_texts(path: Path, columns: Sequence[str] = COLUMNS) -> Iterator[str]:
    """The captions of a file, stripped, in its order: JSON lines by the suffix `.jsonl` or `.json`, else a CSV table.

    They stand in the first of `columns` that there is. Raises DataError when the file is missing, empty, not UTF-8,
    malformed or without such a column, or when a row has no caption.
    """
    empty = True
    for number, row in table_rows(path):
        empty = False
        yield from captions_of(row, columns, f"{path}, line {number}")
    if empty:
        raise DataError(f"{path}: no captions in it")


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of JSON lines by the suffix `.jsonl` or `.json`, else of a CSV table with a header.

    Raises DataError when the file is missing, not UTF-8 or malformed.
    """
    try:
        yield from _lines(path) if path.suffix in (".jsonl", ".json") else _table(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save the table as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def captions_of(row: dict[str, Any], columns: Sequence[str], where: str) -> list[str]:
    """A row's caption, or captions where its column holds a list; `where` names the row in a DataError."""
    name = next((name for name in columns if name in row), None)
    if name is None:
        wanted = " or ".join(f"`{one}`" for one in columns)
        held = ", ".join(map(str, row))
        raise DataError(f"{where}: no column {wanted} (it has: {held}); rename or add it")
    found = row[name] if isinstance(row[name], list) else [row[name]]
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise DataError(f"{where}: the caption is empty; fill or delete that row")
    return [text.strip() for text in found]


def _table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of a CSV table with a header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            if not table.fieldnames:
                raise DataError(f"{path}: the file is empty; it needs a header with a column `caption`")
            for row in table:
                yield table.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV table ({error}); check its quotes") from error


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of a file of JSON lines; empty lines count for nothing."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error}); one object a line is wanted") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: not a JSON object; one object a line is wanted")
            yield number, row


def tags_of(text: str, scene: Scene | None = None) -> tuple[str, ...]:
    """The evaluation's subsets that a caption belongs to (§5.5): "temporal" and "multi-concept".

    Temporal: one of the whole words while, as, before, after, then, followed. Multi-concept: more than one sound in its
    scene or, where the scene is unknown, in the caption (`sounds_in`).
    """
    in_time = bool(_TEMPORAL.search(text))
    several = (sounds_in(text) if scene is None else sum(len(group) for group in scene)) > 1
    return (*(("temporal",) if in_time else ()), *(("multi-concept",) if several else ()))


def sounds_in(text: str) -> int:
    """How many sounds a caption tells of: its parts between words of time, words that join (and, with, over, during,
    along, alongside) and punctuation, but for parts that only say where, how or how often.

    "A dog barks loudly, then rain falls in the distance" has two, "a dog barks, far away" one. A part is counted
    whatever it names, so two doings of one source count twice, and so do two sources of one doing.
    """
    parts = [re.findall(r"[^\W\d_]+", part.lower()) for part in _BETWEEN.split(text)]
    return sum(any(not _ASIDE.fullmatch(word) for word in part) for part in parts)
