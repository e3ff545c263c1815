"""Rounds on tiny untrained networks: by the latest policy, with fresh noise, ended by the judge, resumed exactly."""

from pathlib import Path

import pytest
from tiny_parts import network_bytes, parts_folder

from milonga.core import store
from milonga.core.errors import DataError
from milonga.core.records import Pair, Prompt, Request, Round
from milonga.core.store import Run, read_json
from milonga.experiment import run as pipeline
from milonga.experiment.manifest import status
from milonga.experiment.online import best_of, over, recipe_of
from milonga.experiment.recipe import Recipe, parse_recipe
from milonga.reports.material import read_rows

RECIPE = """
name = "rounds"
seed = 5
[models]
model = "{folder}/tango"
scorers = ["{folder}/one", "{folder}/two"]
judge = "{folder}/judge"
tagger = "{folder}/tagger"
[prompts]
sources = ["world:train:6"]
[plan]
shard_size = 4
strategies = [{{ name = "1", steps = [2, 2, 2], guidance = 3.0 }}]
[online]
iterations = 2
captions = 4
prompts = ["world:tune:4"]
patience = 9
pair = {{ losers = "worst" }}
[train]
batch_size = 4
learning_rate = 1e-2
checkpoint_every = 1
systems = [{{ name = "online", data = "online", phases = [{{ loss = "crpo", epochs = 1, beta = 10.0 }}] }}]
[evaluate]
prompts = ["world:test:4"]
steps = 2
resamples = 50
"""


def recipe(folder: Path, *changes: str) -> Recipe:
    return parse_recipe(RECIPE.format(folder=folder), "rounds.toml", changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return pipeline.run(recipe(folder), folder / "run")


def rows(run: Run) -> list[Round]:
    return read_rows(run.path / "metrics" / "rounds" / "online.json", Round)


def round_at(run: Run, number: int) -> Run:
    return Run(run.path / "rounds" / "online" / f"{number:02d}")


@pytest.mark.slow
def test_every_round_makes_pairs_of_its_own_with_other_noise(run: Run) -> None:
    first, second = (round_at(run, number).stage("plan").read_records(Request) for number in (1, 2))
    assert len(first) == len(second) == 4 * 3
    assert not {one.seed for one in first} & {one.seed for one in second}
    captions = [{one.text for one in round_at(run, n).stage("prompts").read_records(Prompt)} for n in (1, 2)]
    known = {one.text for one in run.stage("prompts").read_records(Prompt)}
    assert all(len(one) == 4 and one < known for one in captions)
    for number in (1, 2):
        pairs = round_at(run, number).stage("pair").read_records(Pair)
        assert len(pairs) == len({one.prompt_id for one in pairs})  # the best against the worst alone
        refused = round_at(run, number).stage("refused").read_records(Pair)
        assert {one.refused.partition(":")[0] for one in refused} == {"worst"}


@pytest.mark.slow
def test_a_round_starts_from_the_policy_of_the_round_before(run: Run) -> None:
    plans = [read_json(round_at(run, n).path / "checkpoints" / "policy" / "plan.json") for n in (1, 2)]
    assert plans[0] != plans[1]
    hashes = [read_json(round_at(run, n).path / "manifest.json")["fingerprints"]["models"]["model"] for n in (1, 2)]
    assert hashes[0] == read_json(run.path / "manifest.json")["fingerprints"]["models"]["model"] != hashes[1]
    assert network_bytes(round_at(run, 1).path / "checkpoints/policy") != network_bytes(
        round_at(run, 2).path / "checkpoints/policy"
    )


@pytest.mark.slow
def test_the_system_is_the_round_that_the_judge_likes_best(run: Run) -> None:
    found = rows(run)
    assert [one.number for one in found] == [0, 1, 2]
    assert found[0].gain == 0.0
    best = max(found[:2], key=lambda one: one.judge)
    assert found[2].gain == pytest.approx(found[2].judge - best.judge)
    chosen = round_at(run, best_of(found).number).path / "checkpoints/policy"
    assert network_bytes(chosen) == network_bytes(run.path / "checkpoints/online")
    logged = (run.path / "metrics/training/online.jsonl").read_text().splitlines()
    assert len(logged) == 2
    assert ['"phase": "1: crpo"' in line for line in logged] == [True, False]
    text = (run.path / "report.html").read_text()
    assert "<h3>Online training</h3>" in text
    assert f"{found[2].judge:.3f}" in text


@pytest.mark.slow
def test_nothing_is_done_twice_and_more_rounds_go_on(run: Run, folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run.path, tmp_path / "copy")
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "copy" / "rounds").rglob("*.parquet")}
    again = pipeline.run(recipe(folder, "online.iterations=3"), tmp_path / "copy")
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert [one.number for one in rows(again)] == [0, 1, 2, 3]
    assert rows(again)[:3] == rows(run)
    shown = {row.stage: (row.done, row.expected) for row in status(again.path)}
    assert shown["train"] == (1, 1)
    assert shown["rounds/online"] == (3, 3)
    assert "generate" not in shown  # the run itself makes no clips: its rounds do


def judged(number: int, judge: float, gain: float) -> Round:
    return Round(
        system="x", number=number, clips=1, pairs=1, judge=judge, low=0, high=1, n=4, gain=gain, gain_low=0,
        gain_high=0, present=1, order=1,
    )  # fmt: skip


def test_rounds_end_by_count_or_when_the_judge_gains_no_more(folder: Path) -> None:
    gains = [judged(0, 0.5, 0.0), judged(1, 0.6, 0.1), judged(2, 0.59, -0.01), judged(3, 0.58, -0.02)]
    patient = recipe(folder, "online.iterations=9", "online.patience=2")
    assert [over(gains[:n], patient) for n in (1, 2, 3, 4)] == [False, False, False, True]
    assert over(gains[:3], recipe(folder, "online.iterations=2"))
    assert over(gains[:2], recipe(folder, "online.patience=1", "online.min_gain=0.2", "online.iterations=9"))
    assert best_of(gains).number == 1
    assert best_of([judged(0, 0.9, 0.0), *gains[1:]]).number == 1  # the base is no round


def test_a_round_has_its_own_seed_strategies_and_pairing(folder: Path) -> None:
    wanted = recipe(folder, 'online.strategies=[{name="5", steps=[2, 2, 2, 2, 2], guidance=1.0}]')
    (system,) = wanted.train.systems
    one, two = (recipe_of(wanted, system, number) for number in (1, 2))
    assert len({wanted.seed, one.seed, two.seed}) == 3
    assert one.plan.strategies == wanted.online.strategies
    assert one.pair.losers == "worst"
    assert (one.train.systems[0].name, one.train.systems[0].data) == ("policy", "pairs")
    assert recipe_of(recipe(folder), system, 1).plan.strategies == recipe(folder).plan.strategies


@pytest.mark.parametrize(("source", "told"), [("world:train:9", "learnt from"), ("world:test:4", "evaluated on")])
def test_the_captions_that_decide_are_kept_for_that(folder: Path, tmp_path: Path, source: str, told: str) -> None:
    with pytest.raises(DataError, match=f"captions that are {told}"):
        pipeline.run(recipe(folder, f'online.prompts=["{source}"]'), tmp_path / "run", until="train")


class Cut(Exception):
    """The end of a process, at one of its writes."""


@pytest.mark.slow
def test_rounds_that_are_cut_short_anywhere_go_on_to_the_same(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk after a cut is what a kill leaves: everything reaches its place by a rename in `write_bytes`."""
    original, left, cuts = store.write_bytes, [0], 0

    def write(path: Path, data: bytes) -> None:
        if not left[0]:
            raise Cut
        left[0] -= 1
        original(path, data)

    monkeypatch.setattr(store, "write_bytes", write)
    while True:
        left[0] = 9
        try:
            pipeline.run(recipe(folder), tmp_path, until="train")
            break
        except Cut:
            cuts += 1
            assert cuts < 40
    assert cuts >= 3
    assert rows(Run(tmp_path)) == rows(run)
    assert network_bytes(tmp_path / "checkpoints/online") == network_bytes(run.path / "checkpoints/online")
    made = {str(file.relative_to(tmp_path)): file.read_bytes() for file in (tmp_path / "rounds").rglob("*.parquet")}
    assert made == {name: (run.path / name).read_bytes() for name in made}
