# ruff: noqa: E501 (a case is a line)
"""Checkpoints for `inputs.py`: in diffusers' layout and in those of the original Tango, whole and broken.

The networks are the smallest of their kinds, out of the tests; what is tried is the code that reads them.
"""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from inputs_cases import Case, Group, Refused
from safetensors.torch import load_file, save_file

import milonga
from milonga.models.original.layout import MAIN, VAE

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
import original_folder
import small_networks

UNET = "unet/diffusion_pytorch_model.safetensors"
UNUSABLE = "holds no usable model"
CUT = "is truncated or no file of weights"


@cache
def whole(layout: str) -> Path:
    """A whole checkpoint: "diffusers", "original", or "trained" and "trained-bin" as its training saves them."""
    folder = Path(mkdtemp(prefix="checkpoints-"))
    torch.set_num_threads(1)
    if layout == "diffusers":
        small_networks.pipeline().save_pretrained(folder / "model")
    elif layout == "original":
        original_folder.shrink_vocoder(pytest.MonkeyPatch())
        original_folder.write(folder / "model")
    else:
        original_folder.write_trained(folder / "saved" / "model", whole("original"), layout == "trained")
        return folder / "saved" / "model"
    return folder / "model"


@cache
def right(layout: str) -> np.ndarray:
    """The clip that the whole checkpoint makes."""
    return sample(whole("diffusers" if layout == "diffusers" else "original"))


def sample(folder: Path) -> np.ndarray:
    """A clip of a loaded model, by which its weights are known again."""
    pipe = milonga.load(str(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe("a dog barks", seeds=7, num_inference_steps=2, audio_length_in_s=0.32).audios[0]


def spoilt(layout: str, how: Callable[[Path], object], refused: str | None = None) -> Callable[[Path], Any]:
    """A case's `make`: a copy of a whole checkpoint, changed; without `refused` it must make the very same clip."""

    def make(folder: Path) -> Any:
        value = Refused(refused) if refused else right(layout)
        source = whole(layout)
        if source.parent.name == "saved":
            shutil.copytree(source.parent, folder / "saved")
            (folder / "saved" / "model").rename(folder / "model")
            (folder / "saved" / "summary.jsonl").rename(folder / "summary.jsonl")
        else:
            shutil.copytree(source, folder / "model")
        how(folder / "model")
        return value

    return make


def remove(name: str) -> Callable[[Path], object]:
    """Removes a file or a folder."""
    return lambda at: shutil.rmtree(at / name) if (at / name).is_dir() else (at / name).unlink()


def replace(name: str, how: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Writes other bytes into a file."""
    return lambda at: (at / name).write_bytes(how((at / name).read_bytes()))


def config(name: str, **values: Any) -> Callable[[Path], object]:
    """Changes values of a JSON file."""
    return replace(name, lambda data: json.dumps(json.loads(data) | values).encode())


def tensors(how: Callable[[dict[str, Any]], dict[str, Any]], name: str = UNET) -> Callable[[Path], object]:
    """Changes the tensors of a file."""

    def change(at: Path) -> None:
        if name.endswith(".safetensors"):
            save_file(how(load_file(at / name)), at / name, metadata={"format": "pt"})
        else:
            torch.save(how(torch.load(at / name)), at / name)

    return change


def without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The tensors but for one."""
    return lambda held: {name: value for name, value in held.items() if name != key}


def changed(key: str, how: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The tensors, one of them changed."""
    return lambda held: held | {key: how(held[key])}


def prefixed(held: dict[str, Any]) -> dict[str, Any]:
    """The tensors by the names that a wrapper for several devices gives them."""
    return {f"module.{name}": value for name, value in held.items()}


def as_pickle(at: Path) -> None:
    """The U-Net as `.bin`."""
    torch.save(load_file(at / UNET), at / "unet" / "diffusion_pytorch_model.bin")
    (at / UNET).unlink()


def in_parts(at: Path) -> None:
    """The U-Net in two numbered parts with their index."""
    held = load_file(at / UNET)
    names, place = sorted(held), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: held[name] for name in part}, at / "unet" / file, metadata={"format": "pt"})
        place |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": place}
    (at / f"{UNET}.index.json").write_text(json.dumps(index))
    (at / UNET).unlink()


def half_of_the_parts(at: Path) -> None:
    """One of the two parts is missing."""
    in_parts(at)
    (at / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def in_half(at: Path) -> None:
    """Only a variant of half precision is there."""
    held = {name: value.half() for name, value in load_file(at / UNET).items()}
    save_file(held, at / "unet" / "diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    (at / UNET).unlink()


def hostile(name: str) -> Callable[[Path], object]:
    """A pickle that would run code."""
    return lambda at: (at / name).write_bytes(pickle.dumps({"unet.conv_in.weight": Path("ran")}, protocol=2))


def only(*names: str) -> Callable[[Path], object]:
    """All but these files of a checkpoint removed."""

    def empty(at: Path) -> None:
        for entry in at.iterdir():
            if entry.name not in names:
                remove(entry.name)(at)

    return empty


def in_diffusers() -> list[Case]:
    """Checkpoints in diffusers' layout."""
    key = "conv_in.bias"
    cut, html, pointer = (lambda data: data[:-100]), (lambda _: b"<html>"), (lambda _: b"version https://git-lfs\n")
    changes: list[tuple[str, Callable[[Path], object], str | None]] = [
        ("whole", lambda at: None, None),
        ("a U-Net as .bin", as_pickle, None),
        ("a U-Net in two parts", in_parts, None),
        ("files of other programs beside it", lambda at: (at / ".DS_Store").write_bytes(b"\0"), None),
        ("no model_index.json", remove("model_index.json"), "model_index.json is missing"),
        ("a cut model_index.json", replace("model_index.json", cut), "model_index.json is missing or no JSON"),
        ("no U-Net", remove("unet"), UNUSABLE),
        ("no U-Net weights", remove(UNET), UNUSABLE),
        ("no VAE", remove("vae"), UNUSABLE),
        ("no vocoder", remove("vocoder"), UNUSABLE),
        ("no text encoder", remove("text_encoder"), UNUSABLE),
        ("no tokenizer", remove("tokenizer"), UNUSABLE),
        ("no scheduler", remove("scheduler"), UNUSABLE),
        ("a cut U-Net", replace(UNET, cut), UNUSABLE),
        ("an empty U-Net", replace(UNET, lambda _: b""), UNUSABLE),
        ("a page for a U-Net", replace(UNET, html), UNUSABLE),
        ("a git-lfs pointer for a U-Net", replace(UNET, pointer), UNUSABLE),
        ("one of two parts missing", half_of_the_parts, UNUSABLE),
        ("only half precision", in_half, None),
        ("names of a wrapper (module.)", tensors(prefixed), None),
        ("a missing tensor", tensors(without(key)), f"lack {key}"),
        ("a tensor of another shape", tensors(changed(key, lambda value: value[:-1])), UNUSABLE),
        ("a tensor with NaN", tensors(changed(key, lambda value: value * np.nan)), "NaN|not finite"),
        ("a VAE of other widths", config("vae/config.json", latent_channels=5), UNUSABLE),
        ("a config that is no JSON", replace("unet/config.json", cut), UNUSABLE),
        ("a U-Net that runs code", lambda at: (as_pickle(at), hostile("unet/diffusion_pytorch_model.bin")(at)), UNUSABLE),
        ("an adapter alone", only("unet"), "model_index.json is missing"),
        ("an empty folder", only(), "model_index.json is missing|holds no"),
    ]  # fmt: skip
    return [Case(f"diffusers: {name}", spoilt("diffusers", how, refused)) for name, how, refused in changes]


def in_original() -> list[Case]:
    """Checkpoints in the original's layouts."""
    key = "encoder.mid.attn_1.q.weight"
    cut = lambda data: data[: len(data) // 2]  # noqa: E731
    changes: list[tuple[str, Callable[[Path], object], str | None]] = [
        ("whole", lambda at: None, None),
        ("no main weights", remove(MAIN), f"{MAIN} is missing"),
        ("no VAE weights", remove(VAE), f"{VAE} is missing"),
        ("cut main weights", replace(MAIN, cut), CUT),
        ("empty VAE weights", replace(VAE, lambda _: b""), CUT),
        ("a page for weights", replace(VAE, lambda _: b"<html>"), CUT),
        ("a git-lfs pointer", replace(VAE, lambda _: b"version https://git-lfs\n"), "git-lfs pointer"),
        ("weights that run code", hostile(MAIN), "asks to run"),
        ("the two files exchanged", lambda at: exchanged(at), "lacks unet"),
        ("a missing tensor", tensors(without(key), VAE), f"lacks {key}"),
        ("an unknown tensor", tensors(lambda held: held | {"loss.logvar": torch.zeros(1)}, VAE), "holds loss.logvar"),
        ("a tensor of another shape", tensors(changed(key, lambda value: value[:1]), VAE), "has shape"),
        ("a tensor of integers", tensors(changed("quant_conv.bias", lambda value: value.int()), VAE), "is torch.int"),
        ("a tensor with NaN", tensors(changed(key, lambda value: value * np.nan), VAE), "NaN or infinite"),
        ("names of a wrapper (module.)", tensors(prefixed, MAIN), None),
        ("another schedule", config("main_config.json", scheduler_name="x/y"), "scheduler_name 'x/y'"),
        ("no config", remove("main_config.json"), "main_config.json is missing"),
        ("a config that is no JSON", replace("vae_config.json", lambda _: b"{"), "is no JSON"),
        ("no tokenizer", remove("tokenizer"), "holds no tokenizer"),
    ]
    cases = [Case(f"original: {name}", spoilt("original", how, refused)) for name, how, refused in changes]
    return [
        *cases,
        Case("original: as its training saves it", spoilt("trained", lambda at: None)),
        Case("original: as its training saves it, .bin", spoilt("trained-bin", lambda at: None)),
        Case("original: the same, cut", spoilt("trained", replace("model_2.safetensors", cut), CUT)),
    ]


def exchanged(at: Path) -> None:
    """The main weights under the VAE's name, and the other way round."""
    for old, new in ((MAIN, "aside"), (VAE, MAIN), ("aside", VAE)):
        (at / old).rename(at / new)


def fault(value: np.ndarray, wanted: np.ndarray) -> str:
    """What is wrong with the clip of a loaded model; half precision may round, other weights differ by 1e-2."""
    return "" if np.abs(value - wanted).max() < 1e-3 else "another clip than that of the whole checkpoint"


def group() -> Group:
    """The one reader of checkpoints and all cases."""
    return Group("Checkpoints", {"load": lambda at: sample(at / "model")}, fault, [*in_diffusers(), *in_original()])
