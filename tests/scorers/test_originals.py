"""Original checkpoints: every way of being broken is told in one line that names file and key."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from milonga.core.errors import CheckpointError, RecipeError
from milonga.scorers.panns import FRONT_ENDS, Cnn14, PannsEmbedder, load_panns
from milonga.scorers.vggish import Vggish, load_vggish

WIDTH = 1
MELS = "logmel_extractor.melW"
State = dict[str, Tensor]


class Hostile:
    """What a pickle may ask for: a command run on loading."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("taken",)


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return Cnn14(FRONT_ENDS[16000], WIDTH).state_dict()


def load(path: Path) -> PannsEmbedder:
    return load_panns(path, width=WIDTH)


def save(path: Path, held: object) -> Path:
    torch.save(held, path)
    return path


def without(state: State, key: str) -> State:
    return {name: value for name, value in state.items() if name != key}


def holed(value: Tensor, hole: float) -> Tensor:
    value = value.clone()
    value.view(-1)[-1] = hole
    return value


# What is wrong → (what the file holds, the words that its line must have).
BROKEN: dict[str, tuple[Callable[[State], object], str]] = {
    "no container": (lambda state: state, "'model'"),
    "container of another name": (lambda state: {"weights": state}, "'model'"),
    "a list": (lambda state: [1, 2], "'model'"),
    "one tensor": (lambda state: torch.zeros(3), "'model'"),
    "container without names": (lambda state: {"model": [torch.zeros(1)]}, "list"),
    "a key missing": (lambda state: {"model": without(state, "fc1.bias")}, "fc1.bias"),
    "a key renamed": (lambda state: {"model": {k.replace("bn0", "bn"): v for k, v in state.items()}}, "bn0.weight"),
    "a key too many": (lambda state: {"model": {**state, "att_block.bias": torch.zeros(3)}}, "att_block.bias"),
    "a key that is no name": (lambda state: {"model": {**state, 5: torch.zeros(3)}}, "5"),
    "another shape": (lambda state: {"model": {**state, "fc1.bias": torch.zeros(3)}}, "fc1.bias has shape (3,)"),
    "another type": (lambda state: {"model": {**state, "fc1.bias": torch.zeros(32).int()}}, "fc1.bias is torch.int32"),
    "complex": (lambda state: {"model": {**state, "fc1.bias": torch.zeros(32) * 1j}}, "fc1.bias is torch.complex64"),
    "eight bits": (
        lambda state: {"model": {**state, "fc1.bias": torch.zeros(32).to(torch.float8_e5m2)}},
        "fc1.bias is torch.float8_e5m2",
    ),
    "no tensor": (lambda state: {"model": {**state, "fc1.bias": 3.0}}, "fc1.bias is no plain tensor"),
    "sparse": (lambda state: {"model": {**state, "fc1.bias": torch.zeros(32).to_sparse()}}, "fc1.bias is no plain"),
    "no values": (
        lambda state: {"model": {**state, "fc1.bias": torch.zeros(32, device="meta")}},
        "fc1.bias is no plain tensor",
    ),
    "NaN": (lambda state: {"model": {**state, "fc1.weight": holed(state["fc1.weight"], np.nan)}}, "fc1.weight has NaN"),
    "infinite as float32": (
        lambda state: {"model": {**state, "fc1.weight": holed(state["fc1.weight"].double(), 1e300)}},
        "fc1.weight has NaN or infinite",
    ),
    "other mel bands": (lambda state: {"model": {**state, MELS: state[MELS].roll(1, 0)}}, MELS),
    "the other rate": (
        lambda state: {"model": Cnn14(FRONT_ENDS[32000], WIDTH).state_dict()},
        "stft.conv_real.weight has shape (513, 1, 1024), not (257, 1, 512)",
    ),
    "another width": (lambda state: {"model": Cnn14(FRONT_ENDS[16000], 2).state_dict()}, "conv_block1.conv1.weight"),
    "another network": (lambda state: {"model": Vggish(WIDTH).state_dict()}, "bn0.weight"),
    "hostile": (lambda state: {"model": {**state, "extra": Hostile()}}, "unsafe to read"),
}


def told_by(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load(path)
    told = str(error.value)
    assert str(path) in told
    assert "\n" not in told
    assert len(told) - len(str(path)) < 200
    return told


@pytest.mark.parametrize("how", BROKEN)
def test_what_a_broken_file_lacks_is_told_in_one_line(how: str, state: State, tmp_path: Path) -> None:
    held, words = BROKEN[how]
    assert words in told_by(save(tmp_path / "Cnn14_16k.pth", held(state)))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_file_is_run(legacy: bool, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "Cnn14.pth"
    torch.save({"model": state, "extra": Hostile()}, path, _use_new_zipfile_serialization=not legacy)
    assert "unsafe to read" in told_by(path)
    path.write_bytes(pickle.dumps(Hostile()))
    told_by(path)
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pth", "-old.pth", ".safetensors"])
def test_a_truncated_file_is_told_in_one_line(keep: float, suffix: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / f"Cnn14{suffix}"
    if path.suffix == ".pth":
        torch.save({"model": state}, path, _use_new_zipfile_serialization="old" not in suffix)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    assert "truncated" in told_by(path)


def test_a_file_under_a_wrong_suffix_is_told_in_one_line(state: State, tmp_path: Path) -> None:
    save(tmp_path / "Cnn14.pth", {"model": state}).rename(tmp_path / "Cnn14.safetensors")
    assert "renamed" in told_by(tmp_path / "Cnn14.safetensors")
    save_file(state, tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").rename(tmp_path / "Cnn14.pth")
    assert "renamed" in told_by(tmp_path / "Cnn14.pth")


def test_what_is_no_file_is_told_in_one_line(tmp_path: Path) -> None:
    assert "is missing" in told_by(tmp_path / "nowhere.pth")
    assert "is missing" in told_by(tmp_path)


def test_noise_is_no_checkpoint(tmp_path: Path) -> None:
    for seed in range(30):
        path = tmp_path / f"noise-{seed}{('.pth', '.safetensors')[seed % 2]}"
        path.write_bytes(np.random.default_rng(seed).bytes(2000))
        told_by(path)


def test_files_of_vggish_are_held_to_its_layout(state: State, tmp_path: Path) -> None:
    own = Vggish(WIDTH).state_dict()
    cases = {
        "features.0.weight": {"model": own},
        "embeddings.4.bias": without(own, "embeddings.4.bias"),
        "pca_means": {**own, "pca_means": torch.zeros(128)},
        "embeddings.2.bias has shape": {**own, "embeddings.2.bias": torch.zeros(1)},
    }
    for words, held in cases.items():
        with pytest.raises(CheckpointError) as error:
            load_vggish(save(tmp_path / "vggish.pth", held), width=WIDTH)
        assert f"{tmp_path / 'vggish.pth'}" in str(error.value)
        assert words in str(error.value)


@pytest.mark.parametrize("suffix", [".pth", "-old.pth", ".safetensors"])
def test_a_whole_file_gives_back_its_own_tensors(suffix: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / f"Cnn14{suffix}"
    if path.suffix == ".pth":
        torch.save({"model": state, "epoch": 3}, path, _use_new_zipfile_serialization="old" not in suffix)
    else:
        save_file(state, path)
    again = load(path).network.state_dict()
    assert list(again) == list(state)
    assert all(torch.equal(value, again[key]) for key, value in state.items())


def test_half_precision_and_missing_constants_are_accepted(state: State, tmp_path: Path) -> None:
    halves = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    few = {key: value for key, value in halves.items() if "extractor" not in key}
    for held in (halves, few):
        network = load(save(tmp_path / "Cnn14.pth", {"model": held})).network
        assert {value.dtype for value in network.parameters()} == {torch.float32}
        assert not network.training
        torch.testing.assert_close(network.state_dict(), state, atol=1e-3, rtol=1e-3)


def test_a_rate_that_cnn14_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not at 44100"):
        load_panns(tmp_path / "Cnn14.pth", rate=44100)
