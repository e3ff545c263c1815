"""Files of weights: what a training leaves beside them is read, code is not run, and what is broken is told."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from milonga.core.errors import CheckpointError
from milonga.core.weights import all_finite, read_weights

STATE = {"bias": torch.arange(3.0), "scale": torch.ones(2, 2)}


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("taken",)


def test_what_a_training_left_beside_the_weights_is_read(tmp_path: Path) -> None:
    beside = {"epoch": 3, "best": np.float64(0.5), "step": np.int64(7), "losses": [np.float32(1), np.bool_(True)]}
    torch.save({"state_dict": {f"module.{key}": value for key, value in STATE.items()}, **beside}, tmp_path / "a.pt")
    found = read_weights(tmp_path / "a.pt", container="state_dict")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], value) for key, value in STATE.items())


def test_names_that_only_begin_alike_stay_as_they_are(tmp_path: Path) -> None:
    torch.save({"module.bias": STATE["bias"], "scale": STATE["scale"]}, tmp_path / "a.pt")
    assert set(read_weights(tmp_path / "a.pt")) == {"module.bias", "scale"}


def test_safetensors_have_no_container(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    assert read_weights(tmp_path / "a.safetensors", container="state_dict").keys() == STATE.keys()


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"state_dict": STATE, "extra": Hostile()}, r"asks to run \w+\.mkdir: .*unsafe to read, and was not run"),
        ({"state_dict": STATE, "extra": np.ones(3)}, r"asks to run numpy\.\S+reconstruct"),
        ({"weights": STATE}, "has no 'state_dict'"),
        ({"state_dict": [1]}, "it is a list"),
    ],
)
def test_anything_else_is_refused_and_not_run(
    held: object, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(held, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=told):
        read_weights(tmp_path / "a.pt", container="state_dict")
    assert not (tmp_path / "taken").exists()


def test_a_pointer_is_no_file_of_weights(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_seen_anywhere(dtype, value):
    for place in (0, 500, 999):
        values = torch.linspace(-1, 1, 1000).to(dtype)
        assert all_finite(values)
        values[place] = value
        assert not all_finite(values.reshape(10, 100))
    assert all_finite(torch.empty(0, dtype=dtype))
    assert all_finite(torch.tensor([1, 2]))
