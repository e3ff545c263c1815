"""A killed training goes on to exactly what an uninterrupted one reaches, and damaged checkpoints are survived."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training as tiny
import torch
from full_disk import small_disk
from safetensors.torch import load_file

from milonga.core.errors import StoreError
from milonga.training.trainer import train

CLOCK = {"samples_per_second"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(folder)
    return folder


def run(folder: Path, on_step=None) -> Path:
    return train(
        tiny.model(), tiny.pairs(), tiny.PHASES, tiny.SETTINGS, 7, folder, on_step, val=tiny.pairs(3, 1, prior=False)
    )


def rows(folder: Path) -> list[dict]:
    lines = (folder / "curves.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in CLOCK} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "diffusion_pytorch_model.safetensors")


def assert_same(folder: Path, expected: Path) -> None:
    assert rows(folder) == rows(expected)
    ours, theirs = weights(folder), weights(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def kill(folder: Path, variant: str, *kills: str) -> None:
    program = [sys.executable, tiny.__file__, str(folder), variant, *kills]
    done = subprocess.run(program, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.slow
def test_killed_while_stepping_and_while_saving_it_reaches_the_same_losses_and_weights(
    tmp_path: Path, uninterrupted: Path
) -> None:
    kill(tmp_path, "plain", "step:5", "checkpoint:6")  # step 5 is two into the DPO phase, two after a checkpoint
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*[0-9]")) == ["step-00000003"]
    run(tmp_path)
    assert_same(tmp_path, uninterrupted)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["cached", "lora"])
def test_killed_with_a_table_of_errors_or_an_adapter_it_reaches_the_same_losses_and_weights(
    variant: str, tmp_path: Path
) -> None:
    settings = tiny.VARIANTS[variant]
    for folder in (tmp_path / "whole", tmp_path / "cut"):
        if folder.name == "cut":
            kill(folder, variant, *["table:1"] * (variant == "cached"), "step:5", "checkpoint:6")
        train(tiny.model(), tiny.pairs(), tiny.PHASES, settings, 7, folder, None, val=tiny.pairs(3, 1, prior=False))
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_stopped_again_and_again_it_reaches_the_same_losses_and_weights(tmp_path: Path, uninterrupted: Path) -> None:
    for last in (2, 4, 8):  # before the first checkpoint, just after it, and after the second
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stop_at(last))
    run(tmp_path)
    assert_same(tmp_path, uninterrupted)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was stopped one step after its second checkpoint; tests work on copies."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(KeyboardInterrupt):
        run(folder, stop_at(7))
    return folder


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("model.safetensors", "truncated"),
        ("optimizer.safetensors", "flipped"),
        ("ema.safetensors", "missing"),
        ("state.json", "truncated"),
        ("state.json", "flipped"),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over(
    file: str, how: str, tmp_path: Path, interrupted: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "checkpoints" / "step-00000006" / file, how)
    resumed: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, lambda row: (resumed.append(row["step"]), stop_at(4)(row)))
    assert resumed == [4]
    assert "step-00000006" in caplog.text
    assert rows(tmp_path) == rows(uninterrupted)[:4]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kilobytes", [0, *(pytest.param(room, marks=pytest.mark.slow) for room in (4, 8, 16)), 100,
                  *(pytest.param(room, marks=pytest.mark.slow) for room in (300, 700))]
)  # fmt: skip
def test_a_full_disk_is_an_error_in_one_line_and_with_room_the_weights_are_the_same(
    kilobytes: int, tmp_path: Path, uninterrupted: Path
) -> None:
    with small_disk(tmp_path / "disk", 4 * 2**20) as disk:
        room = os.statvfs(disk)
        with (disk / "other").open("wb") as other:
            other.write(bytes(room.f_bavail * room.f_frsize - kilobytes * 1024))
        with pytest.raises(StoreError, match=r"cannot write .*: No space left on device.*; make room or choose"):
            run(disk / "run")
        assert not list(disk.rglob("*.part"))
        (disk / "other").unlink()
        run(disk / "run")
        assert_same(disk / "run", uninterrupted)


def stop_at(step: int):
    def stop(row: dict) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    return stop


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "truncated":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(
    tmp_path: Path, interrupted: Path, uninterrupted: Path
) -> None:
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "checkpoints").glob("step-*"):
        damage(path / "state.json", "flipped")
    run(tmp_path)
    assert_same(tmp_path, uninterrupted)


def test_a_finished_training_returns_at_once_and_touches_nothing(uninterrupted: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.name != "lock"}
    steps: list[dict] = []
    assert run(uninterrupted, steps.append) == uninterrupted / "model"
    assert steps == []
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.name != "lock"} == before


def test_only_the_newest_checkpoints_are_kept(uninterrupted: Path) -> None:
    kept = sorted(path.name for path in (uninterrupted / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000009"]


def test_another_training_in_the_same_folder_is_refused_by_name(uninterrupted: Path) -> None:
    other = tiny.SETTINGS.model_copy(update={"weight_decay": 0.5})
    with pytest.raises(StoreError, match=r"settings\.weight_decay = 0\.01, not 0\.5"):
        train(tiny.model(), tiny.pairs(), tiny.PHASES, other, 7, uninterrupted)
    with pytest.raises(StoreError, match="starting weights"):
        train(tiny.model(1), tiny.pairs(), tiny.PHASES, tiny.SETTINGS, 7, uninterrupted)


@pytest.mark.slow
def test_how_often_checkpoints_are_written_changes_no_number(tmp_path: Path, uninterrupted: Path) -> None:
    often = tiny.SETTINGS.model_copy(update={"checkpoint_every": 1, "save_total_limit": 1})
    train(tiny.model(), tiny.pairs(), tiny.PHASES, often, 7, tmp_path, None, val=tiny.pairs(3, 1, prior=False))
    assert_same(tmp_path, uninterrupted)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000009"]
