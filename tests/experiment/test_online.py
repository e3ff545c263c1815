"""Online training on groups, on tiny untrained networks: fresh captions, guards, the reference, and what is refused."""

import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_parts import LoudScorer
from small_studio import until
from tiny_parts import network_bytes, parts_folder

import milonga
from milonga.core.errors import DataError, RecipeError
from milonga.core.records import Candidate, Prompt, Request, Round
from milonga.core.store import Run, complete, read_json
from milonga.data.captions import world_prompts
from milonga.engines.local import LocalEngine
from milonga.experiment import online
from milonga.experiment import run as pipeline
from milonga.experiment.invalidation import stages_of
from milonga.experiment.judged import JudgedClips, hacking, loudness, progress_line
from milonga.experiment.manifest import status
from milonga.experiment.online import best_of, data_of, over, recipe_of
from milonga.experiment.recipe import Recipe, parse_recipe
from milonga.experiment.registry import Context, Registry
from milonga.reports.material import read_rows
from milonga.scorers.clap import load_clap
from milonga.scorers.tagger import load_tagger

RECIPE = """
name = "online"
seed = 5
[models]
model = "{folder}/tango"
scorers = ["{folder}/one", "{folder}/two"]
judge = "{folder}/judge"
tagger = "{folder}/tagger"
[plan]
shard_size = 4
[online]
iterations = 2
sources = ["world:train:3:multi"]
clips = 3
steps = 2
scheduler = "unipc"
prompts = ["world:tune:4"]
noises = 2
patience = 9
[train]
batch_size = 2
learning_rate = 1e-2
checkpoint_every = 1
trust_region = 0.01
systems = [{{ name = "aligned", data = "online", phases = [{{ loss = "dgpo", steps = 3, beta = 10.0 }}] }}]
[evaluate]
prompts = ["world:test:4"]
steps = 2
resamples = 50
"""


def recipe(folder: Path, *changes: str) -> Recipe:
    return parse_recipe(RECIPE.format(folder=folder), "online.toml", changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return pipeline.run(recipe(folder), folder / "run")


def rows(run: Run) -> list[Round]:
    return read_rows(run.path / "metrics" / "rounds" / "aligned.json", Round)


def iteration(run: Run, number: int) -> Run:
    return Run(run.path / "rounds" / "aligned" / f"{number:02d}")


@pytest.mark.slow
def test_every_iteration_draws_other_captions_of_several_sounds(run: Run) -> None:
    drawn = [iteration(run, number).stage("prompts").read_records(Prompt) for number in (1, 2)]
    usual = {one.id for one in world_prompts("train", 3, multi=True)}
    ids = [{one.id for one in captions} for captions in drawn]
    assert all(len(own) == 3 and own != usual for own in ids)
    assert ids[0] != ids[1]
    assert all("multi-concept" in one.tags for captions in drawn for one in captions)
    assert not (run.path / "prompts").exists()  # the run itself has no captions to train on
    assert set(stages_of(recipe(run.path.parent))) == {"train", "evaluate", "report"}


@pytest.mark.slow
def test_all_clips_of_each_caption_train_for_as_many_steps_as_asked_for(run: Run) -> None:
    for number in (1, 2):
        candidates = iteration(run, number).stage("score").read_records(Candidate)
        assert len(candidates) == 3 * 3
        assert {one.request.steps for one in candidates} == {2}
        assert not (iteration(run, number).path / "pair").exists()
    requests = [iteration(run, number).stage("plan").read_records(Request) for number in (1, 2)]
    assert not {one.seed for one in requests[0]} & {one.seed for one in requests[1]}
    logged = (run.path / "metrics/training/aligned.jsonl").read_text().splitlines()
    assert len(logged) == 2 * 3
    assert [row.groups for row in rows(run)] == [0, 3, 3]
    assert [row.clips for row in rows(run)] == [0, 9, 9]
    shown = {row.stage: (row.done, row.expected, row.items) for row in status(run.path)}
    assert shown["rounds/aligned"] == (2, 2, 18)


def generated(run: Run, number: int) -> bytes:
    folder = iteration(run, number).path / "generate"
    return b"".join(file.read_bytes() for file in sorted(folder.glob("*.parquet")))


@pytest.mark.slow
def test_with_overlap_clips_are_made_while_the_iteration_before_trains(folder: Path, run: Run, monkeypatch) -> None:
    overlap, train, waited = recipe(folder, "online.overlap=true"), online.train_system, []

    def after_the_next_clips(context: Context, *more: Any) -> None:
        following = Run(context.run.path.parent / "02")
        if context.run.path.name == "01":
            until(lambda: complete(following.stage("score")))
            waited.append(following.path)
        train(context, *more)

    monkeypatch.setattr(online, "train_system", after_the_next_clips)
    other = pipeline.run(overlap, folder / "overlap", until="train")
    assert waited == [iteration(other, 2).path]
    assert generated(other, 1) == generated(run, 1)
    assert generated(other, 2) != generated(run, 2)  # they are the base's
    weights = [read_json(iteration(other, number).path / "manifest.json")["fingerprints"] for number in (1, 2)]
    assert weights[0]["models"]["model"] == weights[1]["models"]["model"]


@pytest.mark.slow
def test_a_training_that_fails_ends_the_work_beside_it_and_goes_on_to_the_same(folder: Path, monkeypatch) -> None:
    overlap, train = recipe(folder, "online.overlap=true", "plan.shard_size=1"), online.train_system
    whole = pipeline.run(overlap, folder / "whole", until="train")

    def fails(context: Context, *more: Any) -> None:
        if context.run.path.name == "01":
            until(lambda: iteration(Run(folder / "failed"), 2).stage("generate").names())
            raise OSError("no room")

    monkeypatch.setattr(online, "train_system", fails)
    with pytest.raises(OSError, match="no room"):
        pipeline.run(overlap, folder / "failed", until="train")
    assert 0 < len(iteration(Run(folder / "failed"), 2).stage("generate").names()) < 9
    monkeypatch.setattr(online, "train_system", train)
    again = pipeline.run(overlap, folder / "failed", until="train")
    assert generated(again, 2) == generated(whole, 2)
    assert network_bytes(again.path / "checkpoints/aligned") == network_bytes(whole.path / "checkpoints/aligned")


@pytest.mark.slow
def test_rows_have_the_judges_numbers_and_the_signs_of_hacking(run: Run) -> None:
    base, *others = rows(run)
    prompts = world_prompts("tune", 4)
    stored = JudgedClips(Run(run.path / "rounds" / "base"), "base", prompts)
    assert len(stored.rows) == 8
    assert base.judge == pytest.approx(stored.by_caption("clap").mean())
    assert base.reward == pytest.approx(0.0)
    own = JudgedClips(iteration(run, 1), "policy", prompts)
    assert others[0].reward == pytest.approx(own.reward(stored))
    assert others[0].reward != 0.0
    for row in (base, *others):
        assert 0 <= row.diversity < 2
        assert row.loudness == pytest.approx(row.loudness)
        assert (row.n, row.silent >= 0, row.clipped >= 0) == (4, True, True)
    assert best_of(rows(run)).judge == max(row.judge for row in others)
    page = (run.path / "report.html").read_text()
    assert "<h3>Online training</h3>" in page
    assert "Diversity" in page


@pytest.mark.slow
def test_the_reference_is_the_policy_before_or_the_base(run: Run, folder: Path, tmp_path: Path) -> None:
    other = pipeline.run(recipe(folder, 'online.reference="base"'), tmp_path / "base", until="train")
    plans = [read_json(iteration(one, 2).path / "checkpoints/policy/plan.json") for one in (run, other)]
    assert "reference" not in plans[0]
    assert (
        plans[1]["reference"] == read_json(iteration(run, 1).path / "checkpoints/policy/plan.json")["starting weights"]
    )
    first, second = (network_bytes(iteration(other, number).path / "checkpoints/policy") for number in (1, 2))
    assert first == network_bytes(iteration(run, 1).path / "checkpoints/policy")
    assert second != network_bytes(iteration(run, 2).path / "checkpoints/policy")


@pytest.mark.slow
def test_results_do_not_depend_on_the_engine_batches_or_shards(run: Run, folder: Path, tmp_path: Path) -> None:
    changed = recipe(folder, "generate.batch_size=5", "score.batch_size=2", "plan.shard_size=2")
    other = pipeline.run(changed, tmp_path / "other", until="train", engine=LocalEngine(1))
    both = [
        {one.request.id: one.scores for one in iteration(made, 1).stage("score").read_records(Candidate)}
        for made in (run, other)
    ]
    assert both[0].keys() == both[1].keys()
    for clip, scores in both[0].items():
        assert both[1][clip] == pytest.approx(scores, abs=1e-4)  # a batch's size moves the last bits
    for mine, theirs in zip(rows(run), rows(other), strict=True):
        assert theirs.judge == pytest.approx(mine.judge, abs=1e-3)


@pytest.mark.slow
def test_the_judge_may_score_every_second_policy_and_always_the_last(run: Run, folder: Path, tmp_path: Path) -> None:
    other = pipeline.run(recipe(folder, "online.every=2", "online.iterations=3"), tmp_path / "other", until="train")
    judged = [math.isfinite(row.judge) for row in rows(other)]
    assert judged == [True, False, True, True]
    assert rows(other)[2].judge == rows(run)[2].judge
    assert progress_line(rows(other)[1]).endswith("not judged")
    assert best_of(rows(other)).number in (2, 3)


def test_patience_counts_judgements_alone(folder: Path) -> None:
    base = Round(system="x", number=0, clips=0, pairs=0, judge=0.5, gain=0.0)
    silent = Round(system="x", number=1, clips=1, pairs=1)
    worse = replace_round(base, number=2, gain=-0.1)
    patient = recipe(folder, "online.patience=2", "online.iterations=9")
    assert not over([base, silent, worse, silent], patient)
    assert over([base, silent, worse, silent, worse], patient)


def replace_round(row: Round, **changes: float) -> Round:
    return row.model_copy(update=changes)


def test_signs_of_hacking_are_named_against_the_base() -> None:
    base = Round(
        system="x", number=0, clips=0, pairs=0, judge=0.5, diversity=0.5, silent=0.0, clipped=0.01, loudness=-20.0
    )
    calm = {"reward": 0.3, "diversity": 0.45, "silent": 0.01, "clipped": 0.02, "loudness": -18.0}
    assert hacking(calm, base, judge_fell=False) == ""
    assert "reward rose by 0.30 deviations while the judge fell" in hacking(calm, base, judge_fell=True)
    assert hacking(calm | {"reward": -0.1}, base, judge_fell=True) == ""  # worse by both is no hacking
    assert "diversity 0.500 → 0.300" in hacking(calm | {"diversity": 0.3}, base, False)
    assert "silent clips: 0.0% → 4.0%" in hacking(calm | {"silent": 0.04}, base, False)
    assert "clipped clips: 1.0% → 4.0%" in hacking(calm | {"clipped": 0.04}, base, False)
    assert "loudness: -20.0 → -25.0 dB" in hacking(calm | {"loudness": -25.0}, base, False)
    told_row = replace_round(base, number=1, gain=0.0, reward=0.3)
    assert "signs of reward hacking: x" in progress_line(told_row.model_copy(update={"alert": "x"}))


def test_loudness_is_of_the_whole_clip_and_silence_has_a_number() -> None:
    import numpy as np

    assert loudness(np.full(100, 0.1, dtype=np.float32)) == pytest.approx(-20.0, abs=1e-4)
    assert loudness(np.zeros(100, dtype=np.float32)) == -100.0


@pytest.mark.slow
def test_captions_of_the_judge_and_of_the_evaluation_are_never_drawn(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    texts = [one.text for one in world_prompts("train", 9, multi=True)]
    table.write_text("\n".join(["caption", *(f'"{text}"' for text in texts)]), encoding="utf-8")
    for name, part in (("judge", texts[:2]), ("held", texts[2:5])):
        lines = ["caption", *(f'"{text}"' for text in part)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
    changes = (
        f'online.sources=["captions:{table}"]', f'online.prompts=["captions:{tmp_path}/judge.csv"]',
        f'evaluate.prompts=["captions:{tmp_path}/held.csv"]', "online.iterations=1",
    )  # fmt: skip
    other = pipeline.run(recipe(folder, *changes), tmp_path / "run", until="train")
    assert {one.text for one in iteration(other, 1).stage("prompts").read_records(Prompt)} == set(texts[5:])
    all_apart = changes[0].replace("captions.csv", "held.csv")
    with pytest.raises(DataError, match="hold no caption to train on"):
        pipeline.run(recipe(folder, all_apart, *changes[1:]), tmp_path / "none", until="train")


def test_what_cannot_be_is_refused_in_one_line(folder: Path) -> None:
    for changes, message in (
        ((f'models.judge="{folder}/one"',), "is the judge, which measures and must not reward"),
        (("online.prompts=[]",), "online.prompts is missing"),
        (("online.clips=0",), "plan.strategies is missing"),
        (("online.sources=[]",), "prompts.sources is missing"),
    ):
        with pytest.raises(RecipeError, match=message):
            recipe(folder, *changes)
    both = '[{name="x", data="online", phases=[{loss="dgpo", steps=1, beta=1.0}, {loss="dpo", steps=1, beta=1.0}]}]'
    with pytest.raises(RecipeError, match="losses of groups and of pairs"):
        data_of(recipe(folder, f"train.systems={both}").train.systems[0])


def test_an_iteration_samples_as_online_says(folder: Path) -> None:
    wanted = recipe(folder)
    own = recipe_of(wanted, wanted.train.systems[0], 1)
    assert own.models.scheduler == "unipc"
    assert own.plan.strategies[0].steps == (2, 2, 2)
    assert own.train.systems[0].data == "groups"
    pairs = recipe(folder, 'train.systems=[{name="x", data="online", phases=[{loss="dpo", steps=1, beta=1.0}]}]')
    assert recipe_of(pairs, pairs.train.systems[0], 1).train.systems[0].data == "pairs"


@pytest.mark.slow
def test_groups_are_scored_from_mel_pictures_without_a_vocoder(folder: Path, tmp_path: Path) -> None:
    """Where a scorer reads other pictures, all clips pass the vocoder: their latents are the same."""
    settings = ("online.iterations=1", "online.score_mels=true")
    pictures = pipeline.run(recipe(folder, *settings), tmp_path / "mels", until="train")
    shards = iteration(pictures, 1).stage("generate")
    tables = [shards.read_table(name, ["id", "audio", "latents"]) for name in shards.names()]
    assert all(table["audio"].null_count == len(table) for table in tables)
    other = recipe(folder, f'models.scorers=["{folder}/one", "loud"]', *settings)
    made = pipeline.run(other, tmp_path / "other", until="train", parts=Registry({"loud": LoudScorer("loud")}))
    heard = iteration(made, 1).stage("generate")
    latents = {}
    for name in heard.names():
        table = heard.read_table(name, ["id", "audio", "latents"])
        assert table["audio"].null_count == 0
        latents |= dict(zip(table["id"].to_pylist(), table["latents"].to_pylist(), strict=True))
    for table in tables:
        for clip, packed in zip(table["id"].to_pylist(), table["latents"].to_pylist(), strict=True):
            assert latents[clip] == packed


@pytest.mark.slow
def test_python_aligns_as_a_recipe_does(run: Run, folder: Path, tmp_path: Path) -> None:
    config = milonga.AlignConfig(
        output_dir=tmp_path / "python", phases=[{"loss": "dgpo", "steps": 3, "beta": 10.0}], seed=5, batch_size=2,
        learning_rate=1e-2, checkpoint_every=1, trust_region=0.01,
    )  # fmt: skip
    online = recipe(folder).online.model_copy(update={"sources": (), "iterations": 1})
    names = {"model": str(folder / "tango"), "judge": str(folder / "judge"), "tagger": str(folder / "tagger")}
    scorers = [str(folder / "one"), str(folder / "two")]
    made = milonga.align_online("world:train:3:multi", config=config, online=online, scorers=scorers, **names)
    planned = [iteration(one, 1).stage("plan").read_records(Request) for one in (run, Run(made.parent))]
    assert planned[0] == planned[1]
    assert milonga.load(str(made)).unet is not None


@pytest.mark.slow
def test_tangos_recipe_walks_through_every_stage(folder: Path, tmp_path: Path) -> None:
    """With networks of the real classes, untrained and tiny, under the recipe's names."""
    texts = [one.text for one in world_prompts("train", 6, multi=True)]
    captions = {"captions:audiocaps-train.csv:64:multi": texts[:2], "captions:audiocaps-val.csv:100": texts[2:4]}
    parts = captions | {
        "tango-full-ft-audiocaps": milonga.load(str(folder / "tango")),
        "laion-clap:630k-audioset-best.pt": load_clap(folder / "one", "one"),
        "laion-clap:630k-best.pt": load_clap(folder / "judge", "judge"),
        "nano-tagger": load_tagger(folder / "tagger", "tagger"),
    }
    small = (
        "online.iterations=2",
        "online.steps=2",
        "online.clips=2",
        "online.every=1",
        "train.systems.0.phases.0.steps=2",
    )
    made = milonga.run("tango2-online", tmp_path / "run", changes=small, parts=parts)
    assert (made.path / "checkpoints/aligned/model").is_dir()
    assert len(rows(made)) == 3
    assert "Online training" in (made.path / "report.html").read_text()


KILLED = """
import sys
from pathlib import Path
from milonga.experiment import run as pipeline
from milonga.experiment.recipe import load_recipe
pipeline.run(load_recipe(sys.argv[1]), Path(sys.argv[2]), until="train")
"""


@pytest.mark.slow  # four processes of some ten seconds; `test_rounds` cuts one process at its writes
def test_a_killed_run_goes_on_to_the_same_bits(run: Run, folder: Path, tmp_path: Path) -> None:
    """SIGKILL to real processes: while clips are made, in the middle of a training, and between two iterations."""
    (tmp_path / "online.toml").write_text(RECIPE.format(folder=folder), encoding="utf-8")
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "online.toml"), str(out)]
    for sign in ("01/generate/*.parquet", "01/checkpoints/policy/checkpoints/*", "02/score/*.parquet"):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not list((out / "rounds" / "aligned").glob(sign)):
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "checkpoints").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert network_bytes(out / "checkpoints/aligned") == network_bytes(run.path / "checkpoints/aligned")
    assert [progress_line(row) for row in rows(Run(out))] == [progress_line(row) for row in rows(run)]
