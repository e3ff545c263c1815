"""Defects of the released trainer and its kin that must not come back, each named by what it broke."""

import math
from pathlib import Path

import pytest
import tiny_training as tiny
import torch

from milonga.core.config import Phase, Settings
from milonga.maths.losses import LOSSES, Errors
from milonga.training.noising import add_noise, draw
from milonga.training.schedule import count_steps, learning_rate, lr_factor, steps
from milonga.training.trainer import train

PHASES = (Phase(loss="sft", epochs=1), Phase(loss="dpo", epochs=2, beta=100.0))
SETTINGS = Settings(batch_size=4, learning_rate=1e-3, checkpoint_every=1)


def run(folder: Path, stop: int = 0, phases=PHASES, settings: Settings = SETTINGS, **more) -> list[dict]:
    rows: list[dict] = []

    def on_step(row: dict) -> None:
        rows.append(row)
        if row["step"] == stop:
            raise KeyboardInterrupt

    examples = tiny.pairs(8, prior=False)
    if stop:
        with pytest.raises(KeyboardInterrupt):
            train(tiny.model(), examples, phases, settings, 3, folder, on_step, **more)
    else:
        train(tiny.model(), examples, phases, settings, 3, folder, on_step, **more)
    return rows


def test_the_change_of_phase_is_no_counter_that_one_rank_could_keep_to_itself() -> None:
    whole = [(one.number, one.phase.loss, one.epoch) for one in steps(PHASES, 8, SETTINGS, 3, 0)]
    for start in range(len(whole)):  # as a rank, or a resumed run, that joins anywhere
        assert [(one.number, one.phase.loss, one.epoch) for one in steps(PHASES, 8, SETTINGS, 3, start)] == whole[
            start:
        ]
    assert [loss for _, loss, _ in whole] == ["sft"] * 2 + ["dpo"] * 4


@pytest.mark.slow
def test_resuming_begins_neither_epoch_nor_phase_anew_and_what_is_judged_are_preferences(tmp_path: Path) -> None:
    val = tiny.pairs(5, 1, prior=False)
    run(tmp_path, stop=4, val=val)
    rest = run(tmp_path, val=val)
    assert [(row["step"], row["epoch"], row["phase"]) for row in rest] == [(5, 3, "dpo"), (6, 3, "dpo")]
    assert 0 <= rest[-1]["val_accuracy"] <= 1


def test_a_dropped_caption_is_the_one_of_inference_and_dropped_for_winner_and_loser_alike() -> None:
    model, batch = tiny.model(), tiny.pairs().batch([0, 1, 2], 0)
    draws = draw(tiny.SHAPE, [("pair", 0, row) for row in range(3)], 1, 100, Settings(caption_dropout=1.0))
    noisy = add_noise(model, batch, draws, True, None)
    empty = model.empty["states"][0]
    assert empty.abs().sum() > 0
    for row in range(6):
        assert torch.equal(noisy.conditioning["states"][row, : len(empty)], empty)
        assert noisy.conditioning["mask"][row].sum() == model.empty["mask"].sum()


@pytest.mark.parametrize("accumulation", [1, 4])
def test_there_is_one_beta_and_a_rate_that_ends_at_zero_whatever_is_accumulated(accumulation: int) -> None:
    assert [name for name in Phase.model_fields if "beta" in name] == ["beta"]
    settings = Settings(batch_size=1, gradient_accumulation_steps=accumulation, warmup_steps=2)
    total = count_steps(PHASES, 16, settings)
    assert total == 48 // accumulation
    assert lr_factor(2, total, settings) == 1.0
    assert lr_factor(total, total, settings) == 0.0
    rates = [learning_rate(step, settings) for step in steps(PHASES, 16, settings, 3, 0)]
    assert len(rates) == total
    assert rates[-2] - rates[-1] == pytest.approx(rates[-1])  # one more of these steps down is zero


def test_nothing_drops_out_while_training_so_policy_and_reference_agree_before_the_first_step(tmp_path: Path) -> None:
    model = tiny.model()
    assert any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in model.module.modules())
    rows = run(tmp_path, phases=PHASES[1:])
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert rows[0]["distance"] == 0.0


@pytest.mark.parametrize("name", [name for name, spec in LOSSES.items() if spec.needs_reference and not spec.groups])
def test_every_loss_reads_the_beta_of_its_phase_as_the_released_code_does(name: str) -> None:
    winner, loser, known_winner, known_loser = (torch.tensor([value]) for value in (0.5, 0.7, 0.6, 0.65))
    errors = Errors(winner, loser, known_winner, known_loser, safeguard=torch.ones(1))
    logit = -0.5 * 20.0 * ((0.5 - 0.7) - (0.6 - 0.65))
    expected = {
        "dpo": math.log1p(math.exp(-logit)),
        "sdpo": math.log1p(math.exp(-logit)),
        "crpo": math.log1p(math.exp(-logit)) + 0.5,
        "ipo": (logit - 0.5) ** 2,
        "hinge": max(0.0, 1 - logit),
        "kto": 1 - (1 / (1 + math.exp(-10 * 0.1)) + 1 / (1 + math.exp(-10 * 0.05))) / 2,
    }
    assert LOSSES[name].function(errors, 20.0).item() == pytest.approx(expected[name], rel=1e-5)
