"""Original checkpoints: files of tensors, read without running anything in them, and held to a network's own layout."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from milonga.core.errors import CheckpointError, brief

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_state(path: Path, container: str | None = None) -> dict[str, Any]:
    """The tensors of a `.pth` (under the key `container`, where one is named) or of a `.safetensors`, which has none.

    Raises CheckpointError naming the file: missing, truncated, not what its suffix says, holding anything but tensors,
    or without `container`.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: give the path of the weights' file")
    if path.suffix == ".safetensors":
        return _parsed(path, lambda: load_file(path))
    # Files from before torch 1.6 are no zip archives and cannot be mapped into memory.
    held = _parsed(path, lambda: torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path)))
    if container is not None:
        if not isinstance(held, Mapping) or container not in held:
            raise CheckpointError(f"{path} has no {container!r}, under which its weights should be")
        held = held[container]
    if not isinstance(held, Mapping):
        raise CheckpointError(f"{path} holds no weights by name but a {type(held).__name__}")
    return dict(held)


def _parsed(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    # A parser fed with arbitrary bytes may raise anything; whatever it is, these bytes are no weights.
    except Exception as error:
        told = (
            "holds more than tensors, or is no weights' file"
            if "Weights only" in str(error)
            else brief(error).split(". ")[0]
        )
        raise CheckpointError(f"{path} is truncated, renamed or unsafe to read: {told}") from None


def fill(network: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Gives a network, built on the meta device, the tensors of `state`, as float32 where it has floats.

    Buffers that the network has built for itself (those not on meta) may be missing from `state`; where they are there
    they must be the same up to half precision. Raises CheckpointError naming the file and the first key that is
    missing, unknown, of another shape or type, or not finite.
    """
    own = network.state_dict()
    for key in [*own, *state]:
        if key not in own:
            raise CheckpointError(f"{path}: {key!r} is no key of {type(network).__name__}")
        if key in state:
            told = _difference(own[key], state[key])
            if told:
                raise CheckpointError(f"{path}: {key} {told}")
        elif own[key].is_meta:
            raise CheckpointError(f"{path} lacks {key}")
    given = {key: value.to(own[key].dtype) for key, value in state.items()}
    network.load_state_dict({**own, **given}, assign=True)


def _difference(own: Tensor, given: Any) -> str:
    """What keeps `given` from standing where `own` does; nothing where it may."""
    if not isinstance(given, Tensor) or given.layout is not torch.strided or given.is_meta or given.is_quantized:
        return "is no plain tensor"
    if given.shape != own.shape:
        return f"has shape {tuple(given.shape)}, not {tuple(own.shape)}"
    if given.dtype not in (FLOATS if own.is_floating_point() else (own.dtype,)):
        return f"is {given.dtype}, not {own.dtype}"
    given = given.to(own.dtype)
    if not torch.isfinite(given).all():
        return "has NaN or infinite values"
    if not own.is_meta and (given - own).abs().max() > 1e-3 * own.abs().max():
        return "is of another front end"
    return ""
