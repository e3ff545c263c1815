"""The order of training: every example once an epoch, phases in turn, and a rate that ends at zero."""

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from milonga.core.config import Phase, Settings
from milonga.training.schedule import count_steps, learning_rate, lr_factor, steps

PHASES = (Phase(loss="sft", epochs=1), Phase(loss="dpo", epochs=2, beta=1.0, learning_rate=3e-4))


@hypothesis_settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 3), st.data())
def test_each_epoch_takes_every_example_once_and_any_start_gives_the_same_rest(
    examples: int, batch: int, accumulation: int, data: st.DataObject
) -> None:
    settings = Settings(batch_size=batch, gradient_accumulation_steps=accumulation)
    whole = list(steps(PHASES, examples, settings, seed=5, start=0))
    assert [step.number for step in whole] == list(range(count_steps(PHASES, examples, settings)))
    for epoch in range(3):
        taken = [step for step in whole if step.epoch == epoch]
        assert sorted(row for step in taken for row in step.indices) == list(range(examples))
        assert [step.ends_epoch for step in taken] == [False] * (len(taken) - 1) + [True]
        assert {step.phase.loss for step in taken} == {"sft" if epoch == 0 else "dpo"}
    start = data.draw(st.integers(0, len(whole)))
    assert list(steps(PHASES, examples, settings, seed=5, start=start)) == whole[start:]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    settings = Settings(batch_size=30)
    first, second, _ = (step.indices for step in steps(PHASES, 30, settings, seed=5, start=0))
    assert first != second
    assert first != next(steps(PHASES, 30, settings, seed=6, start=0)).indices


@given(st.integers(1, 200), st.integers(0, 250))
def test_the_linear_rate_rises_falls_and_is_exactly_zero_after_the_last_step(total: int, warmup: int) -> None:
    settings = Settings(warmup_steps=warmup)
    factors = [lr_factor(number, total, settings) for number in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    if warmup < total:
        assert factors[warmup] == 1
        assert lr_factor(total, total, settings) == 0


def test_a_constant_rate_stays_after_its_warm_up() -> None:
    settings = Settings(schedule="constant", warmup_steps=3)
    assert [lr_factor(number, 6, settings) for number in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_a_phase_may_have_a_rate_of_its_own() -> None:
    settings = Settings(batch_size=10, learning_rate=1e-3, schedule="constant")
    rates = [learning_rate(step, settings) for step in steps(PHASES, 10, settings, seed=0, start=0)]
    assert rates == pytest.approx([1e-3, 3e-4, 3e-4])
