"""What goes wrong in preference training is said in plain words, once, and can end it; β may follow the margin."""

import logging
import math
from pathlib import Path

import pytest
import tiny_training as tiny
from hypothesis import given
from hypothesis import strategies as st

from milonga.core.config import Phase, Settings
from milonga.core.errors import RecipeError
from milonga.data.examples import PairExamples
from milonga.training.monitor import BETA_RANGE, SPAN, alert, auto_beta, reset, should_stop, update_running_means
from milonga.training.trainer import train

DPO = Phase(loss="dpo", epochs=1, beta=100.0)
GOOD = {"delta_winner": -0.01, "winner_worse": 0.2, "margin": 0.02, "saturation": 0.4}


def row(step: int = 1, **values) -> dict:
    return {"step": step, "skipped": False, "samples": None, "val_accuracy": None} | GOOD | values


def told(rows: list[dict], memory: dict | None = None) -> list[str | None]:
    memory = {} if memory is None else memory
    return [(update_running_means(memory, one), alert(memory, one))[1] for one in rows]


def test_a_healthy_training_raises_no_alarm() -> None:
    assert set(told([row() for _ in range(100)])) == {None}


def test_winners_that_get_worse_while_the_margin_grows_are_told_of_once_until_it_has_passed() -> None:
    bad = row(delta_winner=0.05, winner_worse=0.9)
    memory: dict[str, float] = {}
    found = told([bad] * (SPAN + 10), memory)
    assert found[: SPAN - 1] == [None] * (SPAN - 1)
    assert found[SPAN - 1] is not None
    assert "90% of the winners are now denoised worse than by the reference" in found[SPAN - 1]
    assert set(found[SPAN:]) == {None}
    assert set(told([row()] * 200, memory)) == {None}
    assert len([text for text in told([bad] * 200, memory) if text]) == 1


def test_winners_may_get_worse_where_losers_get_better_still() -> None:
    both = row(delta_winner=0.05, winner_worse=0.9, margin=-0.01)
    assert set(told([both] * 50)) == {None}


def test_pairs_that_teach_nothing_more_and_lost_steps_are_told_of() -> None:
    assert "already separates the pairs" in str(told([row(saturation=0.01)] * SPAN)[-1])
    assert "step 7: the step was skipped" in str(told([row(7, skipped=True, margin=None)])[0])


def test_a_scorer_that_rises_while_the_judge_falls_is_over_optimisation() -> None:
    heard = [(0.5, 0.6), (0.55, 0.61), (0.6, 0.55), (0.65, 0.5)]
    found = told([row(samples={"scorer": scorer, "judge": judge}) for scorer, judge in heard])
    assert found[:2] == [None, None]
    assert "scorer rose by 0.100" in str(found[2])
    assert "judge fell by 0.050" in str(found[2])
    assert found[3] is None  # told once


def test_a_rise_of_the_winners_error_ends_training_only_when_asked_and_only_by_its_running_mean() -> None:
    memory: dict[str, float] = {}
    one = row(delta_winner=0.04)
    for _ in range(SPAN - 1):
        update_running_means(memory, one)
        assert should_stop(memory, one, Settings(early_stop_winner_error=0.03)) is None
    update_running_means(memory, one)
    assert should_stop(memory, one, Settings()) is None
    assert "0.04 above the reference's" in str(should_stop(memory, one, Settings(early_stop_winner_error=0.03)))
    assert should_stop(memory, one, Settings(early_stop_winner_error=0.05)) is None


def test_patience_counts_epochs_without_a_better_accuracy() -> None:
    memory: dict[str, float] = {}
    found = []
    for accuracy in (0.6, None, 0.7, 0.7, None, 0.65):
        found.append(should_stop(memory, row(val_accuracy=accuracy), Settings(patience=2)))
    assert found[:5] == [None] * 5
    assert "best 0.700" in str(found[5])


def test_a_new_phase_begins_its_running_means_and_its_patience_anew() -> None:
    memory: dict[str, float] = {}
    told([row(delta_winner=9.0)] * 30, memory)
    assert should_stop(memory, row(val_accuracy=0.9), Settings(patience=1)) is None
    reset(memory)
    update_running_means(memory, row())
    assert memory["delta_winner"] == GOOD["delta_winner"]
    assert should_stop(memory, row(val_accuracy=0.6), Settings(patience=1)) is None


def test_labelled_clips_which_have_no_margin_end_training_by_their_winners_error_too() -> None:
    memory: dict[str, float] = {}
    liked = row(delta_winner=0.04, winner_worse=0.4, margin=None, saturation=None)
    assert told([liked] * SPAN, memory) == [None] * SPAN
    assert "0.04 above the reference's" in str(should_stop(memory, liked, Settings(early_stop_winner_error=0.03)))


@given(st.floats(1e-6, 10.0), st.floats(0.01, 0.49))
def test_auto_beta_puts_the_gradient_factor_of_a_typical_pair_where_it_is_asked(margin: float, wanted: float) -> None:
    beta = auto_beta(DPO, Settings(auto_beta=wanted), {"margin": margin})
    factor = 1 / (1 + math.exp(0.5 * beta * margin))
    assert DPO.beta / BETA_RANGE <= beta <= DPO.beta * BETA_RANGE
    if DPO.beta / BETA_RANGE < beta < DPO.beta * BETA_RANGE:
        assert factor == pytest.approx(wanted)


def test_beta_is_the_phases_where_none_is_asked_or_nothing_is_known() -> None:
    assert auto_beta(DPO, Settings(), {"margin": 0.3}) == 100.0
    assert auto_beta(DPO, Settings(auto_beta=0.3), {}) == 100.0
    assert auto_beta(DPO, Settings(auto_beta=0.3), {"margin": -0.1}) == 100.0


def run(folder: Path, settings: Settings, epochs: int = 30, until: int | None = None, **more) -> list[dict]:
    rows: list[dict] = []

    def on_step(found: dict) -> None:
        rows.append(found)
        if found["step"] == until:
            raise KeyboardInterrupt

    phases = [Phase(loss="dpo", epochs=epochs, beta=300.0)]
    train(tiny.model(levels=2), same(), phases, settings, 3, folder, on_step, **more)
    return rows


def same() -> PairExamples:
    return tiny.pairs(8, prior=False)


@pytest.mark.slow
def test_a_training_that_ends_early_says_why_and_ships_its_weights(tmp_path: Path, caplog) -> None:
    settings = Settings(batch_size=4, learning_rate=3e-2, schedule="constant", early_stop_winner_error=1e-4)
    with caplog.at_level(logging.WARNING):
        rows = run(tmp_path, settings)
    assert len(rows) < 60
    assert len(rows) >= SPAN
    assert "stops early: the winners' error is" in caplog.text
    assert (tmp_path / "model").is_dir()


@pytest.mark.slow
def test_auto_beta_alarms_and_an_early_end_are_resumed_exactly(tmp_path: Path) -> None:
    settings = Settings(
        batch_size=4,
        learning_rate=3e-2,
        schedule="constant",
        early_stop_winner_error=1e-4,
        auto_beta=0.3,
        checkpoint_every=4,
    )
    whole = run(tmp_path / "whole", settings)
    assert len({one["beta"] for one in whole}) > 2
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", settings, until=14)
    rest = run(tmp_path / "cut", settings)
    assert [(one["loss"], one["beta"], one["alert"]) for one in rest] == [
        (one["loss"], one["beta"], one["alert"]) for one in whole[12:]
    ]


def test_a_sharded_network_is_not_sampled_while_it_trains(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="sharded over ranks cannot be sampled"):
        run(tmp_path, Settings(batch_size=4, fsdp=True), sample=lambda step: {"scorer": 0.0})


def test_patience_needs_held_out_pairs_and_ends_when_they_are_not_judged_better(tmp_path: Path) -> None:
    settings = Settings(batch_size=4, learning_rate=1e-3, patience=1)
    with pytest.raises(RecipeError, match="val_fraction"):
        run(tmp_path / "none", settings)
    rows = run(tmp_path / "some", settings, val=tiny.pairs(6, 2, prior=False))
    accuracies = [one["val_accuracy"] for one in rows if one["val_accuracy"] is not None]
    assert len(rows) < 60
    assert accuracies[-1] <= max(accuracies[:-1])


def test_what_is_heard_stands_in_the_row_of_its_step_with_the_weights_that_would_be_saved(tmp_path: Path) -> None:
    model, heard = tiny.model(), []

    def listen(step: int) -> dict[str, float]:
        heard.append((step, model.module.conv_in.weight.detach().clone()))
        return {"scorer": 0.5, "judge": 0.5}

    rows: list[dict] = []
    settings = Settings(batch_size=4, learning_rate=1e-2, ema=0.99, sample_every=2)
    phases = [Phase(loss="sft", epochs=2)]
    train(model, same(), phases, settings, 3, tmp_path, rows.append, sample=listen)
    assert [step for step, _ in heard] == [2, 4]
    assert [one["samples"] for one in rows] == [None, {"scorer": 0.5, "judge": 0.5}] * 2
    assert (heard[-1][1] == model.module.conv_in.weight).all()  # the average, which is what was saved


def test_held_out_pairs_are_judged_by_strategy_and_by_timestep(tmp_path: Path) -> None:
    pairs = tiny.pairs(6, 2, prior=False)
    named = PairExamples(pairs.winners, pairs.losers, pairs.conditioning, groups=["1.1", "2", "2"] * 2)
    rows = run(tmp_path, Settings(batch_size=4, learning_rate=1e-3), epochs=1, val=named)
    by_group, by_step = rows[-1]["val_by_strategy"], rows[-1]["val_by_timestep"]
    assert set(by_group) == {"1.1", "2"}
    assert set(by_step) <= {"0-24", "25-49", "50-74", "75-99"}
    assert all(0 <= value <= 1 for value in (*by_group.values(), *by_step.values()))
    assert rows[0]["val_by_strategy"] is None
