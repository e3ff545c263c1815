"""People's ratings of clips from tables: our own listening test's export, and the shapes in which others are published.

A table has a row for each rating, or for each clip's mean. Columns are known by their usual names: the clip's file, the
system, the caption, the rater, and one column for each scale. RELATE, XACLE, PAM and AudioEval are read as they are;
of a table with other names the scales are named.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milonga.core.errors import DataError
from milonga.data.tables import Row, read_rows

# The usual names of each column, in small letters with _ for spaces; the first that a table has is taken.
CLIP = ("clip", "wavname", "wav_file_name", "wave_file_name", "wav_name", "file_name", "filename", "audio", "path")
SYSTEM = ("system", "system_name", "audio_type", "model", "model_name", "system_id")
CAPTION = ("caption", "text", "prompt_text", "prompt")
RATER = ("rater", "listener_id", "rater_id", "listener", "annotator_id", "annotator")
SCALES = (
    "ovl", "rel", "score", "average_score", "average_semantic_alignement_score", "average_semantic_alignment_score",
    "semantic_alignment_score", "11-point_semantic-alignment_score", "mos", "enjoyment", "content_enjoyment",
    "usefulness", "content_usefulness", "complexity", "production_complexity", "quality", "production_quality",
    "alignment", "text_alignment", "textual_alignment", "pq", "pc", "ce", "cu", "ta",
)  # fmt: skip
NO = ("", "0", "0.0", "false", "no", "none", "nan")  # marks that exclude nothing
PREFERENCE = "preference"  # the scale of blind comparisons of two systems' clips
POINTS = {"a": 1.0, "b": 0.0, "same": 0.5}


@dataclass(frozen=True)
class Opinion:
    """One person's number for a clip on one scale; with `other`, how they compared `system`'s clip with that of the
    system `other` for the caption: 1 better, 0 worse, ½ alike.

    `clip` is the file as the table names it, "" where it names none; `rater` is "" where the number is a mean.
    """

    where: str
    clip: str
    system: str
    caption: str
    rater: str
    scale: str
    value: float
    other: str = ""


def read_opinions(path: Path, scales: Sequence[str] = ()) -> tuple[list[Opinion], int]:
    """The opinions in a table (CSV, JSON lines or Parquet), and how many rows their authors excluded.

    Excluded are attention checks and screened raters of a listening test, and what RELATE marks as anchor or excluded.
    `scales` name the columns of numbers; else those with known names are taken. Raises DataError, naming file and line,
    for a table without clips or scales, and for a number that is none.
    """
    opinions: list[Opinion] = []
    excluded = 0
    for row in read_rows(path):
        cells = {_plain(name): cell for name, cell in row.cells.items()}
        if _is_excluded(cells):
            excluded += 1
            continue
        if cells.get("kind") == "compare" and {"a", "b", "better"} <= cells.keys():
            opinions.append(_choice(row, cells))
        else:
            opinions += _numbers(row, cells, scales)
    if not opinions:
        raise DataError(f"{path}: no rating counts ({excluded} rows are excluded by its own marks)")
    return opinions, excluded


def _plain(name: str) -> str:
    return re.sub(r"\s+", "_", name.strip().lower())


def _is_excluded(cells: dict[str, Any]) -> bool:
    marked = any(str(cells.get(name) or "").strip().lower() not in NO for name in ("excluded", "check"))
    return marked or "excluded" in str(cells.get("in_relate_dataset")).lower() or cells.get("audio_type") == "anchor"


def _choice(row: Row, cells: dict[str, Any]) -> Opinion:
    if cells["better"] not in POINTS:
        raise DataError(f"{row.where}: better is {cells['better']!r}, and must be a, b or same")
    return Opinion(
        row.where, "", str(cells["a"]), _cell(cells, CAPTION), _cell(cells, RATER), PREFERENCE,
        POINTS[cells["better"]], str(cells["b"]),
    )  # fmt: skip


def _numbers(row: Row, cells: dict[str, Any], scales: Sequence[str]) -> Iterator[Opinion]:
    """A row's number on each scale; an empty cell is no rating."""
    own_test = {"a", "b", "prompt"} <= cells.keys()
    clip, system = ("", str(cells["a"])) if own_test else (_cell(cells, CLIP), _cell(cells, SYSTEM))
    if not (clip or own_test):
        raise DataError(f"{row.where}: no clip; a table of ratings needs a column clip (it has: {', '.join(cells)})")
    wanted = [_plain(name) for name in scales] or [name for name in SCALES if name in cells]
    missing = [name for name in wanted if name not in cells]
    if missing or not wanted:
        lacking = f"no column {missing[0]}" if missing else "no column of scores"
        raise DataError(f"{row.where}: {lacking}; name one with --scale (it has: {', '.join(cells)})")
    for scale in wanted:
        if cells[scale] is None or str(cells[scale]).strip() == "":
            continue
        try:
            value = float(cells[scale])
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{row.where}: {scale} is {cells[scale]!r}, not a number; correct or empty the cell")
        yield Opinion(row.where, clip, system, _cell(cells, CAPTION), _cell(cells, RATER), scale, value)


def _cell(cells: dict[str, Any], names: Sequence[str]) -> str:
    name = next((name for name in names if cells.get(name) is not None), None)
    return "" if name is None else str(cells[name]).strip()
