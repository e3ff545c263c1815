"""Clips as a Parquet table in the layout of Hugging Face `datasets`, so that a run's audio loads and plays anywhere."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from milonga.core.audio import flac_bytes, from_flac
from milonga.core.errors import DataError
from milonga.core.records import Clip

if TYPE_CHECKING:
    import pyarrow

BITS = 24  # of stored clips: rounding to 16 would turn float noise between batch sizes into scores apart by 2e-5


def clip_table(ids: Sequence[str], clips: Sequence[Clip], latents: Sequence[bytes | None]) -> "pyarrow.Table":
    """A table `id: string, audio: struct<bytes, path>, latents: binary` of clips that share one sampling rate.

    The audio is FLAC of 24 bits; `latents` are raw float16 or None. The schema's metadata names the audio column as
    `datasets` does. Raises DataError when the three differ in length or the clips in rate, AudioError for NaN in one.
    """
    import pyarrow as pa

    if not len(ids) == len(clips) == len(latents):
        raise DataError(f"{len(ids)} ids, {len(clips)} clips and {len(latents)} latents do not match")
    rates = {clip.rate for clip in clips}
    if len(rates) > 1:
        raise DataError(f"clips of one shard must share a sampling rate, not {sorted(rates)}")
    audio = [{"bytes": flac_bytes(clip, BITS), "path": f"{name}.flac"} for name, clip in zip(ids, clips, strict=True)]
    schema = _schema(rates.pop() if rates else None)
    arrays = [pa.array(column, field.type) for column, field in zip((ids, audio, latents), schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def clips_of(table: "pyarrow.Table") -> dict[str, Clip]:
    """The clips of a table that `clip_table` made, by id, in its order."""
    rows = table.select(["id", "audio"]).to_pylist()
    return {row["id"]: from_flac(row["audio"]["bytes"]) for row in rows}


def packed(latents: np.ndarray | None) -> bytes | None:
    """Latents as raw float16 bytes: a thirtieth of the clip's FLAC, and enough to train on."""
    return None if latents is None else latents.astype(np.float16).tobytes()


def _schema(rate: int | None) -> "pyarrow.Schema":
    import pyarrow as pa

    features = {
        "id": {"dtype": "string", "_type": "Value"},
        "audio": {"sampling_rate": rate, "_type": "Audio"},
        "latents": {"dtype": "binary", "_type": "Value"},
    }
    audio = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    fields = [pa.field("id", pa.string()), pa.field("audio", audio), pa.field("latents", pa.binary())]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
