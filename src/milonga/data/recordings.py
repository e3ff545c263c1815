"""Real clips with their captions, out of the files that people have: what a base model is trained and measured on.

Read are tables beside a folder of clips (AudioCaps' and Clotho's columns, the original Tango's JSON lines),
AudioFolders with their metadata, Parquet with audio inside (`datasets`, Audio-alpaca) and data sets on the Hub, by
pyarrow and soundfile alone: `datasets` would ask for torchcodec. Departure from the original: a clip that is missing or
broken is left out and reported with its reason, where the original puts another in its place.
"""

import contextlib
import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.audio import Mono, from_flac, read_audio
from milonga.core.cache import feature_cache
from milonga.core.errors import AudioError, DataError, MilongaWarning, RecipeError, brief
from milonga.core.ids import content_id, file_hash
from milonga.core.records import Clip, Prompt, Refusal
from milonga.core.store import read_json, write_json
from milonga.data.audio_alpaca import SHORTEST, alpaca_files, count_pairs, embedded_audio
from milonga.data.captions import (
    CAPTION_COLUMNS,
    SOUND_SUFFIXES,
    WORLD,
    caption_columns,
    captions_of,
    clip_names,
    loaded,
    metadata_of,
    prompt_source,
    reference,
    utf8_name,
)
from milonga.data.tables import PATH_COLUMNS, TABLE_SUFFIXES, Row, read_rows

AUDIO_COLUMNS = ("audio", "chosen")  # where a clip's bytes are inside: the first that is there
LISTED = 10  # reasons that are printed
LEFT_OUT = "left-out.json"

Refused = Callable[[Refusal], None]


@dataclass(frozen=True)
class Recording:
    """A real clip, and the captions it goes by (several in AudioCaps' val and test); its id is a hash of both."""

    id: str
    captions: tuple[str, ...]
    clip: Clip


@dataclass(frozen=True)
class Entry:
    """A row of a data set before its clip is decoded: where it stands, its captions, and a file, bytes or a prompt."""

    where: str
    captions: tuple[str, ...]
    source: Path | bytes | Clip | Prompt


def clip_entries(source: str) -> Iterator[Entry]:
    """The rows of a source, their clips not yet decoded (`decoded` does that).

    `clips:PATH[@FOLDER]` is read as `entries` reads it, FOLDER holding the clips of a table. `dataset:NAME[:SPLIT
    [:COLUMN]]` has an Audio column, on the Hub or in a folder. `world:SPLIT:COUNT[:multi]` are captions that the small
    world renders. Raises RecipeError for a source of another form, DataError for one that cannot be used.
    """
    kind, _, rest = source.partition(":")
    if WORLD.fullmatch(source):
        return (Entry(prompt.text, (prompt.text,), prompt) for prompt in prompt_source(source))
    if kind == "clips" and rest:
        return entries(*_paths(rest))
    if kind == "dataset" and rest:
        folder = Path(rest.removesuffix(":train"))
        # An AudioFolder on this machine: `datasets` would decode its sounds, and needs more libraries for that.
        return entries(folder) if metadata_of(folder) else _dataset_entries(rest)
    raise RecipeError(
        f"{source!r} is no source of clips: write clips:FILE.csv[@FOLDER] (or .tsv, .json, .jsonl, .parquet), "
        "clips:FOLDER, dataset:NAME[:SPLIT[:COLUMN]] or world:train:COUNT[:multi]"
    )


def entries(path: Path, audio: Path | None = None) -> Iterator[Entry]:
    """The rows of a data set without their clips decoded, in its order; a table's rows of one clip are one entry.

    `path` is a table, a folder with `metadata.csv`, `.tsv`, `.jsonl` or `.parquet`, or Parquet (a file, or a folder of
    them) with audio inside. Clips of a table are looked for in the folder `audio`, else beside the table; AudioCaps' by
    its ids. Raises DataError naming file and row.
    """
    if path.is_dir():
        table = metadata_of(path)
        rows = _listed(table, audio or path) if table else _embedded(_parquet_files(path))
    elif path.suffix.lower() == ".parquet" and not _names_files(path):
        rows = _embedded([path])
    else:
        rows = _listed(path, audio or path.parent)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path} holds no clips with captions")
    yield first
    yield from rows


def decoded(
    rows: Iterable[Entry], refused: Refused | None = None, mono: Mono = "mean", seconds: float | None = None
) -> Iterator[Recording]:
    """Entries with their clips decoded, of each at most its first `seconds`.

    A clip that is missing, cannot be decoded or is too short goes to `refused`; without that it is a DataError naming
    file and row. `mono` is `core.audio`'s.
    """
    for entry in rows:
        try:
            clip = entry.source
            if isinstance(clip, Path):
                clip = read_audio(clip, mono=mono, seconds=seconds)
            elif isinstance(clip, bytes):
                clip = from_flac(clip, mono, seconds)
            elif isinstance(clip, Prompt):
                clip = reference(clip)
            if clip.seconds < SHORTEST:
                raise AudioError(f"the clip has only {len(clip.waveform)} samples at {clip.rate} Hz: it is too short")
        except AudioError as error:
            if refused is None:
                raise DataError(f"{entry.where}: {error}") from error
            refused(Refusal(stage="recordings", id=content_id(entry.where), reason=f"{entry.where}: {error}"))
            continue
        digest = sha256(clip.waveform.tobytes()).hexdigest()
        yield Recording(content_id(entry.captions, clip.rate, digest), entry.captions, clip)


def report_left_out(
    refusals: Sequence[Refusal],
    total: int,
    folder: Path,
    allow_missing: bool = False,
    things: str = "clips",
    source: str = "",
) -> None:
    """Warns of what was left out of `total` clips or pairs: how many, and the file, row and reason of each.

    All reasons stand in `folder/left-out.json`, up to ten in the warning too; it replaces an earlier one of the same
    `source` beside it. Raises DataError where more than half is left out, unless `allow_missing`, and where nothing is
    left.
    """
    for earlier in folder.parent.parent.glob(f"*/{folder.name}/{LEFT_OUT}"):
        if read_json(earlier).get("source", source) == source:
            earlier.unlink()
    if not refusals:
        return
    reasons = [refusal.reason for refusal in refusals]
    text = f"left out {len(reasons)} of {total} {things}"
    if len(reasons) == total:
        raise DataError(f"none of {total} {things} could be used; the first: {reasons[0]}")
    if 2 * len(reasons) > total and not allow_missing:
        advice = "mend the data, or set train.allow_missing (--allow-missing)"
        raise DataError(f"{text}, more than half; the first: {reasons[0]}; {advice}")
    listing = folder / LEFT_OUT
    write_json(listing, {"left_out": len(reasons), "of": total, "things": things, "source": source, "reasons": reasons})
    if len(reasons) > LISTED:
        reasons = [f"the first: {reasons[0]}", f"all are in {listing}"]
    warnings.warn("; ".join([text, *reasons]), MilongaWarning, stacklevel=2)


def left_out_of(run: Path) -> dict[str, list[str]]:
    """What the trainings of a run left out of their data: for each data set how much of it, and all reasons."""
    reports = [read_json(file) for file in sorted(run.glob(f"encoded/*/refused/{LEFT_OUT}"))]
    return {
        f"{report['left_out']:,} of {report['of']:,} {report['things']}"
        + (f" of {report['source']}" if report.get("source") else ""): report["reasons"]
        for report in reports
    }


def count_entries(source: str) -> int:
    """How many rows a source has; raises as `clip_entries` does. Of Parquet only the footers are read."""
    kind, _, rest = source.partition(":")
    if kind == "dataset" and rest and not metadata_of(Path(rest.removesuffix(":train"))):
        name, split = (*rest.split(":"), "")[:2]
        return loaded(name, split or "train").num_rows
    path = _paths(rest)[0]
    if kind == "clips" and path.suffix.lower() == ".parquet" and not _names_files(path):
        return count_pairs([path])
    if kind == "clips" and path.is_dir() and not metadata_of(path):
        return count_pairs(_parquet_files(path))
    return sum(1 for _ in clip_entries(source))


def fingerprint(source: str) -> str:
    """A name for what a source holds now: bytes of its tables and of the files that they name, which are read again
    only where size or time has changed; for a data set the library's own fingerprint of its rows."""
    kind, _, rest = source.partition(":")
    folder = Path(rest.removesuffix(":train"))
    if kind == "world":  # rendering is part of what it holds
        return content_id(source, [recording.id for recording in decoded(islice(clip_entries(source), 1))])
    if kind == "dataset" and rest and not metadata_of(folder):
        name, split = (*rest.split(":"), "")[:2]
        return content_id(source, loaded(name, split or "train")._fingerprint)
    path = folder if kind == "dataset" else _paths(rest)[0]
    tables = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in TABLE_SUFFIXES)
    files = {entry.source for entry in clip_entries(source) if isinstance(entry.source, Path)}
    return content_id(
        [file_hash(file) for file in tables], file_hashes([file for file in sorted(files) if file.is_file()])
    )


def file_hashes(files: Sequence[Path]) -> list[str]:
    """The SHA-256 of each file; those of files that are as they were come from the user's cache."""
    stats = [file.stat() for file in files]
    keys = [content_id("file", str(f.resolve()), s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True)]
    cache = feature_cache()
    known = {key: row["sha256"].tobytes().hex() for key, row in cache.get(keys).items() if "sha256" in row}
    fresh = {key: file_hash(file) for key, file in zip(keys, files, strict=True) if key not in known}
    cache.put({key: {"sha256": np.frombuffer(bytes.fromhex(text), np.uint8)} for key, text in fresh.items()})
    return [(known | fresh)[key] for key in keys]


def _paths(rest: str) -> tuple[Path, Path | None]:
    """The table and the folder of its clips; an @ that belongs to a path that is there splits nothing."""
    parts = re.match(r"(.+)@(.+)$", rest)
    if parts is None or Path(rest).exists():
        return Path(rest), None
    return Path(parts[1]), Path(parts[2])


def _parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder without metadata; DataError that says what a folder of sounds lacks."""
    if not any(folder.rglob("*.parquet")):
        names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.name.startswith(".")]
        tables = [str(name) for name in names if name.suffix.lower() in TABLE_SUFFIXES]
        if any(name.suffix.lower() in SOUND_SUFFIXES for name in names):
            there = f"; it has {', '.join(tables[:3])}: name it, as in clips:{folder / tables[0]}" if tables else ""
            missing = "no metadata.csv, .jsonl or .parquet (columns file_name and caption)"
            raise DataError(f"{folder} has sound files but {missing}{there}")
        if tables:
            raise DataError(f"{folder} has no metadata.csv, but {tables[0]}: name it, as in clips:{folder / tables[0]}")
    return alpaca_files(folder)


def _names_files(table: Path) -> bool:
    """Whether a Parquet file names its clips' files, as an AudioFolder's metadata does, and has none inside."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(table)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{table} cannot be read as Parquet: {brief(error)}") from error
    inside = any(name in schema.names and pa.types.is_struct(schema.field(name).type) for name in AUDIO_COLUMNS)
    return not inside and any(name in schema.names for name in ("clip", *PATH_COLUMNS, "youtube_id") if name != "audio")


def _listed(table: Path, folder: Path) -> Iterator[Entry]:
    """The rows of a table whose clips are files, one entry for each file: AudioCaps' five captions lie far apart."""
    clips, finder = dict[Path, Entry](), FileFinder(folder)
    for row in read_rows(table, CAPTION_COLUMNS):
        captions, names = captions_of(row), clip_names(row)
        if not names:
            held = ", ".join(row.cells)
            columns = ", ".join(PATH_COLUMNS)
            raise DataError(f"{row.where}: no column {columns}, clip or youtube_id names a clip (it has: {held})")
        source = finder.find(names)
        first = clips.get(source, Entry(row.where, (), source))
        clips[source] = replace(first, captions=(*first.captions, *captions))
    yield from clips.values()


class FileFinder:
    """The files of a folder by the names that a table gives them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._spelled: dict[str, Path] | None = None

    def find(self, names: Sequence[str]) -> Path:
        """The first of `names` that is a file, with or without a suffix of sound; else where it would be.

        A name in another Unicode form, with spaces around it or with backslashes is found too: they look alike.
        """
        for name in names:
            for place in (self.folder / name, Path(name)):
                if os.path.isfile(place):  # Path.is_file raises for a name that is too long
                    return place
        for name in names:
            for suffix in SOUND_SUFFIXES:
                if os.path.isfile(place := self.folder / f"{name}{suffix}"):
                    return place
        if self._spelled is None:
            files = [file for file in self.folder.rglob("*") if file.suffix.lower() in SOUND_SUFFIXES]
            self._spelled = {}
            for file in sorted(files):
                with contextlib.suppress(UnicodeDecodeError):  # no table names such a file
                    self._spelled[_plain(utf8_name(str(file.relative_to(self.folder))))] = file
        for name in names:
            for suffix in ("", *SOUND_SUFFIXES):
                if (plain := _plain(f"{name.strip()}{suffix}")) in self._spelled:
                    return self._spelled[plain]
        return self.folder / names[0]


def _plain(name: str) -> str:
    parts = unicodedata.normalize("NFC", name.replace("\\", "/")).split("/")
    return "/".join(part.strip() for part in parts if part not in ("", "."))


def _embedded(files: Sequence[Path]) -> Iterator[Entry]:
    """The rows of Parquet files with the bytes of a sound file in each."""
    for file in files:
        for row in read_rows(file, (*CAPTION_COLUMNS, *AUDIO_COLUMNS)):
            yield Entry(row.where, tuple(captions_of(row)), _audio_of(row, file.parent))


def _audio_of(row: Row, folder: Path) -> Path | bytes | Clip:
    """The first audio inside a row; DataError where no column holds any."""
    held = next((cell for name in AUDIO_COLUMNS if isinstance(cell := row.cells.get(name), dict)), None)
    if held is None:
        columns = ", ".join(row.cells)
        raise DataError(f"{row.where}: no column {' or '.join(AUDIO_COLUMNS)} with audio inside (it has: {columns})")
    return embedded_audio(held, folder)


def _dataset_entries(source: str) -> Iterator[Entry]:
    """The rows of a data set: the bytes in its Audio column, its captions in the named or the first usual column."""
    from datasets import Audio

    name, split, column = (*source.split(":"), "", "")[:3]
    rows = loaded(name, split or "train")
    sounds: list[Any] = [one for one, kind in rows.features.items() if isinstance(kind, Audio)]
    if not sounds:
        raise DataError(f"the data set {name} has no Audio column (it has: {', '.join(rows.column_names)})")
    sound = next((one for one in AUDIO_COLUMNS if one in sounds), sounds[0])
    texts = caption_columns(rows.column_names, column)
    # Taken out undecoded: decoding would ask for torchcodec, and soundfile reads the very same bytes.
    rows = rows.select_columns([sound, *texts]).cast_column(sound, Audio(decode=False))
    for at, cells in enumerate(rows):
        row = Row(f"{name}, row {at}", cells)
        captions = tuple(captions_of(row, [column] if column else CAPTION_COLUMNS))
        yield Entry(row.where, captions, embedded_audio(cells[sound] or {}, Path()))
