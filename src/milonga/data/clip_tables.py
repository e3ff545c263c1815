"""Folders of audio files, and tables with the columns clip and caption."""

import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from milonga.core.errors import DataError

AUDIO = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")


def audio_files(folder: Path) -> dict[str, Path]:
    """Audio files by name without suffix; DataError where two differ in nothing else."""
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in AUDIO:
            if file.stem in found:
                raise DataError(f"{folder}: {file.name} and {found[file.stem].name} are one clip: remove one of them")
            found[file.stem] = file
    return found


def caption_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(row's number, row) of a CSV with the columns clip and caption, both filled; cells without spaces around them.

    Raises DataError in one line for anything else.
    """
    try:
        table = csv.DictReader(StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
        rows, header = list(table), table.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not rows or not {"clip", "caption"} <= set(header):
        raise DataError(f"{path} needs the columns clip and caption, and a row for each clip")
    for number, row in enumerate(rows, 2):
        told = {name: (value or "").strip() for name, value in row.items() if isinstance(name, str)}
        if not told["clip"] or not told["caption"]:
            raise DataError(f"{path}, row {number}: clip and caption must both be filled")
        yield number, told
