"""The reader of tables: what a correct writer wrote is read back equal; what is damaged is refused, never shifted."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.core.errors import DataError
from milonga.data.captions import caption_texts, captions_of, clip_captions, clip_key
from milonga.data.tables import read_rows

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
HEADER = ["file_name", "caption", "note"]
TABLES = st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=6)


def cells_of(path: Path) -> list[dict[str, Any]]:
    return [row.cells for row in read_rows(path)]


def as_csv(rows: list, **how: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, **how).writerows(rows)
    return buffer.getvalue()


@settings(deadline=None, max_examples=150)
@given(
    TABLES,
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_what_csv_writes_is_read_back_equal(tmp_path_factory, rows, delimiter, quoting, end, encoding):
    if (
        quoting != csv.QUOTE_ALL and end == "\n"
    ):  # before Python 3.13 `csv` then leaves a carriage return without quotes
        rows = [tuple(cell.replace("\r", "") for cell in row) for row in rows]
    text = as_csv([HEADER, *rows], delimiter=delimiter, quoting=quoting, lineterminator=end)
    path = tmp_path_factory.mktemp("tables") / "t.csv"
    path.write_bytes(text.encode(encoding))
    kept = [row for row in rows if any(row)]  # a row of nothing is what spreadsheets leave below a table
    assert cells_of(path) == [dict(zip(HEADER, row, strict=True)) for row in kept]


@settings(deadline=None, max_examples=50)
@given(TABLES)
def test_what_json_and_parquet_write_is_read_back_equal(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("tables")
    objects = [dict(zip(HEADER, row, strict=True)) for row in rows]
    lines = [json.dumps(one, ensure_ascii=False) for one in objects]
    (folder / "a.jsonl").write_bytes("\n".join(lines).encode())
    (folder / "b.json").write_bytes(json.dumps(objects, indent=1).encode())
    (folder / "c.json").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    (folder / "d.json").write_bytes(json.dumps({"version": 1, "data": objects}, indent=2).encode())
    (folder / "e.ndjson").write_bytes(("\n".join(lines) + "\n\n").encode("utf-16"))
    pq.write_table(pa.Table.from_pylist(objects), folder / "f.parquet")
    (folder / "g.json").write_bytes(json.dumps({"version": 1, "data": objects}).encode())  # WavCaps' form on one line
    for file in sorted(folder.iterdir()):
        assert cells_of(file) == objects, file.name


@settings(deadline=None, max_examples=200)
@given(TABLES, st.sampled_from([",", ";", "\t"]), st.data())
def test_a_cut_or_spoilt_table_is_refused_or_its_rows_are_still_right(tmp_path_factory, rows, delimiter, data):
    """Cut off anywhere, with a quote lost or one too many, or a delimiter too many: no cell moves to another column."""
    rows = [
        (f"clip{number}.wav", f"a {delimiter} sound " + row[1].replace("\n", " "), "x")
        for number, row in enumerate(rows)
    ]
    text = as_csv([HEADER, *rows], delimiter=delimiter, quoting=csv.QUOTE_MINIMAL)
    start = len(as_csv([HEADER], delimiter=delimiter))
    place = data.draw(st.integers(start, len(text) - 1))
    damage = data.draw(st.sampled_from(["cut", "lose", "quote", "delimiter"]))
    if damage == "cut":
        spoilt = text[:place]
    elif damage == "lose":
        place = text.find('"', place)
        spoilt = text[:place] + text[place + 1 :] if place >= 0 else text
    else:
        spoilt = text[:place] + ('"' if damage == "quote" else delimiter) + text[place:]
    path = tmp_path_factory.mktemp("tables") / "t.csv"
    path.write_bytes(spoilt.encode())
    try:
        read = cells_of(path)
    except DataError:
        return
    for row in read:
        assert set(row) == set(HEADER)
        if damage != "cut":
            # The spoilt character itself may belong to a cell; but each row still begins with its own clip.
            assert row["file_name"].startswith(("clip", '"', delimiter, "c"))
            assert row["note"].strip(f'{delimiter}"\r\n') in ("x", "")


BAD = [
    # D2: a caption with a comma that is not in quotes, wherever the caption stands
    ("t.csv", "file_name,caption\na.wav,a dog, then a bell\n", "line 2: 3 cells where the header names 2; put a text"),
    ("t.csv", "caption,file_name\na dog, then a bell,a.wav\n", "line 2: 3 cells where the header names 2; put a text"),
    ("t.csv", "file_name,caption,\na.wav,a dog, then a bell\n", "line 2: 3 cells where the header names 2; put a text"),
    ("t.tsv", "file_name\tcaption\na.wav\ta dog\tbarks\n", "a text that holds a tab in double quotes"),
    ("t.csv", "file_name;caption\na.wav;a dog; a bell\n", "a text that holds a semicolon in double quotes"),
    ("t.csv", "caption\na dog, a bell\n", "line 2: 2 cells where the header names 1"),
    ("t.csv", "file_name,caption,note\na.wav,rain\n", "line 2: 2 cells where the header has 3; add the missing ones"),
    ("t.csv", "file_name,caption\na.wav\n", "line 2: 1 cell where the header has 2"),
    # quotes
    ("t.csv", 'file_name,caption\na.wav,"a dog barks\nb.wav,rain\nc.wav,a bell\n', "line 2: a double quote opens here"),
    ("t.csv", 'file_name,caption\na.wav,"a dog"\nb.wav,"rain\n', "line 3: a double quote opens here and is"),
    ("t.csv", 'file_name,caption\na.wav,"a dog" barks\n', "line 2: text follows a closing double quote"),
    ("t.csv", 'file_name,caption\na.wav,"a dog barks\nb.wav,"rain, falls"\n', "line 2: text follows a closing double"),
    ("t.csv", 'file_name,caption,note\na.wav,the "dog, barks"\n', "line 2: a double quote stands alone inside a cell"),
    ("t.csv", 'file_name,caption\na.wav,"a \\"big\\" dog"\n', "line 2: text follows a closing double quote"),
    ("t.csv", "file_name,caption\na.wav,\"a dog\nb.wav,it's 5\" long\n", "line 2: text follows a closing double quote"),
    # headers
    ("t.csv", "", "the file is empty; it needs a header"),
    ("t.csv", "\n\n", "the file is empty; it needs a header"),
    ("t.csv", "file_name,caption,caption\na,b,c\n", "the header has the column caption twice"),
    ("t.csv", "file_name,caption\na,b\nfile_name,caption\nc,d\n", "line 3: the header stands here again"),
    ("t.csv", "caption;x,text\n", "the header may be divided by"),
    # encodings
    ("t.csv", b"file_name,caption\na.wav,caf\xe9\n", "line 2: not UTF-8 at byte 27; save the table as UTF-8"),
    ("t.csv", "file_name,caption\na.wav,rain\n".encode("utf-16-le"), "line 1: holds a NUL character"),
    ("t.csv", b"\xff\xfef", "line 1: not UTF-16"),
    ("t.jsonl", b'{"caption": "caf\xe9"}\n', "line 1: not UTF-8"),
    # other files
    ("t.csv", b"PK\x03\x04....", "is a spreadsheet or a zip archive: save the table as CSV"),
    ("t.csv", b"\x1f\x8b....", "is compressed: unpack it first"),
    ("t.csv", b"PAR1....", r"is Parquet: give it the suffix \.parquet"),
    ("t.json", b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
    ("t.parquet", b"PAR1", "cannot be read as Parquet"),
    # JSON
    ("t.jsonl", '{"caption": "x"}\n{"caption', "line 2: not JSON"),
    ("t.jsonl", '{"caption": "x"}\n{"caption": "y"', "line 2: not JSON"),
    ("t.json", '[{"caption": "x"}, {"caption": "y"}', "not JSON"),
    ("t.json", '[{"caption": "x"}, ["y"]]', "item 2: not a JSON object"),
    ("t.jsonl", '{"caption": "x", "caption": "y"}\n', "line 1: not JSON .a key stands twice"),
    ("t.json", '{"file_name": {"0": "a"}, "caption": {"0": "x"}}', "an object of columns; write one object for"),
    ("t.json", '{"file_name": ["a"], "caption": ["x"]}', "an object of columns"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "message"), BAD, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BAD)])
def test_a_damaged_table_is_refused_with_its_line_and_what_to_do(name, data, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(DataError, match=message) as error:
        cells_of(path)
    assert str(error.value).startswith(str(path))


GOOD = [
    ("t.csv", "file_name,caption\na.wav,rain,\nb.wav,sun,,\n", [("a.wav", "rain"), ("b.wav", "sun")]),
    ("t.csv", "file_name,caption\na.wav,rain\n,\n\n,\n", [("a.wav", "rain")]),
    ("t.csv", 'sep=;\nfile_name;caption\na.wav;"rain; sun"\n', [("a.wav", "rain; sun")]),
    ("t.csv", 'file_name, caption\na.wav, "a dog, then a bell"\n', [("a.wav", "a dog, then a bell")]),
    ("t.csv", "File_Name,CAPTION\na.wav,rain\n", [("a.wav", "rain")]),
    ("t.csv", ',file_name,caption\n0,a.wav,rain\n1,b.wav,"a, b"\n', [("a.wav", "rain"), ("b.wav", "a, b")]),
    ("t.csv", 'file_name,caption\ra.wav,rain\rb.wav,"x\ry"\r', [("a.wav", "rain"), ("b.wav", "x\ry")]),
    ("t.txt", "file_name\tcaption\na.wav\ta dog, then 12\" rain\n", [("a.wav", 'a dog, then 12" rain')]),
    ("t.csv", 'file_name|caption\na.wav|a, b; c\n', [("a.wav", "a, b; c")]),
    ("t.csv", 'file_name,caption\na.wav,the "big" dog\n', [("a.wav", 'the "big" dog')]),
    ("t.csv", 'file_name,caption\na.wav,"one\ntwo"\nb.wav,x\n', [("a.wav", "one\ntwo"), ("b.wav", "x")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "rows"), GOOD, ids=[str(i) for i in range(len(GOOD))])
def test_what_spreadsheets_and_scripts_write_is_read(name, text, rows, tmp_path):
    (tmp_path / name).write_bytes(text.encode())
    assert [(row["file_name"], row["caption"]) for row in cells_of(tmp_path / name)] == rows


def test_known_columns_of_parquet_count_in_any_case_too(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"File_Name": ["a.wav"], " Caption": ["rain"], "Note": ["x"]}), path)
    assert cells_of(path) == [{"file_name": "a.wav", "caption": "rain", "Note": "x"}]
    assert list(caption_texts(path)) == ["rain"]
    assert [(row.key, row.caption) for row in clip_captions(path)] == [("a", "rain")]


def test_rows_say_where_they_stand(tmp_path):
    (tmp_path / "t.csv").write_text('caption,clip\n"a\nb",x\n\nc,y\n')
    assert [row.where for row in read_rows(tmp_path / "t.csv")] == [f"{tmp_path}/t.csv, line {n}" for n in (2, 5)]


def test_clothos_five_captions_are_all_taken_and_the_first_where_one_is_needed(tmp_path):
    path = tmp_path / "clotho.csv"
    header = "file_name," + ",".join(f"caption_{n}" for n in range(1, 6))
    path.write_text(f'{header}\n  Distorted.wav,"One, and",Two,Three,Four,Five\nb.wav,A,B,,,\n')
    assert [captions_of(row) for row in read_rows(path)] == [["One, and", "Two", "Three", "Four", "Five"], ["A", "B"]]
    assert [(row.key, row.caption) for row in clip_captions(path)] == [("Distorted", "One, and"), ("b", "A")]


def test_half_a_character_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"caption": "a \\ud83d dog"}\n')
    with pytest.raises(DataError, match="line 1: the caption holds half a character"):
        [captions_of(row) for row in read_rows(tmp_path / "t.jsonl")]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a.wav", "a"),
        ("dogs/a.WAV", "a"),
        ("dogs\\a.wav", "a"),
        ("fx_1.5", "fx_1.5"),  # D12: a dot is no suffix
        ("fx_1.5.flac", "fx_1.5"),
        ("YGeR_0_30.000_40.000", "YGeR_0_30.000_40.000"),
        (" a.wav ", "a"),
        ("cafe\u0301 0.wav", "caf\u00e9 0"),  # D21: macOS writes the decomposed form
        ("a.wav.mp3", "a.wav"),
        (".wav", ""),
    ],
)
def test_a_clips_key(name, key):
    assert clip_key(name) == key
