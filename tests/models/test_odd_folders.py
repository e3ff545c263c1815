"""Folders in diffusers' layout as other tools leave them: loaded alike, or refused by the name of what is missing."""

import json
import shutil
from pathlib import Path

import pytest
import small_networks
import torch
from safetensors.torch import load_file, save_file

from milonga.core.errors import CheckpointError
from milonga.models.load import NETWORKS, pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "whole"
    small_networks.pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def weights(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def equal(first: Path, second: Path) -> bool:
    ours, theirs = pipeline(str(first)), pipeline(str(second))
    return all(
        torch.equal(value, getattr(theirs, part).state_dict()[name])
        for part in NETWORKS
        for name, value in getattr(ours, part).state_dict().items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", NETWORKS)
def test_a_wrapper_before_all_names_is_taken_off_without_a_word(part, folder, saved, capfd):
    file = weights(folder, part)
    save_file({f"module.{name}": value for name, value in load_file(file).items()}, file, {"format": "pt"})
    assert equal(folder, saved)
    assert "module." not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_wrapped_network_in_parts_is_read_whole_and_no_variant_in_its_place(folder, saved):
    file = weights(folder, "unet")
    tensors = {f"module.{name}": value for name, value in load_file(file).items()}
    zeros = {name: torch.zeros_like(value) for name, value in tensors.items()}
    save_file(zeros, file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")), {"format": "pt"})
    names = sorted(tensors)
    halves = {1: names[::2], 2: names[1::2]}
    for number, half in halves.items():
        part = file.with_name(f"{file.stem}-{number:05d}-of-00002.safetensors")
        save_file({name: tensors[name] for name in half}, part, {"format": "pt"})
    places = {
        name: f"{file.stem}-{number:05d}-of-00002.safetensors" for number, half in halves.items() for name in half
    }
    index = {"metadata": {}, "weight_map": places}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
    file.unlink()
    assert equal(folder, saved)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [("unet",), NETWORKS])
def test_weights_of_one_variant_alone_are_read(parts, folder, saved):
    for part in parts:
        file = weights(folder, part)
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert equal(folder, saved)


@pytest.mark.slow
def test_beside_the_plain_weights_a_variant_is_not_read(folder, saved):
    file = weights(folder, "unet")
    other = {name: value + 1 for name, value in load_file(file).items()}
    save_file(other, file.with_name("diffusion_pytorch_model.fp16.safetensors"), {"format": "pt"})
    assert equal(folder, saved)


@pytest.mark.parametrize("part", NETWORKS)
@pytest.mark.parametrize(
    ("missing", "words"),
    [("*", "there is no such folder"), ("config.json", "no config.json"), ("*.safetensors", "it has no weights")],
)
def test_what_is_missing_is_named(part, missing, words, folder):
    for file in (folder / part).glob(missing):
        file.unlink()
    with pytest.raises(CheckpointError, match=f"{part} holds no usable model: ValueError: .*{words}") as error:
        pipeline(str(folder))
    assert "huggingface.co" not in str(error.value)


def test_other_names_are_refused_by_one_of_them(folder, capfd):
    file = weights(folder, "unet")
    save_file({f"x.{name}": value for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"unet holds no usable model: ValueError: its weights lack conv_in\.bias"
    ):
        pipeline(str(folder))
    assert len("".join(capfd.readouterr())) < 300
