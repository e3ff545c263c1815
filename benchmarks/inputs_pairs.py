# ruff: noqa: E501 (a case is a line)
"""Preference data in Audio-alpaca's layout for `inputs.py`: as others write it, and broken."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from inputs_cases import Case, Group, Refused

from milonga.core.errors import DataError
from milonga.core.records import Refusal
from milonga.data.audio_alpaca import checked_pairs
from milonga.data.pairs import read_pairs
from milonga.data.recordings import clip_entries, decoded

RATE = 16000
SOUND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PROMPTS = ("a dog barks", "rain falls, then stops")

Row = dict[str, Any]
Right = list[tuple[str, str, float, float]]  # prompt, strategy, and the frequencies of winner and loser


def tone(hertz: float, seconds: float = 0.5) -> np.ndarray:
    """A tone, by whose frequency a clip is known again."""
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def sound(samples: np.ndarray, kind: str = "WAV", rate: int = RATE, **how: Any) -> dict[str, Any]:
    """A cell of audio: the bytes of a file."""
    buffer = BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, **how)
    return {"bytes": buffer.getvalue(), "path": f"x.{kind.lower()}"}


def rows() -> list[Row]:
    """Two pairs as they are published."""
    return [
        {"prompt": prompt, "chosen": sound(tone(300 + 200 * at)), "rejected": sound(tone(400 + 200 * at)), "strategy": "1"}
        for at, prompt in enumerate(PROMPTS)
    ]  # fmt: skip


RIGHT: Right = [(prompt, "1", 300 + 200 * at, 400 + 200 * at) for at, prompt in enumerate(PROMPTS)]


def stored(table: pa.Table, right: Any, name: str = "x.parquet") -> Callable[[Path], Any]:
    """A case's `make`: a table as Parquet in `data`."""

    def make(folder: Path) -> Any:
        file = folder / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file)
        return right

    return make


def changed(right: Any = None, kinds: dict[str, Any] | None = None, **cells: Any) -> Callable[[Path], Any]:
    """A case's `make`: the two pairs, the second with other cells; `kinds` are other Arrow types of columns."""
    given = rows()
    given[1] |= cells
    columns: dict[str, Any] = {"chosen": SOUND, "rejected": SOUND} | (kinds or {})
    table = pa.table({name: pa.array([row[name] for row in given], columns.get(name)) for name in given[0]})
    return stored(table, right or RIGHT)


def published() -> pa.Table:
    """The two pairs as a table."""
    return pa.Table.from_pylist(rows())


def files(right: Any, **others: bytes) -> Callable[[Path], Any]:
    """A case's `make`: files of these bytes in `data`; `_` in a name is a dot."""

    def make(folder: Path) -> Any:
        (folder / "data").mkdir(exist_ok=True)
        for name, data in others.items():
            (folder / "data" / name.replace("_", ".")).write_bytes(data)
        return right

    return make


def parquet() -> bytes:
    """The two pairs as the bytes of Parquet."""
    buffer = BytesIO()
    pq.write_table(published(), buffer)
    return buffer.getvalue()


def beside(form: str) -> Callable[[Path], Any]:
    """A case's `make`: clips as files beside the Parquet file, named by "path" in a struct or by "text"."""

    def make(folder: Path) -> Any:
        (folder / "data").mkdir()
        given = rows()
        for at, row in enumerate(given):
            for side in ("chosen", "rejected"):
                name = f"{side}-{at}.wav"
                (folder / "data" / name).write_bytes(row[side]["bytes"])
                row[side] = name if form == "text" else {"bytes": None, "path": name}
        kind = pa.string() if form == "text" else SOUND
        kinds = {"chosen": kind, "rejected": kind}
        columns = {name: pa.array([row[name] for row in given], kinds.get(name)) for name in given[0]}
        by_path = {"rows": RIGHT, "pairs": RIGHT, "clips:": Refused("no column audio or chosen with audio inside")}
        return stored(pa.table(columns), by_path if form == "text" else RIGHT)(folder)

    return make


def arrays(stereo: bool) -> Callable[[Path], Any]:
    """A case's `make`: clips as numbers with a sampling rate, as `datasets` gives them decoded."""
    given = rows()
    for at, row in enumerate(given):
        for side, hertz in (("chosen", 300 + 200 * at), ("rejected", 400 + 200 * at)):
            samples = tone(hertz)
            row[side] = {
                "array": np.stack([samples, samples]).tolist() if stereo else samples.tolist(),
                "sampling_rate": RATE,
            }
    return stored(pa.Table.from_pylist(given), RIGHT)


def cases() -> list[Case]:
    """All cases."""
    second, no_clip = "row 2: ", r"row 2: 'rain falls, then stops' lacks a clip that can be decoded \(chosen: "
    stereo, cut = np.stack([tone(500), tone(500)], axis=1), sound(tone(500))["bytes"][:-4000]
    holed = tone(500)
    holed[7] = np.nan
    wrong: list[tuple[str, Row, str]] = [
        ("a prompt of null", {"prompt": None}, f"{second}the prompt is empty"),
        ("a prompt of spaces", {"prompt": "  "}, f"{second}the prompt is empty"),
        ("audio of null", {"chosen": None}, f"{no_clip}holds no audio"),
        ("neither bytes nor path", {"chosen": {"bytes": None, "path": None}}, f"{no_clip}holds no audio"),
        ("empty bytes", {"chosen": {"bytes": b"", "path": None}}, f"{no_clip}holds no audio"),
        ("a path to nothing", {"chosen": {"bytes": None, "path": "gone.wav"}}, f"{no_clip}.*no such audio file"),
        ("bytes that are no sound", {"chosen": {"bytes": b"<html>", "path": "x.wav"}}, f"{no_clip}.*cannot be read as"),
        ("bytes that are cut off", {"chosen": {"bytes": cut, "path": "x.wav"}}, f"{no_clip}.*is cut off"),
        ("a git-lfs pointer for bytes", {"chosen": {"bytes": b"version https://git-lfs", "path": "x"}}, f"{no_clip}.*cannot"),
        ("a clip without samples", {"chosen": sound(tone(500, 0))}, f"{no_clip}.*is empty"),
        ("a clip of two samples", {"chosen": sound(tone(500)[:2])}, f"{no_clip}only 2 samples"),
        ("a clip with NaN", {"chosen": sound(holed, subtype="FLOAT")}, f"{no_clip}.*NaN"),
        ("winner and loser are one clip", {"rejected": sound(tone(500))}, f"{second}winner and loser of .* are the same"),
    ]  # fmt: skip
    right = {
        "a prompt in another script": ("狗叫，“雨”", {"prompt": "狗叫，“雨”"}),
        "a prompt of 5,000 characters": ("rain " * 999 + "falls", {"prompt": "rain " * 999 + "falls"}),
        "a winner in FLAC": (PROMPTS[1], {"chosen": sound(tone(500), "FLAC")}),
        "a winner in Ogg": (PROMPTS[1], {"chosen": sound(tone(500), "OGG")}),
        "a winner in MP3": (PROMPTS[1], {"chosen": sound(tone(500), "MP3")}),
        "a winner in stereo": (PROMPTS[1], {"chosen": sound(stereo)}),
        "a loser of another length": (PROMPTS[1], {"rejected": sound(tone(600, 0.3))}),
    }
    numbered = [row | {"strategy": 1} for row in rows()]
    extra = published().append_column("votes", pa.array([3, 4])).append_column("chosen_scores", pa.nulls(2))
    turned = published().select(["strategy", "rejected", "chosen", "prompt"])
    large = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    nothing = published().slice(0, 0)
    return [
        Case("as it is published", changed()),
        Case("columns in another order", stored(turned, RIGHT)),
        Case("other columns beside them", stored(extra, RIGHT)),
        Case("large binary columns", changed(kinds={"chosen": large, "rejected": large, "prompt": pa.large_string()})),
        Case("prompts as a dictionary", changed(kinds={"prompt": pa.dictionary(pa.int8(), pa.string())})),
        Case("a strategy that is a number", stored(pa.Table.from_pylist(numbered), RIGHT)),
        Case("a strategy of null", changed([RIGHT[0], (PROMPTS[1], "", 500, 600)], strategy=None)),
        *(Case(name, changed([RIGHT[0], (prompt, "1", 500, 600)], **cells)) for name, (prompt, cells) in right.items()),
        Case("clips as arrays", arrays(stereo=False)),
        Case("clips as arrays of two channels", arrays(stereo=True)),
        Case("clips as paths beside the file", beside("path")),
        Case("clips as texts with paths", beside("text")),
        Case("in two shards of a split", shards),
        Case("in a folder below", stored(published(), RIGHT, "data/train-00000-of-00001.parquet")),
        Case("AppleDouble's ._x.parquet beside it", files(RIGHT, x_parquet=parquet(), __x_parquet=b"\0\5\x16\7")),
        Case("the same pair twice", stored(pa.concat_tables([published(), published()]), [*RIGHT, *RIGHT])),
        *(Case(name, changed(Refused(told), **cells), ("rows", "pairs")) for name, cells, told in wrong),
        Case("no rows", stored(nothing, Refused("holds no (pairs|clips)"))),
        *(
            Case(f"no column {name}", stored(published().drop_columns([name]), Refused(f"no column {name}")), ("rows", "pairs"))
            for name in ("prompt", "chosen", "rejected", "strategy")
        ),
        Case("a text for a clip's struct", stored(pa.table({name: ["1"] for name in rows()[0]}), Refused("no such audio file")),
             ("rows", "pairs")),
        Case("numbers for clips", stored(pa.table({"prompt": ["a"], "chosen": [1], "rejected": [2], "strategy": ["1"]}),
             Refused("holds no audio")), ("rows", "pairs")),
        Case("cut off", files(Refused("cannot be read as Parquet"), x_parquet=parquet()[:-50])),
        Case("bytes turned round", files(Refused("cannot be (read as Parquet|decoded)"), x_parquet=turned_round(parquet()))),
        Case("an empty file", files(Refused("cannot be read as Parquet"), x_parquet=b"")),
        Case("a git-lfs pointer", files(Refused("cannot be read as Parquet"), x_parquet=b"version https://git-lfs\noid 0\n")),
        Case("JSON lines", files(Refused("holds no Parquet file|has no metadata.csv"), x_jsonl=b'{"prompt": "a"}\n')),
        Case("an empty folder", files(Refused("holds no Parquet file"))),
    ]  # fmt: skip


def turned_round(data: bytes) -> bytes:
    """Bytes with those of the first column's pages turned round."""
    return data[:8] + bytes(255 - byte for byte in data[8:40]) + data[40:]


def shards(folder: Path) -> Right:
    """The pairs in two files of the split `train`."""
    for at in range(2):
        stored(published().slice(at, 1), None, f"train-0000{at}-of-00002.parquet")(folder)
    return RIGHT


def pitch(samples: np.ndarray, rate: int) -> float:
    """The loudest frequency of a clip."""
    return float(np.argmax(np.abs(np.fft.rfft(samples)))) * rate / len(samples)


def by_row(folder: Path) -> Right:
    """As a training reads them, where the first refusal stops."""
    pairs = []
    for entry in checked_pairs(folder / "data"):
        if isinstance(entry, Refusal):
            raise DataError(entry.reason)
        sides = [pitch(clip.waveform, clip.rate) for clip in (entry.chosen, entry.rejected)]
        pairs.append((entry.pair.prompt, entry.pair.strategy, *sides))
    return pairs


def by_pairs(folder: Path) -> Right:
    """As `milonga.read_pairs` gives them to Python."""
    loaded = read_pairs(folder / "data")
    return [
        (pair.pair.prompt, pair.pair.strategy, pitch(pair.chosen.waveform, pair.chosen.rate),
         pitch(pair.rejected.waveform, pair.rejected.rate))
        for pair in loaded
    ]  # fmt: skip


def by_clips(folder: Path) -> Right:
    """The winners, as `clips:` reads them for prior-preservation; losers and strategies are not read there."""
    recordings = decoded(clip_entries(f"clips:{folder / 'data'}"))
    return [(clip.captions[0], "?", pitch(clip.clip.waveform, clip.clip.rate), 0.0) for clip in recordings]


def fault(value: Right, right: Right) -> str:
    """What is wrong with the pairs that were read."""
    if len(value) != len(right):
        return f"{len(value)} pairs, not {len(right)}"
    for (prompt, strategy, winner, loser), (wanted, kind, high, low) in zip(value, right, strict=True):
        clips_only = strategy == "?"
        if (
            prompt != wanted
            or abs(winner - high) > 5
            or (not clips_only and (strategy != kind or abs(loser - low) > 5))
        ):
            return f"{(prompt, strategy, winner, loser)}, not {(wanted, kind, high, low)}"
    return ""


def group() -> Group:
    """The readers of pairs and all cases."""
    return Group("Preference data", {"rows": by_row, "pairs": by_pairs, "clips:": by_clips}, fault, cases())
