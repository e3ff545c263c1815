"""Where a training step stands: its phase, epoch, examples and learning rate, all functions of the step's number.

Nothing here is counted up while training, so a resumed run, or another rank, cannot disagree about any of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import torch

from milonga.core.config import Phase, Settings
from milonga.maths.noise import seeded


@dataclass(frozen=True)
class Step:
    """One optimizer step: its number from 0 of `total`, its phase, its epoch through all phases, its examples, and
    whether it is the last one of its epoch and of its phase.
    """

    number: int
    total: int
    phase: Phase
    epoch: int
    indices: tuple[int, ...]
    ends_epoch: bool
    ends_phase: bool


def count_steps(phases: Sequence[Phase], examples: int, settings: Settings) -> int:
    """The exact number of optimizer steps of all phases; an epoch's last step may have fewer examples."""
    return sum(phase.epochs for phase in phases) * ceil(examples / _per_step(settings))


def steps(phases: Sequence[Phase], examples: int, settings: Settings, seed: int, start: int) -> Iterator[Step]:
    """All optimizer steps from number `start` on; each epoch's order depends on (seed, epoch) alone."""
    size, total = _per_step(settings), count_steps(phases, examples, settings)
    each = ceil(examples / size)
    epochs = [(phase, last == phase.epochs - 1) for phase in phases for last in range(phase.epochs)]
    for epoch in range(start // each, len(epochs)):
        order = torch.randperm(examples, generator=seeded(seed, "order", epoch)).tolist()
        for number in range(max(start, epoch * each), (epoch + 1) * each):
            first = (number - epoch * each) * size
            rows = tuple(order[first : first + size])
            (phase, last), ends = epochs[epoch], first + size >= examples
            yield Step(number, total, phase, epoch, rows, ends_epoch=ends, ends_phase=ends and last)


def learning_rate(step: Step, settings: Settings) -> float:
    """The rate that this step uses: its phase's own, or the settings', times `rate_factor`."""
    peak = settings.learning_rate if step.phase.learning_rate is None else step.phase.learning_rate
    return peak * rate_factor(step.number, step.total, settings)


def rate_factor(number: int, total: int, settings: Settings) -> float:
    """The rate after `number` steps over its peak: up in `warmup_steps`, then flat ("constant") or down ("linear").

    Linear decay reaches exactly `final_rate` (default 0) after the last step, whatever accumulation, ranks or warm-up;
    the released trainer's stops at 82 % of its peak.
    """
    if number < settings.warmup_steps:
        return (number + 1) / (settings.warmup_steps + 1)
    if settings.schedule == "constant":
        return 1.0
    left = (total - number) / max(1, total - settings.warmup_steps)
    return left if settings.final_rate == 0 else settings.final_rate + (1 - settings.final_rate) * left


def _per_step(settings: Settings) -> int:
    return settings.batch_size * settings.accumulation
