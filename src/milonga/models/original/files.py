"""The original's weights, once `core.weights` has read them: are they exactly what the configs ask for?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milonga.core.errors import CheckpointError
from milonga.models.original.keys import TIED, Place


def checked(path: Path, tensors: dict[str, Any], wanted: Mapping[str, Place]) -> dict[str, Tensor]:
    """The tensors, once they are seen to be exactly those wanted, with the tied embedding under both of its names.

    Raises CheckpointError naming the file and the first key that is no tensor, missing, unknown, of a wrong shape or no
    float.
    """
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path} must hold tensors by their names: {key!r} there is a {type(value).__name__}")
    tensors = _tied(path, tensors)
    missing = [key for key in wanted if key not in tensors]
    if missing:
        raise CheckpointError(f"{path} lacks {missing[0]}{_others(missing)}: it is incomplete or another file")
    extra = [key for key in tensors if key not in wanted]
    if extra:
        raise CheckpointError(f"{path} holds {extra[0]}{_others(extra)}, which its config knows nothing of")
    for key, place in wanted.items():
        if tensors[key].shape != place.original_shape:
            shapes = f"{tuple(tensors[key].shape)}, and its config says {tuple(place.original_shape)}"
            raise CheckpointError(f"{path}: {key} has the shape {shapes}")
        if not tensors[key].is_floating_point():
            raise CheckpointError(f"{path}: {key} holds {tensors[key].dtype}, not floating-point numbers")
    return tensors


def _tied(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The embedding has two names for one tensor; safetensors keeps only one of them."""
    there = [key for key in TIED if key in tensors]
    if len(there) == 1:
        return {**tensors, **dict.fromkeys(TIED, tensors[there[0]])}
    if there and tensors[TIED[0]].data_ptr() != tensors[TIED[1]].data_ptr():
        if not torch.equal(tensors[TIED[0]], tensors[TIED[1]]):
            raise CheckpointError(f"{path}: {TIED[1]} is not the same as {TIED[0]}, to which it must be tied")
        return {**tensors, TIED[1]: tensors[TIED[0]]}
    return tensors


def _others(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""
