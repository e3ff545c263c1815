"""A run does what is missing, nothing twice, and knows what a changed recipe leaves standing."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_parts import RECIPE, FakeParts, NoiseModel

from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.records import Candidate, Pair, Prompt, Refusal, Request
from milonga.core.store import Run, read_json, write_json
from milonga.engines.local import LocalEngine
from milonga.experiment import run as pipeline
from milonga.experiment.invalidation import changed_keys, check_change, clear_changed, first_stage, rules_of
from milonga.experiment.manifest import as_json, as_table, status
from milonga.experiment.recipe import parse_recipe
from milonga.preference.select import TfidfEmbedder

THRESHOLD = (
    'pair.thresholds=[{scorer="one", min_winner_score=0.5, min_loser_score=0.0, min_margin=0.0, max_margin=1.0}]'
)


def go(out: Path, *overrides: str, parts: FakeParts | None = None, **limits) -> Run:
    recipe = parse_recipe(RECIPE, "fake.toml", overrides)
    return pipeline.run(recipe, out, parts=parts or FakeParts(), **({"until": "pair"} | limits))


def times(run: Run, stage: str) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (run.path / stage).glob("*.parquet")}


def everything(run: Run) -> dict[str, bytes]:
    return {str(file.relative_to(run.path)): file.read_bytes() for file in sorted(run.path.rglob("*.parquet"))}


def test_a_run_from_prompts_to_pairs(tmp_path):
    run = go(tmp_path)
    requests = run.stage("plan").read_records(Request)
    assert len(requests) == 10 * 4
    assert {c.request.id: c.request for c in run.stage("score").read_records(Candidate)} == {r.id: r for r in requests}
    pairs = run.stage("pair").read_records(Pair) + run.stage("refused").read_records(Pair)
    assert len(pairs) == 10 * (1 + 2)
    assert {one.refused for one in run.stage("pair").read_records(Pair)} == {""}
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["seed"] == 3
    assert manifest["fingerprints"]["models"]["scorers"] == {"one": "one", "two": "two"}
    assert {"python", "torch", "milonga"} <= manifest["versions"].keys()
    assert parse_recipe((tmp_path / "recipe.toml").read_text(), "x") == parse_recipe(RECIPE, "y")


class ClusteringParts(FakeParts):
    def text_embedder(self, name: str) -> TfidfEmbedder:
        return TfidfEmbedder()


@pytest.mark.slow
def test_clusters_are_reported_beside_the_prompts_chosen_from_them(tmp_path):
    wanted = ("prompts.clusters=3", "prompts.per_cluster=2")
    run = go(tmp_path, *wanted, until="prompts", parts=ClusteringParts())
    kept = run.stage("prompts").read_records(Prompt)
    rows = read_json(tmp_path / "metrics" / "clusters.json")
    assert sum(row["taken"] for row in rows) == len(kept) <= 6
    assert sum(row["size"] for row in rows) == 10
    assert f"{len(kept)} of 10 captions" in (tmp_path / "clusters.html").read_text()
    go(tmp_path, "prompts.clusters=0", until="prompts", parts=ClusteringParts())
    assert not (tmp_path / "clusters.html").exists()
    assert not (tmp_path / "metrics" / "clusters.json").exists()


class TemporalParts(ClusteringParts):
    def prompt_source(self, source: str) -> list[Prompt]:
        return [Prompt.of(f"sound {n}" + (" then silence" if n % 2 else ""), source) for n in range(10)]


def test_strategy_3_takes_temporal_captions_of_all_or_of_the_clusters_alone(tmp_path):
    wanted = ("prompts.clusters=2", "prompts.per_cluster=1", "plan.strategies.1.negatives=temporal")
    every = go(tmp_path / "all", *wanted, until="plan", parts=TemporalParts())
    prompts = every.stage("prompts").read_records(Prompt)
    assert sum(one.diverse for one in prompts) == 2
    assert {one.text for one in prompts if not one.diverse} <= {f"sound {n} then silence" for n in range(1, 10, 2)}
    served = {request.prompt for request in every.stage("plan").read_records(Request) if "2" in request.strategies}
    assert served == {f"sound {n} then silence" for n in range(1, 10, 2)}
    few = go(tmp_path / "few", *wanted, "prompts.temporal=selected", until="plan", parts=TemporalParts())
    assert {one.text for one in few.stage("prompts").read_records(Prompt)} == {p.text for p in prompts if p.diverse}


def test_a_run_that_an_older_version_began_goes_on_by_the_defaults_of_new_keys(tmp_path, capsys):
    run = go(tmp_path)
    manifest = read_json(tmp_path / "manifest.json")
    del manifest["recipe"]["prompts"]["temporal"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    before = everything(run)
    go(tmp_path)
    assert everything(run) == before
    assert "changed" not in capsys.readouterr().err


def test_running_again_makes_nothing_again_and_missing_shards_only(tmp_path):
    log = tmp_path / "log"
    parts = FakeParts(NoiseModel(log))
    run = go(tmp_path / "run", parts=parts)
    before, calls = everything(run), log.read_text()
    go(tmp_path / "run", parts=parts)
    assert log.read_text() == calls
    missing = run.stage("generate").names()[1]
    (run.path / "generate" / f"{missing}.parquet").unlink()
    go(tmp_path / "run", parts=parts)
    assert len(log.read_text().split()) == 40 + 8
    assert everything(run) == before


def test_neither_workers_nor_batch_nor_shard_size_change_a_clip(tmp_path):
    one, two = go(tmp_path / "a"), go(tmp_path / "b", "generate.batch_size=3", engine=LocalEngine(3))
    assert everything(one) == everything(two)
    three = go(tmp_path / "c", "plan.shard_size=7")
    scores = [{c.request.id: c.scores for c in run.stage("score").read_records(Candidate)} for run in (one, three)]
    assert scores[0] == scores[1]


def test_changed_thresholds_pair_again_and_generate_nothing(tmp_path, capsys):
    run = go(tmp_path)
    clips, pairs = times(run, "generate") | times(run, "score"), run.stage("pair").read_records(Pair)
    (tmp_path / "checkpoints" / "sft").mkdir(parents=True)
    for system in ("base", "sft"):
        run.stage(f"evaluate/{system}").write_records("a", [], Request)
    go(tmp_path, THRESHOLD)
    told = "pair.thresholds changed: doing pair again; cleared and to be done again by `milonga run`: train, evaluate"
    assert told in capsys.readouterr().err
    assert times(run, "generate") | times(run, "score") == clips
    assert len(run.stage("pair").read_records(Pair)) < len(pairs)
    assert not list((tmp_path / "checkpoints").iterdir())
    assert run.stage("evaluate/base").has("a")
    assert not run.stage("evaluate/sft").has("a")


SYSTEM = '{{name="{}", phases=[{{loss="sft", epochs={}}}]}}'


def test_a_changed_system_is_done_again_alone(tmp_path):
    """By the very functions of a run; the systems' outputs are empty files in their places."""
    run = Run(tmp_path)
    outputs = [
        "checkpoints/{}/model/x", "metrics/training/{}.jsonl", "rounds/{}/01/x", "metrics/rounds/{}.json",
        "evaluate/{}/x", "features/{}/x", "refused/evaluate/{}/x",
    ]  # fmt: skip
    files = [tmp_path / one.format(name) for name in ("kept", "new", "gone") for one in outputs]
    files += [tmp_path / one for one in ("rounds/base/x", "evaluate/base/x", "metrics/summary.json", "report.html")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    systems = [[SYSTEM.format("kept", 1), SYSTEM.format(*other)] for other in (("gone", 1), ("new", 2))]
    before, after = (
        parse_recipe(RECIPE, "x", [f"train.systems=[{', '.join(one)}]"]).model_dump(mode="json") for one in systems
    )
    keys = changed_keys(before, after)
    assert {key.split(".")[2] for key in keys} == {"gone", "new"}
    assert check_change(run, keys) == "train"
    clear_changed(run, keys)
    left = {str(file.relative_to(tmp_path)) for file in files if file.exists()}
    assert left == {one.format("kept") for one in outputs} | {"rounds/base/x", "evaluate/base/x"}


@pytest.mark.parametrize("change", ["online.iterations=9", "online.patience=9", "online.min_gain=0.3"])
def test_more_iterations_clear_what_starts_from_their_system_and_leave_the_base(tmp_path, change):
    run, names = Run(tmp_path), ("base", "online", "next", "last", "apart")
    files = [f"{kind}/{name}/x" for name in names for kind in ("checkpoints", "evaluate", "features", "rounds")]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("x")
    for name in ("next", "last", "apart"):
        (tmp_path / f"rounds/{name}/x").unlink()
        (tmp_path / f"rounds/{name}").rmdir()
    systems = [
        SYSTEM.format("online", 1)[:-1] + ', data="online"}',
        SYSTEM.format("next", 1)[:-1] + ', start="online"}',
        SYSTEM.format("last", 1)[:-1] + ', start="next"}',
        SYSTEM.format("apart", 1),
    ]
    changes = [f"train.systems=[{', '.join(systems)}]", 'online.prompts=["p"]']
    before, after = (parse_recipe(RECIPE, "x", [*changes, *more]) for more in ([], [change]))
    write_json(tmp_path / "manifest.json", {"recipe": before.model_dump(mode="json")})
    keys = changed_keys(before.model_dump(mode="json"), after.model_dump(mode="json"))
    assert keys == [change.partition("=")[0]]
    clear_changed(run, keys, rules_of(before, after))
    kept = {f"{kind}/{name}/x" for name in ("base", "apart") for kind in ("checkpoints", "evaluate", "features")}
    assert {file for file in files if (tmp_path / file).exists()} == kept | {"rounds/base/x", "rounds/online/x"}


def test_a_model_beside_the_systems_is_evaluated_alone(tmp_path):
    run, names = Run(tmp_path), ("base", "kept", "new", "gone", "reference")
    files = [tmp_path / f"{kind}/{name}/x" for name in names for kind in ("checkpoints", "evaluate", "features")]
    files.append(tmp_path / "metrics/summary.json")
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    kept, gone, new = (
        f'{{name="{name}", model="{model}", note="{model}"}}'
        for name, model in (("kept", "nano"), ("gone", "nano"), ("new", "a.b/c"))
    )
    before, after = (
        parse_recipe(RECIPE, "x", [f"evaluate.models=[{one}]"]).model_dump(mode="json")
        for one in (f"{kept}, {gone}", f"{kept}, {new}")
    )
    keys = changed_keys(before, after)
    assert keys == ["evaluate.models.gone", "evaluate.models.new"]
    assert check_change(run, keys) == "evaluate"
    clear_changed(run, keys)
    left = {str(file.relative_to(tmp_path)) for file in files if file.exists()}
    others = {f"{kind}/{name}/x" for name in ("base", "kept", "reference") for kind in ("evaluate", "features")}
    assert left == others | {f"checkpoints/{name}/x" for name in names}


def test_a_note_changes_no_result():
    models = [[f'evaluate.models=[{{name="other", model="nano", note="{note}"}}]'] for note in ("", "so")]
    before, after = (parse_recipe(RECIPE, "x", one).model_dump(mode="json") for one in models)
    assert changed_keys(before, after) == []


def test_tables_that_no_system_needs_change_nothing():
    rules = rules_of(parse_recipe(RECIPE, "x"))
    assert first_stage(["label.sources", "reward.steps", "online.iterations"], rules) is None
    assert first_stage(["models.tagger", "models.judge"], rules) == "evaluate"
    systems = (
        f'train.systems=[{SYSTEM.format("a", 1)[:-1]}, data="rewards"}}, {SYSTEM.format("b", 1)[:-1]}, data="online"}}]'
    )
    asking = parse_recipe(RECIPE, "x", [systems, 'online.prompts=["p"]'])
    rules = rules_of(asking)
    assert [first_stage([key], rules) for key in ("label.sources", "reward.steps", "online.iterations")] == [
        "label", "reward", "train"
    ]  # fmt: skip
    assert first_stage(["models.tagger"], rules) == "label"
    assert first_stage(["models.judge"], rules) == "train"


def test_a_run_of_an_earlier_version_is_read_with_todays_defaults(tmp_path):
    run = go(tmp_path)
    before, manifest = everything(run), read_json(tmp_path / "manifest.json")
    for key in ("label", "reward", "online"):
        del manifest["recipe"][key]
    write_json(tmp_path / "manifest.json", manifest)
    go(tmp_path)
    assert everything(run) == before
    write_json(tmp_path / "manifest.json", manifest | {"recipe": manifest["recipe"] | {"dance": 1}})
    with pytest.raises(StoreError, match="begun with other values of dance"):
        go(tmp_path)


def test_what_a_recipe_does_not_ask_for_is_told(tmp_path):
    with pytest.raises(RecipeError, match="asks for no reward"):
        go(tmp_path, until=None, only="reward")


def test_changed_scorers_score_again(tmp_path):
    run = go(tmp_path)
    clips = times(run, "generate")
    go(tmp_path, 'models.scorers=["one", "three"]')
    assert times(run, "generate") == clips
    assert run.stage("score").read_records(Candidate)[0].scores.keys() == {"one", "three"}


REWARDED = (
    f'train.systems=[{SYSTEM.format("sft", 1)}, {{name="drafted", data="captions", sources=["words:4"],'
    ' scorers=["three"], phases=[{loss="draft", steps=1}]}]'
)


def test_a_new_system_with_scorers_of_its_own_leaves_scores_and_pairs(tmp_path, capsys):
    run = go(tmp_path)
    before = {stage: times(run, stage) for stage in ("generate", "score", "pair")}
    go(tmp_path, REWARDED)
    assert {stage: times(run, stage) for stage in before} == before
    assert read_json(tmp_path / "manifest.json")["fingerprints"]["models"]["scorers"].keys() == {"one", "two", "three"}
    assert "models.scorers" not in capsys.readouterr().err
    go(tmp_path)
    assert {stage: times(run, stage) for stage in before} == before


class RetrainedParts(FakeParts):
    def fingerprint(self, name: str) -> str:
        return "retrained" if name == "one" else super().fingerprint(name)


def test_scorers_with_other_weights_of_the_same_name_score_again(tmp_path, capsys):
    run = go(tmp_path)
    before = times(run, "score")
    go(tmp_path, REWARDED, parts=RetrainedParts())
    assert "models.scorers.one, train.systems.drafted" in capsys.readouterr().err
    assert times(run, "score").keys() == before.keys()
    assert not times(run, "score").items() & before.items()


@pytest.mark.parametrize("change", ["seed=4", "plan.strategies.0.guidance=5", 'prompts.sources=["words:3"]'])
def test_a_change_that_would_throw_clips_away_is_refused(tmp_path, change):
    run = go(tmp_path)
    before = everything(run)
    key = change.partition("=")[0].replace(".0.guidance", "")
    with pytest.raises(StoreError, match=f"begun with other values of {key}, and 5 shards of clips.*another --out"):
        go(tmp_path, change)
    assert everything(run) == before


def test_before_clips_are_made_anything_may_change(tmp_path):
    go(tmp_path, until="plan")
    assert len(go(tmp_path, 'prompts.sources=["words:3"]', until="plan").stage("plan").read_records(Request)) == 3 * 4


def test_other_weights_of_the_same_name_are_noticed(tmp_path):
    go(tmp_path)
    with pytest.raises(StoreError, match=r"models\.model"):
        go(tmp_path, parts=FakeParts(weights="retrained"))


class FastParts(FakeParts):
    def choose_precision(self, name: str) -> str:
        return "bf16"


class SlowParts(FakeParts):
    def choose_precision(self, name: str) -> str:
        raise AssertionError("measured again")


def test_a_precision_is_chosen_once_for_a_run_and_stored(tmp_path):
    run = go(tmp_path, 'models.precision="auto"', parts=FastParts())
    assert read_json(tmp_path / "manifest.json")["recipe"]["models"]["precision"] == "bf16"
    assert 'precision = "bf16"' in (tmp_path / "recipe.toml").read_text()
    before = times(run, "generate")
    go(tmp_path, 'models.precision="auto"', parts=SlowParts())  # another machine goes on in the run's own
    go(tmp_path, 'models.precision="bf16"')
    assert times(run, "generate") == before
    with pytest.raises(StoreError, match=r"models\.precision"):
        go(tmp_path, 'models.precision="fp32"')


class TimedParts(FakeParts):
    def load(self, name: str, *loading: Any, **more: Any) -> NoiseModel:
        self.loading = loading
        return self.model


def test_the_length_of_clips_is_the_recipes_and_stays(tmp_path):
    parts = TimedParts()
    go(tmp_path, "models.seconds=2.5", parts=parts)
    assert parts.loading == (None, "fp32", 2.5)
    with pytest.raises(StoreError, match=r"models\.seconds"):
        go(tmp_path)


def test_batch_size_may_change_at_any_time(tmp_path):
    run = go(tmp_path)
    before = {stage: times(run, stage) for stage in ("generate", "score", "pair")}
    go(tmp_path, "generate.batch_size=5", "train.save_total_limit=9")
    assert {stage: times(run, stage) for stage in before} == before


def test_a_clip_that_cannot_be_written_is_refused_by_name(tmp_path):
    run = go(tmp_path, parts=FakeParts(NoiseModel(silent=True)))
    refusals = run.stage("refused/generate").read_records(Refusal)
    assert len(refusals) == 20
    assert "NaN" in refusals[0].reason
    assert {one.id for one in refusals}.isdisjoint(c.request.id for c in run.stage("score").read_records(Candidate))


def test_stages_by_name(tmp_path):
    assert pipeline.chosen(until="plan") == ("prompts", "plan")
    assert pipeline.chosen(only="pair") == ("pair",)
    for limits, told in (({"until": "x"}, "no stage 'x'"), ({"until": "plan", "only": "pair"}, "exclude each other")):
        with pytest.raises(RecipeError, match=told):
            pipeline.chosen(**limits)
    with pytest.raises(StoreError, match="no complete plan yet"):
        go(tmp_path, until=None, only="generate")
    with pytest.raises(RecipeError, match="no engine 'moon'"):
        pipeline.engine_named("moon")


def test_nothing_to_train_on_says_so(tmp_path):
    systems = 'train.systems=[{name="sft", phases=[{loss="sft", epochs=1}]}]'
    with pytest.raises(DataError, match=r"no pair was kept.*loosen pair\.thresholds"):
        go(tmp_path, systems, THRESHOLD.replace("0.5", "1.0"), until="train")


def test_status_counts_shards_items_and_refusals(tmp_path):
    run = go(tmp_path, until="generate")
    (run.path / "generate" / f"{run.stage('generate').names()[0]}.parquet").unlink()
    rows = {row.stage: row for row in status(tmp_path)}
    assert (rows["generate"].done, rows["generate"].expected, rows["generate"].items) == (4, 5, 32)
    assert (rows["score"].done, rows["score"].expected, rows["score"].written) == (0, 5, None)
    assert rows["plan"].written is not None
    assert json.loads(as_json(list(rows.values())))[2]["stage"] == "generate"
    assert "generate  4/5" in as_table(list(rows.values()))
    with pytest.raises(StoreError, match="is no run folder"):
        status(tmp_path / "nowhere")


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fake_parts import RECIPE, FakeParts, NoiseModel
from milonga.experiment import run as pipeline
from milonga.experiment.recipe import parse_recipe
parts = FakeParts(NoiseModel(Path(sys.argv[3]), slow=0.03))
pipeline.run(parse_recipe(RECIPE, "fake.toml"), Path(sys.argv[2]), until="pair", parts=parts)
"""


def test_a_killed_run_goes_on_without_doing_a_shard_twice(tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1] / "support"), str(out), str(log)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(times(Run(out), "generate")) < 2:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = times(Run(out), "generate")
    assert 2 <= len(finished) < 5
    done = {request.id for name in finished for request in _planned(out, name)}
    subprocess.run(command, check=True, capture_output=True)
    assert times(Run(out), "generate").items() >= finished.items()
    made = log.read_text().split()
    assert all(made.count(name) == 1 for name in done)
    assert len(set(made)) == 40
    assert not list(out.rglob("*.part"))
    assert everything(Run(out)) == everything(go(tmp_path / "undisturbed"))


def _planned(out: Path, file: str) -> list[Request]:
    return Run(out).stage("plan").read_records(Request, [file.removesuffix(".parquet")])
