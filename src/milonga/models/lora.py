"""LoRA (arXiv 2106.09685): only small matrices beside chosen linear layers are trained; without them it is the base.

So the reference costs no second network: it is the same one with its adapter switched off.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from milonga.core.errors import RecipeError
from milonga.core.ids import derive_seed

ADAPTER = "default"
WEIGHTS, METADATA = "pytorch_lora_weights.safetensors", "lora_adapter_metadata"  # as diffusers names them


def add_adapter(module: nn.Module, targets: Sequence[str], rank: int, alpha: int | None, seed: int) -> None:
    """Freezes a network and puts a fresh adapter beside the linear layers whose names end in `targets`.

    `alpha` is the rank by default. What the network computes is unchanged: one of each adapter's two matrices begins at
    zero. Raises RecipeError without peft, or where no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RecipeError("lora_rank needs peft: pip install 'milonga[lora]', or set lora_rank = 0") from error
    module.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(targets))
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "adapter"))
        try:
            inject_adapter_in_model(config, module, ADAPTER)
        except ValueError as error:
            raise RecipeError(f"lora_rank: the network has no layer named {', '.join(targets)}: {error}") from error


@contextmanager
def adapter_disabled(module: nn.Module) -> Iterator[None]:
    """The network as it was before its adapter."""
    for layer in _adapted(module).values():
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in _adapted(module).values():
            layer.enable_adapters(enabled=True)


def save_and_merge(module: nn.Module, folder: Path) -> None:
    """Writes the adapter in diffusers' layout, then adds it to the weights, so that the plain network is left."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config: Any = module.peft_config
    settings = {k: list(v) if isinstance(v, set) else v for k, v in config[ADAPTER].to_dict().items()}
    metadata = {"format": "pt", METADATA: json.dumps(settings, indent=2, sort_keys=True)}
    save_file(get_peft_model_state_dict(module, adapter_name=ADAPTER), folder / WEIGHTS, metadata)
    for name, layer in _adapted(module).items():
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, layer.get_base_layer())
    del module.peft_config


def _adapted(module: nn.Module) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
