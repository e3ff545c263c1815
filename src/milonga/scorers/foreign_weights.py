"""Weights of original checkpoints (`core.weights` reads them), held to a network's own layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from milonga.core.errors import CheckpointError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


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
