"""LoRA adapters as models: a folder with an adapter and the name of the model that it changes.

The layout is diffusers' (`pytorch_lora_weights.safetensors`) with PEFT's `adapter_config.json`, whose
`base_model_name_or_path` is any name that a model is loaded by. The adapter is added to the weights on loading, so the
model is as fast as its base.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from milonga.core.errors import CheckpointError, brief
from milonga.core.store import write_json
from milonga.core.weights import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_weights

PREFIXES = ("unet.", "transformer.", "base_model.model.")  # of diffusers' pipelines and of PEFT


def merge_adapter(module: nn.Module, folder: Path) -> None:
    """Adds the adapter in `folder` to the weights of the linear layers that it names: W + α/r · BA.

    Raises CheckpointError naming the file and what does not fit.
    """
    path = folder / ADAPTER_WEIGHTS
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        scale = config["lora_alpha"] / config["r"]
        tensors: dict[str, Any] = {_plain(name): value.float() for name, value in read_weights(path).items()}
        downs = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
        if not downs or len(tensors) != 2 * len(downs):
            raise ValueError("it holds other tensors than pairs of lora_A and lora_B")
        layers = dict(module.named_modules())
        for name in downs:
            layer: Any = layers.get(name) or layers[f"transformer.{name}"]  # whose prefix may belong to the network
            change = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
            if change.shape != layer.weight.shape:
                raise ValueError(f"{name} has the shape {tuple(change.shape)}, not {tuple(layer.weight.shape)}")
            layer.weight.data += (scale * change).to(layer.weight)
    except (OSError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{path} holds no usable adapter of this model: {brief(error)}") from None


def name_base(folder: Path, base: str) -> None:
    """Writes the settings of the adapter in `folder`, which its weights carry, with its base's name beside them."""
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    plain = {_plain(name): value for name, value in settings.items()}
    write_json(folder / ADAPTER_CONFIG, plain | {"base_model_name_or_path": base})


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
