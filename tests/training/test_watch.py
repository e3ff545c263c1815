"""A training is watched in the terminal, by TensorBoard, and by ear; what cannot be is told in one line."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from fake_parts import LoudScorer, NoiseModel
from rich.console import Console

from milonga.core.audio import read_audio
from milonga.core.errors import RecipeError
from milonga.core.records import Prompt
from milonga.training import trackers as watch
from milonga.training.trackers import curve, numbers, sample_prompts, show_training, table

ROW = {
    "step": 3, "total": 9, "epoch": 1, "phase": "dpo", "loss": 0.61, "delta_winner": -0.01, "skipped": False,
    "margin_p50": 0.02, "prior_error": None, "alert": None, "samples": {"scorer": 0.5, "judge": 0.4},
    "val_by_strategy": {"1.1": 0.75},
}  # fmt: skip


def test_numbers_are_taken_out_of_a_row_by_name():
    found = numbers(ROW)
    assert found["samples/judge"] == 0.4
    assert found["val_by_strategy/1.1"] == 0.75
    assert found["skipped"] == 0.0
    assert not {"phase", "alert", "prior_error"} & set(found)


def test_tensorboard_holds_every_number_at_its_step(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with show_training("train x", "x", tmp_path, ["tensorboard"], {}) as on_step:
        on_step(ROW)
        on_step(ROW | {"step": 4, "loss": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard" / "x"))
    events.Reload()
    assert [(one.step, round(one.value, 4)) for one in events.Scalars("loss")] == [(3, 0.61), (4, 0.5)]
    assert events.Scalars("samples/judge")[0].value == pytest.approx(0.4)


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_told_with_its_extra(kind: str, tmp_path: Path, monkeypatch):
    from accelerate import tracking

    monkeypatch.setattr(tracking, f"is_{kind}_available", lambda: False)
    with pytest.raises(RecipeError, match=rf"milonga\[{kind}\]"), show_training("x", "x", tmp_path, [kind], {}):
        pass


def test_the_live_view_shows_what_matters_and_alerts(monkeypatch):
    page = StringIO()
    monkeypatch.setattr(watch, "Console", lambda **_: Console(file=page, force_terminal=True, width=120))
    with watch.live("train x") as on_step:
        on_step(ROW)
        on_step(ROW | {"step": 4, "alert": "winners get worse"})
    shown = page.getvalue()
    for words in ("0.61", "4/9", "dpo, epoch 1", "winners' error against the reference", "step 4: winners get worse"):
        assert words in shown


def test_a_curve_has_a_bar_for_each_value_and_a_blank_for_each_that_is_missing():
    assert curve([1.0, None, 3.0, 2.0]) == "▁ █▄"
    assert curve([]) == ""
    assert curve([2.0, 2.0]) == "▁▁"
    assert table({"loss": 0.5}, [0.5]).row_count == 1


def test_fixed_prompts_are_sampled_from_the_same_seeds_and_scored_by_two(tmp_path: Path):
    prompts = [Prompt.of(f"sound {n}", "test") for n in range(3)]
    arguments = prompts, (4, 3.0), 7, LoudScorer("a"), LoudScorer("b")
    first = sample_prompts(NoiseModel(), *arguments, tmp_path / "1")
    assert first == sample_prompts(NoiseModel(), *arguments, tmp_path / "2")
    assert set(first) == {"scorer", "judge"}
    waves = [read_audio(tmp_path / name / "0.wav").waveform for name in ("1", "2")]
    assert np.array_equal(*waves)
    assert len(list((tmp_path / "1").glob("*.wav"))) == 3
