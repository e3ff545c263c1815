"""LoRA adapters as models: a folder with an adapter and the name of the model that it changes.

The layout is diffusers' (`pytorch_lora_weights.safetensors`) with PEFT's `adapter_config.json`, whose
`base_model_name_or_path` is any name that a model is loaded by. The adapter is added to the weights on loading, so the
model is as fast as its base.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from milonga.core.errors import CheckpointError, RecipeError, brief
from milonga.core.store import write_json
from milonga.core.weights import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_weights

METADATA = "lora_adapter_metadata"  # as diffusers names it
PREFIX = "transformer."  # of an adapter's names: diffusers' default for networks of every kind
PREFIXES = ("unet.", PREFIX, "base_model.model.")  # of diffusers' pipelines and of PEFT


def merge_adapter(module: nn.Module, folder: Path) -> None:
    """Adds the adapter in `folder` to the weights of the linear layers that it names: W + α/r · BA.

    Raises CheckpointError naming the file and what does not fit.
    """
    path = folder / ADAPTER_WEIGHTS
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        scale = config["lora_alpha"] / config["r"]
        if other := [name for name in ("use_rslora", "alpha_pattern", "rank_pattern") if config.get(name)]:
            raise ValueError(f"its scale by {other[0]} is not known here: merge it by PEFT")
        tensors: dict[str, Any] = {_plain(name): value.float() for name, value in read_weights(path).items()}
        downs = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
        if not downs or len(tensors) != 2 * len(downs):
            raise ValueError("it holds other tensors than pairs of lora_A and lora_B")
        layers = dict(module.named_modules())
        for name in downs:
            layer: Any = layers.get(name) or layers[f"transformer.{name}"]  # whose prefix may belong to the network
            change = tensors[f"{name}.lora_B.weight"].flatten(1) @ tensors[f"{name}.lora_A.weight"].flatten(1)
            if change.shape != layer.weight.flatten(1).shape:
                raise ValueError(f"{name} changes {tuple(change.shape)}, and has {tuple(layer.weight.shape)}")
            layer.weight.data += scale * change.reshape(layer.weight.shape).to(layer.weight)
    except (OSError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{path} holds no usable adapter of this model: {brief(error)}") from None


def extract_adapter(base: nn.Module, tuned: nn.Module, rank: int, folder: Path, name: str) -> None:
    """Writes the adapter of that rank that is nearest to tuned − base, by the singular values of each layer's change.

    `folder` is new, `name` is the base's. Linear layers and convolutions take part, float16; changes of biases and
    norms are left out. Raises RecipeError for a rank below 1, or where nothing was changed.
    """
    if rank < 1:
        raise RecipeError(f"an adapter's rank is 1 or more, not {rank}")
    tensors: dict[str, torch.Tensor] = {}
    for path, layer in tuned.named_modules():
        change = _change(base, path, layer)
        if change is None:
            continue
        left, values, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
        size = min(rank, len(values))
        up, down = change.new_zeros(len(change), rank), change.new_zeros(rank, right.shape[1])
        up[:, :size], down[:size] = left[:, :size] * values[:size].sqrt(), values[:size, None].sqrt() * right[:size]
        tail = [1] * (change.dim() - 2)
        tensors[f"{PREFIX}{path}.lora_A.weight"] = down.reshape(rank, *change.shape[1:]).half().contiguous()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = up.reshape(len(change), rank, *tail).half().contiguous()
    if not tensors:
        raise RecipeError("the trained network has the weights of its base: there is nothing to extract")
    targets = sorted({key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    metadata = {METADATA: json.dumps({f"{PREFIX}{key}": value for key, value in settings.items()}, indent=2)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"} | metadata)
    name_base(folder, name)


def _change(base: nn.Module, path: str, layer: nn.Module) -> torch.Tensor | None:
    """How a layer's weight differs from the base's, float32; None for a layer that an adapter does not reach."""
    if not isinstance(layer, nn.Linear | nn.Conv2d) or getattr(layer, "groups", 1) > 1:
        return None
    try:
        own = base.get_parameter(f"{path}.weight")
    except AttributeError:
        raise RecipeError(f"{path} is no layer of the base, as in a distilled network: export it whole") from None
    change = (layer.weight - own).detach().float()
    return change if change.any() else None


def name_base(folder: Path, base: str) -> None:
    """Writes the settings of the adapter in `folder`, which its weights carry, with its base's name beside them."""
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        settings = json.loads(file.metadata()[METADATA])
    plain = {_plain(name): value for name, value in settings.items()}
    write_json(folder / ADAPTER_CONFIG, plain | {"base_model_name_or_path": base})


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
