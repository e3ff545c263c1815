"""The whole vertical on tiny untrained networks: every step runs, all systems start from one noise, numbers add up."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from tiny_parts import parts_folder

from milonga.core.audio import clips_of
from milonga.core.errors import DataError
from milonga.core.records import Comparison, Pair, Prompt, Request, Summary
from milonga.core.store import Run, read_json
from milonga.evaluation.hear import Heard
from milonga.experiment import registry
from milonga.experiment import run as pipeline
from milonga.experiment.recipe import parse_recipe

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
shard = 8
strategies = [{{ name = "1.1", steps = [2, 2, 2], guidance = 3.0 }}]
[train]
batch_size = 4
learning_rate = 1e-2
anchor = 0.1
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
    folder = parts_folder(tmp_path_factory.mktemp("tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("milonga.experiment.stages.ANCHORS", 4)
        return pipeline.run(parse_recipe(RECIPE.format(folder=folder), "tiny.toml"), folder / "run")


def heard(run: Run, name: str) -> dict[str, Heard]:
    return {row.prompt_id: row for row in run.stage(f"heard/{name}").read_records(Heard)}


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
    assert found == registry.world_prompts("test", 9)
    assert not {one.id for one in found} & {one.id for one in run.stage("prompts").read_records(Prompt)}


def test_every_system_performs_every_caption_and_the_world_too(run: Run) -> None:
    prompts = {one.id: one for one in run.stage("evaluate/prompts").read_records(Prompt)}
    ids = {Request.of(5, one, one.text, 2, 3.0).id for one in prompts.values()}
    for name in (*SYSTEMS, "reference"):
        assert set(clips(run, name)) == ids
        rows = heard(run, name)
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


def test_the_numbers_are_those_of_what_was_heard(run: Run) -> None:
    rows = [Summary.model_validate(row) for row in read_json(run.path / "metrics" / "summary.json")]
    for name in (*SYSTEMS, "reference"):
        (clap,) = [row for row in rows if (row.system, row.split, row.metric) == (name, "overall", "clap")]
        assert clap.n == 9
        assert clap.value == pytest.approx(np.mean([row.clap for row in heard(run, name).values()]))
    assert {row.split for row in rows} == {"overall", "temporal", "multi-concept"}
    found = [Comparison.model_validate(row) for row in read_json(run.path / "metrics" / "comparisons.json")]
    assert {(row.a, row.b) for row in found} == {("sft", "base"), ("aligned", "base"), ("aligned", "sft")}


def test_every_number_is_stamped_with_who_listened_and_how_the_clips_were_made(run: Run) -> None:
    (stamp,) = {row["protocol"] for row in read_json(run.path / "metrics" / "summary.json")}
    recipe = parse_recipe((run.path / "recipe.toml").read_text(), "x")
    for name in (recipe.models.judge, recipe.models.tagger):
        assert f"{name}@{registry.fingerprint(name)[:8]}" in stamp
    assert "steps 2, guidance 3, seed 5, one clip a prompt" in stamp


def test_running_again_measures_nothing_again(run: Run) -> None:
    files = [run.path / "metrics" / "summary.json", *sorted((run.path / "evaluate").rglob("*.parquet"))]
    before = [file.stat().st_mtime_ns for file in files]
    pipeline.run(parse_recipe((run.path / "recipe.toml").read_text(), "recipe.toml"), run.path)
    assert [file.stat().st_mtime_ns for file in files] == before


def test_lost_numbers_are_made_again_the_same_from_what_was_heard(run: Run) -> None:
    files = [run.path / "metrics" / name for name in ("summary.json", "comparisons.json")]
    before = [file.read_bytes() for file in files]
    stamp = [file.stat().st_mtime_ns for file in sorted((run.path / "heard").rglob("*.parquet"))]
    files[0].unlink()
    pipeline.run(parse_recipe((run.path / "recipe.toml").read_text(), "recipe.toml"), run.path)
    assert [file.read_bytes() for file in files] == before
    assert [file.stat().st_mtime_ns for file in sorted((run.path / "heard").rglob("*.parquet"))] == stamp


def test_nothing_to_evaluate_on_says_so(run: Run, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run.path, tmp_path / "copy")
    for name in ("evaluate", "heard", "metrics"):
        shutil.rmtree(tmp_path / "copy" / name)
    recipe = parse_recipe((run.path / "recipe.toml").read_text(), "recipe.toml", ["evaluate.prompts=[]"])
    with pytest.raises(DataError, match=r"evaluate\.prompts names no captions"):
        pipeline.run(recipe, tmp_path / "copy")


def test_tables_of_all_captions_are_the_runs_and_of_the_first_are_reckoned_anew(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    tables = importlib.import_module("tables")
    kept, same, few = (tables.told(run.path, "overall", first) for first in (None, 9, 4))
    assert same.values == [one.model_copy(update={"protocol": "first 9 captions"}) for one in kept.values]
    assert same.differences == kept.differences
    assert {one.n for one in few.values if one.metric == "clap"} == {4}
    assert "| aligned − base, judge CLAP ↑ |" in "\n".join(tables.gains([kept, kept], "aligned"))
