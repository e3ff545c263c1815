# ruff: noqa: E501 (a case is a line)
"""Sound files for `inputs.py`: of every kind that people have, odd in every way, and broken in every way."""

import json
import os
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from inputs_cases import Case, Group, Refused

from milonga.core.audio import from_flac, read_audio
from milonga.core.errors import AudioError
from milonga.core.records import Clip
from milonga.data.captions import SOUND_SUFFIXES
from milonga.data.recordings import clip_entries, decoded
from milonga.evaluation.inputs import load_inputs
from milonga.listening_test.sources import load_sources

RATE = 16000
TIME = np.arange(RATE) / RATE
TONES = np.stack([0.4 * np.sin(2 * np.pi * 220 * TIME), 0.2 * np.sin(2 * np.pi * 330 * TIME)], axis=1)
STEREO, MONO = TONES.astype(np.float32), TONES.mean(axis=1).astype(np.float32)
CUT = r"is cut off|cannot be read as audio|the audio is empty"
NOT_AUDIO = "cannot be read as audio"

Heard = tuple[np.ndarray, int, float]  # samples, rate, and how far a decoder may be off


def write(name: str, samples: np.ndarray = MONO, rate: int = RATE, off: float = 1e-4, **how: Any) -> Any:
    """A case's `make`: a file that must be read as these samples, the mean of its channels."""

    def make(folder: Path) -> Heard:
        file = folder / "clips" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, samples, rate, **how)
        mono = samples.mean(axis=1) if samples.ndim == 2 else samples
        return mono.astype(np.float32), rate, off

    return make


def spoil(name: str, how: Callable[[bytes], bytes], right: Any, samples: np.ndarray = MONO, **written: Any) -> Any:
    """A case's `make`: a sound file whose bytes were changed by `how`."""

    def make(folder: Path) -> Any:
        value = write(name, samples, **written)(folder)
        file = folder / "clips" / name
        file.write_bytes(how(file.read_bytes()))
        return value if right is None else right

    return make


def raw(name: str, data: bytes, right: Any) -> Any:
    """A case's `make`: a file of these bytes."""

    def make(folder: Path) -> Any:
        (folder / "clips").mkdir()
        (folder / "clips" / name).write_bytes(data)
        return right

    return make


def beside(*others: str) -> Any:
    """A case's `make`: a sound file, and beside it what systems leave in folders."""

    def make(folder: Path) -> Heard:
        heard = write("x.wav")(folder)
        for name in others:
            (folder / "clips" / name).write_bytes(b"\0\5\x16\7 left here by a system")
        return heard

    return make


def patched(place: int | str, value: bytes) -> Callable[[bytes], bytes]:
    """Bytes with others at a place, or behind a chunk's name and length."""

    def patch(data: bytes) -> bytes:
        at = place if isinstance(place, int) else data.index(place.encode()) + 8
        return data[:at] + value + data[at + len(value) :]

    return patch


def share(part: float) -> Callable[[bytes], bytes]:
    """The first part of the bytes."""
    return lambda data: data[: int(len(data) * part)]


def flipped(data: bytes) -> bytes:
    """Some bytes of the middle turned round."""
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 64]) + data[middle + 64 :]


def with_length(length: int) -> Callable[[bytes], bytes]:
    """A WAV whose header promises so many bytes of audio."""
    return lambda data: patched(data.index(b"data") + 4, length.to_bytes(4, "little"))(data)


def spread(data: bytes) -> bytes:
    """A WAV with odd chunks before and after its audio."""
    place, chunk = data.index(b"data"), b"LIST\x03\0\0\0abc\0"
    return data[:place] + chunk + data[place:] + chunk


def zipped() -> bytes:
    """A zip archive with a sound inside."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.wav", b"RIFF")
    return buffer.getvalue()


def linked(folder: Path) -> Heard:
    """A link to a sound file elsewhere."""
    heard = write("../elsewhere/x.wav")(folder)
    (folder / "clips").mkdir(exist_ok=True)
    (folder / "clips" / "x.wav").symlink_to(folder / "elsewhere" / "x.wav")
    return heard


def dangling(folder: Path) -> dict[str, Refused]:
    """A link to nothing, which a folder does not show as a file."""
    (folder / "clips").mkdir()
    (folder / "clips" / "x.wav").symlink_to(folder / "gone.wav")
    return {
        "read": Refused("no such audio file"),
        "clips:": Refused("no such audio file"),
        "evaluate": Refused("x.wav"),
    }


def a_folder(folder: Path) -> Refused:
    """A folder that is named like a sound."""
    (folder / "clips" / "x.wav").mkdir(parents=True)
    return Refused("no such audio file|x.wav")


def a_pipe(folder: Path) -> Refused:
    """A named pipe, at which a program may wait for ever."""
    (folder / "clips").mkdir()
    os.mkfifo(folder / "clips" / "x.wav")
    return Refused("no such audio file|x.wav")


def the_file(folder: Path) -> Path:
    """The case's sound file, which may be a link, a folder or a pipe."""
    left = (".DS_Store", "Thumbs.db", "desktop.ini")
    return next(one for one in (folder / "clips").iterdir() if one.name not in left and not one.name.startswith("._"))


def by_table(folder: Path) -> Clip:
    """As `clips:TABLE@FOLDER` reads it."""
    file = the_file(folder)
    (folder / "captions.jsonl").write_text(json.dumps({"file_name": file.name, "caption": "a tone"}))
    return next(iter(decoded(clip_entries(f"clips:{folder}/captions.jsonl@{file.parent}")))).clip


def by_evaluation(folder: Path) -> Clip:
    """As `evaluate FOLDER` reads it."""
    clips = load_inputs([str(folder / "clips")], None, None).systems["clips"]
    samples, rate = next(iter(clips.values())).samples()
    return Clip(samples.mean(axis=1), rate)


def by_listening(folder: Path) -> Clip:
    """As `listen make` reads it: a folder of systems with one of clips."""
    key = the_file(folder).stem if the_file(folder).suffix.lower() in SOUND_SUFFIXES else the_file(folder).name
    (folder / "captions.jsonl").write_text(json.dumps({"clip": key, "caption": "a tone"}))
    _, systems = load_sources(folder, folder / "captions.jsonl", ["clips"])
    return next(iter(systems["clips"].values())).clip


def by_bytes(folder: Path) -> Clip:
    """As a clip in Parquet is read."""
    try:
        return from_flac(the_file(folder).read_bytes())
    except AudioError as error:  # what is inside a table is named by the table
        raise AudioError(f"{folder}: {error}") from error


def fault(heard: Any, right: Heard) -> str:
    """What is wrong with what was read."""
    samples, rate, off = right
    if heard.rate != rate:
        return f"{heard.rate} Hz, not {rate}"
    if abs(len(heard.waveform) - len(samples)) > (0 if off < 0.01 else 0.1 * rate):
        return f"{len(heard.waveform)} samples, not {len(samples)}"
    length = min(len(samples), len(heard.waveform))
    scale = max(1.0, float(np.abs(samples).max()))
    apart = float(np.sqrt(np.mean((heard.waveform[:length] - samples[:length]) ** 2))) / scale
    return f"samples are off by {apart:.2g}" if not apart <= off else ""


LOUD, HOLED = MONO.copy(), MONO.copy()
LOUD[::100], HOLED[5] = 3e38, np.nan
NAMES = ("a dog barks.wav", "狗叫.wav", "café.wav", "cafe\u0301.wav", "🐶.wav", "fx_1.5.wav", "%s %d {x}.wav", "-n.wav")
EVERYWHERE = Refused(NOT_AUDIO)


def kinds() -> list[Case]:
    """Kinds of file that are read."""
    cases = [
        Case(f"a WAV of {kind}", write("x.wav", STEREO, off=off, subtype=kind))
        for kind, off in (
            ("PCM_U8", 5e-3), ("PCM_16", 1e-4), ("PCM_24", 1e-6), ("PCM_32", 1e-6), ("FLOAT", 1e-6), ("DOUBLE", 1e-6),
            ("ULAW", 9e-3), ("ALAW", 9e-3), ("IMA_ADPCM", 0.02), ("MS_ADPCM", 0.02),
        )
    ]  # fmt: skip
    cases += [
        Case("a WAV of GSM 6.10", write("x.wav", MONO, off=0.05, subtype="GSM610")),
        *(
            Case(f"{kind} named {name}", write(name, STEREO, off=off, format=kind, **how))
            for kind, name, off, how in (
                ("FLAC", "x.flac", 1e-4, {}), ("FLAC", "x.FLAC", 1e-6, {"subtype": "PCM_24"}),
                ("OGG", "x.ogg", 0.02, {}), ("OGG", "x.opus", 0.05, {"subtype": "OPUS", "rate": 48000}),
                ("OGG", "x.oga", 0.02, {}), ("MP3", "x.mp3", 0.2, {}), ("AIFF", "x.aiff", 1e-4, {}),
                ("AIFF", "x.AIF", 1e-4, {}), ("AIFF", "x.aifc", 1e-6, {"subtype": "FLOAT"}), ("RF64", "x.wav", 1e-4, {}),
                ("WAVEX", "x.wav", 1e-4, {}), ("W64", "x.w64", 1e-4, {}), ("CAF", "x.caf", 1e-4, {}),
                ("AU", "x.au", 1e-4, {}), ("FLAC", "x.wav", 1e-4, {}), ("MP3", "x.wav", 0.2, {}), ("OGG", "x.wav", 0.02, {}),
                ("WAV", "x.mp3", 1e-4, {}),
            )
        ),
        Case("a WAV of big-endian integers (RIFX)", write("x.wav", STEREO, endian="BIG")),
        Case("six channels", write("x.wav", np.repeat(MONO[:, None], 6, axis=1))),
    ]  # fmt: skip
    return cases


def oddities() -> list[Case]:
    """Unusual files that are sound, and names."""
    return [
        *(Case(f"{rate:,} Hz", write("x.wav", MONO, rate=rate)) for rate in (1000, 5000, 44056, 384_000, 1_000_000)),
        Case("silence", write("x.wav", MONO * 0)),
        Case("a constant offset", write("x.wav", MONO + 0.3)),
        Case("opposite channels", write("x.wav", np.stack([MONO, -MONO], axis=1))),
        Case("a float WAV beyond full scale", write("x.wav", MONO * 20, subtype="FLOAT")),
        Case("a float WAV in the scale of integers", write("x.wav", MONO * 32768, subtype="FLOAT")),
        Case("odd chunks before and after the audio", spoil("x.wav", spread, None)),
        Case("text after the audio", spoil("x.wav", lambda data: data + b"<html>", None)),
        *(
            Case(f"a length of {length:#x}, as pipes write", spoil("x.wav", with_length(length), None))
            for length in (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000)
        ),
        *(Case(f"a file named {name!r}", write(name)) for name in NAMES),
        Case("a name of 255 bytes", write("é" * 125 + "x.wav")),
        Case("a suffix in capitals", write("x.WAV")),
        Case("no suffix", write("x", format="WAV"), ("read", "clips:", "bytes")),
        Case("a link to a file", linked),
        Case("AppleDouble's ._x.wav beside it", beside("._x.wav")),
        Case(".DS_Store, Thumbs.db and desktop.ini beside it", beside(".DS_Store", "Thumbs.db", "desktop.ini")),
    ]


def broken() -> list[Case]:
    """Files that are no sound, or not all of one."""
    long = np.tile(MONO, 20)
    return [
        *(
            Case(f"a {kind} cut to {part:.1%}", spoil(name, share(part), Refused(CUT), samples=long, format=kind))
            for kind, name in (("WAV", "x.wav"), ("AIFF", "x.aiff"), ("FLAC", "x.flac"), ("OGG", "x.ogg"), ("MP3", "x.mp3"))
            for part in (0.5, 0.999)
        ),
        Case("a float WAV cut in half", spoil("x.wav", share(0.5), Refused(CUT), subtype="FLOAT")),
        Case("half a header", raw("x.wav", b"RIFF\x10\0\0\0WAVEfmt ", EVERYWHERE)),
        Case("a recording that was interrupted (length 0)", spoil("x.wav", with_length(0), Refused("was inter"))),
        Case("an empty file", raw("x.wav", b"", Refused(f"{NOT_AUDIO}|there are none"))),
        Case("no samples", write_refused("x.wav", MONO[:0], Refused("the audio is empty"))),
        Case("a sample that is no number", write_refused("x.wav", HOLED, Refused("NaN or infinite"), subtype="FLOAT")),
        Case("samples of 3e38", write_refused("x.wav", LOUD, Refused("samples beyond"), subtype="FLOAT")),
        *(
            Case(f"a header of {rate:,} Hz", spoil("x.wav", patched(24, rate.to_bytes(4, "little")), Refused(told)))
            for rate, told in ((0, f"no audio's|{NOT_AUDIO}"), (10, "no audio's"), (2_000_000_000, "no audio's"))
        ),
        Case("a header of 0 channels", spoil("x.wav", patched(22, b"\0\0"), EVERYWHERE)),
        Case("a header of an unknown codec", spoil("x.wav", patched(20, b"\x99\x99"), EVERYWHERE)),
        Case("a FLAC with bytes turned round", spoil("x.flac", flipped, Refused(f"{CUT}|damaged"), samples=long)),
        Case("an Ogg with bytes turned round", spoil("x.ogg", flipped, Refused(f"{CUT}|damaged"), samples=long)),
        Case("zeros", raw("x.wav", bytes(5000), EVERYWHERE)),
        Case("noise", raw("x.wav", np.random.default_rng(0).bytes(5000), EVERYWHERE)),
        Case("samples without a header", raw("x.wav", (MONO * 30000).astype("<i2").tobytes(), EVERYWHERE)),
        Case("a page of a server", raw("x.wav", b"<!DOCTYPE html><title>404</title>", EVERYWHERE)),
        Case("a git-lfs pointer", raw("x.wav", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", EVERYWHERE)),
        Case("a zip archive", raw("x.wav", zipped(), EVERYWHERE)),
        Case("an AAC in MP4 (.m4a)", raw("x.m4a", b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom" + bytes(500), EVERYWHERE)),
        Case("a WMA", raw("x.wma", bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(500), EVERYWHERE)),
        Case("MIDI", raw("x.mp3", b"MThd\0\0\0\6\0\1\0\1\0\x60MTrk" + bytes(50), EVERYWHERE)),
        Case("a picture", raw("x.ogg", b"\x89PNG\r\n\x1a\n" + bytes(500), EVERYWHERE)),
        Case("a link to nothing", dangling, ("read", "clips:")),
        Case("a folder", a_folder, ("read", "clips:")),
        Case("a named pipe", a_pipe, ("read", "clips:")),
    ]  # fmt: skip


def write_refused(name: str, samples: np.ndarray, right: Refused, **how: Any) -> Any:
    """A case's `make`: a sound file that must be refused."""
    make = write(name, samples, **how)
    return lambda folder: (make(folder), right)[1]


def group() -> Group:
    """The readers of sound files and all cases."""
    readers = {
        "read": lambda folder: read_audio(the_file(folder)),
        "clips:": by_table,
        "evaluate": by_evaluation,
        "listen": by_listening,
        "bytes": by_bytes,
    }
    return Group("Sound files", readers, fault, [*kinds(), *oddities(), *broken()])
