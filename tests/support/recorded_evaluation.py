"""The recorded numbers of the original evaluation toolkits, and the rule (W1 of their README) that made its weights."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import reference
import torch
from torch import Tensor

from milonga.core.records import Clip

FOLDER = reference.EVALUATION
RATE = 16000
DEEP = ("text_branch.encoder.", "audio_branch.layers.")  # residual layers, whose weights the rule keeps small

needed = reference.needed(FOLDER / "manifest.json")


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / name) as file:
        return dict(file)


def layout(name: str) -> dict[str, dict[str, Any]]:
    """Key → shape and dtype of an original file's tensors."""
    return json.loads((FOLDER / "layouts" / f"{name}.json").read_text())["tensors"]


def as_clip(samples: np.ndarray, rate: int = RATE) -> Clip:
    return Clip((samples / 32768).astype(np.float32), rate)


def seeded(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A full set of weights by rule W1, for the keys and shapes of `own`; its constants stay as they are."""
    salt = reference.manifest(FOLDER)["salt"]
    return {k: torch.from_numpy(value(k, tuple(v.shape), salt)) if v.is_meta else v for k, v in own.items()}


def by_rule(name: str, constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole original file by rule W1, from the layout of that name; `constants` are tensors that are not drawn."""
    salt = json.loads((FOLDER / "manifest.json").read_text())["salt"]
    return {
        key: constants[key] if key in constants else torch.from_numpy(value(key, tuple(told["shape"]), salt))
        for key, told in layout(name).items()
    }


def value(key: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """A tensor by rule W1, from its original key."""
    parent, leaf = ["", *key.split(".")][-2:]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)
    if leaf.startswith("logit_scale"):
        return np.array(np.log(1 / 0.07), dtype=np.float32)
    seed = zlib.crc32((salt + key).encode("utf-8")) & 0xFFFFFFFF
    values = np.random.RandomState(seed).standard_normal(int(np.prod(shape))).reshape(shape)
    if leaf == "running_mean":
        values = -30 + 2 * values if parent == "bn0" else 0.02 * values
    elif leaf == "running_var":
        values = 400 + 40 * np.abs(values) if parent == "bn0" else 1 + 0.1 * np.abs(values)
    elif len(shape) <= 1:
        values = 1 + 0.02 * values if leaf == "weight" else 0.02 * values
    else:
        values -= values.mean(axis=tuple(range(1, len(shape))), keepdims=True)
        values *= np.sqrt((1 if key.startswith(DEEP) else 5) / np.prod(shape[1:]))
    return values.astype(np.float32)


def assert_near(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """The largest difference, as a share of the largest expected value."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
