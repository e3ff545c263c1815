"""Audio files and bytes: mono float clips in, 16-bit WAV or FLAC out, with what made them in the file's tags."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np

from milonga.core.errors import AudioError
from milonga.core.records import Clip
from milonga.core.store import write_bytes

Mono = Literal["mean", "first"]  # which channels a mono clip is made of; the original Tango takes the first
FORMATS = {".wav": "WAV", ".flac": "FLAC"}
# libsndfile writes longer tags into a WAV but no longer finds them when it reads (seen from 8 kB on).
WAV_TAG_BYTES = 4000


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
