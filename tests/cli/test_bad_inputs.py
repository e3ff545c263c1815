"""Broken checkpoints, audio files and arguments: each is told in one line that says what is wrong, and exits 1 or 2."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import original_folder
import pytest
import small_networks
import soundfile
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from milonga.cli.main import app
from milonga.core.audio import read_audio, write_audio
from milonga.core.errors import AudioError, MilongaError
from milonga.core.records import Clip
from milonga.models.original.layout import MAIN, VAE

GENERATE = ["generate", "a dog barks", "--out", "made", "--steps", "1"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of each layout: `tango` in diffusers', `original` in the seven files."""
    folder = tmp_path_factory.mktemp("shelf")
    small_networks.pipeline().save_pretrained(folder / "tango")
    with pytest.MonkeyPatch.context() as patch:
        original_folder.shrink_vocoder(patch)
        original_folder.write(folder / "original")
    return folder


def generate(*words: str) -> Callable[[Path], list[str]]:
    return lambda at: [*GENERATE, "--model", str(at / "tango"), *words]


def distil(*words: str) -> Callable[[Path], list[str]]:
    return lambda at: ["distil", str(at / "tango"), "clips:nowhere", "--out", str(at / "student"), *words]


def of_model(name: str) -> Callable[[Path], list[str]]:
    return lambda at: [*GENERATE, "--model", name]


def spoilt(file: str, how: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    """`convert` of the original checkpoint, or `generate` by the other one, after a file of it was spoilt."""

    def spoil(at: Path) -> list[str]:
        how(at / file)
        if file.startswith("tango"):
            return [*GENERATE, "--model", str(at / "tango")]
        return ["convert", str(at / "original"), str(at / "converted")]

    return spoil


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def hostile(path: Path) -> None:
    path.write_bytes(pickle.dumps({"unet.conv_in.weight": Path("ran")}, protocol=2))


def not_finite(path: Path) -> None:
    tensors = load_file(path)
    save_file(tensors | {"conv_in.bias": tensors["conv_in.bias"] / 0}, path, metadata={"format": "pt"})


def told_in_json(**values: Any) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | values)) and None


UNET = "tango/unet/diffusion_pytorch_model.safetensors"
DOORS: list[tuple[str, int, Callable[[Path], list[str]], str]] = [
    ("no prompt at all", 2, lambda at: ["generate"], "Missing argument 'PROMPT...'"),
    ("an empty prompt", 1, lambda at: ["generate", ""], "a prompt is empty: say what to hear"),
    ("a blank among prompts", 1, lambda at: ["generate", "rain", " \n"], "a prompt is empty"),
    ("no steps", 1, generate("--steps", "0"), "--steps and -n must be at least 1"),
    ("no clips", 1, generate("-n", "0"), "--steps and -n must be at least 1"),
    ("more steps than there are", 1, generate("--steps", "1001"), "at most 1000, not 1001"),
    ("steps beyond compat's schedule", 1, generate("--steps", "1000", "--scheduler", "compat"), "begin beyond the sch"),
    ("steps in words", 2, generate("--steps", "many"), "Invalid value for '--steps'"),
    ("negative guidance", 1, generate("--guidance", "-1"), "--guidance must be 0 or a positive number"),
    ("guidance that is no number", 1, generate("--guidance", "nan"), "--guidance must be 0 or a positive number"),
    ("no duration", 1, generate("--duration", "0"), "--duration must be more than 0 seconds"),
    ("endless duration", 1, generate("--duration", "inf"), "--duration must be more than 0 seconds"),
    ("a negative seed", 2, generate("--seed", "-1"), "Invalid value for '--seed'"),
    ("an unknown scheduler", 1, generate("--scheduler", "heun"), "unknown scheduler 'heun': choose one of ddpm"),
    ("a scheduler of flows", 1, generate("--scheduler", "euler"), "euler does not fit a model that predicts no flow"),
    ("an unknown model", 1, of_model("nanno"), "'nanno' is neither a folder nor one of nano"),
    ("no model", 1, of_model(""), "'' is neither a folder nor one of nano"),
    ("a repository out of reach", 1, of_model("some/one"), "some/one on .* cannot be reached"),
    ("a revision out of reach", 1, of_model("some/one@v2"), "cannot be reached, and was not fetched before"),
    ("a folder without a model", 1, lambda at: [*GENERATE, "--model", str(at)], "model_index.json is missing"),
    ("out is a file", 1, lambda at: [*generate("--out", str(at / "tango/model_index.json"))(at)], "model_index.json"),
    ("a rate below nothing", 1, distil("--learning-rate", "-1"), "^milonga: learning_rate: .* be greater than 0$"),
    ("a rate that is no number", 1, distil("--learning-rate", "nan"), "^milonga: learning_rate: .* a finite number$"),
    ("an unknown recipe", 1, lambda at: ["run", "demmo"], "no recipe demmo"),
    ("an unknown engine", 1, lambda at: ["run", "smoke", "--engine", "spark"], "spark"),
    ("a recipe's unknown scheduler", 1, lambda at: ["run", "smoke", "--set", "models.scheduler=heun"], "scheduler"),
    ("a cut index", 1, spoilt("tango/model_index.json", cut), "model_index.json is missing or no JSON"),
    ("no U-Net", 1, spoilt(UNET, Path.unlink), "tango/unet holds no usable model"),
    ("a cut U-Net", 1, spoilt(UNET, cut), "tango/unet holds no usable model"),
    ("a page for a U-Net", 1, spoilt(UNET, lambda path: path.write_text("<html>")), "unet holds no usable"),
    ("a U-Net of NaN", 1, spoilt(UNET, not_finite), "unet holds no usable model: .*conv_in.bias has NaN or infinite"),
    ("no vocoder", 1, spoilt("tango/vocoder", shutil.rmtree), "tango/vocoder holds no usable model"),
    ("no tokenizer", 1, spoilt("tango/tokenizer", shutil.rmtree), "tango holds no usable model"),
    ("no scheduler", 1, spoilt("tango/scheduler/scheduler_config.json", Path.unlink), "tango holds no usable model"),
    ("another's widths", 1, spoilt("tango/vae/config.json", told_in_json(latent_channels=5)), "vae holds no usable"),
    ("cut main weights", 1, spoilt(f"original/{MAIN}", cut), f"{MAIN} is truncated or no file of weights"),
    ("no VAE weights", 1, spoilt(f"original/{VAE}", Path.unlink), f"{VAE} is missing"),
    ("empty VAE weights", 1, spoilt(f"original/{VAE}", lambda path: path.write_bytes(b"")), f"{VAE} is truncated"),
    ("weights that run code", 1, spoilt(f"original/{MAIN}", hostile), rf"{MAIN} asks to run pathlib\.\w+"),
    ("a pointer", 1, spoilt(f"original/{VAE}", lambda path: path.write_text("version https://git-lfs")), "lfs pull"),
    ("a list of weights", 1, spoilt(f"original/{VAE}", lambda path: torch.save([1], path)), f"{VAE} must hold tensors"),
    ("another schedule", 1, spoilt("original/main_config.json", told_in_json(scheduler_name="x/y")), "scheduler_name"),
    ("nothing to convert", 1, lambda at: ["convert", "some\\where", "to"], "is neither a folder nor one of nano"),
    ("converted already", 1, lambda at: ["convert", str(at / "tango"), str(at / "x")], "a diffusers pipeline already"),
    ("a place that is taken", 1, lambda at: ["convert", str(at / "original"), str(at / "tango")], "exists already"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "words", "told"), [case[1:] for case in DOORS], ids=[case[0] for case in DOORS])
def test_a_door_tells_in_one_line_what_is_wrong(
    status: int, words: Callable[[Path], list[str]], told: str, shelf: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copytree(shelf, tmp_path, dirs_exist_ok=True)
    original_folder.shrink_vocoder(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    done = CliRunner().invoke(app, words(tmp_path))
    assert done.exit_code == status, done.output
    assert done.stdout == ""
    if status == 1:
        assert done.stderr.startswith("milonga: ")
        assert done.stderr.count("\n") == 1
    assert re.search(told, done.stderr), done.stderr
    left = {path.name for path in tmp_path.iterdir() if not path.is_dir() or any(path.rglob("*.wav"))}
    assert not left


def as_file(data: bytes | str) -> Callable[[Path], Clip]:
    def read(at: Path) -> Clip:
        (at / "clip.wav").write_bytes(data.encode() if isinstance(data, str) else data)
        return read_audio(at / "clip.wav")

    return read


def as_samples(samples: list[float], **how: Any) -> Callable[[Path], Clip]:
    def read(at: Path) -> Clip:
        soundfile.write(at / "clip.wav", np.array(samples, dtype=np.float32), 16000, **({"subtype": "FLOAT"} | how))
        return read_audio(at / "clip.wav")

    return read


def written(name: str, wave: Any, **tags: str) -> Callable[[Path], None]:
    return lambda at: write_audio(at / name, Clip(np.asarray(wave, dtype=np.float32), 16000), tags)


AUDIO: list[tuple[str, Callable[[Path], object], str]] = [
    ("no file", lambda at: read_audio(at / "clip.wav"), "clip.wav: no such audio file"),
    ("a folder", lambda at: read_audio(at), "no such audio file"),
    ("an empty file", as_file(b""), "clip.wav: cannot be read as audio"),
    ("a page", as_file("<html>"), "clip.wav: cannot be read as audio"),
    ("half a header", as_file(b"RIFF\x10\x00\x00\x00WAVEfmt "), "clip.wav: cannot be read as audio"),
    ("no samples", as_samples([]), "clip.wav: the audio is empty"),
    ("a sample that is no number", as_samples([0.0, float("nan")]), "clip.wav: the audio has NaN or infinite samples"),
    ("an endless sample", as_samples([float("inf"), 0.0]), "clip.wav: the audio has NaN or infinite samples"),
    ("another format", written("clip.mp3", [0.0]), "clip.mp3: audio is written as .wav or .flac"),
    ("nothing to write", written("clip.wav", []), "the clip is empty: there is nothing to write"),
    ("no number to write", written("clip.wav", [np.nan]), "NaN or infinite samples: it cannot be written"),
    ("two channels to write", written("clip.wav", [[0.0, 0.1]]), "mix the channels first"),
]  # fmt: skip


@pytest.mark.parametrize(("how", "told"), [case[1:] for case in AUDIO], ids=[case[0] for case in AUDIO])
def test_an_audio_file_that_cannot_be_used_is_told_in_one_line(
    how: Callable[[Path], object], told: str, tmp_path: Path
) -> None:
    with pytest.raises(AudioError, match=told) as error:
        how(tmp_path)
    assert isinstance(error.value, MilongaError)
    assert "\n" not in str(error.value)
