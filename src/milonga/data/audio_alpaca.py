"""Pairs with their clips in the layout of Audio-alpaca: written with provenance, read with or without it.

The published set (`declare-lab/audio-alpaca`) has four columns: `prompt`, `chosen` and `rejected` (audio, the bytes of
a file inside), `strategy`. A set that Milonga writes has them first, then everything that made the two clips. Both are
read here, by pyarrow and soundfile alone: `datasets` would ask for torchcodec to decode the very same bytes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milonga.core.audio import from_flac
from milonga.core.errors import AudioError, DataError
from milonga.core.ids import content_id
from milonga.core.records import Clip, Pair

if TYPE_CHECKING:
    import pyarrow

PUBLISHED = ("prompt", "chosen", "rejected", "strategy")
TEXTS = ("strategy", "chosen_id", "rejected_id", "id", "prompt_id", "chosen_words", "rejected_words")
NUMBERS = ("chosen_steps", "rejected_steps", "chosen_seed", "rejected_seed")
SCORES = ("chosen_scores", "rejected_scores")
BATCH = 16  # rows that are read at once: a few megabytes of audio


@dataclass(frozen=True)
class Origin:
    """What made all pairs of a data set: the model's name and the hash of its weights, and each scorer's hash."""

    model: str
    model_hash: str
    scorer_hashes: Mapping[str, str]


@dataclass(frozen=True)
class PairedClips:
    """A pair with its two clips, ready to be heard or trained on."""

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
        rows = [_row(pair, audio, guidance, origin) for pair in pairs]
    except KeyError as error:
        raise DataError(f"pair data lacks clip or score {error}: run the stages before `pair` again") from error
    schema = _schema(sorted(origin.scorer_hashes), from_flac(rows[0]["chosen"]["bytes"]).rate)
    return pa.Table.from_pylist(rows, schema=schema)


def _row(pair: Pair, audio: Mapping[str, bytes], guidance: Mapping[str, float], origin: Origin) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(pair, name) for name in ("prompt", *TEXTS, *NUMBERS)}
    for side, clip in (("chosen", pair.chosen_id), ("rejected", pair.rejected_id)):
        row[side] = {"bytes": audio[clip], "path": f"{clip}.flac"}
        row[f"{side}_guidance"] = guidance[clip]
        row[f"{side}_scores"] = {name: getattr(pair, f"{side}_scores")[name] for name in origin.scorer_hashes}
    whole = {"model": origin.model, "model_hash": origin.model_hash, "scorer_hashes": dict(origin.scorer_hashes)}
    return row | whole


def _schema(scorers: Sequence[str], rate: int) -> "pyarrow.Schema":
    """Columns in order, with the same told in the words of `datasets`, so that the audio is known to be audio."""
    import pyarrow as pa

    kinds = _kinds(scorers)
    features = {name: _feature(kind, rate) for name, kind in kinds.items()}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(name, _column(kind)) for name, kind in kinds.items()], metadata=told)


def _kinds(scorers: Sequence[str]) -> dict[str, Any]:
    """Every column with its kind: a type's name, a dict of them for one value each scorer, None for audio."""
    kinds: dict[str, Any] = {"prompt": "string", "chosen": None, "rejected": None}
    kinds |= dict.fromkeys(TEXTS, "string") | dict.fromkeys(NUMBERS, "int64")
    kinds |= dict.fromkeys(("chosen_guidance", "rejected_guidance"), "float64")
    kinds |= {name: dict.fromkeys(scorers, "float64") for name in SCORES}
    return kinds | {"model": "string", "model_hash": "string", "scorer_hashes": dict.fromkeys(scorers, "string")}


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


def read_alpaca(path: Path, split: str | None = None) -> Iterator[PairedClips]:
    """The pairs of a data set with their clips, one after the other in the order of files and rows.

    `path` is a Parquet file, or a folder with any number of them, as `milonga export` writes it or the Hub gives it;
    of a folder `split` takes the files whose names begin so (`train`). What a set does not tell about a pair is empty:
    ids are then hashes of the audio's bytes, steps and seeds are 0, words are "", and there are no scores. Clips keep
    their own sampling rate. Raises DataError for a missing file, split or column, or a row without its audio.
    """
    for file in alpaca_files(path, split):
        for row in _rows(file):
            try:
                chosen, rejected = (from_flac(row[side]["bytes"]) for side in ("chosen", "rejected"))
            except (AudioError, TypeError) as error:
                raise DataError(f"{file}: {row['prompt']!r} lacks a clip that can be decoded ({error})") from error
            yield PairedClips(_pair(row), chosen, rejected)


def alpaca_files(path: Path, split: str | None = None) -> list[Path]:
    """The Parquet files that `read_alpaca` reads, in its order; DataError where there are none."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    found = [file for file in files if split is None or file.name.startswith(f"{split}-") or file.stem == split]
    if not found:
        raise DataError(f"{path} holds no Parquet file{f' of the split {split}' if split and files else ''}")
    return found


def count_pairs(files: Sequence[Path]) -> int:
    """How many pairs some Parquet files hold, by their footers alone; DataError for what is no Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return sum(pq.read_metadata(file).num_rows for file in files)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{files[0].parent} holds what cannot be read as Parquet: {error}") from error


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """A file's rows, a few at a time: the published shards hold half a gigabyte each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            missing = [name for name in PUBLISHED if name not in table.schema_arrow.names]
            if missing:
                raise DataError(
                    f"{file} has no column {', '.join(missing)}: it holds no pairs in Audio-alpaca's layout"
                )
            for batch in table.iter_batches(BATCH, use_threads=False):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read as Parquet: {error}") from error


def _pair(row: dict[str, Any]) -> Pair:
    told: dict[str, Any] = {name: row.get(name) or "" for name in TEXTS}
    told |= {name: row.get(name) or 0 for name in NUMBERS} | {name: row.get(name) or {} for name in SCORES}
    for side in ("chosen", "rejected"):
        told[f"{side}_id"] = told[f"{side}_id"] or content_id(sha256(row[side]["bytes"]).hexdigest())
    told["prompt_id"] = told["prompt_id"] or content_id(row["prompt"])
    told["id"] = told["id"] or content_id(told["strategy"], told["chosen_id"], told["rejected_id"])
    return Pair(prompt=row["prompt"], **told)
