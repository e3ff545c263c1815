"""A run with group-wise training on tiny untrained networks: all clips of a caption, no pairs, evaluated as others."""

import json
from pathlib import Path

import pytest
from tiny_parts import parts_folder

from milonga.core.errors import DataError, RecipeError
from milonga.core.records import Candidate
from milonga.core.store import Run
from milonga.experiment import run as pipeline
from milonga.experiment.invalidation import stages_of
from milonga.experiment.recipe import Recipe, parse_recipe

RECIPE = """
name = "groups"
seed = 5
[models]
model = "{folder}/tango"
scorers = ["{folder}/one", "{folder}/two"]
judge = "{folder}/judge"
tagger = "{folder}/tagger"
[prompts]
sources = ["world:train:5"]
[plan]
shard_size = 4
strategies = [
    {{ name = "1", steps = [2, 2, 2], guidance = 3.0 }},
    {{ name = "2", negatives = "perturbed", num_negatives = 1, steps = [2], guidance = 3.0 }},
]
[train]
batch_size = 2
learning_rate = 1e-2
train_guidance = 3.0
trust_region = 0.01
systems = [{{ name = "aligned", data = "groups", phases = [{{ loss = "dgpo", epochs = 2, beta = 10.0 }}] }}]
[evaluate]
prompts = ["world:test:4"]
steps = 2
resamples = 50
"""


def recipe(folder: Path, *changes: str) -> Recipe:
    return parse_recipe(RECIPE.format(folder=folder), "groups.toml", changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return pipeline.run(recipe(folder), folder / "run")


@pytest.mark.slow
def test_nothing_is_paired_and_all_faithful_clips_train(run: Run) -> None:
    assert "pair" not in stages_of(recipe(run.path.parent))
    assert not (run.path / "pair").exists()
    curves = (run.path / "metrics" / "training" / "aligned.jsonl").read_text().splitlines()
    captions = {one.request.prompt_id for one in run.stage("score").read_records(Candidate)}
    last = json.loads(curves[-1])
    assert (last["phase"], last["total"]) == ("dgpo", 2 * -(-len(captions) // 2))
    assert last["distance"] > 0
    assert (run.path / "checkpoints" / "aligned" / "model").is_dir()


@pytest.mark.slow
def test_the_report_and_the_metrics_know_the_system(run: Run) -> None:
    systems = {row["system"] for row in json.loads((run.path / "metrics" / "summary.json").read_text())}
    assert {"base", "aligned"} <= systems
    assert (run.path / "report.html").exists()


def test_strategies_choose_among_groups_too(folder: Path) -> None:
    chosen = (
        'train.systems=[{ name = "x", data = "groups", strategies = ["2"], phases = [{ loss = "awm", epochs = 1 }] }]'
    )
    with pytest.raises(DataError, match="no caption has two clips of its own words"):
        pipeline.run(recipe(folder, chosen), folder / "other", until="train")


@pytest.mark.slow
def test_a_loss_of_pairs_does_not_fit_groups(folder: Path) -> None:
    wrong = 'train.systems=[{ name = "x", data = "groups", phases = [{ loss = "dpo", epochs = 1, beta = 1.0 }] }]'
    with pytest.raises((DataError, RecipeError), match="pairs"):
        pipeline.run(recipe(folder, wrong), folder / "wrong", until="train")
