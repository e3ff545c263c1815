"""`build_pairs`: captions in, pairs out, on a folder that resumes and that the commands of a run take."""

from pathlib import Path

import fake_parts
import numpy as np
import pytest
from typer.testing import CliRunner

import milonga
from milonga import Strategy, Threshold, build_pairs, read_pairs
from milonga.cli.main import app
from milonga.core.errors import DataError, StoreError
from milonga.core.records import Pair
from milonga.data.pairs import RunPairs
from milonga.experiment.recipe import load_recipe

CAPTIONS = [f"sound number {n}" for n in range(6)]
STRATEGIES = [Strategy.same_prompt([4] * 3, name="1"), Strategy.perturbed(2, steps=4, name="2")]


def build(out: Path, log: Path | None = None, **changes) -> RunPairs:
    parts = {
        "model": fake_parts.NoiseModel(log),
        "scorers": [fake_parts.LoudScorer("one"), fake_parts.LoudScorer("two")],
        "perturber": fake_parts.Shouter(),
        "strategies": STRATEGIES,
        "seed": 3,
        "shard_size": 8,
    }
    return build_pairs(CAPTIONS, out=out, **(parts | changes))


def test_pairs_have_clips_table_2_and_refusals(tmp_path):
    pairs = build(tmp_path / "run", thresholds=[Threshold("one", min_winner_score=0.5)])
    assert len(pairs) == len(pairs.pairs) > 0
    assert len(pairs.refused) > 0
    assert all(pair.chosen_scores["one"] >= 0.5 for pair in pairs.pairs)
    rows = pairs.table2("one")
    assert [row.strategy for row in rows] == ["1", "2", "Overall"]
    assert rows[-1].n == len(pairs)
    first = next(iter(pairs))
    assert first.pair == pairs.pairs[0]
    assert first.chosen.rate == 8000
    assert not np.array_equal(first.chosen.waveform, first.rejected.waveform)


def test_a_second_call_generates_nothing_and_other_thresholds_pair_again(tmp_path):
    log = tmp_path / "log"
    first = build(tmp_path / "run", log)
    made = log.read_text()
    assert build(tmp_path / "run", log).pairs == first.pairs
    strict = build(tmp_path / "run", log, thresholds=[Threshold("two", min_margin=0.2)])
    assert log.read_text() == made
    assert 0 < len(strict) < len(first)
    assert [pair.id for pair in build(tmp_path / "run", log).pairs] == [pair.id for pair in first.pairs]


@pytest.mark.parametrize("changes", [{"seed": 4}, {"strategies": STRATEGIES[:1]}, {"scheduler": "ddim"}])
def test_a_folder_begun_otherwise_is_refused_and_says_by_what(tmp_path, changes):
    build(tmp_path / "run")
    name = {"scheduler": "model"}.get(next(iter(changes)), next(iter(changes)))
    with pytest.raises(StoreError, match=f"begun with other values of {name}"):
        build(tmp_path / "run", **changes)


def test_other_captions_are_refused_and_none_is_told(tmp_path):
    build(tmp_path / "run")
    with pytest.raises(StoreError, match="captions"):
        build_pairs(["another"], out=tmp_path / "run", model=fake_parts.NoiseModel())
    with pytest.raises(DataError, match="no captions"):
        build_pairs([], out=tmp_path / "empty")


def test_a_scorer_is_named_by_its_files_stem_too(tmp_path):
    scorer = fake_parts.LoudScorer("laion-clap:weights/630k-best.pt")
    pairs = build(tmp_path / "run", scorers=[scorer], thresholds=[Threshold("630k-best", min_margin=0.1)])
    assert all(pair.chosen_scores[scorer.name] - pair.rejected_scores[scorer.name] >= 0.1 for pair in pairs.pairs)
    with pytest.raises(DataError, match="no scorer is called 'nobody'"):
        build(tmp_path / "run", thresholds=[Threshold("nobody")])


def test_the_folder_is_a_run_that_status_pair_and_export_take(tmp_path):
    pairs = build(tmp_path / "run")
    recipe = load_recipe(tmp_path / "run")
    assert [one.name for one in recipe.plan.strategies] == ["1", "2"]
    for words in (["status"], ["pair", "--sweep"]):
        done = CliRunner().invoke(app, [words[0], str(tmp_path / "run"), *words[1:]])
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), str(tmp_path / "set")])
    assert done.exit_code == 0, done.output
    assert {row.pair.id for row in read_pairs(tmp_path / "set")} == {pair.id for pair in pairs.pairs}


def test_to_dataset_has_audio_alpacas_columns_and_reads_back(tmp_path):
    pytest.importorskip("datasets")
    pairs = build(tmp_path / "run")
    dataset = pairs.to_dataset()
    assert dataset.column_names[:4] == ["prompt", "chosen", "rejected", "strategy"]
    assert len(dataset) == len(pairs) == len(read_pairs(dataset))
    back = next(iter(read_pairs(dataset)))
    first = next(iter(pairs))
    assert back.pair == first.pair
    np.testing.assert_array_equal(back.chosen.waveform, first.chosen.waveform)
    assert read_pairs(pairs) is pairs


def test_a_run_of_the_same_recipe_gives_the_same_pairs(tmp_path):
    pairs = build(tmp_path / "mine")
    recipe = load_recipe(tmp_path / "mine").model_copy(update={"name": "again"})
    parts = {
        "noise": fake_parts.NoiseModel(), "one": fake_parts.LoudScorer("one"), "two": fake_parts.LoudScorer("two"),
        "shout": fake_parts.Shouter(), "nano-judge": fake_parts.LoudScorer("judge"), "nano-tagger": object(),
        recipe.prompts.sources[0]: CAPTIONS,
    }  # fmt: skip
    run = milonga.run(recipe, tmp_path / "run", until="pair", parts=parts)
    again = {pair.id: pair for pair in run.stage("pair").read_records(Pair)}
    assert again == {pair.id: pair for pair in pairs.pairs}
