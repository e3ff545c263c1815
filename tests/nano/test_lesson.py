"""A lesson: stopped anywhere it goes on to the same bits, its curve has each step once, its rate rises and falls."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from milonga.nano.build.task import Lesson, generator, learn, rate_at, save_aside

LESSON = Lesson("sums", steps=47, batch=4, rate=1e-2, warmup=5, average=0.9, save_every=6)
State = dict[str, Tensor]


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
        rng = generator(self.seed, LESSON.name, step)
        inputs = torch.from_numpy(rng.standard_normal((LESSON.batch, 3))).float()
        loss = (self.net(inputs)[:, 0] - inputs.sum(1)).square().mean()
        return {"loss": loss, "half": loss / 2}


def learnt(folder: Path, lesson: Lesson = LESSON, stops: tuple[int, ...] = (), seed: int = 1) -> State:
    """The weights after a lesson that is stopped before each of `stops` and begun again by a new process's network."""
    for stop in stops:
        net = network()
        with pytest.raises(KeyboardInterrupt):
            learn(lesson, net, Loss(net, stop, seed), folder, lambda *_: None)
    net = network()
    learn(lesson, net, Loss(net, seed=seed), folder, lambda *_: None)
    return net.state_dict()


def same(first: State, second: State) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("stops", [(1,), (6,), (7,), (11, 20, 21), (46,)])
def test_a_lesson_stopped_anywhere_ends_with_the_same_bits(
    tmp_path: Path, stops: tuple[int, ...], average: float
) -> None:
    lesson = replace(LESSON, average=average)
    whole = learnt(tmp_path / "whole", lesson)
    assert same(learnt(tmp_path / "stopped", lesson, stops), whole)
    assert not same(learnt(tmp_path / "other", lesson, seed=2), whole)


def test_it_goes_on_from_the_last_checkpoint_and_not_from_the_start(tmp_path: Path) -> None:
    learnt_until = network()
    with pytest.raises(KeyboardInterrupt):
        learn(LESSON, learnt_until, Loss(learnt_until, 20), tmp_path, lambda *_: None)
    net = network()
    loss = Loss(net)
    learn(LESSON, net, loss, tmp_path, lambda *_: None)
    assert loss.steps == list(range(18, 47))


def test_what_is_finished_is_loaded_and_not_learnt_again(tmp_path: Path) -> None:
    state, net = learnt(tmp_path), network()
    loss = Loss(net)
    learn(LESSON, net, loss, tmp_path, lambda *_: None)
    assert loss.steps == []
    assert same(net.state_dict(), state)


def test_learning_helps_and_an_average_is_not_the_last_step(tmp_path: Path) -> None:
    plain, averaged = (learnt(tmp_path / str(a), replace(LESSON, average=a)) for a in (0.0, 0.9))
    assert not same(plain, averaged)
    rows = [json.loads(line) for line in (tmp_path / "0.0" / "sums.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert int(averaged["1.num_batches_tracked"]) == 47


def test_the_curve_has_every_twentieth_step_and_the_last_once_however_often_it_was_stopped(tmp_path: Path) -> None:
    learnt(tmp_path / "whole")
    learnt(tmp_path / "stopped", stops=(21, 23, 45))
    whole, stopped = ((tmp_path / name / "sums.jsonl").read_text() for name in ("whole", "stopped"))
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [0, 20, 40, 46]
    assert json.loads(whole.splitlines()[0]).keys() == {"step", "loss", "half"}
    assert stopped == whole


def test_a_line_that_a_kill_cut_short_does_not_spoil_the_curve(tmp_path: Path) -> None:
    net = network()
    with pytest.raises(KeyboardInterrupt):
        learn(LESSON, net, Loss(net, 30), tmp_path, lambda *_: None)
    with (tmp_path / "sums.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    learnt(tmp_path)
    rows = [json.loads(line)["step"] for line in (tmp_path / "sums.jsonl").read_text().splitlines()]
    assert rows == [0, 20, 40, 46]


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[dict[str, int]] = []
    net = network()
    learn(LESSON, net, Loss(net), tmp_path, told.append)
    assert told == [{"step": step, "total": 47} for step in range(1, 48)]


def test_no_half_written_file_ever_has_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(value: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        save_aside(tmp_path / "a.pt", {})
    assert not (tmp_path / "a.pt").exists()


def test_the_rate_warms_up_and_falls_to_a_twentieth() -> None:
    lesson = Lesson("any", steps=100, batch=1, rate=2.0, warmup=10)
    rates = [rate_at(lesson, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(1.05)
    assert rate_at(lesson, 100) == pytest.approx(0.1)


def test_chance_is_one_per_seed_lesson_and_step() -> None:
    draws = [generator(*key).random() for key in ((1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1), (1, "a", 0))]
    assert len(set(draws)) == 4
    assert draws[0] == draws[4]
