"""LoRA (arXiv 2106.09685): only small matrices beside the attention's are trained, and without them it is the base.

So the reference costs no second network: it is the same one with its adapter switched off.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from milonga.core.errors import RecipeError
from milonga.core.ids import derive_seed

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def add_adapter(unet: "UNet2DConditionModel", rank: int, alpha: int | None, seed: int) -> None:
    """Freezes a U-Net and puts a fresh adapter of this rank beside its attention; `alpha` is the rank by default.

    What it computes is unchanged: one of each adapter's two matrices begins at zero. RecipeError without peft.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise RecipeError("lora_rank needs peft: pip install 'milonga[lora]', or set lora_rank = 0") from error
    unet.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "adapter"))
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=TARGETS))


@contextmanager
def switched_off(unet: "UNet2DConditionModel") -> Iterator[None]:
    """The U-Net as it was before its adapter."""
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()


def save_and_merge(unet: "UNet2DConditionModel", folder: Path) -> None:
    """Writes the adapter in diffusers' layout, then adds it to the weights, so that a plain U-Net is left."""
    unet.save_lora_adapter(folder)
    unet.fuse_lora()
    unet.unload_lora()
