"""Two gloo processes train what one trains: the same phases, epochs, rates, steps and, up to rounding, losses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_ranks
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from milonga.training.distributed import Ranks

pytestmark = pytest.mark.slow

SHARDED = {
    "fsdp": "plain",
    "uncut, fsdp": "plain",
    "guarded, fsdp": "guarded",
    "draft, fsdp": "draft",
    "groups, fsdp": "groups",
}  # one process trains both in the same way


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*program, two_ranks.__file__, str(folder)], env=env, capture_output=True, timeout=280)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[dict], dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("one")
    found = {}
    for name, settings in two_ranks.TRAININGS.items():
        if name not in SHARDED:
            rows = two_ranks.run(folder / name, settings)
            if name == "draft":
                found["scales"] = json.loads((folder / name / "rewards.json").read_text())
            found[name] = rows, load_file(folder / name / "model" / "diffusion_pytorch_model.safetensors")
    return found | {name: found[unsharded] for name, unsharded in SHARDED.items()}


def beliefs(folder: Path, name: str, rank: int) -> list[dict]:
    return [json.loads(line) for line in (folder / name / f"rank-{rank}.jsonl").read_text().splitlines()]


def rows_of(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name / "curves.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", list(two_ranks.TRAININGS))
def test_both_ranks_believe_the_same_of_phase_epoch_and_rate(name: str, together: Path) -> None:
    first, second = beliefs(together, name, 0), beliefs(together, name, 1)
    assert first == second
    if "draft" in name or "groups" in name:
        return
    assert {one["phase"] for one in first if one["epoch"] == 0} == {"sft"}
    assert {one["phase"] for one in first if one["epoch"] > 0} == {"sdpo" if "guarded" in name else "dpo"}


@pytest.mark.parametrize("name", list(two_ranks.TRAININGS))
def test_two_ranks_take_the_steps_of_one_to_its_losses_and_weights(name: str, together: Path, alone) -> None:
    rows, weights = alone[name]
    found = rows_of(together, name)
    assert [one["step"] for one in found] == [one["step"] for one in rows] == list(range(1, 5))
    for ours, theirs in zip(found, rows, strict=True):
        assert ours["lr"] == theirs["lr"]
        assert ours["phase"] == theirs["phase"]
        for field in ("loss", "winner_error", "prior_error", "margin", "grad_norm", "distance", "reward"):
            wanted = None if theirs[field] is None else pytest.approx(theirs[field], rel=2e-3, abs=2e-5)
            assert ours[field] == wanted, (field, ours["step"])
    shipped = load_file(together / name / "model" / "diffusion_pytorch_model.safetensors")
    assert shipped.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(shipped[key], value, rtol=0, atol=2e-4)


def test_rewards_have_the_scales_of_a_training_on_one_rank(together: Path, alone) -> None:
    scales = [json.loads((together / name / "rewards.json").read_text())["level"] for name in ("draft", "draft, fsdp")]
    for scale in scales:
        assert scale == pytest.approx(alone["scales"]["level"], rel=1e-5)


def test_a_sharded_training_that_was_cut_off_ends_with_the_same_bits(together: Path) -> None:
    cut, uncut = together / "fsdp", together / "uncut, fsdp"
    stored = {path.relative_to(cut).parts[2] for path in cut.glob("checkpoints/*/*")}
    assert stored == {"shards", "state.json"}
    assert len(list(cut.glob("checkpoints/step-00000004/shards/*.distcp"))) == 2  # one of each rank
    ours, theirs = (load_file(place / "model" / "diffusion_pytorch_model.safetensors") for place in (cut, uncut))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    for row, other in zip(rows_of(together, "fsdp"), rows_of(together, "uncut, fsdp"), strict=True):
        assert row | {"samples_per_second": 0} == other | {"samples_per_second": 0}


def test_one_process_resumes_what_two_have_sharded(together: Path, tmp_path: Path, alone) -> None:
    shutil.copytree(together / "fsdp", tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "model")
    shutil.rmtree(tmp_path / "one" / "checkpoints" / "step-00000004")
    rows = two_ranks.run(tmp_path / "one", two_ranks.TRAININGS["plain"])
    assert [row["step"] for row in rows] == [3, 4]
    weights = load_file(tmp_path / "one" / "model" / "diffusion_pytorch_model.safetensors")
    for name, value in alone["plain"][1].items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-4)


def test_the_rate_ends_at_zero_and_the_batch_is_kept_whatever_the_number_of_ranks(together: Path) -> None:
    rates = [one["rate"] for one in beliefs(together, "plain", 0)]
    assert rates[0] == 5e-4
    assert rates[-1] == pytest.approx(1e-3 / 3)  # one more of these three steps down is zero


def test_the_released_quirk_keeps_half_of_each_step_in_the_first_phase(alone) -> None:
    plain, quirk = alone["plain"][0], alone["released"][0]
    for ours, theirs in zip(quirk[:2], plain[:2], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert all(ours["loss"] != theirs["loss"] for ours, theirs in zip(quirk[2:], plain[2:], strict=True))


def test_training_asks_for_no_tracker_and_no_other_audio_library(together: Path) -> None:
    assert not set(json.loads((together / "packages.json").read_text())) & {"wandb", "trackio", "torchaudio"}


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 6))
def test_examples_are_dealt_once_and_all_ranks_take_as_many_batches(count: int, world: int, size: int) -> None:
    dealt = []
    for rank in range(world):
        ranks = Ranks()
        ranks.rank, ranks.world = rank, world
        dealt.append(ranks.shard(range(count), size))
    counted = [row for share in dealt for rows, counts in share for row, real in zip(rows, counts, strict=True) if real]
    assert sorted(counted) == list(range(count))
    assert len({tuple(len(rows) for rows, _ in share) for share in dealt}) == 1
    if world == 1:
        assert [row for rows, _ in dealt[0] for row in rows] == list(range(count))
