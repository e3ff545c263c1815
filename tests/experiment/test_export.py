"""`milonga export`: what `datasets` loads and Milonga reads back is the run's pairs and clips, bit for bit."""

import json
import sys
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_parts import RECIPE, FakeParts
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from milonga.cli.main import app
from milonga.core.audio import clips_of
from milonga.core.errors import DataError, RecipeError, ServiceError, StoreError
from milonga.core.ids import content_id
from milonga.core.records import Pair, Request
from milonga.core.store import Run
from milonga.data import pairs as pairs_module
from milonga.data.audio_alpaca import PUBLISHED, read_alpaca
from milonga.experiment import export as exporting
from milonga.experiment import run as pipeline
from milonga.experiment.export import export, push, split_pairs
from milonga.experiment.pair import pair
from milonga.experiment.recipe import parse_recipe

LIMITS = 'pair.thresholds=[{scorer="one", min_winner_score=0.4, min_loser_score=0.0, min_margin=0.0, max_margin=1.0}]'


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("export") / "run"
    return pipeline.run(parse_recipe(RECIPE, "fake.toml", [LIMITS]), folder, until="pair", parts=FakeParts())


def kept(run: Run) -> dict[str, Pair]:
    return {one.id: one for one in run.stage("pair").read_records(Pair)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_it_reads_back_to_the_same_pairs_and_clips(run, tmp_path):
    folder = export(run.path, tmp_path / "set", validation=0.3)
    back = {one.pair.id: one for one in read_alpaca(folder)}
    assert {name: one.pair for name, one in back.items()} == kept(run)
    clips = {}
    for shard in run.stage("generate").names():
        clips |= clips_of(run.stage("generate").read_table(shard))
    for one in back.values():
        assert np.array_equal(one.chosen.waveform, clips[one.pair.chosen_id].waveform)
        assert np.array_equal(one.rejected.waveform, clips[one.pair.rejected_id].waveform)


def test_datasets_loads_it_with_the_published_columns_and_provenance(run, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = export(run.path, tmp_path / "set", validation=0.3)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation"}
    train = loaded["train"]
    assert tuple(train.column_names[:4]) == PUBLISHED
    assert train.features["chosen"] == train.features["rejected"] == datasets.Audio(sampling_rate=8000)
    row = train.cast_column("chosen", datasets.Audio(decode=False)).cast_column(
        "rejected", datasets.Audio(decode=False)
    )[0]
    found = kept(run)[row["id"]]
    assert row["chosen"]["bytes"][:4] == b"fLaC"
    assert (row["prompt"], row["chosen_seed"], row["rejected_words"]) == (
        found.prompt, found.chosen_seed, found.rejected_words
    )  # fmt: skip
    assert row["chosen_scores"] == found.chosen_scores
    assert row["scorer_hashes"] == {"one": "one", "two": "two"}
    assert (row["model"], row["model_hash"]) == ("noise", "w")
    requests = {one.id: one for one in run.stage("plan").read_records(Request)}
    assert row["rejected_guidance"] == requests[row["rejected_id"]].guidance
    assert len(loaded["train"]) + len(loaded["validation"]) == len(kept(run))
    assert not set(loaded["train"]["prompt"]) & set(loaded["validation"]["prompt"])


def test_the_card_has_table_2_the_refusals_and_figure_2_with_its_thresholds(run, tmp_path):
    folder = export(run.path, tmp_path / "set", validation=0.0)
    text = (folder / "README.md").read_text()
    head, body = text.split("\n---\n", 1)
    assert 'path: "data/train-*.parquet"' in head
    assert "validation" not in head
    overall = next(line for line in body.splitlines() if line.startswith("| Overall"))
    assert overall.split(" | ")[1:3] == ["30", str(len(kept(run)))]
    assert "| α: the winner scores too low |" in body
    assert "| one | 0.4 | 0 | 0 | 1 |" in body
    shown = [line.split("](")[1].rstrip(")") for line in body.splitlines() if line.startswith("![")]
    assert len(shown) == 4
    first = (folder / shown[0]).read_text()
    assert first.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "α 0.4" in first
    assert (folder / "recipe.toml").read_text() == (run.path / "recipe.toml").read_text()


def test_a_stopped_export_goes_on_and_a_finished_one_is_left_alone(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "ROWS", 4)
    whole = contents(export(run.path, tmp_path / "whole"))
    folder, wrote = tmp_path / "stopped", []
    original = pairs_module.alpaca_table

    def stops(pairs, *rest):
        wrote.append(len(pairs))
        if len(wrote) == 3:
            raise KeyboardInterrupt
        return original(pairs, *rest)

    monkeypatch.setattr(pairs_module, "alpaca_table", stops)
    with pytest.raises(KeyboardInterrupt):
        export(run.path, folder)
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")}
    assert len(times) == 2
    assert not (folder / "README.md").exists()
    export(run.path, folder)
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert contents(folder) == whole
    (folder / "README.md").write_text("with a licence")
    export(run.path, folder)
    assert (folder / "README.md").read_text() == "with a licence"
    assert sum(pq.read_metadata(file).num_rows for file in folder.rglob("*.parquet")) == len(kept(run))


def test_a_folder_with_something_else_is_left_alone(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(StoreError, match="is not empty and no export"):
        export(run.path, tmp_path / "mine")
    folder = export(run.path, tmp_path / "set")
    before = contents(folder)
    with pytest.raises(StoreError, match="holds an export of other pairs"):
        export(run.path, folder, validation=0.5)
    assert contents(folder) == before


def test_what_cannot_be_exported_is_told(run, tmp_path):
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(RecipeError, match="validation is a share"):
            export(run.path, tmp_path / "set", share)
    with pytest.raises(StoreError, match="is no run folder"):
        export(tmp_path / "nowhere", tmp_path / "set")
    empty = pipeline.run(parse_recipe(RECIPE, "x", [LIMITS]), tmp_path / "run", until="pair", parts=FakeParts())
    pair(empty.path, [LIMITS.replace("0.3", "1.0").replace("min_loser_score=0.0", "min_loser_score=1.0")])
    with pytest.raises(DataError, match="holds no kept pair"):
        export(empty.path, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def made(prompt: int, number: int) -> Pair:
    texts = dict.fromkeys(("prompt", "strategy", "chosen_words", "rejected_words", "chosen_id", "rejected_id"), "x")
    numbers = dict.fromkeys(("chosen_steps", "rejected_steps", "chosen_seed", "rejected_seed"), 1)
    name = content_id(prompt, number)
    return Pair(id=name, prompt_id=content_id(prompt), chosen_scores={}, rejected_scores={}, **texts, **numbers)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), unique=True), st.floats(0, 0.999), st.integers(0, 20))
def test_a_prompt_is_in_one_split_and_stays_there(keys, share, dropped):
    pairs = [made(*key) for key in keys]
    splits = split_pairs(pairs, share)
    sides = [{one.prompt_id for one in splits.get(name, [])} for name in ("train", "validation")]
    assert not sides[0] & sides[1]
    assert sorted(one.id for part in splits.values() for one in part) == sorted(one.id for one in pairs)
    fewer = split_pairs(pairs[dropped:], share)
    for name, part in fewer.items():
        assert {one.id for one in part} <= {one.id for one in splits[name]}
    smaller = split_pairs(pairs, share / 2).get("validation", [])
    assert {one.id for one in smaller} <= {one.id for one in splits.get("validation", [])}


class Hub:
    """The Hub's client, as far as it is used; it keeps what it was told."""

    told: ClassVar[list] = []

    def create_repo(self, name, **words):
        self.told.append(("create", name, words))

    def upload_folder(self, **words):
        if words["repo_id"] == "someone/else":
            raise OSError("403 Forbidden\nand a long page")
        self.told.append(("upload", words["repo_id"], words))


@pytest.fixture
def hub(monkeypatch) -> types.SimpleNamespace:
    fake = types.SimpleNamespace(HfApi=Hub, get_token=lambda: "secret")
    Hub.told.clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def test_a_push_is_private_unless_asked_and_says_where_it_went(run, tmp_path, hub):
    words = ["export", str(run.path), str(tmp_path / "set"), "--push", "me/pairs"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(tmp_path / "set"), "https://huggingface.co/datasets/me/pairs"]
    (_, name, how), (_, _, what) = Hub.told
    assert (name, how["private"], how["repo_type"], what["folder_path"]) == (
        "me/pairs",
        True,
        "dataset",
        tmp_path / "set",
    )
    CliRunner().invoke(app, [*words, "--public"])
    assert Hub.told[2][2]["private"] is False
    assert "secret" not in json.dumps(Hub.told, default=str)


def test_a_push_without_credentials_or_against_the_hubs_will_is_told(run, tmp_path, hub):
    folder = export(run.path, tmp_path / "set")
    with pytest.raises(ServiceError, match=r"did not take .*403 Forbidden; the same command") as error:
        push(folder, "someone/else")
    assert "\n" not in str(error.value)
    hub.get_token = lambda: None
    done = CliRunner().invoke(app, ["export", str(run.path), str(tmp_path / "other"), "--push", "me/pairs"])
    assert done.exit_code == 1
    assert "no Hugging Face token" in done.stderr
    assert not (tmp_path / "other").exists()
