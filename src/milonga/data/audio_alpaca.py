"""Pairs with their clips in the layout of Audio-alpaca: written with provenance, read with or without it.

The published set (`declare-lab/audio-alpaca`) has four columns: `prompt`, `chosen` and `rejected` (audio, the bytes of
a file inside), `strategy`. A set that Milonga writes has them first, then everything that made the two clips. Both are
read here, by pyarrow and soundfile alone: `datasets` would ask for torchcodec to decode the very same bytes.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from milonga.core.audio import flac_bytes, from_flac, read_audio
from milonga.core.errors import AudioError, DataError, brief
from milonga.core.ids import content_id
from milonga.core.records import Clip, Pair, Refusal
from milonga.core.store import write_bytes
from milonga.data.tables import read_rows

if TYPE_CHECKING:
    import pyarrow

PUBLISHED = ("prompt", "chosen", "rejected", "strategy")
TEXTS = ("strategy", "chosen_id", "rejected_id", "id", "prompt_id", "chosen_words", "rejected_words")
NUMBERS = ("chosen_steps", "rejected_steps", "chosen_seed", "rejected_seed")
SCORES = ("chosen_scores", "rejected_scores")
REGION = ("region_from", "region_to")  # seconds; columns of localised pairs alone
SHORTEST = 0.001  # seconds: a shorter clip may have no sample left at another rate


@dataclass(frozen=True)
class Origin:
    """What made all pairs of a data set: the model's name and the hash of its weights, and each scorer's hash."""

    model: str
    model_hash: str
    scorer_hashes: Mapping[str, str]


@dataclass(frozen=True)
class PairedClips:
    """A pair with its two clips, decoded."""

    pair: Pair
    chosen: Clip
    rejected: Clip


def alpaca_table(
    pairs: Sequence[Pair], audio: Mapping[str, bytes], guidance: Mapping[str, float], origin: Origin
) -> "pyarrow.Table":
    """At least one pair as a table, one row each; `audio` (files as bytes) and `guidance` are by clip id.

    Scores by scorers that `origin` does not name are left out. Raises DataError for a clip or score that is missing.
    """
    import pyarrow as pa

    try:
        rows = [alpaca_row(pair, audio, guidance, origin) for pair in pairs]
    except KeyError as error:
        raise DataError(f"pair data lacks clip or score {error}: run the stages before `pair` again") from error
    localised = any(pair.region for pair in pairs)
    schema = _schema(sorted(origin.scorer_hashes), from_flac(rows[0]["chosen"]["bytes"]).rate, localised)
    return pa.Table.from_pylist(rows, schema=schema)


def alpaca_row(pair: Pair, audio: Mapping[str, bytes], guidance: Mapping[str, float], origin: Origin) -> dict[str, Any]:
    """A pair as one row of the layout, its clips as the bytes of FLAC files; KeyError for a clip or score missing."""
    row: dict[str, Any] = {name: getattr(pair, name) for name in ("prompt", *TEXTS, *NUMBERS)}
    for side, clip in (("chosen", pair.chosen_id), ("rejected", pair.rejected_id)):
        row[side] = {"bytes": audio[clip], "path": f"{clip}.flac"}
        row[f"{side}_guidance"] = guidance[clip]
        row[f"{side}_scores"] = {name: getattr(pair, f"{side}_scores")[name] for name in origin.scorer_hashes}
    return (
        row
        | dict(zip(REGION, pair.region or (None, None), strict=True))
        | {"model": origin.model, "model_hash": origin.model_hash, "scorer_hashes": dict(origin.scorer_hashes)}
    )


def _schema(scorers: Sequence[str], rate: int, localised: bool) -> "pyarrow.Schema":
    """Columns in order, and the same in the metadata of `datasets`, by which it knows the audio columns."""
    import pyarrow as pa

    # Every column with its kind: a type's name, a dict of them for one value each scorer, None for audio.
    kinds: dict[str, Any] = {"prompt": "string", "chosen": None, "rejected": None}
    kinds |= dict.fromkeys(TEXTS, "string") | dict.fromkeys(NUMBERS, "int64")
    kinds |= dict.fromkeys(("chosen_guidance", "rejected_guidance"), "float64")
    kinds |= {name: dict.fromkeys(scorers, "float64") for name in SCORES}
    kinds |= {"model": "string", "model_hash": "string", "scorer_hashes": dict.fromkeys(scorers, "string")}
    kinds |= dict.fromkeys(REGION if localised else (), "float64")
    features = {name: _feature(kind, rate) for name, kind in kinds.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(name, _column(kind)) for name, kind in kinds.items()], metadata=metadata)


def _column(kind: Any) -> "pyarrow.DataType":
    import pyarrow as pa

    if kind is None:
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if isinstance(kind, dict):
        return pa.struct([(name, _column(one)) for name, one in kind.items()])
    return {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64()}[kind]


def _feature(kind: Any, rate: int) -> dict[str, Any]:
    if kind is None:
        return {"sampling_rate": rate, "_type": "Audio"}
    if isinstance(kind, dict):
        return {name: _feature(one, rate) for name, one in kind.items()}
    return {"dtype": kind, "_type": "Value"}


def write_pairs(path: Path, pairs: Sequence[PairedClips], origin: Origin, guidance: float = 0.0) -> None:
    """Writes pairs as one Parquet file of the layout, whole or not at all; their clips become FLAC of 24 bits."""
    from io import BytesIO

    import pyarrow.parquet as pq

    audio = {row.pair.chosen_id: flac_bytes(row.chosen, 24) for row in pairs}
    audio |= {row.pair.rejected_id: flac_bytes(row.rejected, 24) for row in pairs}
    buffer = BytesIO()
    pq.write_table(alpaca_table([row.pair for row in pairs], audio, dict.fromkeys(audio, guidance), origin), buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())


def read_alpaca(path: Path, split: str | None = None) -> Iterator[PairedClips]:
    """The pairs of a data set with their clips, one after the other in the order of files and rows.

    `path` is a Parquet file, or a folder with any number of them, as `milonga export` writes it or the Hub gives it;
    of a folder `split` takes the files whose names begin so (`train`). What a set does not say about a pair is empty:
    ids are then hashes of the audio, steps and seeds are 0, words are "", and there are no scores. Clips keep their own
    sampling rate. Raises DataError for a missing file, split or column, and for the first pair that cannot be used.
    """
    for pair in checked_pairs(path, split):
        if isinstance(pair, Refusal):
            raise DataError(pair.reason)
        yield pair


def checked_pairs(
    path: Path, split: str | None = None, seconds: float | None = None
) -> Iterator[PairedClips | Refusal]:
    """Every row of a data set: a pair with its clips, or the reason why it cannot be used (`paired_clips`).

    Raises DataError for a missing file, split or column, and for a set without a row.
    """
    empty = True
    for file in alpaca_files(path, split):
        for number, row in enumerate(alpaca_rows(file), 1):
            empty, where = False, f"{file}, row {number}"
            try:
                yield paired_clips(row, where, file.parent, seconds)
            except DataError as error:
                yield Refusal(stage="pairs", id=content_id(where), reason=str(error))
    if empty:
        raise DataError(f"{path} holds no pairs")


def alpaca_files(path: Path, split: str | None = None) -> list[Path]:
    """The Parquet files that `read_alpaca` reads, in its order; DataError where there are none."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    files = [file for file in files if not file.name.startswith(".")]
    chosen = [file for file in files if split is None or file.name.startswith(f"{split}-") or file.stem == split]
    if not chosen:
        raise DataError(f"{path} holds no Parquet file{f' of the split {split}' if split and files else ''}")
    return chosen


def count_pairs(files: Sequence[Path]) -> int:
    """How many pairs some Parquet files hold, by their footers alone; DataError for what is no Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return sum(pq.read_metadata(file).num_rows for file in files)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{files[0].parent} holds what cannot be read as Parquet: {brief(error)}") from error


def alpaca_rows(file: Path) -> Iterator[dict[str, Any]]:
    """A Parquet file's rows, a few at a time; DataError where it lacks one of the published columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(file).names
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read as Parquet: {brief(error)}") from error
    missing = [name for name in PUBLISHED if name not in names]
    if missing:
        raise DataError(f"{file} has no column {', '.join(missing)}: it holds no pairs in Audio-alpaca's layout")
    return (row.cells for row in read_rows(file))


def embedded_audio(cell: Any, folder: Path) -> Path | bytes | Clip:
    """The audio in a cell: a file's bytes, or its path, absolute or in `folder`, or an array with its sampling rate.

    Raises AudioError for a cell that holds none of these.
    """
    cell = {"path": cell} if isinstance(cell, str) else cell or {}
    if not isinstance(cell, dict):
        raise AudioError(f"a cell of {type(cell).__name__} holds no audio: bytes, path or array are expected")
    if cell.get("bytes"):
        return cell["bytes"]
    if cell.get("array") is not None and cell.get("sampling_rate"):
        samples = np.asarray(cell["array"], dtype=np.float32)
        if samples.ndim == 2:  # channels are the shorter side
            samples = samples.mean(axis=int(samples.shape[0] > samples.shape[1]))
        if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
            raise AudioError("the array holds no finite samples of one or two dimensions")
        return Clip(samples, int(cell["sampling_rate"]))
    if cell.get("path"):
        return folder / str(cell["path"])
    raise AudioError("holds no audio: neither bytes nor path nor array")


def clips_by_path(files: Sequence[Path]) -> list[Path]:
    """The audio files that a data set names by their path and that are there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = set[Path]()
    for file in files:
        schema = pq.read_schema(file)
        for side in {"chosen", "rejected"} & set(schema.names):
            kind = schema.field(side).type
            if pa.types.is_struct(kind) and kind.get_field_index("path") < 0:
                continue
            names = pq.ParquetFile(file).read([f"{side}.path" if pa.types.is_struct(kind) else side])[side]
            texts = (name["path"] if isinstance(name, dict) else name for name in names.to_pylist())
            paths |= {
                file.parent / text for text in texts if isinstance(text, str) and os.path.isfile(file.parent / text)
            }
    return sorted(paths)


def paired_clips(
    row: Mapping[str, Any], where: str, folder: Path = Path(), seconds: float | None = None
) -> PairedClips:
    """A row of the layout as a pair with its clips decoded, of each at most its first `seconds`; clips that are paths
    are looked for in `folder`. What the row does not say is filled as `read_alpaca` describes.

    Raises DataError, naming `where` the row stands, for a clip that is missing, broken or too short, for an empty
    prompt, and where winner and loser are the same clip.
    """
    prompt, clips = row["prompt"], list[Clip]()
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: the prompt is empty")
    for side in ("chosen", "rejected"):
        try:
            source = embedded_audio(row[side], folder)
            if isinstance(source, Path):
                source = read_audio(source, mono="all", seconds=seconds)
            clip = from_flac(source, seconds=seconds) if isinstance(source, bytes) else source
            if clip.seconds < SHORTEST:
                raise AudioError(f"only {len(clip.waveform)} samples at {clip.rate} Hz")
        except AudioError as error:
            raise DataError(f"{where}: {prompt!r} lacks a clip that can be decoded ({side}: {error})") from error
        clips.append(clip)
    chosen, rejected = clips
    if chosen.rate == rejected.rate and np.array_equal(chosen.waveform, rejected.waveform):
        raise DataError(f"{where}: winner and loser of {prompt!r} are the same clip")
    fields: dict[str, Any] = {name: "" if row.get(name) is None else str(row[name]) for name in TEXTS}
    fields |= {name: row.get(name) or 0 for name in NUMBERS}
    for name in SCORES:  # sets that were joined have null for the scorers of the other
        scores = row.get(name) or {}
        known = isinstance(scores, dict)
        fields[name] = {scorer: score for scorer, score in scores.items() if score is not None} if known else scores
    for side, clip in (("chosen", chosen), ("rejected", rejected)):
        data = row[side].get("bytes") if isinstance(row[side], dict) else None
        digest = sha256(data or clip.waveform.tobytes()).hexdigest()
        fields[f"{side}_id"] = fields[f"{side}_id"] or content_id(digest)
    if all(row.get(name) is not None for name in REGION):
        fields["region"] = tuple(row[name] for name in REGION)
    fields["prompt_id"] = fields["prompt_id"] or content_id(prompt)
    fields["id"] = fields["id"] or content_id(fields["strategy"], fields["chosen_id"], fields["rejected_id"])
    try:
        return PairedClips(Pair(prompt=prompt, **fields), chosen, rejected)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise DataError(f"{where}: {'.'.join(map(str, wrong['loc']))} is unusable: {wrong['msg']}") from None
