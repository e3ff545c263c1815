"""The gestures that sounds are made from: where their energy lies, where they end, and what is cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milonga.nano.synthesis import RATE, buzz, decay, fade, glide, noise, place, resonate, scatter, seconds, tone


def share(wave: np.ndarray, low: float, high: float) -> float:
    """The share of a wave's energy between two frequencies."""
    power = np.abs(np.fft.rfft(wave)) ** 2
    hertz = np.fft.rfftfreq(len(wave), 1 / RATE)
    return float(power[(hertz >= low) & (hertz <= high)].sum() / power.sum())


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("low", "high"), [(50, 200), (500, 1500), (2000, 7000)])
def test_noise_lies_between_its_edges_with_unit_power(low: float, high: float) -> None:
    wave = noise(chance(), RATE, low, high)
    assert share(wave, low * 0.7, high * 1.4) > 0.9
    assert np.mean(wave**2) == pytest.approx(1.0)


def test_tilt_moves_energy_up_or_down() -> None:
    bright, dark = (noise(chance(), RATE, 200, 4000, tilt) for tilt in (3.0, -3.0))
    assert share(bright, 2000, 8000) > 2 * share(dark, 2000, 8000)


@pytest.mark.parametrize("hertz", [110.0, 1000.0, 5000.0])
def test_a_tone_has_its_pitch_and_no_harmonic_that_would_fold_back(hertz: float) -> None:
    wave = tone(hertz, RATE, (1.0, 0.0, 1.0))
    third = share(wave, 3 * hertz - 5, 3 * hertz + 5)
    assert share(wave, hertz - 5, hertz + 5) + third > 0.99
    assert third == pytest.approx(0.5 if 3 * hertz < 7500 else 0.0, abs=0.01)


def test_a_buzz_is_rich_in_harmonics_of_its_pitch() -> None:
    wave = buzz(chance(), 200.0, RATE)
    assert all(share(wave, n * 200 - 20, n * 200 + 20) > 0.01 for n in (1, 2, 3))


def test_a_resonator_rings_where_it_is_told() -> None:
    assert share(resonate(chance().standard_normal(RATE), 1200, 50), 1000, 1400) > 0.9


def test_a_glide_goes_through_its_points() -> None:
    np.testing.assert_allclose(glide([1.0, 3.0, 2.0], 5), [1.0, 2.0, 3.0, 2.5, 2.0])


@given(st.integers(4, 2000), st.floats(0.001, 0.1), st.floats(0.001, 0.1))
def test_a_fade_begins_and_ends_in_silence_and_copies(samples: int, rise: float, fall: float) -> None:
    wave = np.ones(samples)
    faded = fade(wave, rise, fall)
    assert faded[0] == faded[-1] == 0
    assert wave.all()
    assert faded.max() <= 1


def test_a_decay_falls_by_e_in_its_length() -> None:
    assert decay(RATE, 0.25)[RATE // 4] == pytest.approx(np.exp(-1))


@given(st.integers(0, 30), st.integers(1, 30))
def test_what_is_placed_adds_and_is_cut_at_the_end(start: int, length: int) -> None:
    canvas = np.full(20, 2.0)
    place(canvas, np.ones(length), start)
    expected = np.full(20, 2.0)
    expected[start : start + length] += 1
    np.testing.assert_array_equal(canvas, expected)


@pytest.mark.parametrize("grain", [10, 99, 100, 400])
def test_scattered_grains_fill_the_room_with_about_the_asked_density(grain: int) -> None:
    click = np.zeros(grain)
    click[0] = 1.0
    wave = scatter(chance(), RATE, 50.0, click)
    assert wave.shape == (RATE,)
    assert 25 <= int((np.abs(wave) > 0.3).sum()) <= 75


def test_a_length_in_seconds_is_at_least_eight_samples() -> None:
    assert (seconds(0.5), seconds(0.0)) == (8000, 8)
