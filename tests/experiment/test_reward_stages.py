"""BATON on tiny untrained networks: clips are labelled, a reward model learns it, and its rewards weigh a training."""

from pathlib import Path

import numpy as np
import pytest
from tiny_parts import network_bytes, parts_folder

from milonga.core.errors import DataError, RecipeError
from milonga.core.records import Label, Pair, Request
from milonga.core.store import Run, read_json
from milonga.experiment import run as pipeline
from milonga.experiment.examples import examples_of
from milonga.experiment.recipe import Recipe, parse_recipe
from milonga.experiment.registry import DEFAULT as registry
from milonga.experiment.registry import Context
from milonga.experiment.run import engine_named
from milonga.listening_test.export import ONE
from milonga.preference.reward import Reward, RewardReport

RECIPE = """
name = "reward"
seed = 5
[models]
model = "{folder}/tango"
scorers = ["{folder}/one", "{folder}/two"]
judge = "{folder}/judge"
tagger = "{folder}/tagger"
[prompts]
sources = ["world:train:8"]
[plan]
shard_size = 8
strategies = [{{ name = "1", steps = [2, 2], guidance = 3.0 }}]
[label]
sources = ["{folder}/people"]
[reward]
val_fraction = 0.4
[train]
batch_size = 8
learning_rate = 1e-2
systems = [{{ name = "baton", data = "rewards", phases = [{{ loss = "weighted-sft", epochs = 1 }}] }}]
[evaluate]
prompts = ["world:test:4"]
steps = 2
resamples = 50
"""


def read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def recipe(folder: Path, *changes: str) -> Recipe:
    return parse_recipe(RECIPE.format(folder=folder), "reward.toml", changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts, and a folder of labels as a listening test exports it: other clips, some liked."""
    root = parts_folder(tmp_path_factory.mktemp("tiny"))
    made = pipeline.run(recipe(root, "seed=6", "train.systems=[]"), root / "people", until="generate")
    planned = made.stage("plan").read_records(Request)
    labels = [
        Label(
            id=one.id, prompt_id=one.prompt_id, prompt=one.prompt, system="base", desirable=one.number == 0,
            opinion=4.0 if one.number == 0 else 2.0, raters=2,
        )
        for one in planned
    ]  # fmt: skip
    made.stage("label").write_records(ONE, labels, Label)
    return root


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return pipeline.run(recipe(folder), folder / "run")


@pytest.mark.slow
def test_a_reward_for_every_clip_and_a_report_on_held_out_labels(run: Run) -> None:
    rows = {one.id: one.reward for one in run.stage("reward").read_records(Reward)}
    assert rows.keys() == {one.id for one in run.stage("plan").read_records(Request)}
    assert all(0.0 <= value <= 1.0 for value in rows.values())
    report = RewardReport.model_validate(read_json(run.path / "metrics" / "reward.json"))
    assert report.taught + report.held_out == 16
    assert report.low <= report.accuracy <= report.high
    assert "The reward model on" in (run.path / "report.html").read_text()


@pytest.mark.slow
def test_the_rewards_are_the_weights_that_are_trained_with(run: Run, folder: Path) -> None:
    rows = {one.id: one.reward for one in run.stage("reward").read_records(Reward)}
    context = Context(recipe(folder), run, registry, engine_named("local"))  # type: ignore[arg-type]
    examples = examples_of(context, context.recipe.train.systems[0])
    batch = examples.batch(range(len(examples)), 0)
    assert len(examples) == 16
    assert batch.loser is None
    order = [one.id for one in run.stage("plan").read_records(Request)]
    assert batch.weights is not None
    np.testing.assert_allclose(batch.weights.numpy(), [rows[one] for one in order], rtol=1e-6)


@pytest.mark.slow
def test_other_rewards_make_another_model(run: Run, folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run.path, tmp_path / "copy")
    again = pipeline.run(recipe(folder, "reward.steps=1"), tmp_path / "copy", until="train")
    assert network_bytes(again.path / "checkpoints/baton") != network_bytes(run.path / "checkpoints/baton")
    assert (tmp_path / "copy" / "evaluate" / "base").exists()
    assert not list((tmp_path / "copy" / "evaluate").glob("baton/*"))


@pytest.mark.slow
def test_pairs_of_some_strategies_alone_and_settings_of_a_systems_own(folder: Path, tmp_path: Path) -> None:
    both = """plan.strategies=[{name="1", steps=[2, 2], guidance=3.0},
        {name="2", negatives="perturbed", num_negatives=1, steps=[2], guidance=3.0}]"""
    one = '{name="%s", strategies=%s, phases=[{loss="dpo", epochs=1, beta=10.0}], settings={batch_size=%d}}'
    told = [one % ("all", [], 4), one % ("second", '["2"]', 4), one % ("small", '["2"]', 1)]
    asked = recipe(folder, both.replace("\n", ""), f"train.systems=[{', '.join(told)}]")
    run = pipeline.run(asked, tmp_path / "run", until="train")
    context = Context(asked, run, registry, engine_named("local"))  # type: ignore[arg-type]
    kept = [pair.strategy for pair in run.stage("pair").read_records(Pair)]
    assert 0 < kept.count("2") < len(kept)
    assert [len(examples_of(context, system)) for system in asked.train.systems] == [len(kept)] + [kept.count("2")] * 2
    steps = [read_lines(run.path / "metrics" / "training" / f"{name}.jsonl") for name in ("all", "second", "small")]
    assert [len(rows) for rows in steps] == [-(-len(kept) // 4), -(-kept.count("2") // 4), kept.count("2")]


@pytest.mark.slow
def test_labels_one_by_one_train_kto(run: Run, folder: Path) -> None:
    """What people liked and disliked, as a recipe of its own that makes no clips to learn from."""
    text = RECIPE.format(folder=folder)
    text = text[: text.index("[prompts]")] + text[text.index("[label]") :]
    system = 'train.systems=[{name="people", data="labels", phases=[{loss="kto", epochs=1, beta=50.0}]}]'
    found = pipeline.run(parse_recipe(text, "kto.toml", [system]), folder / "kto")
    assert not (found.path / "generate").exists()
    log = (found.path / "metrics/training/people.jsonl").read_text().splitlines()
    assert len(log) == 2
    assert (found.path / "report.html").exists()


@pytest.mark.slow
def test_the_taggers_labels_and_peoples_together(folder: Path, tmp_path: Path, run: Run) -> None:
    import shutil

    shutil.copytree(run.path, tmp_path / "copy")
    both = recipe(folder, f'label.sources=["tagger", "{folder}/people"]')
    found = pipeline.run(both, tmp_path / "copy", until="reward")
    own = found.stage("label").read_records(Label)
    assert {one.raters for one in own} == {0}
    report = RewardReport.model_validate(read_json(found.path / "metrics" / "reward.json"))
    assert report.taught + report.held_out == 16 + len(own)


def test_labels_that_teach_nothing_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"label\.sources: .*nowhere is neither"):
        pipeline.run(recipe(folder, 'label.sources=["nowhere"]'), tmp_path / "a", until="reward")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no labels"):
        pipeline.run(recipe(folder, f'label.sources=["{tmp_path}/empty"]'), tmp_path / "b", until="reward")
