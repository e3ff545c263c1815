"""What a run will take is known before it: from its plan, and from a rehearsal of every stage."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_networks
import torch
from fake_parts import RECIPE, FakeParts
from tiny_parts import parts_folder
from typer.testing import CliRunner

from milonga.cli.main import app
from milonga.core.config import Phase
from milonga.core.errors import StoreError
from milonga.core.records import Clip, Pair, Prompt, Request
from milonga.core.store import Run, read_json
from milonga.experiment import run as pipeline
from milonga.experiment.recipe import load_recipe, parse_recipe
from milonga.experiment.rehearsal import rehearse as rehearsal
from milonga.experiment.rehearsal import stand_ins
from milonga.experiment.rehearsal.cost import sampling_passes, training_passes
from milonga.experiment.rehearsal.rehearse import CAPTIONS, as_table, rehearse
from milonga.models.generator import TangoModel
from milonga.models.original import layout
from milonga.scorers import panns

TEXTS = ("a dog barks then a bell rings", "rain falls", "a cat meows", "a man speaks after a horn", "an engine runs")


def test_passes_are_counted_as_the_sampler_and_the_trainer_take_them() -> None:
    prompt = Prompt.of("a dog", "test")
    requests = [Request.of(0, prompt, "a dog", steps, guidance) for steps, guidance in ((5, 3.0), (25, 1.0))]
    assert sampling_passes(requests) == 2 * 5 + 25
    sft, dpo = Phase(loss="sft", epochs=1), Phase(loss="dpo", epochs=4, beta=2000.0)
    assert training_passes([sft, dpo], 10, 32) == 10 * 3 + 4 * 10 * 2 * 4
    assert training_passes([Phase(loss="dpo", steps=3, beta=1.0)], 10, 4) == 3 * 4 * 2 * 4


@pytest.mark.slow
def test_a_plan_says_what_the_rest_will_take(tmp_path: Path) -> None:
    parts = parts_folder(tmp_path / "parts")
    table = tmp_path / "captions.csv"
    table.write_text("caption\n" + "".join(f'"{text}"\n' for text in TEXTS))
    first, second = load_recipe("audio-alpaca").models.scorers
    changes = {
        "models.model": str(parts / "tango"),
        "models.scheduler": "ddpm",
        "models.scorers": [str(parts / "one"), str(parts / "two")],
        "pair.rank_by": "mean",
        "pair.thresholds": [],
        "prompts.sources": [f"captions:{table}"],
        "prompts.embedder": "tfidf-svd",
        "prompts.clusters": 2,
        "prompts.per_cluster": 2,
        "plan.perturber": "rules",
    }
    assert first != second
    options = [part for key, value in changes.items() for part in ("--set", f"{key}={_toml(value)}")]
    result = CliRunner().invoke(
        app, ["run", "audio-alpaca", "--until", "plan", "--out", str(tmp_path / "run"), *options]
    )
    assert result.exit_code == 0, result.stderr
    requests = Run(tmp_path / "run").stage("plan").read_records(Request)
    passes = sampling_passes(requests)
    line, scores = result.stdout.splitlines()[:2]
    assert line.startswith(f"generate: {len(requests)} clips, {passes:,} passes, ")
    flops = float(line.split(" FLOP")[0].rpartition(" ")[2])
    assert flops / passes > 1e5  # a tiny network's pass; nothing of it was computed
    assert scores == f"score: {len(requests)} clips by 2 scorers"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value) if isinstance(value, int) else f'"{value}"'


@pytest.mark.parametrize(
    "name",
    [
        "audio-alpaca",
        "tango2-draft",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("tango2", "tango2-online")),
    ],
)
def test_every_stage_is_rehearsed_without_weights_or_data(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stand_ins, "random_tango", lambda texts: small_networks.pipeline())
    monkeypatch.setattr(rehearsal, "random_scorer", lambda name, texts, device: small_networks.scorer(0, name))
    if name == "audio-alpaca":
        (tmp_path / "audiocaps-train.csv").write_text("caption\n" + "".join(f'"{text}"\n' for text in TEXTS))
    recipe = load_recipe(name, ["train.draft_steps=2"] if name == "tango2-draft" else ())
    rows = {row["stage"]: row for row in rehearse(recipe)}
    folder = tmp_path / "runs" / f"{name}-rehearsal"
    stages = {
        "audio-alpaca": ["prompts", "plan", "generate", "score", "pair"],
        "tango2": ["train", "report"],
        "tango2-draft": ["train", "report"],
        "tango2-online": ["train", "report"],
    }[name]
    assert list(rows) == stages
    assert all(row["seconds"] > 0 and row["memory"] > 0 for row in rows.values())
    assert [row["stage"] for row in read_json(folder / "rehearsal.json")] == list(rows)
    assert as_table(list(rows.values())).splitlines()[1].startswith(next(iter(rows)))
    if name == "tango2-draft":  # 200 steps of 32 clips, at the pace of the second step
        assert rows["train"]["real_seconds"] == pytest.approx(200 * 32 / paces(folder, "aligned")[1])
    if name == "audio-alpaca":
        assert rows["generate"]["real_seconds"] > rows["generate"]["seconds"]
        assert Run(folder).stage("pair").read_records(Pair)
    else:
        assert load_recipe(folder / "recipe.toml").train.precision == "fp32"  # tango2-online has bf16, for a GPU
        assert (folder / "report.html").exists()
        assert (folder / "checkpoints" / recipe.train.systems[0].name / "model").is_dir()


def paces(folder: Path, system: str) -> list[float]:
    """The clips a second of every step that a system was trained."""
    lines = (folder / "metrics" / "training" / f"{system}.jsonl").read_text().splitlines()
    return [json.loads(line)["samples_per_second"] for line in lines]


@pytest.mark.parametrize(
    "name", ["nano", *(pytest.param(name, marks=pytest.mark.slow) for name in ("demo", "nano-online", "nano-controls"))]
)
def test_a_rehearsal_of_the_small_world_evaluates_every_system(name: str, tmp_path: Path) -> None:
    # nano samples here as a rehearsal on a CPU does, so that its pace is the run's
    recipe = load_recipe(name, ["train.systems.1.settings.draft_steps=2"] if name == "nano" else ())
    rows = rehearse(recipe, tmp_path / name)
    if name == "nano":  # both trainings count
        seconds = 1600 * 32 / paces(tmp_path / name, "continued")[1] + 200 * 12 / paces(tmp_path / name, "aligned")[1]
        assert rows[-3]["real_seconds"] == pytest.approx(seconds)
    assert [row["stage"] for row in rows][-3:] == ["train", "evaluate", "report"]
    summaries = read_json(tmp_path / name / "metrics" / "summary.json")
    assert {row["system"] for row in summaries} == {*recipe.sampled_systems, "reference"}


@pytest.mark.parametrize("name", ["audio-alpaca", "smoke"])
def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(name: str, tmp_path: Path) -> None:
    run = pipeline.run(parse_recipe(RECIPE, "fake.toml"), tmp_path, until="plan", parts=FakeParts())
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match=f"{tmp_path} holds a run: rehearse in a new folder"):
        rehearse(load_recipe(name), tmp_path)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_stand_in_for_events_has_scores_and_gradients(monkeypatch: Any) -> None:
    monkeypatch.setattr(panns, "Cnn14", partial(panns.Cnn14, width=1))
    scorer = stand_ins.random_scorer("events:Cnn14_16k_mAP=0.438.pth", CAPTIONS, "cpu")
    wave = torch.rand(1, 48000).requires_grad_()
    assert 0 < scorer.score([Clip(wave[0].detach().numpy(), 16000)], [CAPTIONS[0]])[0] < 1
    scorer.wave_rewards(wave, 16000, [CAPTIONS[0]]).sum().backward()
    assert wave.grad is not None
    assert wave.grad.abs().max() > 0


def test_a_stand_in_of_the_published_layout_generates_sound(monkeypatch: Any) -> None:
    import original_folder

    vae = layout._autoencoder_config(original_folder.VAE_CONFIG, Path("vae"))
    vocoder = layout.VOCODER | original_folder.SMALL_VOCODER
    networks = original_folder.UNET_CONFIG, original_folder.TEXT_CONFIG, vae, vocoder
    sizes = layout.Layout(Path(), Path(), Path(), "tiny", *networks)
    assert layout.published().unet["block_out_channels"] == [320, 640, 1280, 1280]
    monkeypatch.setattr(layout, "published", lambda: sizes)
    model = TangoModel("random", stand_ins.random_tango(CAPTIONS), seconds=original_folder.SECONDS, device="cpu")
    request = Request.of(0, Prompt.of(CAPTIONS[0], "test"), CAPTIONS[0], 2, 3.0)
    wave = model.generate([request])[0].waveform
    assert np.isfinite(wave).all()
    assert 0 < np.abs(wave).max() <= 1


@pytest.mark.slow  # minutes and some 20 GB of disk: the published sizes, with random weights
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ["audio-alpaca", "tango2", "tango2-draft", "tango2-online"])
def test_the_rehearsal_at_full_size(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    rows = rehearse(load_recipe(name), tmp_path / name)
    print("\n" + as_table(rows))
    assert rows
