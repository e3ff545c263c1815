"""`milonga pair`: other thresholds on stored scores, with no model in sight."""

import json
from pathlib import Path

import pytest
from fake_parts import RECIPE, FakeParts
from typer.testing import CliRunner

from milonga.cli.main import app
from milonga.core.errors import RecipeError, StoreError
from milonga.core.records import Pair
from milonga.core.store import Run
from milonga.experiment import run as pipeline
from milonga.experiment.pair import pair, sweep
from milonga.experiment.recipe import parse_recipe

STRICT = 'pair.thresholds=[{scorer="one", min_winner_score=0.5, min_loser_score=0.0, min_margin=0.0, max_margin=1.0}]'


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return pipeline.run(parse_recipe(RECIPE, "fake.toml"), tmp_path / "run", until="pair", parts=FakeParts())


def files(run: Run, *stages: str) -> dict[str, bytes]:
    return {f"{stage}/{one.name}": one.read_bytes() for stage in stages for one in (run.path / stage).glob("*.parquet")}


def test_other_thresholds_pair_again_as_a_run_with_them_would(run, tmp_path):
    before = files(run, "plan", "generate", "score")
    found = pair(run.path, [STRICT])
    assert files(run, "plan", "generate", "score") == before
    pairs = run.stage("pair").read_records(Pair)
    assert (found.pairs, found.accepted, found.scorer) == (30, len(pairs), "one")
    assert found.accepted + sum(found.refused.values()) == found.pairs
    assert found.table2[-1].n == found.accepted < 30
    recipe = parse_recipe(RECIPE, "fake.toml", [STRICT])
    assert parse_recipe((run.path / "recipe.toml").read_text(), "x") == recipe
    anew = pipeline.run(recipe, tmp_path / "anew", until="pair", parts=FakeParts())
    assert files(run, "pair", "refused") == files(anew, "pair", "refused")
    assert pair(run.path) == found


def test_a_run_goes_on_after_its_pairs_were_made_again(run):
    pair(run.path, [STRICT])
    after = files(run, "pair")
    pipeline.run(parse_recipe((run.path / "recipe.toml").read_text(), "x"), run.path, until="pair", parts=FakeParts())
    assert files(run, "pair") == after


def test_only_the_pairing_can_change(run):
    with pytest.raises(RecipeError, match=r"only the keys of \[pair\]"):
        pair(run.path, ["seed=4"])
    with pytest.raises(RecipeError, match="must be one of mean, one, two"):
        pair(run.path, ["pair.rank_by=three"])


def test_what_was_trained_on_these_pairs_is_not_thrown_away(run):
    (run.path / "checkpoints" / "sft").mkdir(parents=True)
    before = files(run, "pair", "refused")
    with pytest.raises(StoreError, match="holds sft, trained on its present pairs"):
        pair(run.path, [STRICT])
    assert pair(run.path).pairs == 30
    assert files(run, "pair", "refused") == before


def test_what_is_no_scored_run_is_told(run, tmp_path):
    with pytest.raises(StoreError, match="is no run folder"):
        pair(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    next((run.path / "score").glob("*.parquet")).unlink()
    with pytest.raises(StoreError, match="no complete score yet"):
        sweep(run.path)


def test_a_sweep_writes_nothing_and_agrees_with_pairing(run):
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    found = sweep(run.path, [STRICT])
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before
    for trial in found.trials:
        if trial.bound == "min_winner_score" and trial.value is not None:
            again = pair(run.path, [STRICT.replace("min_winner_score=0.5", f"min_winner_score={trial.value}")])
            assert again.accepted == trial.count
    assert {one.scorer for one in sweep(run.path, ["pair.thresholds=[]"]).trials} == {"one", "two"}


def test_the_command_prints_tables_or_json(run):
    def told(*words: str) -> str:
        done = CliRunner().invoke(app, ["pair", str(run.path), *words])
        assert done.exit_code == 0, done.output
        return done.stdout

    lines = told("--sweep", "--set", STRICT).splitlines()
    assert lines[0].endswith("pairs kept as it is (*); one bound moved, the others as they are:")
    assert any(line.split()[:4] == ["one", "min_winner_score", "0.5", "*"] for line in lines)
    swept = json.loads(told("--sweep", "--json"))
    assert swept["pairs"] == 30
    assert {one["bound"] for one in swept["flips"]} == {None}
    assert json.loads(told("--set", STRICT, "--json"))["accepted"] == pair(run.path).accepted
    assert told().splitlines()[-1].startswith("refused: ")
