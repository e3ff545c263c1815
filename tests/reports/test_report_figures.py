"""Figures: well-formed SVG whose marks stand where the numbers say."""

import re
import xml.etree.ElementTree as ElementTree
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from PIL import Image

from milonga.core.records import Clip, Comparison
from milonga.evaluation.metrics import metrics_named
from milonga.maths.clip_view import BANDS, COLUMNS, MAGMA, mel_picture
from milonga.preference.sweep import ticks
from milonga.reports.figures import Line, curves, forest, histogram, smoothed
from milonga.reports.gallery import data_uri


def parts(figure: Markup, name: str, style: str) -> list[ElementTree.Element]:
    found = ElementTree.fromstring(figure).iter(name)
    return [one for one in found if style in one.get("class", "").split()]


def comparison(metric: str, low: float, high: float, better: str) -> Comparison:
    return Comparison(
        split="overall",
        metric=metric,
        a="aligned",
        b="base",
        difference=(low + high) / 2,
        low=low,
        high=high,
        p=0.5,
        n=9,
        better=better,
    )


def test_right_of_the_line_is_better_for_every_metric() -> None:
    for metric, low, high in (("clap", 0.1, 0.2), ("fd", -0.2, -0.1)):
        figure = forest([(1, comparison(metric, low, high, "aligned"))], metrics_named([metric])[0], "x")
        (mark,) = parts(figure, "circle", "mark")
        assert float(mark.get("cx", "0")) > 100
        assert "open" not in mark.get("class", "")


def test_an_insignificant_difference_is_hollow_and_a_missing_one_is_not_drawn() -> None:
    clap = metrics_named(["clap"])[0]
    assert parts(forest([(1, comparison("clap", -0.1, 0.2, "neither"))], clap, "x"), "circle", "open")
    assert not parts(forest([(1, comparison("clap", float("nan"), 0.2, "neither"))], clap, "x"), "circle", "mark")


def test_a_histogram_draws_every_value_and_its_thresholds() -> None:
    kept, refused = np.array([0.5, 0.6, 0.6]), np.array([0.1])
    figure = histogram(kept, refused, [(0.3, "α <0.3>")], "scores")
    bars = parts(figure, "rect", "kept")
    heights = sorted(float(bar.get("height", "0")) for bar in bars)
    assert len(bars) == 2
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert len(parts(figure, "rect", "refused")) == 1
    (line,) = parts(figure, "path", "limit")
    place = float(re.findall(r"[\d.]+", line.get("d", ""))[0])
    assert float(parts(figure, "rect", "refused")[0].get("x", "")) < place < float(bars[0].get("x", ""))


def test_a_histogram_of_equal_values_has_a_width() -> None:
    assert len(parts(histogram(np.full(5, 0.4), np.array([]), [], "x"), "rect", "kept")) == 1


def test_curves_break_between_phases_and_skip_what_is_not_finite() -> None:
    y = np.array([1.0, 2.0, np.nan, 4.0, 5.0, 6.0])
    line = Line("loss", "c1", np.arange(1.0, 7.0), y)
    figure = curves([line], [(1, "sft"), (4, "dpo")], 6, "Loss")
    assert figure is not None
    assert len(parts(figure, "path", "curve")) == 2
    assert len(parts(figure, "path", "phase")) == 2
    assert curves([Line("loss", "c1", np.arange(2.0), np.full(2, np.nan))], [], 2, "Loss") is None


def test_a_long_curve_stays_a_short_path() -> None:
    x = np.arange(1.0, 20001.0)
    figure = curves([Line("loss", "c1", x, np.sin(x))], [(1, "sft")], 20000, "Loss")
    assert figure is not None
    assert len(figure) < 12000


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=50), st.integers(1, 60))
def test_a_moving_mean_stays_within_its_values(values: list[float], width: int) -> None:
    smooth = smoothed(np.array(values), width)
    assert smooth.shape == (len(values),)
    assert smooth[0] == pytest.approx(values[0], abs=1e-9)
    assert smooth.min() >= min(values) - 1e-9
    assert smooth.max() <= max(values) + 1e-9


@given(st.floats(-1e4, 1e4), st.floats(1e-4, 1e4))
def test_ticks_are_few_and_within_the_range(low: float, width: float) -> None:
    values = ticks(low, low + width)
    assert 1 <= len(values) <= 6
    assert all(low - 1e-6 * width <= value <= low + width * (1 + 1e-6) for value in values)


def test_a_mel_picture_shows_a_high_sound_above_a_low_one() -> None:
    time = np.arange(32000) / 16000
    low, high = (place_of_light(np.sin(2 * np.pi * hertz * time)) for hertz in (200, 4000))
    assert high < BANDS / 2 < low


def place_of_light(wave: np.ndarray) -> int:
    """The brightest row of a wave's picture, 0 at the top."""
    picture = Image.open(BytesIO(mel_picture(Clip(wave.astype(np.float32), 16000))))
    assert (picture.height, picture.width <= COLUMNS) == (BANDS, True)
    return int(np.asarray(picture).mean(axis=1).argmax())


def test_silence_and_very_short_clips_have_a_picture() -> None:
    assert mel_picture(Clip(np.zeros(10, np.float32), 16000)).startswith(b"\x89PNG")


def test_colours_grow_evenly_lighter() -> None:
    light = np.frombuffer(MAGMA, np.uint8).reshape(-1, 3).astype(float) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > 0).all()


def test_a_data_uri_says_its_kind() -> None:
    assert data_uri(b"abc", "audio/flac") == "data:audio/flac;base64,YWJj"
