"""Where networks run: `auto`, or a device by torch's name, for every part of a job alike.

Whatever moves a network or its input does it here or reads the device of the network's own parameters, so nothing
depends on which accelerator there is. Results leave a device as float32 on the CPU.
"""

import gc
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from milonga.core.cache import forget
from milonga.core.errors import RecipeError, brief

if TYPE_CHECKING:
    import torch
    from torch import nn

AUTO = "auto"
ON_ACCELERATOR = 8  # times as many clips in a forward pass as on a CPU, whose cache a larger batch leaves


def device_of(name: Any = AUTO) -> "torch.device":
    """The device of that name; `auto` and None are CUDA where there is one, else Apple's MPS, else the CPU.

    Raises RecipeError for a device that this torch, or this machine, has not.
    """
    import torch

    if name is None or name == AUTO:
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(f"nothing can be computed on device {name!r} here: {brief(error)}") from error


def placed(network: "nn.Module", device: Any = AUTO) -> Any:
    """The network itself, moved to a device."""
    from torch import nn

    return nn.Module.to(network, device=device_of(device))  # diffusers wraps `to` in a way type checkers dislike


def where(network: "nn.Module") -> "torch.device":
    """The device of a network's weights."""
    return next(network.parameters()).device


def has_weights(network: "nn.Module") -> bool:
    """Whether a network has weights, and is no mere shape on torch's `meta` device."""
    return not next(network.parameters()).is_meta


def autocast(device: "torch.device", precision: str) -> AbstractContextManager[Any]:
    """The context of a forward pass on a device: torch's autocast for "bf16", and none for "fp32".

    Not every device has an autocast (torch's `meta` has none), and torch refuses even one that is not enabled there.
    """
    import torch

    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def full_precision(device: "torch.device") -> AbstractContextManager[Any]:
    """The context of what is computed in float32 also within an autocast."""
    import torch

    return torch.autocast(device.type, enabled=False) if in_half(device) else nullcontext()


def in_half(device: "torch.device") -> bool:
    """Whether a forward pass on a device is in bfloat16 at the moment."""
    import torch

    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def batch_size(on_cpu: int, device: "torch.device") -> int:
    """How many inputs a forward pass has on a device; results do not depend on it."""
    return on_cpu if device.type == "cpu" else on_cpu * ON_ACCELERATOR


def exact(device: "torch.device") -> "torch.device":
    """Where a front end in float64 runs for networks on `device`: there, or for MPS, which has none, on the CPU."""
    import torch

    return torch.device("cpu") if device.type == "mps" else device


@contextmanager
def working_on(networks: "Iterable[nn.Module]", device: Any = AUTO) -> Iterator[None]:
    """Networks on a device for as long as they work; then they are back where they were, and their memory is free.

    Networks that are shapes alone stay as they are.
    """
    moved = [(network, where(network)) for network in networks if has_weights(network)]
    for network, _ in moved:
        placed(network, device)
    try:
        yield
    finally:
        for network, home in moved:
            placed(network, home)
        free_memory()


def out_of_memory(error: Exception) -> bool:
    """Whether an accelerator had no memory left for what was asked of it."""
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def free_memory() -> None:
    """Gives the memory that torch keeps for later back to the accelerator, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def release() -> None:
    """Drops the models and scorers that loaders have cached: training needs their memory."""
    forget()
    gc.collect()
    free_memory()
