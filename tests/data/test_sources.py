"""Captions by their source, and the world's real clips of them: always the same, and every mistake told in a line."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from milonga.core.errors import DataError, RecipeError
from milonga.core.records import Prompt
from milonga.data import captions as sources
from milonga.data.captions import tags_of, world_prompts
from milonga.experiment.registry import DEFAULT as registry
from milonga.maths.mel import normalise
from milonga.nano.captions import caption_in, split_of
from milonga.nano.world import CLASSES, SAMPLES


@pytest.mark.parametrize(
    "source",
    ["", "world", "world:train", "world:train:", "world:train:many", "world:valid:5", "world:5", "world:train:-5",
     "world:train:²", "audiocaps", "audiocaps:", "audiocaps:5", "moon:train:5", "world:train:5:6", "captions",
     "captions:", "captions:7", "dataset:", "dataset:5"],
)  # fmt: skip
def test_a_source_of_another_form_is_told_how_to_write_one(source: str) -> None:
    with pytest.raises(RecipeError, match="is no source of captions: write world:train:600 or audiocaps:FILE") as error:
        registry.prompt_source(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("split", ["train", "tune", "test"])
def test_captions_of_the_world_are_different_from_their_split_and_always_the_same(split: str) -> None:
    twenty = registry.prompt_source(f"world:{split}:20")
    assert len({one.id for one in twenty}) == len({one.text for one in twenty}) == 20
    assert {split_of(one.text) for one in twenty} == {split}
    assert {one.source for one in twenty} == {f"world:{split}"}
    assert registry.prompt_source(f"world:{split}:20") == twenty
    assert registry.prompt_source(f"world:{split}:10") == twenty[:10]
    for one in twenty:
        assert one.scene is not None
        assert set(one.tags) == set(tags_of(one.text, one.scene))
        assert {label for group in one.scene for label in group} <= set(CLASSES)


def test_captions_of_several_sounds_alone_are_those_of_the_longer_list() -> None:
    multi = registry.prompt_source("world:train:20:multi")
    longer = registry.prompt_source("world:train:80")
    assert multi == [one for one in longer if sum(map(len, one.scene or ())) > 1][:20]
    assert {"multi-concept"} <= set.intersection(*(set(one.tags) for one in multi))


def test_captions_of_several_sounds_of_a_table(tmp_path: Path) -> None:
    texts = ["A dog barks", "A dog barks then a bell rings", "Rain falls", "Wind blows while a man speaks", "A cat"]
    table = tmp_path / "captions.csv"
    table.write_text("\n".join(["caption", *texts]), encoding="utf-8")
    assert [one.text for one in registry.prompt_source(f"captions:{table}:multi")] == [texts[1], texts[3]]
    assert len(registry.prompt_source(f"captions:{table}:1:multi")) == 1


@pytest.mark.parametrize("end", ["", ":multi"])
def test_a_draw_gives_other_captions_and_the_same_ones_again(tmp_path: Path, end: str) -> None:
    table = tmp_path / "captions.csv"
    table.write_text("\n".join(["caption", *(f"dog {n} barks then a bell rings" for n in range(60))]), encoding="utf-8")
    for source in (f"world:train:15{end}", f"captions:{table}:15{end}"):
        usual, first, second = (registry.prompt_source(source, draw) for draw in (None, 1, 2))
        assert first == registry.prompt_source(source, 1)
        assert len(usual) == len(first) == len(second) == 15
        ids = [{one.id for one in drawn} for drawn in (usual, first, second)]
        assert all(len(a & b) < 12 for a, b in ((ids[0], ids[1]), (ids[1], ids[2]), (ids[0], ids[2])))


def test_no_caption_is_in_two_splits() -> None:
    texts = [{one.text for one in world_prompts(split, 60)} for split in ("train", "tune", "test")]
    assert len(set.union(*texts)) == 180


@pytest.mark.slow
def test_a_scene_whose_few_captions_are_all_anothers_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """800 captions of `tune` meet one dog that barks once: a scene with no caption there."""
    monkeypatch.setattr("milonga.nano.captions.TRIES", 200)
    assert len(registry.prompt_source("world:tune:800")) == 800
    with pytest.raises(DataError, match=r"none of 200 captions of \(\('Dog',\),\) is in tune"):
        caption_in("tune", (("Dog",),), {"Dog": 1}, np.random.default_rng(0))


def test_a_world_that_has_no_more_to_say_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    from milonga.nano import captions

    monkeypatch.setattr(sources, "LIMIT", 50)
    monkeypatch.setattr(captions, "caption_in", lambda split, scene, counts, rng: f"caption {rng.integers(5)}")
    assert {one.text for one in world_prompts("train", 100)} == {f"caption {n}" for n in range(5)}


READABLE = [
    "A dog barks then a bell rings",
    "Rain falls while a man speaks",
    "The cat is meowing twice",
    "Thunder after a siren wails",
]
UNKNOWN = ["A violin plays softly", "Somebody bakes a cake"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "captions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["audiocap_id", "youtube_id", "start_time", "caption"])
        for place, text in enumerate([*READABLE, *UNKNOWN, READABLE[0]]):
            writer.writerow([place, "x", 0, text])
    return path


def test_of_real_captions_those_are_read_whose_sounds_the_world_knows_each_once(table: Path) -> None:
    found = registry.prompt_source(f"audiocaps:{table}")
    assert {one.text for one in found} == set(READABLE)
    assert len(found) == len(READABLE)
    scenes = {one.text: one.scene for one in found}
    assert scenes["A dog barks then a bell rings"] == (("Dog",), ("Bell",))
    assert scenes["Thunder after a siren wails"] == (("Siren",), ("Thunder",))
    assert {one.text: one.tags for one in found}["A dog barks then a bell rings"] == ("temporal", "multi-concept")
    assert {one.text: one.tags for one in found}["The cat is meowing twice"] == ()


def test_a_count_of_real_captions_is_the_same_choice_whatever_the_files_order(table: Path) -> None:
    two = registry.prompt_source(f"audiocaps:{table}:2")
    assert [one.id for one in two] == sorted(one.id for one in registry.prompt_source(f"audiocaps:{table}"))[:2]
    assert len(registry.prompt_source(f"audiocaps:{table}:99")) == len(READABLE)
    rows = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([rows[0], *rows[:0:-1]]), encoding="utf-8")
    assert [one.text for one in registry.prompt_source(f"audiocaps:{table}:2")] == [one.text for one in two]


def test_a_table_that_cannot_be_used_is_told_in_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("text\nA dog barks\n")
    for path in (tmp_path / "none.csv", bad):
        with pytest.raises(DataError, match=path.name) as error:
            registry.prompt_source(f"audiocaps:{path}")
        assert "\n" not in str(error.value)


def test_all_captions_of_a_table_or_of_json_lines_each_once(table: Path, tmp_path: Path) -> None:
    found = registry.prompt_source(f"captions:{table}")
    assert [one.text for one in found] == [*READABLE, *UNKNOWN]
    assert {one.source for one in found} == {table.name}
    assert found[0].tags == ("temporal", "multi-concept")
    assert found[0].scene is None
    lines = tmp_path / "captions.jsonl"
    lines.write_text("".join(json.dumps({"captions": one.text, "location": "x.wav"}) + "\n" for one in found[::-1]))
    assert {one.id for one in registry.prompt_source(f"captions:{lines}")} == {one.id for one in found}
    three = registry.prompt_source(f"captions:{lines}:3")
    assert [one.id for one in three] == sorted(one.id for one in found)[:3]
    assert [one.id for one in registry.prompt_source(f"captions:{table}:3")] == [one.id for one in three]


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as `datasets` reads it from a folder, with sounds that nothing here could decode."""
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder, rows = tmp_path / "set", [*READABLE, READABLE[0]]
    folder.mkdir()
    sound = {
        "features": {"sound": {"_type": "Audio"}, **{n: {"dtype": "string", "_type": "Value"} for n in ("text", "b")}}
    }
    audio = pa.array(
        [{"bytes": b"no sound", "path": None}] * 5, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    columns = pa.table({"sound": audio, "text": rows, "b": [text.upper() for text in rows]})
    held = columns.replace_schema_metadata({"huggingface": json.dumps({"info": sound})})
    pq.write_table(held, folder / "train-00000.parquet")
    pq.write_table(held.slice(1, 2), folder / "validation-00000.parquet")
    return folder


def test_captions_of_a_data_set_by_split_and_column(data_set: Path) -> None:
    assert [one.text for one in registry.prompt_source(f"dataset:{data_set}")] == READABLE
    assert [one.text for one in registry.prompt_source(f"dataset:{data_set}:validation")] == READABLE[1:3]
    assert registry.prompt_source(f"dataset:{data_set}:train:b")[0].text == READABLE[0].upper()
    assert len(registry.prompt_source(f"dataset:{data_set}:train:2")) == 2
    with pytest.raises(DataError, match=r"no column c \(it has: sound, text, b\)"):
        registry.prompt_source(f"dataset:{data_set}:train:c")
    with pytest.raises(DataError, match=r"split moon, cannot be loaded: ValueError") as error:
        registry.prompt_source(f"dataset:{data_set}:moon")
    assert "\n" not in str(error.value)


def test_without_the_library_a_data_set_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RecipeError, match=r"pip install 'milonga\[data\]'"):
        registry.prompt_source("dataset:someone/sounds")


def test_a_reference_is_a_normalised_clip_of_the_scene_and_always_the_same() -> None:
    first, second = world_prompts("test", 2)
    clip = registry.reference(first)
    assert (clip.waveform.shape, clip.rate) == ((SAMPLES,), 16000)
    np.testing.assert_allclose(clip.waveform, normalise(clip.waveform), atol=1e-6)
    assert np.array_equal(registry.reference(first).waveform, clip.waveform)
    assert not np.allclose(registry.reference(second).waveform, clip.waveform)


@pytest.mark.parametrize("scene", [None, (("Violin",),), (("Dog",), ("Dragon",))])
def test_a_prompt_whose_sounds_are_not_known_has_no_reference(scene: tuple | None) -> None:
    with pytest.raises(DataError, match="the world does not know its sounds"):
        registry.reference(Prompt.of("a violin plays", "test", scene=scene))
