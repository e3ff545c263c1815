"""`fit`: stopped anywhere it ends with the same bits, its log has each step once, the learning rate rises and falls."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from milonga.nano.build.corpus import TrainTask, step_rng
from milonga.training.fit import fit

TASK = TrainTask("sums", steps=47, batch_size=4, lr=1e-2, warmup_steps=5, ema=0.9, checkpoint_every=6)
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small checkpoints need not reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def network() -> nn.Module:
    """A few weights, a batch norm with its counter and running means among them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


class Loss:
    """Squared error on what the step draws; remembers its steps and may be stopped before one of them."""

    def __init__(self, net: nn.Module, stop: int = -1, seed: int = 1) -> None:
        self.net, self.stop, self.seed, self.steps = net, stop, seed, []

    def __call__(self, step: int) -> dict[str, Tensor]:
        if step == self.stop:
            raise KeyboardInterrupt
        self.steps.append(step)
        rng = step_rng(self.seed, TASK.name, step)
        inputs = torch.from_numpy(rng.standard_normal((TASK.batch_size, 3))).float()
        loss = (self.net(inputs)[:, 0] - inputs.sum(1)).square().mean()
        return {"loss": loss, "half": loss / 2}


def train(net: nn.Module, loss: "Loss", folder: Path, task: TrainTask = TASK, **more: Any) -> None:
    fit(
        net, loss, folder, steps=task.steps, learning_rate=task.learning_rate, weight_decay=task.weight_decay,
        ema=task.ema, checkpoint_every=task.checkpoint_every, **more,
    )  # fmt: skip


def trained(folder: Path, task: TrainTask = TASK, stops: tuple[int, ...] = (), seed: int = 1) -> State:
    """The weights after a task that is stopped before each of `stops` and begun again by a new process's network."""
    for stop in stops:
        net = network()
        with pytest.raises(KeyboardInterrupt):
            train(net, Loss(net, stop, seed), folder, task)
    net = network()
    train(net, Loss(net, seed=seed), folder, task)
    return net.state_dict()


def same(first: State, second: State) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("stops", [(1,), (6,), (7,), (11, 20, 21), (46,)])
def test_a_task_stopped_anywhere_ends_with_the_same_bits(
    tmp_path: Path, stops: tuple[int, ...], average: float
) -> None:
    task = replace(TASK, ema=average)
    whole = trained(tmp_path / "whole", task)
    assert same(trained(tmp_path / "stopped", task, stops), whole)
    assert not same(trained(tmp_path / "other", task, seed=2), whole)


def test_it_goes_on_from_the_last_checkpoint_and_not_from_the_start(tmp_path: Path) -> None:
    first = network()
    with pytest.raises(KeyboardInterrupt):
        train(first, Loss(first, 20), tmp_path)
    net = network()
    loss = Loss(net)
    train(net, loss, tmp_path)
    assert loss.steps == list(range(18, 47))


def test_what_is_finished_is_loaded_and_not_trained_again(tmp_path: Path) -> None:
    state, net = trained(tmp_path), network()
    loss = Loss(net)
    train(net, loss, tmp_path)
    assert loss.steps == []
    assert same(net.state_dict(), state)


def test_training_helps_and_an_average_is_not_the_last_step(tmp_path: Path) -> None:
    plain, averaged = (trained(tmp_path / str(a), replace(TASK, ema=a)) for a in (0.0, 0.9))
    assert not same(plain, averaged)
    rows = [json.loads(line) for line in (tmp_path / "0.0" / "curves.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert int(averaged["1.num_batches_tracked"]) == 47


def test_the_curve_has_every_twentieth_step_and_the_last_once_however_often_it_was_stopped(tmp_path: Path) -> None:
    trained(tmp_path / "whole")
    trained(tmp_path / "stopped", stops=(21, 23, 45))
    whole, stopped = ((tmp_path / name / "curves.jsonl").read_text() for name in ("whole", "stopped"))
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [0, 20, 40, 46]
    assert json.loads(whole.splitlines()[0]).keys() == {"step", "loss", "half"}
    assert stopped == whole


def test_a_line_that_a_kill_cut_short_does_not_spoil_the_curve(tmp_path: Path) -> None:
    net = network()
    with pytest.raises(KeyboardInterrupt):
        train(net, Loss(net, 30), tmp_path)
    with (tmp_path / "curves.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    trained(tmp_path)
    rows = [json.loads(line)["step"] for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert rows == [0, 20, 40, 46]


def test_progress_is_reported(tmp_path: Path) -> None:
    rows: list[dict[str, int]] = []
    net = network()
    train(net, Loss(net), tmp_path, on_step=rows.append)
    assert rows == [{"step": step, "total": 47} for step in range(1, 48)]


def test_a_damaged_checkpoint_costs_only_the_time(tmp_path: Path) -> None:
    net = network()
    with pytest.raises(KeyboardInterrupt):
        train(net, Loss(net, 20), tmp_path / "stopped")
    (file,) = (tmp_path / "stopped").rglob("model.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert same(trained(tmp_path / "stopped"), trained(tmp_path / "whole"))


def test_tied_weights_are_stored_twice_and_stay_tied(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        net[1].weight = net[0].weight  # type: ignore[union-attr]
        return net

    def loss(net: nn.Module, stop: int) -> Callable[[int], dict[str, Tensor]]:
        def stopped(step: int) -> dict[str, Tensor]:
            if step == stop:
                raise KeyboardInterrupt
            return {"loss": net(torch.ones(2, 3)).square().mean()}

        return stopped

    torch.manual_seed(0)
    nets = [tied() for _ in range(3)]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    settings: dict[str, Any] = {"steps": 5, "learning_rate": lambda step: 0.1, "checkpoint_every": 2}
    fit(nets[0], loss(nets[0], -1), tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        fit(nets[1], loss(nets[1], 3), tmp_path / "stopped", **settings)
    fit(nets[2], loss(nets[2], -1), tmp_path / "stopped", **settings)
    assert same(nets[2].state_dict(), nets[0].state_dict())
    assert nets[2][1].weight is nets[2][0].weight  # type: ignore[index]


def test_the_rate_warms_up_and_falls_to_a_twentieth() -> None:
    task = TrainTask("any", steps=100, batch_size=1, lr=2.0, warmup_steps=10)
    rates = [task.learning_rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(1.05)
    assert task.learning_rate(100) == pytest.approx(0.1)


def test_draws_are_one_per_seed_task_and_step() -> None:
    draws = [step_rng(*key).random() for key in ((1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1), (1, "a", 0))]
    assert len(set(draws)) == 4
    assert draws[0] == draws[4]
