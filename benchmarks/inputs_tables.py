# ruff: noqa: E501 (a case is a line)
"""Tables of captions for `inputs.py`: by every program that writes them, and damaged in every way."""

import csv
import gzip
import json
import os
from collections.abc import Callable, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from inputs_cases import Case, Group, Refused

from milonga.cli.generate import read_prompts
from milonga.data.captions import clip_key, prompt_source
from milonga.data.recordings import clip_entries
from milonga.evaluation.inputs import load_inputs
from milonga.listening_test.sources import read_captions

CAPTIONS = {"a": "a dog barks", "b": "rain falls, then a bell rings", "c": 'a man says "no"'}
TEXTS = ("captions:", "generate --prompts")  # readers that need no clips
ROWS = [("file_name", "caption"), *((f"{name}.wav", text) for name, text in CAPTIONS.items())]
PLAIN = "file_name,caption\na.wav,a dog barks\nb.wav,rain falls\nc.wav,a bell rings\n"

Right = dict[str, str]


def put(folder: Path, name: str, data: bytes | str, clips: Sequence[str] = ("a.wav", "b.wav", "c.wav")) -> None:
    """Writes the table and its clips."""
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    for clip in clips:
        (folder / "clips" / clip).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "clips" / clip, np.full(1600, 0.1), 16000, format="WAV")


def text(name: str, data: bytes | str, right: Any = None, clips: Sequence[str] = ("a.wav", "b.wav", "c.wav")) -> Any:
    """A case's `make`: a table of this text, and the captions that it must give."""

    def make(folder: Path) -> Any:
        put(folder, name, data, clips)
        return CAPTIONS if right is None else right

    return make


def written(rows: Sequence[Sequence[Any]] = ROWS, encoding: str = "utf-8", **how: Any) -> bytes:
    """Rows by Python's own writer of CSV."""
    buffer = StringIO(newline="")
    csv.writer(buffer, **how).writerows(rows)
    return buffer.getvalue().encode(encoding)


def objects(form: str) -> str:
    """The captions as JSON of some form."""
    rows = [dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]]
    if form == "lines":
        return "".join(json.dumps(row) + "\n" for row in rows)
    if form == "columns":
        return json.dumps({"file_name": [row[0] for row in ROWS[1:]], "caption": [row[1] for row in ROWS[1:]]})
    return json.dumps({"num_captions_per_audio": 1, "data": rows} if form == "within" else rows)


def parquet(kind: Any = None, **columns: list[Any]) -> bytes:
    """Columns as Parquet, texts of another Arrow type if given."""
    given: dict[str, list[Any]] = columns or {name: [row[at] for row in ROWS[1:]] for at, name in enumerate(ROWS[0])}
    buffer = BytesIO()
    pq.write_table(pa.table({name: pa.array(cells, kind) for name, cells in given.items()}), buffer)
    return buffer.getvalue()


def table_of(folder: Path) -> Path:
    """The table of a case's folder."""
    return next((folder / name for name in os.listdir(folder) if name.startswith("x.")), folder / "x.csv")


def by_clips(folder: Path) -> Right:
    """As a training reads it."""
    entries = clip_entries(f"clips:{table_of(folder)}@{folder / 'clips'}")
    return {clip_key(str(entry.source)): " / ".join(entry.captions) for entry in entries}


def by_evaluation(folder: Path) -> Right:
    """As `evaluate CLIPS --captions TABLE` reads it."""
    prompts = load_inputs([str(folder / "clips")], None, table_of(folder)).prompts
    return {key: prompt.text for key, prompt in prompts.items()}


def by_listening(folder: Path) -> Right:
    """As `listen make --captions TABLE` reads it."""
    return {key: prompt.text for key, prompt in read_captions(table_of(folder)).items()}


def fault(value: Any, right: Right) -> str:
    """What is wrong with the captions that were read; of a list only the texts count."""
    if isinstance(value, list):
        wanted = [caption for captions in right.values() for caption in captions.split(" / ")]
        return "" if value == list(dict.fromkeys(wanted)) or value == wanted else f"{value}, not {wanted}"
    return "" if value == right else f"{value}, not {right}"


def sound() -> list[Case]:
    """Tables that are read."""
    plain = {"a": "a dog barks", "b": "rain falls", "c": "a bell rings"}
    texts: list[tuple[str, str, bytes | str]] = [
        ("commas, quotes where needed", "x.csv", written()),
        ("every cell in quotes", "x.csv", written(quoting=csv.QUOTE_ALL)),
        ("semicolons, as European spreadsheets write", "x.csv", written(delimiter=";")),
        ("a first line sep=;", "x.csv", b"sep=;\r\n" + written(delimiter=";")),
        ("tabs, .tsv", "x.tsv", written(delimiter="\t")),
        ("tabs, .csv", "x.csv", written(delimiter="\t")),
        ("bars", "x.csv", written(delimiter="|")),
        ("line ends of Unix", "x.csv", written(lineterminator="\n")),
        ("line ends of the old Mac", "x.csv", written(lineterminator="\r")),
        ("no line end at the end", "x.csv", written().rstrip()),
        ("a byte order mark", "x.csv", written(encoding="utf-8-sig")),
        ("UTF-16 with a byte order mark", "x.csv", written(encoding="utf-16")),
        ("UTF-16, big-endian", "x.csv", b"\xfe\xff" + written(encoding="utf-16-be")),
        ("UTF-32", "x.csv", written(encoding="utf-32")),
        ("blank lines", "x.csv", written().replace(b"\r\n", b"\r\n\r\n")),
        ("rows of nothing but commas below", "x.csv", written() + b",\r\n,\r\n"),
        ("a trailing delimiter in every line", "x.csv", written().replace(b"\r\n", b",\r\n")),
        ("spaces in the header", "x.csv", written([(" file_name ", " caption "), *ROWS[1:]])),
        ("a header in capitals", "x.csv", written([("File_Name", "CAPTION"), *ROWS[1:]])),
        ("the columns the other way round", "x.csv", written([row[::-1] for row in ROWS])),
        ("pandas' index", "x.csv", written([("", *ROWS[0]), *((at, *row) for at, row in enumerate(ROWS[1:]))])),
        ("other columns beside them", "x.csv", written([("id", *ROWS[0], "licence"), *((9, *row, "CC0") for row in ROWS[1:])])),
        ("spaces around captions", "x.csv", written([(name, f"  {cell} ") for name, cell in ROWS])),
        ("audio and text", "x.csv", written([("audio", "text"), *ROWS[1:]])),
        ("path and prompt", "x.csv", written([("path", "prompt"), *ROWS[1:]])),
        ("clip and caption", "x.csv", written([("clip", "caption"), *((row[0][:1], row[1]) for row in ROWS[1:])])),
        ("names without suffix", "x.csv", written([ROWS[0], *((row[0][:1], row[1]) for row in ROWS[1:])])),
        ("names with backslashes", "x.csv", written([ROWS[0], *((f".\\{row[0]}", row[1]) for row in ROWS[1:])])),
        ("JSON, a list", "x.json", objects("list")),
        ("JSON, a list within an object (WavCaps)", "x.json", objects("within")),
        ("JSON lines", "x.jsonl", objects("lines")),
        ("JSON lines, byte order mark, blank lines", "x.jsonl", "\ufeff" + objects("lines").replace("\n", "\r\n\r\n")),
        ("Parquet", "x.parquet", parquet()),
        ("Parquet of large strings", "x.parquet", parquet(pa.large_string())),
        ("Parquet of dictionaries", "x.parquet", parquet(pa.dictionary(pa.int8(), pa.string()))),
    ]  # fmt: skip
    cases = [Case(name, text(file, data)) for name, file, data in texts]
    for name, caption in (
        ("a line end inside quotes", "a dog barks\nthen rain falls"), ("another script", "狗叫，然后下雨"),
        ("smart quotes, a dash, a picture", "“no” – 🐶"), ("only digits", "1984"), ("a text that pandas takes for none", "NA"),
        ("a formula", "=SUM(1)"), ("an apostrophe and a backslash", "it's a \\n bell"), ("5,000 characters", "rain " * 999 + "falls"),
    ):  # fmt: skip
        right = plain | {"b": caption}
        rows = [ROWS[0], *((f"{key}.wav", value) for key, value in right.items())]
        cases.append(Case(f"a caption: {name}", text("x.csv", written(rows), right)))
    audiocaps = [("audiocap_id", "youtube_id", "start_time", "caption"), (7, "aB-x", 30, "a dog barks")]
    clotho = [
        ("file_name", *(f"caption_{at}" for at in range(1, 6))),
        ("a b.wav", *(f"rain {at}" for at in range(1, 6))),
    ]
    five = " / ".join(f"rain {at}" for at in range(1, 6))
    first, every = {"a b": "rain 1"}, {"a b": five}
    by_use = {"clips:": every, "captions:": every, "evaluate": first, "listen": first, "generate --prompts": every}
    folded = [ROWS[0], ("cafe\u0301.wav", "a cup falls")]
    dotted = [ROWS[0], ("fx_1.5", "a door"), ("fx_1.7", "a bell")]
    many = {f"{at:04d}": f"sound {at}" for at in range(2000)}
    rows = [ROWS[0], *((f"{key}.wav", value) for key, value in many.items())]
    return [
        *cases,
        Case("AudioCaps' columns", text("x.csv", written(audiocaps), {"aB-x_30": "a dog barks"}, ["aB-x_30.wav"])),
        Case("AudioCaps' clips with a Y", text("x.csv", written(audiocaps), {"YaB-x_30": "a dog barks"}, ["YaB-x_30.wav"]),
             ("clips:", "captions:", "evaluate", "generate --prompts")),
        Case("Clotho's five captions", text("x.csv", written(clotho), by_use, ["a b.wav"])),
        Case("Clotho's file name with a space before it", text("x.csv", written(clotho).replace(b"a b", b" a b"), by_use, ["a b.wav"])),
        Case("JSON lines with a list of captions", text("x.jsonl", json.dumps({"file_name": "a b.wav", "captions": five.split(" / ")}),
             by_use, ["a b.wav"])),
        Case("names decomposed (NFD), files composed", text("x.csv", written(folded), {"café": "a cup falls"}, ["café.wav"])),
        Case("files decomposed (NFD), names composed", text("x.csv", written([ROWS[0], ("café.wav", "a cup falls")]),
             {"café": "a cup falls"}, ["cafe\u0301.wav"])),
        Case("names with dots and no suffix", text("x.csv", written(dotted), {"fx_1.5": "a door", "fx_1.7": "a bell"},
             ["fx_1.5.wav", "fx_1.7.wav"])),
        Case("2,000 rows", text("x.csv", written(rows), many, [])  , ("captions:", "listen", "generate --prompts")),
        Case("only captions", text("x.csv", "caption\na dog barks\n\"rain falls, then stops\"\n",
             {"0": "a dog barks", "1": "rain falls, then stops"}), TEXTS),
        Case("a plain text, a prompt in each line", text("x.txt", "a dog barks\n\nrain falls, then stops\n",
             {"0": "a dog barks", "1": "rain falls, then stops"}), ("generate --prompts",)),
    ]  # fmt: skip


def damaged() -> list[Case]:
    """Tables that are refused, by file and line."""
    quotes, shape = r"line 3: 3 cells where .* double quotes", r"line 3: 1 cell where the header has 2"
    texts: list[tuple[str, str, bytes | str, str]] = [
        ("a comma that is not in quotes", "x.csv", PLAIN.replace("rain falls", "rain falls, then stops"), quotes),
        ("a tab inside a caption", "x.tsv", PLAIN.replace(",", "\t").replace("rain ", "rain\t"), "line 3: 3 cells where"),
        ("a missing cell", "x.csv", PLAIN.replace(",rain falls", ""), shape),
        ("a quote that is never closed", "x.csv", PLAIN.replace("rain", '"rain'), "line 3: a double quote opens here"),
        ("text after a closing quote", "x.csv", PLAIN.replace("rain falls", '"rain" falls'), "line 3: text follows"),
        ("a stray quote", "x.csv", PLAIN.replace("rain falls", 'rain 5" falls'), "line 3: "),
        ("quotes escaped by backslashes", "x.csv", PLAIN.replace("rain falls", r'"rain \"falls\" now"'), "line 3: "),
        ("two delimiters at once", "x.csv", "file_name;caption,text\na.wav;b,c\n", "comma or a semicolon|1 cell|header"),
        ("rows of another delimiter than the header", "x.csv", PLAIN.replace(",", ";").replace(";", ",", 1), "line 2: 1 cell"),
        ("the header again in the middle", "x.csv", PLAIN + PLAIN, "line 5: the header stands here again"),
        ("two columns of one name", "x.csv", PLAIN.replace("file_name", "caption"), "has the column caption twice"),
        ("an empty file", "x.csv", b"", "the file is empty"),
        ("only blank lines", "x.csv", "\n\n \n", "empty|no captions|no clips|needs the columns"),
        ("only a header", "x.csv", "file_name,caption\n", "no captions|no clips|needs the columns"),
        ("no header", "x.csv", PLAIN.partition("\n")[2], "line 2: (no column|needs the columns)"),
        ("no column of captions", "x.csv", PLAIN.replace("caption", "words"), "line 2: no column"),
        ("an empty caption", "x.csv", PLAIN.replace("rain falls", " "), "line 3: the caption is empty"),
        ("Latin-1", "x.csv", PLAIN.replace("rain", "café").encode("latin-1"), "line 3: not UTF-8"),
        ("Windows-1252", "x.csv", PLAIN.replace("rain", "“rain”").encode("cp1252"), "line 3: not UTF-8"),
        ("Shift-JIS", "x.csv", PLAIN.replace("rain", "犬").encode("shift-jis"), "line 3: not UTF-8"),
        ("UTF-16 without its mark", "x.csv", PLAIN.encode("utf-16-le"), "NUL character"),
        ("UTF-8 cut within a letter", "x.csv", PLAIN.encode() + b"d.wav,caf" + b"\xc3", "line 5: not UTF-8"),
        ("NUL characters", "x.csv", PLAIN.replace("rain", "ra\0in"), "line 3: holds a NUL"),
        ("a spreadsheet", "x.csv", b"PK\x03\x04" + bytes(300), "is a spreadsheet or a zip"),
        ("compressed", "x.csv", gzip.compress(PLAIN.encode()), "is compressed"),
        ("Parquet named .csv", "x.csv", parquet(), "is Parquet"),
        ("a git-lfs pointer", "x.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        ("a page of a server", "x.csv", "<!DOCTYPE html>\n<html><title>404</title></html>\n", "no column|needs the columns|cell"),
        ("CSV named .json", "x.json", PLAIN, "not JSON"),
        ("JSON cut off", "x.json", objects("list")[:-9], "not JSON"),
        ("JSON of columns", "x.json", objects("columns"), "an object of columns"),
        ("JSON, a list of texts", "x.json", '["a dog barks"]', "item 1: not a JSON object"),
        ("JSON lines, one of them cut", "x.jsonl", objects("lines").replace('rings"}', "rings"), "line 2: not JSON"),
        ("JSON lines, a caption of null", "x.jsonl", objects("lines").replace('"a dog barks"', "null"), "line 1: the caption is empty"),
        ("JSON lines, a number for a caption", "x.jsonl", objects("lines").replace('"a dog barks"', "7"), "line 1: the caption is empty"),
        ("JSON lines, a key twice", "x.jsonl", '{"file_name": "a.wav", "caption": "a", "caption": "b"}\n', "line 1: .* twice"),
        ("JSON lines, half a character", "x.jsonl", '{"file_name": "a.wav", "caption": "\\ud83d"}\n', "line 1: .* half a character"),
        ("JSON lines, no caption in a row", "x.jsonl", objects("lines") + '{"file_name": "d.wav"}\n', "line 4: no column"),
        ("Parquet cut off", "x.parquet", parquet()[:-9], "cannot be read as Parquet"),
        ("CSV named .parquet", "x.parquet", PLAIN, "cannot be read as Parquet"),
        ("Parquet without a column of captions", "x.parquet", parquet(file_name=["a.wav"], words=["a"]), "row 1: no column"),
        ("Parquet with a caption of null", "x.parquet", parquet(file_name=["a.wav"], caption=["a", None][1:]), "row 1: the caption is empty"),
    ]  # fmt: skip
    cases = [Case(name, text(file, data, Refused(told))) for name, file, data, told in texts]
    twice = {"evaluate": Refused("line 5: the clip a is there twice"), "listen": Refused("line 5: the clip a is there twice"),
             "clips:": {"a": "a dog barks / a cat", "b": "rain falls", "c": "a bell rings"}}  # fmt: skip
    nameless = PLAIN.replace("b.wav", " ")
    return [
        *cases,
        Case("a clip twice, with two captions", text("x.csv", PLAIN + "a.wav,a cat\n", twice)),
        Case("a row without a clip's name", text("x.csv", nameless, Refused("line 3: ")), ("clips:", "evaluate", "listen")),
        Case("no column of clips", text("x.csv", PLAIN.replace("file_name", "sound"), Refused("line 2: (no|needs)")),
             ("clips:", "evaluate", "listen")),
        Case("no row for a clip", text("x.csv", PLAIN.replace("b.wav", "d.wav"), Refused("no caption for 1 clips, b first")),
             ("evaluate",)),
        Case("a folder named .csv", a_folder),
        Case("no such table", lambda folder: (put(folder, ".hidden", ""), Refused("cannot be read"))[1]),
    ]  # fmt: skip


def a_folder(folder: Path) -> Refused:
    """A folder that is named like a table."""
    put(folder, ".hidden", "")
    (folder / "x.csv").mkdir()
    return Refused("x.csv")


def group() -> Group:
    """The readers of tables and all cases."""
    readers: dict[str, Callable[[Path], Any]] = {
        "clips:": by_clips,
        "captions:": lambda folder: [prompt.text for prompt in prompt_source(f"captions:{table_of(folder)}")],
        "evaluate": by_evaluation,
        "listen": by_listening,
        "generate --prompts": lambda folder: read_prompts(table_of(folder)),
    }
    return Group("Tables of captions", readers, fault, [*sound(), *damaged()])
