"""The whole vertical on tiny untrained networks: every step runs, all systems start from one noise, numbers add up."""

import importlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import fake_parts
import numpy as np
import pytest
from tiny_parts import parts_folder

from milonga.core.audio import clips_of
from milonga.core.errors import DataError
from milonga.core.records import Clip, Comparison, Pair, Prompt, Request, Summary
from milonga.core.store import Run, read_json
from milonga.core.weights import adapted
from milonga.data.captions import world_prompts
from milonga.evaluation.features import ClipFeatures
from milonga.evaluation.metrics import Metric
from milonga.experiment import run as pipeline
from milonga.experiment.export import export_system
from milonga.experiment.recipe import parse_recipe
from milonga.experiment.registry import DEFAULT as registry
from milonga.models.denoiser import module_hash
from milonga.models.load import load_denoiser, system
from milonga.reports.material import read_rows
from milonga.training.align import AlignConfig, AlignTrainer

SYSTEMS = ("base", "sft", "aligned")
RECIPE = """
name = "tiny"
seed = 5
[models]
model = "{folder}/tango"
scorers = ["{folder}/one", "{folder}/two"]
judge = "{folder}/judge"
tagger = "{folder}/tagger"
[prompts]
sources = ["world:train:6"]
[plan]
shard_size = 8
strategies = [{{ name = "1.1", steps = [2, 2, 2], guidance = 3.0 }}]
[train]
batch_size = 4
learning_rate = 1e-2
prior_weight = 0.1
systems = [
  {{ name = "sft", phases = [{{ loss = "sft", epochs = 1 }}] }},
  {{ name = "aligned", phases = [{{ loss = "sft", epochs = 1 }}, {{ loss = "dpo", epochs = 1, beta = 100.0 }}] }},
]
[evaluate]
prompts = ["world:test:5", "world:test:9"]
steps = 2
guidance = 3.0
resamples = 50
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of tiny networks, made once by a worker for all modules that name this; tests leave it as it was."""
    return _run(tmp_path_factory.getbasetemp() / "tiny-run")


@cache
def _run(folder: Path) -> Run:
    parts_folder(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("milonga.experiment.stages.PRIOR_CLIPS", 4)
        return pipeline.run(parse_recipe(RECIPE.format(folder=folder), "tiny.toml"), folder / "run")


def features(run: Run, name: str) -> dict[str, ClipFeatures]:
    return {row.prompt_id: row for row in run.stage(f"features/{name}").read_records(ClipFeatures)}


def clips(run: Run, name: str) -> dict[str, np.ndarray]:
    shards = run.stage(f"evaluate/{name}")
    return {
        one: clip.waveform
        for shard in shards.names()
        for one, clip in clips_of(shards.read_table(shard, ["id", "audio"])).items()
    }


def test_it_ends_with_pairs_networks_numbers_and_a_report(run: Run) -> None:
    assert run.stage("pair").read_records(Pair)
    assert all((run.path / "checkpoints" / name / "model" / "config.json").exists() for name in SYSTEMS[1:])
    assert (run.path / "report.html").stat().st_size > 10_000


def test_the_held_out_captions_are_those_of_all_sources_each_once(run: Run) -> None:
    found = run.stage("evaluate/prompts").read_records(Prompt)
    assert found == world_prompts("test", 9)
    assert not {one.id for one in found} & {one.id for one in run.stage("prompts").read_records(Prompt)}


def test_every_system_has_a_clip_of_every_caption_and_the_world_too(run: Run) -> None:
    prompts = {one.id: one for one in run.stage("evaluate/prompts").read_records(Prompt)}
    ids = {Request.of(5, one, one.text, 2, 3.0).id for one in prompts.values()}
    for name in (*SYSTEMS, "reference"):
        assert set(clips(run, name)) == ids
        rows = features(run, name)
        assert set(rows) == set(prompts)
        assert {row.id for row in rows.values()} == ids
        assert all(len(row.logits) == 3 for row in rows.values())


def test_systems_start_from_the_same_noise_and_end_elsewhere(run: Run) -> None:
    base, aligned = clips(run, "base"), clips(run, "aligned")
    for name, wave in base.items():
        assert wave.shape == aligned[name].shape
        assert not np.array_equal(wave, aligned[name])
    model = registry.load(parse_recipe((run.path / "recipe.toml").read_text(), "x").models.model)
    one = run.stage("evaluate/prompts").read_records(Prompt)[3]
    request = Request.of(5, one, one.text, 2, 3.0)
    np.testing.assert_allclose(model.generate([request])[0].waveform, base[request.id], atol=2e-4)


def test_references_are_the_worlds_clips_of_the_captions(run: Run) -> None:
    real = clips(run, "reference")
    for one in run.stage("evaluate/prompts").read_records(Prompt)[:2]:
        wave = registry.reference(one).waveform
        np.testing.assert_allclose(real[Request.of(5, one, one.text, 2, 3.0).id], wave, atol=1e-4)


def test_the_numbers_are_those_of_the_features(run: Run) -> None:
    rows = read_rows(run.path / "metrics" / "summary.json", Summary)
    for name in (*SYSTEMS, "reference"):
        (clap,) = [row for row in rows if (row.system, row.split, row.metric) == (name, "overall", "clap")]
        assert clap.n == 9
        assert clap.value == pytest.approx(np.mean([row.clap for row in features(run, name).values()]))
    assert {row.split for row in rows} == {"overall", "temporal", "multi-concept"}
    found = read_rows(run.path / "metrics" / "comparisons.json", Comparison)
    assert {(row.a, row.b) for row in found} == {("sft", "base"), ("aligned", "base"), ("aligned", "sft")}


def test_every_number_has_the_weights_and_the_sampling_in_its_protocol(run: Run) -> None:
    stamps = {row["metric"]: row["protocol"] for row in read_json(run.path / "metrics" / "summary.json")}
    recipe = parse_recipe((run.path / "recipe.toml").read_text(), "x")
    for name, metric in ((recipe.models.judge, "clap"), (recipe.models.tagger, "exact_match")):
        assert f"{name}@{registry.fingerprint(name)[:8]}" in stamps[metric]
    assert all("steps 2, guidance 3, seed 5, one clip a prompt" in stamp for stamp in stamps.values())


def test_the_command_prints_the_runs_own_numbers_and_pages_agree_on_every_verdict(run: Run, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from milonga.cli.main import app
    from milonga.evaluation.formatting import run_outcome

    done = CliRunner().invoke(app, ["evaluate", str(run.path), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    for name in ("summary.json", "comparisons.json"):
        assert (tmp_path / name).read_bytes() == (run.path / "metrics" / name).read_bytes()
    report, board = (run.path / "report.html").read_text(), (tmp_path / "leaderboard.html").read_text()
    words = [
        re.findall(r'<span class="word (?:better|worse|neither)">.*?Holm p [^<]*', page) for page in (report, board)
    ]
    assert words[0] == words[1]
    assert words[0]
    assert re.findall(r"<h1>.*?</h1>", report) == re.findall(r"<h1>.*?</h1>", board)
    outcome = run_outcome(run.path)
    assert outcome is not None
    assert "Order accuracy (detected)" in outcome


@pytest.mark.slow
def test_further_weights_beside_a_run_add_columns_and_keep_the_judge(run: Run) -> None:
    import milonga

    result = milonga.evaluate(run.path, metrics=["clap", Loudness], resamples=50, cache=False)
    assert {row.metric for row in result.summaries} == {"clap", "peak"}
    result = milonga.evaluate(run.path, scorers=[Constant()], resamples=50, cache=False)
    own = {row.metric: row.value for row in result.summaries if (row.system, row.split) == ("base", "overall")}
    assert own["score constant"] == 0.25
    stored = {
        row["metric"]: row["value"]
        for row in read_json(run.path / "metrics" / "summary.json")
        if row["system"] == "base" and row["split"] == "overall"
    }
    assert own["clap"] == stored["clap"]
    assert "constant" in str(result)


class Constant:
    """A scorer without embeddings."""

    name = "constant"

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        return np.full(len(clips), 0.25)


Loudness = Metric("peak", "Peak", lambda clip, reference, prompt: float(np.abs(clip.waveform).max()), needs="audio")


@pytest.mark.slow
def test_a_runs_system_is_trained_evaluated_and_exported_like_any_other_model(run: Run, tmp_path: Path) -> None:
    """A run whose model is another run's system, and a training of a system of that run in turn."""
    first = f"{run.path}/aligned"
    text = RECIPE.format(folder=run.path.parent).replace(f"{run.path.parent}/tango", first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("milonga.experiment.stages.PRIOR_CLIPS", 4)
        again = pipeline.run(parse_recipe(text, "again.toml"), tmp_path / "again", until="evaluate")
    base, aligned = clips(again, "base"), clips(run, "aligned")
    assert all(np.array_equal(wave, aligned[name]) for name, wave in base.items())
    second = module_hash(load_denoiser(f"{again.path}/sft").module)
    assert second == module_hash(load_denoiser(first, again.path / "checkpoints" / "sft" / "model").module)
    assert second != module_hash(load_denoiser(first).module)
    assert system(f"{again.path}/sft").fingerprint() != system(f"{run.path}/sft").fingerprint()
    exported = export_system(again.path, tmp_path / "exported", "sft")
    assert module_hash(load_denoiser(str(exported)).module) == second
    adapter = export_system(again.path, tmp_path / "adapter", "sft", rank=2)
    assert adapted(adapter) == f"{run.path.parent}/tango"  # the change that both runs made
    load_denoiser(str(adapter))
    config = AlignConfig(output_dir=tmp_path / "tuned", phases=["sft:1"], batch_size=4)
    tuned = AlignTrainer(f"{again.path}/sft", str(run.path), config).train()
    assert module_hash(load_denoiser(str(tuned)).module) != second


def test_running_again_measures_nothing_again(run: Run) -> None:
    files = [run.path / "metrics" / "summary.json", *sorted((run.path / "evaluate").rglob("*.parquet"))]
    before = [file.stat().st_mtime_ns for file in files]
    pipeline.run(parse_recipe((run.path / "recipe.toml").read_text(), "recipe.toml"), run.path)
    assert [file.stat().st_mtime_ns for file in files] == before


@pytest.mark.slow
def test_lost_numbers_are_made_again_the_same_from_the_features(run: Run) -> None:
    files = [run.path / "metrics" / name for name in ("summary.json", "comparisons.json")]
    before = [file.read_bytes() for file in files]
    stamp = [file.stat().st_mtime_ns for file in sorted((run.path / "features").rglob("*.parquet"))]
    files[0].unlink()
    pipeline.run(parse_recipe((run.path / "recipe.toml").read_text(), "recipe.toml"), run.path)
    assert [file.read_bytes() for file in files] == before
    assert [file.stat().st_mtime_ns for file in sorted((run.path / "features").rglob("*.parquet"))] == stamp


def test_captions_without_real_clips_are_told_before_any_clip_is_generated(tmp_path: Path) -> None:
    class Parts(fake_parts.FakeParts):
        reference = staticmethod(registry.reference)

    recipe = parse_recipe(fake_parts.RECIPE, "fake.toml", ['evaluate.prompts=["words:3"]'])
    parts = Parts(fake_parts.NoiseModel(tmp_path / "log"))
    with pytest.raises(DataError, match=r"'sound number .* so it has no real clip: take clips:"):
        pipeline.run(recipe, tmp_path / "run", only="evaluate", parts=parts)
    assert not (tmp_path / "log").exists()
    assert not list((tmp_path / "run").rglob("evaluate/base/*.parquet"))


@pytest.mark.slow
def test_nothing_to_evaluate_on_says_so(run: Run, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run.path, tmp_path / "copy")
    for name in ("evaluate", "features", "metrics"):
        shutil.rmtree(tmp_path / "copy" / name)
    recipe = parse_recipe((run.path / "recipe.toml").read_text(), "recipe.toml", ["evaluate.prompts=[]"])
    with pytest.raises(DataError, match=r"evaluate\.prompts names no captions"):
        pipeline.run(recipe, tmp_path / "copy")


def test_tables_of_all_captions_are_the_runs_and_of_the_first_are_reckoned_anew(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    tables = importlib.import_module("tables")
    stored, same, few = (tables.read_run(run.path, "overall", first) for first in (None, 9, 4))
    numbers = [[(one.system, one.metric, one.value, one.n) for one in each.values] for each in (stored, same)]
    assert numbers[0] == numbers[1]
    assert same.differences == stored.differences
    assert {one.n for one in few.values if one.metric == "clap"} == {4}
    assert "| aligned − base, Judge CLAP ↑ |" in "\n".join(tables.gains([stored, stored], "aligned"))
