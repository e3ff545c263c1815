"""Where real clips with captions come from, by name: tables, folders, data sets on the Hub."""

import re
from collections.abc import Iterator
from pathlib import Path

from milonga.core.errors import DataError, RecipeError
from milonga.core.ids import content_id, file_hash
from milonga.data.audio_alpaca import alpaca_files, count_pairs
from milonga.data.captions import COLUMNS, captions_of
from milonga.data.prompt_sources import loaded
from milonga.data.recordings import BYTES, Entry, embedded, entries, metadata_of

FORMS = (
    "clips:FILE.csv[@FOLDER], clips:FILE.jsonl[@FOLDER], clips:FOLDER, clips:FILE.parquet "
    "or dataset:NAME[:SPLIT[:COLUMN]]"
)

TABLES = (".csv", ".jsonl", ".json", ".parquet")


def clip_entries(source: str) -> Iterator[Entry]:
    """The rows of a source, their clips not yet decoded (`core.recordings.decoded` does that).

    `clips:PATH[@FOLDER]` is read as `core.recordings.recordings` reads it, FOLDER holding the clips of a table;
    `dataset:NAME[:SPLIT[:COLUMN]]` is a data set on the Hub or in a folder with an Audio column. Raises RecipeError for
    a source of another form, DataError for one that cannot be used.
    """
    kind, _, rest = source.partition(":")
    if kind == "clips" and rest:
        return entries(*_paths(rest))
    if kind == "dataset" and rest:
        return _dataset(rest)
    raise RecipeError(f"{source!r} is no source of clips: write {FORMS}")


def count_entries(source: str) -> int:
    """How many rows a source has; raises as `clip_entries` does. Of Parquet only the footers are read."""
    kind, _, rest = source.partition(":")
    if kind == "dataset" and rest:
        name, split = (*rest.split(":"), "")[:2]
        return loaded(name, split or "train").num_rows
    path = _paths(rest)[0]
    if kind == "clips" and path.suffix == ".parquet":
        return count_pairs([path])
    if kind == "clips" and path.is_dir() and not metadata_of(path):
        return count_pairs(alpaca_files(path))
    return sum(1 for _ in clip_entries(source))


def fingerprint(source: str) -> str:
    """A name for what a source holds now: bytes of its tables, size and time of the files that they name."""
    kind, _, rest = source.partition(":")
    if kind != "clips" or not rest:
        return content_id(source)
    path, _ = _paths(rest)
    tables = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.suffix in TABLES)
    files = {entry.source for entry in clip_entries(source) if isinstance(entry.source, Path)}
    stats = [(str(one), one.stat()) for one in sorted(files) if one.is_file()]
    return content_id([file_hash(one) for one in tables], [[n, s.st_size, s.st_mtime_ns] for n, s in stats])


def _paths(rest: str) -> tuple[Path, Path | None]:
    """The table and the folder of its clips; an @ that belongs to a path that is there splits nothing."""
    found = re.match(r"(.+)@(.+)$", rest)
    if found is None or Path(rest).exists():
        return Path(rest), None
    return Path(found[1]), Path(found[2])


def _dataset(named: str) -> Iterator[Entry]:
    """The rows of a data set: the bytes in its Audio column, its captions in the named or the first usual column."""
    from datasets import Audio

    name, split, column = (*named.split(":"), "", "")[:3]
    rows = loaded(name, split or "train")
    sounds = [one for one, kind in rows.features.items() if isinstance(kind, Audio)]
    if not sounds:
        raise DataError(f"the data set {name} has no Audio column (it has: {', '.join(rows.column_names)})")
    sound = next((one for one in BYTES if one in sounds), sounds[0])
    words = [one for one in ([column] if column else COLUMNS) if one in rows.column_names]
    # Taken out undecoded: decoding would ask for torchcodec, and soundfile reads the very same bytes.
    rows = rows.select_columns([sound, *words[:1]]).cast_column(sound, Audio(decode=False))
    for at, row in enumerate(rows):
        where = f"{name}, row {at}"
        captions = tuple(captions_of(row, words or COLUMNS, where))
        yield Entry(where, captions, embedded({BYTES[0]: row[sound]}, Path(), where))
