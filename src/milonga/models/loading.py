"""Pipelines from folders and repositories, in diffusers' layout or one of the original Tango's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import SpeechT5HifiGan, T5EncoderModel

from milonga.core.errors import CheckpointError, RecipeError, brief
from milonga.models.original.layout import is_original
from milonga.models.original.load import load_original
from milonga.models.tango import TangoPipeline

NETWORKS: dict[str, Any] = {
    "text_encoder": T5EncoderModel,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "vocoder": SpeechT5HifiGan,
}


def load_pipeline(
    folder: Path, unet: Path | None = None, tokenizer: str | None = None, dtype: torch.dtype = torch.float32
) -> TangoPipeline:
    """A freshly loaded pipeline on the CPU, its U-Net from another folder where one is given.

    Nothing is filled with random numbers first. `tokenizer` is the folder or repository of an original checkpoint's
    tokenizer. Raises CheckpointError naming the file or folder and what is wrong with it.
    """
    sampling(folder)  # a folder without an index is no model at all
    if is_original(folder):
        whole = load_original(folder, tokenizer)
        if unet is not None:
            whole.unet = _guarded(unet, lambda: _network(UNet2DConditionModel, unet, dtype))
        return whole.to(dtype)
    parts = {}
    for part, kind in NETWORKS.items():
        place = unet if unet and part == "unet" else folder / part
        parts[part] = _guarded(place, lambda kind=kind, place=place: _network(kind, place, dtype))
    return _guarded(folder, lambda: TangoPipeline.from_pretrained(folder, local_files_only=True, **parts))


def check_device(device: Any) -> None:
    """Raises RecipeError for a device that this torch, or this machine, has not."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(f"nothing can be computed on device {device!r} here: {brief(error)}") from error


def sampling(folder: Path) -> tuple[int, float]:
    """The steps and the guidance that a model is best sampled with, read from its config.

    Raises CheckpointError when there is no readable config.
    """
    path = folder / "model_index.json"
    try:
        config = {} if is_original(folder) else json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("no object")
    except (OSError, ValueError):
        raise CheckpointError(f"{path} is missing or no JSON: {folder} holds no model") from None
    return config.get("steps", 200), config.get("guidance", 3.0)


def _guarded(place: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{place} holds no usable model: {brief(error)}") from None


def _network(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network of class `kind`; ValueError where tensors are missing, which the libraries leave to chance."""
    network, told = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
    if told["missing_keys"]:
        raise ValueError(f"its weights lack {min(told['missing_keys'])}")
    return network.eval()
