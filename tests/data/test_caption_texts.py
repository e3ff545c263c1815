"""Captions from tables and JSON lines; what is wrong with a file is told with its line."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.core.errors import DataError
from milonga.data.captions import caption_texts

texts = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip), min_size=1)


@settings(deadline=None)
@given(texts, st.sampled_from(["caption", "captions", "text", "prompt"]))
def test_what_is_written_in_either_form_is_read_stripped_and_in_order(tmp_path_factory, found, column):
    folder = tmp_path_factory.mktemp("captions")
    buffer = io.StringIO()
    table = csv.writer(buffer)
    table.writerows([["clip", column], *([n, text] for n, text in enumerate(found))])
    (folder / "a.csv").write_text(buffer.getvalue(), encoding="utf-8", newline="")
    lines = [json.dumps({"location": "x.wav", column: text}) for text in found]
    (folder / "a.jsonl").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    for name in ("a.csv", "a.jsonl"):
        assert list(caption_texts(folder / name)) == [text.strip() for text in found]


def test_a_list_of_captions_gives_each_of_them(tmp_path):
    path = tmp_path / "clotho.json"
    path.write_text('{"captions": ["one sound", "the same sound"]}\n{"captions": "another"}\n')
    assert list(caption_texts(path)) == ["one sound", "the same sound", "another"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.jsonl", '{"caption": "x"}\n{"caption', "line 2: not JSON"),
        ("a.jsonl", '["x"]\n', "item 1: not a JSON object"),
        ("a.jsonl", '{"caption": 3}\n', "line 1: the caption is empty"),
        ("a.jsonl", '{"captions": []}\n', "line 1: the caption is empty"),
        ("a.jsonl", '{"sound": "x"}\n', r"line 1: no column `caption` or .* \(it has: sound\)"),
        ("a.jsonl", "\n", "no captions in it"),
        ("a.csv", "caption\n", "no captions in it"),
        ("a.csv", "caption\n \n", "the caption is empty"),
    ],
)
def test_a_broken_file_is_told_in_one_line(tmp_path, name, text, told):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=told) as error:
        list(caption_texts(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
