"""Clips as audio files, as bytes and as Parquet tables.

Files are 16-bit WAV or FLAC with the clip's settings in their tags. Tables have the layout of Hugging Face `datasets`,
so a run's audio loads and plays anywhere.
"""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from milonga.core.errors import AudioError, DataError
from milonga.core.records import Clip
from milonga.core.store import write_bytes

if TYPE_CHECKING:
    import pyarrow

Mono = Literal["mean", "first"]  # which channels a mono clip is made of; the original Tango takes the first
FORMATS = {".wav": "WAV", ".flac": "FLAC"}
# libsndfile writes longer tags into a WAV but no longer finds them when it reads (seen from 8 kB on).
WAV_TAG_BYTES = 4000
TABLE_BITS = 24  # in tables: rounding to 16 would turn float noise between batch sizes into scores apart by 2e-5


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """16-bit samples of a float waveform (samples,), rounded to nearest; beyond ±1 is clipped, never wrapped.

    Full scale is 32768, the value by which soundfile divides on reading, so 16-bit audio survives the round trip bit
    for bit. Raises AudioError for NaN, infinity or another shape.
    """
    return _integers(waveform, 16).astype(np.int16)


def _integers(waveform: np.ndarray, bits: int) -> np.ndarray:
    """Samples as whole numbers of so many bits, float64."""
    samples = np.asarray(waveform)
    if samples.ndim != 1:
        raise AudioError(f"a waveform has shape (samples,), not {samples.shape}: mix the channels first")
    if not np.isfinite(samples).all():
        raise AudioError("the waveform has NaN or infinite samples: it cannot be written")
    full = 2 ** (bits - 1)
    return np.clip(np.rint(samples.astype(np.float64) * full), -full, full - 1)


def read_audio(path: Path, rate: int | None = None, mono: Mono = "mean") -> Clip:
    """Reads a file as a mono clip (the mean of its channels, or the `first`), resampled to `rate` Hz by soxr HQ when
    given.

    Raises AudioError when the file is missing, cannot be decoded, is empty or has samples that are not finite.
    """
    if not Path(path).is_file():
        raise AudioError(f"{path}: no such audio file")
    clip = _decode(path, str(path), mono)
    return clip if rate is None else resample(clip, rate)


def resample(clip: Clip, rate: int) -> Clip:
    """The clip at another sampling rate (Hz), by soxr HQ; the same clip when the rate is already right."""
    import soxr

    if rate == clip.rate:
        return clip
    return Clip(soxr.resample(clip.waveform, clip.rate, rate, quality="HQ").astype(np.float32), rate)


def write_audio(path: Path, clip: Clip, comment: dict[str, str] | None = None) -> None:
    """Writes a clip as 16-bit WAV or FLAC, by the suffix; `comment` goes into the file's tags (`read_tags`).

    The entry `prompt`, where there is one, is also the file's title, so that players show it. Raises AudioError for
    another suffix, an empty clip, samples that are not finite, or tags of more than 4000 bytes in a WAV.
    """
    kind = FORMATS.get(Path(path).suffix.lower())
    if kind is None:
        raise AudioError(f"{path}: audio is written as .wav or .flac")
    write_bytes(Path(path), _encode(clip, kind, comment or {}))


def read_tags(path: Path) -> dict[str, str]:
    """What `write_audio` put into the file's tags; empty when the file carries none of ours."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            held: Any = json.loads(file.comment or "{}")
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path}: cannot be read as audio ({error})") from error
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def flac_bytes(clip: Clip, bits: Literal[16, 24] = 16) -> bytes:
    """A clip as the bytes of a FLAC file of 16 or 24 bits; raises as `write_audio` does."""
    return _encode(clip, "FLAC", {}, bits)


def wav_bytes(clip: Clip, comment: dict[str, str]) -> bytes:
    """A clip as the bytes of a 16-bit WAV file with tags; raises as `write_audio` does."""
    return _encode(clip, "WAV", comment)


def from_flac(data: bytes, mono: Mono = "mean") -> Clip:
    """The clip in the bytes of a FLAC (or WAV) file; AudioError when they cannot be decoded."""
    return _decode(BytesIO(data), "audio bytes", mono)


def _encode(clip: Clip, kind: str, comment: dict[str, str], bits: int = 16) -> bytes:
    import soundfile

    samples = _integers(clip.waveform, bits).astype(np.int32) << (32 - bits)  # soundfile takes the upper bits
    if not len(samples):
        raise AudioError("the clip is empty: there is nothing to write")
    buffer = BytesIO()
    with soundfile.SoundFile(buffer, "w", clip.rate, 1, f"PCM_{bits}", format=kind) as file:
        for tag, text in _tags(comment, kind).items():
            setattr(file, tag, text)
        file.write(samples)
    return buffer.getvalue()


def _tags(comment: dict[str, str], kind: str) -> dict[str, str]:
    tags = {"comment": json.dumps(comment) if comment else "", "title": comment.get("prompt", "").replace("\0", "")}
    if kind == "WAV" and sum(len(text.encode()) for text in tags.values()) > WAV_TAG_BYTES:
        raise AudioError("the tags are too long for a .wav: shorten the prompt or write a .flac")
    return {tag: text for tag, text in tags.items() if text}


def read_channels(source: Path | bytes, name: str) -> tuple[np.ndarray, int]:
    """The samples of a file or of its bytes as they are, float32 (samples, channels), and their rate in Hz.

    Raises AudioError, which calls it `name`, when it cannot be decoded, is empty or has samples that are not finite.
    """
    import soundfile

    try:
        samples, rate = soundfile.read(
            BytesIO(source) if isinstance(source, bytes) else source, dtype="float32", always_2d=True
        )
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{name}: cannot be read as audio ({error})") from error
    if not len(samples):
        raise AudioError(f"{name}: the audio is empty")
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: the audio has NaN or infinite samples")
    return samples, rate


def _decode(source: Any, name: str, mono: Mono = "mean") -> Clip:
    samples, rate = read_channels(source.getvalue() if isinstance(source, BytesIO) else source, name)
    return Clip(samples.mean(axis=1) if mono == "mean" else np.ascontiguousarray(samples[:, 0]), rate)


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
    audio = [
        {"bytes": flac_bytes(clip, TABLE_BITS), "path": f"{name}.flac"} for name, clip in zip(ids, clips, strict=True)
    ]
    schema = _schema(rates.pop() if rates else None)
    arrays = [pa.array(column, field.type) for column, field in zip((ids, audio, latents), schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def clips_of(table: "pyarrow.Table") -> dict[str, Clip]:
    """The clips of a table that `clip_table` made, by id, in its order."""
    rows = table.select(["id", "audio"]).to_pylist()
    return {row["id"]: from_flac(row["audio"]["bytes"]) for row in rows}


def pack_latents(latents: np.ndarray | None) -> bytes | None:
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
