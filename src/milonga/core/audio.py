"""Clips as audio files, as bytes and as Parquet tables.

Files are 16-bit WAV or FLAC with the clip's settings in their tags. Tables have the layout of Hugging Face `datasets`,
so a run's audio loads and plays anywhere.
"""

import json
import os
import re
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from milonga.core.errors import AudioError, DataError
from milonga.core.records import Clip
from milonga.core.store import write_bytes

if TYPE_CHECKING:
    import pyarrow

# Which channels a clip's waveform is made of: their mean, the first, as in the original Tango, or the mean, with all of
# them kept beside it.
Mono = Literal["mean", "first", "all"]
FORMATS = {".wav": "WAV", ".flac": "FLAC"}
# libsndfile writes a longer tag into a WAV but no longer finds any when it reads (seen from 2048 bytes on).
WAV_TAG_BYTES = 2000
BITS = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}  # of subtypes with whole numbers
RATES = (1_000, 1_000_000)  # Hz: beyond them a header is damaged, and resampling would take memory without bound
LOUDEST = 1e10  # of a float file's samples: larger ones are damage, and overflow in every network
STREAMED = 0x7FFF0000  # a WAV's length from here on is what programs write that do not know it yet
BLOCK = 2**20  # frames that are read at once of a long file
CUT_OFF = re.compile(r": (\d+) \(should be (\d+)\)")  # libsndfile's note on a size that the file does not reach
UNKNOWN = 2**62  # a size from here on is what programs write that do not know it yet
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # each byte with its bits in the other order
MP3_ENDS = 5 * 1152  # samples of an MP3 that decoders leave out: its index, an encoder's delay and padding
MP3_BITRATES = (
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # kbit/s of MPEG 2 and 2.5
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # of MPEG 1
)
ID3 = b"ID3\3\0\0\0\0\0\x0a" + bytes(10)  # an empty tag
AGAIN = "fetch it again"
TABLE_BITS = 24  # in tables: rounding to 16 would turn float noise between batch sizes into scores apart by 2e-5


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """16-bit samples of a float waveform (samples,), rounded to nearest; beyond ±1 is clipped, never wrapped.

    Full scale is 32768, the value by which soundfile divides on reading, so 16-bit audio survives the round trip bit
    for bit. Raises AudioError for NaN, infinity or another shape.
    """
    return _integers(_mono(waveform), 16).astype(np.int16)


def _mono(waveform: np.ndarray) -> np.ndarray:
    samples = np.asarray(waveform)
    if samples.ndim != 1:
        raise AudioError(f"a waveform has shape (samples,), not {samples.shape}: mix the channels first")
    return samples


def _integers(samples: np.ndarray, bits: int) -> np.ndarray:
    """Samples as whole numbers of so many bits, float64."""
    if not np.isfinite(samples).all():
        raise AudioError("the waveform has NaN or infinite samples: it cannot be written")
    full = 2 ** (bits - 1)
    return np.clip(np.rint(samples.astype(np.float64) * full), -full, full - 1)


def read_audio(path: Path, rate: int | None = None, mono: Mono = "mean", seconds: float | None = None) -> Clip:
    """Reads a file as a mono clip (the mean of its channels, or the `first`; `all` also keeps them), resampled to
    `rate` Hz by soxr HQ when given; of a longer file only the first `seconds`, with the `mean` of the whole.

    Raises AudioError when the file is missing, cannot be decoded, is empty, is cut off, or has samples that are not
    finite.
    """
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise AudioError(f"{path}: no such audio file")
    clip = _decode(Path(path), str(path), mono, seconds)
    return clip if rate is None else resample(clip, rate)


def resample(clip: Clip, rate: int) -> Clip:
    """The clip at another sampling rate (Hz), by soxr HQ; the same clip when the rate is already right."""
    import soxr

    if rate == clip.rate:
        return clip
    samples = clip.waveform if clip.channels is None else clip.channels
    return Clip.of(soxr.resample(samples, clip.rate, rate, quality="HQ").astype(np.float32), rate, mean=clip.mean)


def beginning(clip: Clip, seconds: float) -> Clip:
    """The first `seconds` of a clip, with the `mean` of the whole; the same clip when it is no longer than that."""
    samples = round(seconds * clip.rate)
    if len(clip.waveform) <= samples:
        return clip
    mean = float(clip.waveform.mean(dtype=np.float64)) if clip.mean is None else clip.mean
    channels = None if clip.channels is None else clip.channels[:samples]
    return Clip(clip.waveform[:samples], clip.rate, mean=mean, channels=channels)


def write_audio(path: Path, clip: Clip, comment: dict[str, str] | None = None) -> None:
    """Writes a clip with all its channels as 16-bit WAV or FLAC, by the suffix; `comment` goes into the file's tags
    (`read_tags`).

    The entry `prompt`, where there is one, is also the file's title, so that players show it. Of tags that a WAV cannot
    hold (2000 bytes each) the longest entries are cut, which ` […]` at their end shows. Raises AudioError for another
    suffix, an empty clip or samples that are not finite.
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


def from_flac(data: bytes, mono: Mono = "all", seconds: float | None = None) -> Clip:
    """The clip in the bytes of a FLAC (or WAV) file, cut as by `read_audio`, with its channels by default; AudioError
    when they cannot be decoded.
    """
    if not data:
        raise AudioError("audio bytes: there are none")
    return _decode(data, "audio bytes", mono, seconds)


def write_samples(path: Path, samples: np.ndarray, rate: int, subtype: str, comment: dict[str, str]) -> None:
    """Writes samples (samples, channels) as they are, in a WAV or FLAC of a `subtype` that `read_samples` gave.

    Samples of a PCM subtype that were read come back bit for bit. `comment` and what is raised are as in `write_audio`.
    """
    write_bytes(Path(path), _encode_samples(samples, rate, FORMATS[path.suffix.lower()], subtype, comment))


def _encode(clip: Clip, kind: str, comment: dict[str, str], bits: int = 16) -> bytes:
    _mono(clip.waveform)
    return _encode_samples(clip.samples, clip.rate, kind, f"PCM_{bits}", comment)


def _encode_samples(samples: np.ndarray, rate: int, kind: str, subtype: str, comment: dict[str, str]) -> bytes:
    import soundfile

    if subtype in BITS:  # soundfile takes the upper bits of 32, and would scale floats by less than full scale
        samples = _integers(samples, BITS[subtype]).astype(np.int32) << (32 - BITS[subtype])
    if not len(samples):
        raise AudioError("the clip is empty: there is nothing to write")
    buffer = BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, samples.shape[1], subtype, format=kind) as file:
        for tag, text in _tags(comment, kind).items():
            setattr(file, tag, text)
        file.write(samples)
    return buffer.getvalue()


def _tags(comment: dict[str, str], kind: str) -> dict[str, str]:
    """A file's tags: the comment as JSON, and the prompt as title; of a WAV's the longest entries are cut to fit."""

    def tags_of(entries: dict[str, str], title: str) -> dict[str, str]:
        text = json.dumps(entries, ensure_ascii=False) if entries else ""
        return {
            "comment": text.encode(errors="replace").decode(),
            "title": title.encode(errors="replace").decode().replace("\0", ""),
        }

    title, limit = comment.get("prompt", ""), WAV_TAG_BYTES
    tags = tags_of(comment, title)
    while kind == "WAV" and max(len(text.encode()) for text in tags.values()) > WAV_TAG_BYTES:
        limit = limit * 3 // 4
        tags = tags_of({name: _cut(text, limit) for name, text in comment.items()}, _cut(title, limit))
    return {tag: text for tag, text in tags.items() if text}


def _cut(text: str, size: int) -> str:
    """A text of at most `size` bytes in UTF-8 and a mark that it was cut; a shorter one as it is."""
    data = text.encode(errors="replace")
    return text if len(data) <= size else data[:size].decode(errors="ignore") + " […]"


def read_channels(source: Path | bytes, name: str, seconds: float | None = None) -> tuple[np.ndarray, int]:
    """The samples of a file or of its bytes as they are, float32 (samples, channels), and their rate in Hz; of a longer
    file the first `seconds`, and no more of it is decoded.

    Raises AudioError, which calls it `name`, when it cannot be decoded, is empty or cut off, or has samples that are
    not finite or a rate of no audio.
    """
    samples, rate, _ = _read(source, name, seconds, with_mean=False)
    return samples, rate


def read_samples(path: Path) -> tuple[np.ndarray, int, str, str]:
    """A file's samples exactly as stored, float64 (samples, channels), their rate, and how to write them back.

    That is a suffix, .wav or .flac, and a subtype: the file's own where it is a WAV or FLAC whose samples can be stored
    again without loss, else .wav with floats. Raises AudioError as `read_audio`.
    """
    import soundfile

    if not os.path.isfile(path):
        raise AudioError(f"{path}: no such audio file")
    samples, rate, _ = _read(Path(path), str(path), None, "float64")
    try:
        own = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: its format is not known by its name ({error}): rename it, or convert it") from error
    suffix = {"WAV": ".wav", "WAVEX": ".wav", "RF64": ".wav", "FLAC": ".flac"}.get(own.format)
    if suffix and (own.subtype in BITS or own.subtype in ("FLOAT", "DOUBLE")):
        return samples, rate, suffix, own.subtype
    return samples, rate, ".wav", "DOUBLE" if own.subtype in ("PCM_32", "DOUBLE") else "FLOAT"


def _decode(source: Path | bytes, name: str, mono: Mono, seconds: float | None) -> Clip:
    samples, rate, mean = _read(source, name, seconds)
    mono_mean = None if mean is None else float(mean[0] if mono == "first" else mean.mean())
    if mono == "all":
        return Clip.of(samples, rate, mean=mono_mean)
    waveform = samples.mean(axis=1) if mono == "mean" else np.ascontiguousarray(samples[:, 0])
    return Clip(waveform, rate, mean=mono_mean)


def _read(
    source: Path | bytes,
    name: str,
    seconds: float | None,
    dtype: Literal["float32", "float64"] = "float32",
    with_mean: bool = True,
) -> tuple[np.ndarray, int, np.ndarray | None]:
    """Samples (samples, channels), their rate and, where only the first `seconds` are given, each channel's mean over
    the whole file, which is read block by block; without the mean reading stops there."""
    import soundfile

    try:
        with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as data:
            least = _check_length(data, name)
            with soundfile.SoundFile(_recognisable(source, data)) as file:
                vars(file)["seekable"] = lambda: False  # it seeks after each read, and MP3 then decodes with errors
                rate, promised = file.samplerate, file.frames if file.format == "FLAC" else least
                stated = CUT_OFF.search(file.extra_info) if file.format not in ("WAV", "WAVEX", "AIFF") else None
                if stated and int(stated[2]) < int(stated[1]) < UNKNOWN:
                    raise AudioError(
                        f"{name}: the audio is cut off: it holds {stated[2]} of {stated[1]} bytes; {AGAIN}"
                    )
                if not RATES[0] <= rate <= RATES[1]:
                    raise AudioError(f"{name}: a sampling rate of {rate} Hz is no audio's: the header is damaged")
                wanted = None if seconds is None else round(seconds * rate)
                blocks, held, frames, total = [], 0, 0, np.zeros(file.channels)
                while len(block := file.read(BLOCK, dtype=dtype, always_2d=True)):
                    if not np.isfinite(block).all():
                        raise AudioError(f"{name}: the audio has NaN or infinite samples")
                    if max(block.max(), -block.min()) > LOUDEST:
                        raise AudioError(f"{name}: the audio has samples beyond {LOUDEST:g}: the file is damaged")
                    frames += len(block)
                    if wanted is not None:
                        total += block.sum(axis=0, dtype=np.float64)
                        block = block[: max(0, wanted - held)]
                    held += len(block)
                    if len(block):
                        blocks.append(block)
                    if wanted is not None and held == wanted and not with_mean:
                        promised = 0
                        break
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{name}: cannot be read as audio ({error})") from error
    if not held:
        raise AudioError(f"{name}: the audio is empty")
    if frames < promised:
        advice = "; it may be an MP3 without an index: convert it to FLAC" if least else ""
        raise AudioError(f"{name}: the audio is cut off: it holds {frames} of {promised} samples; {AGAIN}{advice}")
    samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    return samples, rate, total / frames if held < frames else None


def _check_length(file: BinaryIO, name: str) -> int:
    """Raises AudioError for a file that libsndfile reads although it is cut off: a WAV or AIFF that holds less than its
    header promises, an Ogg whose last page is incomplete or does not end the stream, an MP3 with half a frame. Of an
    Ogg each page's checksum must be right, because the decoder passes over a damaged page without a word.

    Of an MP3 it gives the least number of samples to expect: without an index libsndfile guesses it from the bitrate.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"OggS":
        _check_ogg(file, name)
    samples = _mp3_samples(file, size)
    if samples is None:
        raise AudioError(f"{name}: the audio is cut off: it ends before its last MP3 frame does; {AGAIN}")
    if head[:4] + head[8:] not in (b"RIFFWAVE", b"RIFXWAVE", b"FORMAIFF", b"FORMAIFC"):
        return max(0, samples - MP3_ENDS)
    place = 12
    while True:
        file.seek(place)
        chunk = file.read(8)
        if len(chunk) < 8:
            return 0
        length = int.from_bytes(chunk[4:], "little" if head[:4] == b"RIFF" else "big")
        place += 8
        if chunk[:4] in (b"data", b"SSND"):
            break
        place += length + length % 2
    if size - place < length < STREAMED:
        raise AudioError(f"{name}: the audio is cut off: it holds {size - place} of {length} bytes of audio; {AGAIN}")
    if length == 0 and size > place:
        raise AudioError(
            f"{name}: its header says that the audio is empty, but {size - place} bytes follow: the recording was "
            "interrupted; repair the file"
        )
    return 0


def _recognisable(source: Path | bytes, data: BinaryIO) -> str | BinaryIO:
    """What libsndfile opens: an MP3 without a tag is known to it by the file's name alone, any other file by itself."""
    data.seek(0)
    untagged = _mp3_frame(data.read(4)) > 0
    data.seek(0)
    if not untagged:
        return data
    return str(source) if isinstance(source, Path) and source.suffix.lower() == ".mp3" else BytesIO(ID3 + data.read())


def _check_ogg(file: BinaryIO, name: str) -> None:
    """Raises AudioError unless all pages of an Ogg are complete and as written, and the last one ends its stream
    (RFC 3533, section 6)."""
    file.seek(0)
    flags = 0
    while (header := file.read(27))[:4] == b"OggS":
        lengths = file.read(header[26]) if len(header) == 27 else b""
        page = lengths + file.read(sum(lengths))
        if len(header) < 27 or len(page) < header[26] + sum(lengths):
            flags = 0
            break
        # Ogg's CRC takes the bits of a byte in the other order than zlib's, and neither begins nor ends with ones.
        mirrored = (header[:22] + bytes(4) + header[26:] + page).translate(MIRRORED)
        checksum = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
        if int(f"{checksum:032b}"[::-1], 2) != int.from_bytes(header[22:26], "little"):
            raise AudioError(f"{name}: the audio is damaged: an Ogg page has a wrong checksum; {AGAIN}")
        flags = header[5]
    if not flags & 4:
        raise AudioError(f"{name}: the audio is cut off: its last Ogg page does not end the stream; {AGAIN}")


def _mp3_samples(file: BinaryIO, size: int) -> int | None:
    """The samples that the frames of an MP3 of `size` bytes decode to, 0 for any other file; None where its last frame
    is incomplete, or its index (Xing's) promises more frames than there are."""
    file.seek(0)
    tag = file.read(10)
    place = 10 + sum(part << 7 * (3 - n) for n, part in enumerate(tag[6:])) if tag[:3] == b"ID3" else 0
    file.seek(place)
    header, first = file.read(4), file.read(200)
    frames, per_frame = 0, 1152 if header[1:2] > b"\xf7" else 576
    while length := _mp3_frame(header):
        frames, place = frames + 1, place + length
        file.seek(place)
        header = file.read(4)
    index = re.search(rb"(?:Xing|Info)...[\1\3\5\7\11\13\15\17](....)", first, re.DOTALL)
    promised = int.from_bytes(index[1]) if index and frames else 0
    half = place > size or (frames and 0 < len(header) < 4 and header[0] == 0xFF)
    return None if half or frames < promised else frames * per_frame


def _mp3_frame(header: bytes) -> int:
    """The bytes of a layer III frame by its header (ISO 11172-3, 2.4.2.3); 0 for what is none, or has no bitrate."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2 or header[2] & 0x0C == 0x0C:
        return 0
    version, bitrate = header[1] >> 3 & 3, header[2] >> 4
    if version == 1 or bitrate in (0, 15):
        return 0
    rate = (44100, 48000, 32000)[header[2] >> 2 & 3] >> {3: 0, 2: 1, 0: 2}[version]
    kilobits = MP3_BITRATES[version == 3][bitrate - 1]
    return (144 if version == 3 else 72) * kilobits * 1000 // rate + (header[2] >> 1 & 1)


def clip_table(ids: Sequence[str], clips: Sequence[Clip], latents: Sequence[bytes | None]) -> "pyarrow.Table":
    """A table `id: string, audio: struct<bytes, path>, latents: binary` of clips that share one sampling rate.

    The audio is FLAC of 24 bits, or null for a clip without a waveform; `latents` are raw float16 or None. The schema's
    metadata names the audio column as `datasets` does. Raises DataError when the three differ in length or the clips in
    rate, AudioError for NaN in one.
    """
    import pyarrow as pa

    if not len(ids) == len(clips) == len(latents):
        raise DataError(f"{len(ids)} ids, {len(clips)} clips and {len(latents)} latents do not match")
    rates = {clip.rate for clip in clips}
    if len(rates) > 1:
        raise DataError(f"clips of one shard must share a sampling rate, not {sorted(rates)}")
    audio = [
        {"bytes": flac_bytes(clip, TABLE_BITS), "path": f"{name}.flac"} if clip.mel is None else None
        for name, clip in zip(ids, clips, strict=True)
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
