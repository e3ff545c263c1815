"""Files of weights that others made: read without running anything in them, mapped into memory where they allow it."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from milonga.core.errors import CheckpointError, brief
from milonga.models.original_keys import TIED, Place

POINTER = b"version https://git-lfs"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a pickle of tensors (`weights_only`), on the CPU.

    Raises CheckpointError for a file that is truncated, is no file of weights, or asks to run code.
    """
    found = _load(path)
    for key, value in found.items() if isinstance(found, Mapping) else [("", found)]:
        if not isinstance(key, str) or not isinstance(value, Tensor):
            where = f"{key!r} there" if isinstance(found, Mapping) else "it"
            raise CheckpointError(f"{path} must hold tensors by their names: {where} is a {type(value).__name__}")
    # A network that was trained on several devices was saved inside its wrapper.
    wrapped = bool(found) and all(key.startswith("module.") for key in found)
    return {key.removeprefix("module.") if wrapped else key: value for key, value in found.items()}


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise CheckpointError(f"{path} is a git-lfs pointer, not the weights: fetch them with git lfs pull")
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files older than torch 1.6 are no zip archives and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise CheckpointError(f"{path} asks to run {asked[1]}: it is no file of weights, and was not run") from None
        raise CheckpointError(f"{path} is truncated or no file of weights: fetch it again") from None
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, SafetensorError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is truncated or no file of weights ({brief(error)}): fetch it again") from None


def checked(path: Path, tensors: dict[str, Tensor], wanted: Mapping[str, Place]) -> dict[str, Tensor]:
    """The tensors, once they are seen to be exactly those wanted, with the tied embedding under both of its names.

    Raises CheckpointError naming the file and the first key that is missing, unknown, of a wrong shape or no float.
    """
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
