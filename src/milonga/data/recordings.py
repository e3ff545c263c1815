"""Real clips with their captions, out of the files that people have: what a base model is trained and measured on.

Read are AudioCaps' CSV tables beside a folder of clips, JSON lines as the original Tango's, AudioFolders with their
metadata, and Parquet with audio inside (`datasets`, Audio-alpaca), by pyarrow and soundfile alone: `datasets` would ask
for torchcodec. Departure from the original: a clip that is missing or broken is refused with its reason, where there
ones take its place.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from milonga.core.audio import Mono, from_flac, read_audio
from milonga.core.errors import AudioError, DataError
from milonga.core.ids import content_id
from milonga.core.records import Clip, Refusal
from milonga.data.audio_alpaca import alpaca_files
from milonga.data.captions import COLUMNS, captions_of, table_rows

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# What the column of a clip is called, where it is a path and where its bytes are inside: the first that is there.
PATHS = ("location", "file_name", "audio", "path", "file")
BYTES = ("audio", "chosen")
IDS = ("youtube_id", "start_time", "audiocap_id")  # AudioCaps'
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
BATCH = 16  # rows of Parquet that are read at once

Refused = Callable[[Refusal], None]


@dataclass(frozen=True)
class Recording:
    """A real clip, and the captions it goes by (several in AudioCaps' val and test); its id is a hash of both."""

    id: str
    captions: tuple[str, ...]
    clip: Clip


@dataclass(frozen=True)
class Entry:
    """A row of a data set before its clip is decoded: where it stands, its captions, a file or the bytes of one."""

    where: str
    captions: tuple[str, ...]
    source: Path | bytes


def recordings(
    path: Path, audio: Path | None = None, refused: Refused | None = None, mono: Mono = "mean"
) -> Iterator[Recording]:
    """The clips of a data set with their captions, one after the other, in its order; a table's rows of one clip,
    wherever they stand, are one.

    `path` is a CSV table or JSON lines (`.jsonl`, `.json`), a folder with `metadata.csv`, `.jsonl` or `.parquet`, or
    Parquet (a file, or a folder of them) with audio inside. Clips of a table are looked for in the folder `audio`,
    else beside the table; AudioCaps' by its ids. A clip that is missing or cannot be decoded goes to `refused`; without
    that it is an error. `mono` is `core.audio`'s. Raises DataError naming file and row.
    """
    return decoded(entries(Path(path), None if audio is None else Path(audio)), refused, mono)


def decoded(rows: Iterable[Entry], refused: Refused | None = None, mono: Mono = "mean") -> Iterator[Recording]:
    """Entries with their clips decoded; `refused` and `mono` as in `recordings`."""
    for entry in rows:
        try:
            held = entry.source
            clip = from_flac(held, mono) if isinstance(held, bytes) else read_audio(held, mono=mono)
        except AudioError as error:
            if refused is None:
                raise DataError(f"{entry.where}: {error}") from error
            refused(Refusal(stage="recordings", id=content_id(entry.where), reason=f"{entry.where}: {error}"))
            continue
        heard = sha256(clip.waveform.tobytes()).hexdigest()
        yield Recording(content_id(entry.captions, clip.rate, heard), entry.captions, clip)


def entries(path: Path, audio: Path | None = None) -> Iterator[Entry]:
    """The rows of a data set, as `recordings` reads it, without their clips decoded."""
    if path.is_dir():
        table = metadata_of(path)
        found = _listed(table, audio or path) if table else _embedded(alpaca_files(path))
    elif path.suffix == ".parquet":
        found = _embedded([path])
    else:
        found = _listed(path, audio or path.parent)
    empty = True
    for entry in found:
        empty = False
        yield entry
    if empty:
        raise DataError(f"{path} holds no clips with captions")


def metadata_of(folder: Path) -> Path | None:
    """The table of an AudioFolder; None where the folder has none."""
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _listed(table: Path, folder: Path) -> Iterator[Entry]:
    """The rows of a table whose clips are files, one entry for each file: AudioCaps' five captions lie far apart."""
    found: dict[Path, Entry] = {}
    for number, row in _rows(table):
        where = f"{table}, line {number}"
        captions, source = captions_of(row, COLUMNS, where), _file(row, folder, where)
        first = found.get(source, Entry(where, (), source))
        found[source] = replace(first, captions=(*first.captions, *captions))
    yield from found.values()


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if table.suffix != ".parquet":
        return table_rows(table)
    return enumerate((row for batch in _batches(table) for row in batch), 1)


def _file(row: dict[str, Any], folder: Path, where: str) -> Path:
    """The file of a row: as it is named, absolute or in the folder; else AudioCaps' clip by its ids.

    A clip that is not there gets the path where it would be. Raises DataError for a row that names none.
    """
    named = next((row[column] for column in PATHS if isinstance(row.get(column), str) and row[column]), None)
    if named is not None:
        return next((one for one in (folder / named, Path(named)) if one.is_file()), folder / named)
    stems = _stems(row)
    if not stems:
        held = ", ".join(map(str, row))
        raise DataError(f"{where}: no column {', '.join(PATHS)}, clip or youtube_id names a clip (it has: {held})")
    places = [folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
    return next((one for one in places if one.is_file()), places[0])


def _stems(row: dict[str, Any]) -> list[str]:
    """What AudioCaps' clips are called by their ids, without suffix; its test subset has them in one column, `clip`."""
    if row.get("clip"):
        return [row["clip"], f"Y{row['clip']}"]
    if not row.get("youtube_id"):
        return []
    video, start = row["youtube_id"], row.get("start_time")
    return [f"{video}_{start}", f"Y{video}_{start}", video, f"Y{video}", str(row.get("audiocap_id", video))]


def _embedded(files: Sequence[Path]) -> Iterator[Entry]:
    """The rows of Parquet files with the bytes of a sound file in each."""
    for file in files:
        number = 0
        for batch in _batches(file):
            for row in batch:
                number += 1
                where = f"{file}, row {number}"
                yield Entry(where, tuple(captions_of(row, COLUMNS, where)), embedded(row, file.parent, where))


def embedded(row: dict[str, Any], folder: Path, where: str) -> Path | bytes:
    """The bytes of a row's sound file, or the path that stands in their place, beside the table."""
    held = next((row[column] for column in BYTES if isinstance(row.get(column), dict)), None)
    if held is None:
        told = ", ".join(map(str, row))
        raise DataError(f"{where}: no column {' or '.join(BYTES)} with audio inside (it has: {told})")
    return held["bytes"] if held.get("bytes") else folder / str(held.get("path") or "nowhere")


def _batches(file: Path) -> Iterator[list[dict[str, Any]]]:
    """A Parquet file's rows, a few at a time; of audio only what is wanted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            wanted = [name for name in table.schema_arrow.names if name in (*COLUMNS, *PATHS, *BYTES, *IDS)]
            for batch in table.iter_batches(BATCH, columns=wanted, use_threads=False):
                yield batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read as Parquet: {error}") from error
