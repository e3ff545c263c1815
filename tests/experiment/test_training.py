"""`milonga train`: a model on one's own clips or pairs, a run's systems, presets whose numbers have their sources."""

import json
import re
from math import ceil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_networks
import soundfile
import torch
from typer.testing import CliRunner

from milonga.cli.main import app
from milonga.core.config import Settings
from milonga.core.errors import DataError, MilongaWarning, RecipeError, StoreError
from milonga.core.store import read_json, write_json
from milonga.experiment.export import export_system
from milonga.experiment.recipe import System, Train, load_recipe, parse_recipe
from milonga.experiment.registry import DEFAULT as registry
from milonga.experiment.run import train
from milonga.models.load import pipeline
from milonga.reports.cards import plain
from milonga.reports.html import write_report
from milonga.training.schedule import count_steps, lr_factor

PAIRS = 15_025  # of the published set


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tango"
    small_networks.pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Five clips and their table."""
    folder = tmp_path / "my-clips"
    folder.mkdir()
    lines = ["file_name,caption"]
    for n in range(5):
        wave = np.random.default_rng(n).uniform(-0.4, 0.4, 16000)
        soundfile.write(folder / f"{n}.wav", wave, 16000)
        lines.append(f"{n}.wav,{small_networks.WORDS[n % 4]}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def pairs(tmp_path: Path, clips: Path) -> Path:
    """Six pairs of those clips, by two strategies."""
    sound = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    held = [{"bytes": (clips / f"{n % 5}.wav").read_bytes(), "path": ""} for n in range(7)]
    columns = {
        "prompt": [small_networks.WORDS[n % 4] for n in range(6)],
        "chosen": pa.array(held[:6], sound),
        "rejected": pa.array(held[1:], sound),
        "strategy": ["1.1", "2"] * 3,
    }
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "set" / "train-0.parquet")
    return tmp_path / "set"


def recipe(tmp_path: Path, model: str, train: str, system: str) -> str:
    path = tmp_path / "own.toml"
    head = f'name = "own"\n[models]\nmodel = "{model}"\n[train]\nbatch_size = 2\n{train}\n'
    path.write_text(f'{head}[[train.systems]]\nname = "tuned"\n{system}\n')
    return str(path)


def trained(file: str, out: Path) -> Path:
    (system,) = train(load_recipe(file), out)
    return system


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics/training/tuned.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_model_is_fine_tuned_on_a_folder_of_clips_loads_and_exports(model, clips, tmp_path, monkeypatch):
    data = f'clips = "clips:{clips}"\nmix_ratio = 0.4\nlearning_rate = 1e-3'
    file = recipe(tmp_path, model, data, 'data = "clips"\nphases = [{ loss = "ldm", epochs = 2 }]')
    assert trained(file, tmp_path / "out") == tmp_path / "out" / "tuned"
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 2 * 4  # five clips and two mixes, two at once
    assert {row["phase"] for row in rows} == {"ldm"}
    finished = export_system(tmp_path / "out", tmp_path / "whole", "tuned")
    tuned, base = pipeline(str(finished)), pipeline(model)
    assert not torch.equal(tuned.unet.conv_in.weight, base.unet.conv_in.weight)
    assert torch.equal(tuned.vae.quant_conv.weight, base.vae.quant_conv.weight)
    card = (finished / "README.md").read_text()
    for words in (
        "library_name: diffusers",
        f"`clips:{clips}`",
        "after 8 of 8 steps",
        "| ldm |",
        "real clips with captions",
    ):
        assert words in card, words
    assert "TangoPipeline" in (finished / "pipeline.py").read_text()
    monkeypatch.setattr(registry, "load_denoiser", None)  # done: neither trained nor loaded again
    trained(file, tmp_path / "out")


@pytest.mark.slow
def test_a_training_on_clips_that_were_changed_is_refused(model, clips, tmp_path):
    system = 'data = "clips"\nphases = [{ loss = "ldm", epochs = 1 }]'
    file, out = recipe(tmp_path, model, f'clips = "clips:{clips}"', system), tmp_path / "out"
    trained(file, out)
    hashes = read_json(out / "manifest.json")["fingerprints"]["train"]["clips"]
    assert list(hashes) == [f"clips:{clips}"]
    weights = (out / "checkpoints/tuned/model/diffusion_pytorch_model.safetensors").read_bytes()
    (clips / "3.wav").write_bytes((clips / "4.wav").read_bytes())
    with pytest.raises(StoreError, match=rf"out holds a training on other contents of clips:{clips}: restore them, "):
        trained(file, out)
    assert (out / "checkpoints/tuned/model/diffusion_pytorch_model.safetensors").read_bytes() == weights
    train(load_recipe(file), out, overwrite=True)
    assert (out / "checkpoints/tuned/model/diffusion_pytorch_model.safetensors").read_bytes() != weights
    assert read_json(out / "manifest.json")["fingerprints"]["train"]["clips"] != hashes
    manifest = read_json(out / "manifest.json")  # of before this hash was there
    del manifest["fingerprints"]["train"]["clips"]
    write_json(out / "manifest.json", manifest)
    trained(file, out)
    assert read_json(out / "manifest.json")["fingerprints"]["train"]["clips"] != hashes


@pytest.mark.slow
def test_another_training_takes_the_place_of_a_finished_one_only_if_told_to(model, clips, tmp_path):
    system, out = 'data = "clips"\nphases = [{ loss = "ldm", epochs = 1 }]', tmp_path / "out"
    trained(recipe(tmp_path, model, f'clips = "clips:{clips}"', system), out)
    weights = (out / "checkpoints/tuned/model/diffusion_pytorch_model.safetensors").read_bytes()
    faster = recipe(tmp_path, model, f'clips = "clips:{clips}"\nlearning_rate = 1e-3', system)
    told = CliRunner().invoke(app, ["train", faster, "--out", str(out)])
    assert told.exit_code == 1
    assert told.stderr.splitlines()[-1] == (
        f"milonga: {out} holds a training of tuned with other values of train.learning_rate: choose another --out, or "
        "add --overwrite to train again"
    )
    assert (out / "checkpoints/tuned/model/diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert CliRunner().invoke(app, ["train", faster, "--out", str(out), "--overwrite"]).exit_code == 0
    assert (out / "checkpoints/tuned/model/diffusion_pytorch_model.safetensors").read_bytes() != weights


@pytest.mark.slow
def test_what_is_left_out_stands_in_the_report_and_in_the_card(model, clips, tmp_path):
    (clips / "2.wav").write_bytes(b"RIFF<b>")
    data = f'clips = "clips:{clips}"\nlora_rank = 2'
    file = recipe(tmp_path, model, data, 'data = "clips"\nphases = [{ loss = "ldm", epochs = 1 }]')
    with pytest.warns(MilongaWarning, match="left out 1 of 5 clips"):
        trained(file, tmp_path / "out")
    card = (export_system(tmp_path / "out", tmp_path / "whole", "tuned") / "README.md").read_text()
    assert f"- left out, because they could not be used: {plain(f'1 of 5 clips of clips:{clips}')}\n  - " in card
    page = write_report(tmp_path / "out").read_text()
    assert f"Left out, because they could not be used: 1 of 5 clips of clips:{clips}</summary>" in page
    for text in (card, page):
        assert "2.wav: cannot be read as audio" in text
    # As the card says, diffusers takes the adapter on the base's own U-Net.
    (line,) = re.findall(r"network\.load_lora_adapter\(.*\)", card)
    unet, tuned, base = (pipeline(place).unet for place in (model, str(tmp_path / "whole"), model))
    exec(line.replace("FOLDER", str(tmp_path / "whole")), {"network": unet})
    inputs = (torch.randn(1, 4, 8, 16), torch.tensor([500]), torch.randn(1, 3, unet.config.cross_attention_dim))
    with torch.no_grad():
        outputs = [network(*inputs).sample for network in (unet, tuned, base)]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(outputs[1], outputs[2], atol=1e-5)


def test_the_first_editions_recipe_for_own_data_trains_the_same_system_with_one_warning(model, clips, tmp_path):
    text = f'''name = "Own 1"
model = "{model}"
[data]
clips = "clips:{clips}"
mixed = 0.5
compat = true
[train]
phases = [{{ loss = "ldm", epochs = 1 }}]
'''
    with pytest.warns(MilongaWarning, match=r"\[data\] is now"):
        old = parse_recipe(text, "own.toml")
    assert old.models.model == model
    assert (old.train.clips, old.train.mix_ratio, old.train.legacy) == (f"clips:{clips}", 0.5, True)
    assert [(one.name, one.data, len(one.phases)) for one in old.train.systems] == [("own-1", "clips", 1)]


def test_captions_pass_the_text_encoder_once_without_dropout_and_are_kept(model, clips, tmp_path, monkeypatch):
    from milonga.data.encode import encode_clips
    from milonga.models.load import load_denoiser
    from milonga.models.tango import TangoPipeline

    asked: list[str] = []
    encode = TangoPipeline.encode_prompt
    monkeypatch.setattr(
        TangoPipeline, "encode_prompt", lambda whole, words: (asked.extend(words), encode(whole, words))[1]
    )
    denoiser = load_denoiser(model)
    assert asked == [""]
    asked.clear()
    first = encode_clips(denoiser, f"clips:{clips}", tmp_path / "work").batch([0, 1, 2], 0)
    assert sorted(asked) == sorted(set(small_networks.WORDS[:4]))
    again = encode_clips(denoiser, f"clips:{clips}", tmp_path / "work").batch([0, 1, 2], 0)
    assert len(asked) == 4
    assert torch.equal(first.conditioning["states"], again.conditioning["states"])
    assert torch.equal(first.conditioning["mask"], again.conditioning["mask"])
    assert not any(part.training for part in pipeline(model).text_encoder.modules())


def test_own_pairs_are_aligned_to_beside_prior_clips_with_captions_held_out(model, pairs, clips, tmp_path, capsys):
    data = f'pairs = ["{pairs}"]\nclips = "clips:{clips}"\nprior_weight = 0.5\nval_fraction = 0.25'
    file = recipe(tmp_path, model, data, 'phases = [{ loss = "dpo", epochs = 1, beta = 100.0 }]')
    trained(file, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert all(row["prior_error"] > 0 for row in rows)
    assert set(rows[-1]["val_by_strategy"]) <= {"1.1", "2"}
    assert rows[-1]["val_accuracy"] is not None
    assert "dpo: β 100 on means =" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "system", "error", "words"),
    [
        ("", "data = 'clips'\nphases = [{ loss = 'ldm', epochs = 1 }]", RecipeError, "train.clips is missing"),
        ("clips = 'clips:nowhere'", "data = 'clips'\nphases = [{ loss = 'ldm', epochs = 1 }]", DataError, "nowhere"),
        (
            "pairs = ['nowhere']",
            "phases = [{ loss = 'dpo', epochs = 1, beta = 1.0 }]",
            RecipeError,
            "nowhere is neither",
        ),
        ("clips = 'clips:x'", "data = 'clips'\nphases = []", RecipeError, "phases"),
        ("clips = 'clips:x'\nbatch = 3", "phases = [{ loss = 'ldm', epochs = 1 }]", RecipeError, "batch_size"),
    ],
)
def test_what_cannot_be_trained_is_told_in_one_line(data, system, error, words, model, tmp_path):
    with pytest.raises(error, match=words):
        trained(recipe(tmp_path, model, data, system), tmp_path / "out")


@pytest.mark.parametrize(("more", "place"), [([], "run"), (["--out", "other"], "other")])
def test_a_run_folders_systems_are_trained_in_it_or_in_the_folder_that_is_asked_for(more, place, tmp_path, monkeypatch):
    asked: list[Path | None] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "milonga.experiment.run.train", lambda recipe, out, **options: (asked.append(out), [out / "tuned"])[1]
    )
    (tmp_path / "run").mkdir()
    system = "data = 'clips'\nphases = [{ loss = 'ldm', epochs = 1 }]"
    Path(recipe(tmp_path / "run", "nano", "clips = 'clips:x'", system)).rename("run/recipe.toml")
    done = CliRunner().invoke(app, ["train", "run", *more])
    assert (done.exit_code, done.stdout) == (0, f"{place}/tuned\n")
    assert asked == [Path(place)]


def test_what_is_no_recipe_is_refused_by_the_names_that_ship():
    with pytest.raises(RecipeError, match="tango2-released"):
        load_recipe("tango3")


def preset(name: str) -> tuple[Train, System, Settings]:
    train = load_recipe(name).train
    (system,) = train.systems
    return train, system, train.settings(system)


@pytest.mark.parametrize(
    ("name", "per_step", "steps"),
    [("tango2", 32, 2350), ("tango2-released", 16, 4700), ("tango2-released-2", 32, 2350)],
)
def test_presets_take_the_steps_of_their_sources(name, per_step, steps):
    train, system, settings = preset(name)
    assert train.batch_size * train.gradient_accumulation_steps == per_step
    assert count_steps(system.phases, PAIRS, settings) == steps
    assert [(one.loss, one.epochs) for one in system.phases] == [("sft", 1), ("dpo", 4)]
    assert system.phases[1].beta == 2000
    assert train.learning_rate == 9.6e-7
    assert train.max_grad_norm == 1e9  # neither the paper nor the script clips: a DPO step's norm is far above 1


def test_the_papers_recipe_has_the_papers_readings_of_its_equations() -> None:
    train, _, settings = preset("tango2")
    assert (settings.shared_noise, settings.loss_weighting, settings.warmup_steps) == (False, "epsilon", 0)
    assert (settings.schedule, settings.min_lr_ratio, settings.released_ranks) == ("linear", 0.0, 1)
    assert train.pairs == ("audio-alpaca",)


def test_audio_alpacas_recipe_has_the_numbers_of_the_paper() -> None:
    with pytest.warns(MilongaWarning, match="tango2-paper is now tango2"):
        assert load_recipe("tango2-paper") == load_recipe("tango2")
    recipe = load_recipe("audio-alpaca")
    prompts, first, second = recipe.prompts, *recipe.pair.thresholds
    assert (prompts.clusters, prompts.per_cluster, prompts.temporal) == (200, 70, "all")
    assert prompts.embedder.endswith("gte-large")
    strategies = {one.name: (one.negatives, one.steps, one.num_negatives) for one in recipe.plan.strategies}
    assert strategies == {
        "1.1": ("none", (5, 25, 50, 100), 0),
        "1.2": ("none", (50, 50, 50, 50), 0),
        "2": ("perturbed", (50,), 5),
        "3": ("temporal", (50,), 5),
    }
    assert {one.guidance for one in recipe.plan.strategies} == {3.0}
    assert [Path(name).stem for name in (first.scorer.partition(":")[2], second.scorer.partition(":")[2])] == [
        "630k-audioset-best",
        "630k-best",
    ]
    bounds = [
        (one.min_winner_score, one.min_loser_score, one.min_margin, one.max_margin) for one in recipe.pair.thresholds
    ]
    assert bounds == [(0.45, 0.40, 0.05, 0.35), (0.60, 0.0, 0.08, 0.70)]


@pytest.mark.parametrize(("name", "ranks"), [("tango2-released", 1), ("tango2-released-2", 2)])
def test_the_released_rate_is_the_scripts_tick_by_tick(name, ranks):
    train, system, settings = preset(name)
    per_epoch = ceil(ceil(PAIRS / 4) / 4)  # updates an epoch, by the un-sharded loader
    horizon, warm = per_epoch * 4 * (5 + 1), 200 * 4
    total = count_steps(system.phases, PAIRS, settings)
    for step in (warm // ranks, total // 2, total):
        tick = step * ranks
        assert lr_factor(step, total, settings) == pytest.approx((horizon - tick) / (horizon - warm), rel=1e-3)
    assert train.released_ranks == ranks
    assert train.warmup_steps == warm // ranks
