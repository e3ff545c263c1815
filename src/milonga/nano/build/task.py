"""One lesson: a resumable training loop for one network of nano, told by a loss of the step number.

Every draw in a lesson derives from (seed, lesson, step), so a lesson that is killed and started again goes on exactly
where its last checkpoint was; checkpoints are written aside and renamed.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from milonga.core.ids import derive_seed

Loss = Callable[[int], dict[str, Tensor]]
OnStep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Lesson:
    """What is learnt and how long: `rate` is the peak learning rate, reached after `warmup` steps, then a half cosine
    down to a twentieth; `average` is the decay of the weights' moving average (0: none)."""

    name: str
    steps: int
    batch: int
    rate: float
    warmup: int = 50
    decay: float = 0.01
    average: float = 0.0
    save_every: int = 200


def generator(seed: int, lesson: str, step: int) -> np.random.Generator:
    """The chance of one step of one lesson."""
    return np.random.default_rng(derive_seed(seed, lesson, step))


def rate_at(lesson: Lesson, step: int) -> float:
    """The learning rate of a step."""
    if step < lesson.warmup:
        return lesson.rate * (step + 1) / lesson.warmup
    done = (step - lesson.warmup) / max(1, lesson.steps - lesson.warmup)
    return lesson.rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def save_aside(path: Path, value: object) -> None:
    """Saves with torch beside `path`, then renames."""
    aside = path.with_suffix(f".part{os.getpid()}")
    torch.save(value, aside)
    aside.rename(path)


def learn(lesson: Lesson, network: nn.Module, loss: Loss, folder: Path, on_step: OnStep) -> None:
    """Runs a lesson from its last checkpoint to its end; leaves `network` with the (averaged) final weights.

    `loss(step)` returns named terms; the one called "loss" is minimised. `on_step` hears of every step
    ("step", "total"); every twentieth goes to the curve, `<name>.jsonl`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, resume = folder / f"{lesson.name}.pt", folder / f"{lesson.name}.resume.pt"
    if final.exists():
        network.load_state_dict(torch.load(final, weights_only=True))
        return
    optimizer = torch.optim.AdamW(network.parameters(), lr=lesson.rate, weight_decay=lesson.decay, betas=(0.9, 0.98))
    mean = {key: value.clone() for key, value in network.state_dict().items()} if lesson.average else {}
    first = _resume(resume, network, optimizer, mean)
    curve = folder / f"{lesson.name}.jsonl"
    _forget(curve, first)
    for step in range(first, lesson.steps):
        values = _step(lesson, network, optimizer, loss, step)
        _average(mean, network, min(lesson.average, (step + 1) / (step + 10)))
        if step % 20 == 0 or step == lesson.steps - 1:
            with curve.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        on_step({"step": step + 1, "total": lesson.steps})
        if (step + 1) % lesson.save_every == 0:
            state = {
                "step": step + 1,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "mean": mean,
            }
            save_aside(resume, state)
    network.load_state_dict(mean or network.state_dict())
    save_aside(final, network.state_dict())


def _resume(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, mean: dict[str, Tensor]) -> int:
    """Loads the last checkpoint where there is one; returns the step to go on with."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    mean.update(state["mean"])
    return state["step"]


def _forget(curve: Path, first: int) -> None:
    """Drops what a curve says of the steps from `first` on, which come again, and a line that a kill cut short."""
    if not curve.exists():
        return
    lines = [line for line in curve.read_text().splitlines(keepends=True) if line.endswith("\n")]
    aside = curve.with_suffix(f".part{os.getpid()}")
    aside.write_text("".join(line for line in lines if json.loads(line)["step"] < first))
    aside.rename(curve)


def _step(
    lesson: Lesson, network: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, step: int
) -> dict[str, float]:
    """One optimiser step, gradients clipped to norm 1."""
    network.train()
    for group in optimizer.param_groups:
        group["lr"] = rate_at(lesson, step)
    terms = loss(step)
    optimizer.zero_grad(set_to_none=True)
    terms["loss"].backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return {key: float(value.detach()) for key, value in terms.items()}


@torch.no_grad()
def _average(mean: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    """Moves the running average of the weights towards today's; whole numbers (counters) are copied."""
    for key, value in network.state_dict().items() if mean else ():
        if value.is_floating_point():
            mean[key].lerp_(value, 1 - decay)
        else:
            mean[key].copy_(value)
