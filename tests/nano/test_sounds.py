"""Every class sounds, differently each time, unlike the others, and as often as it is asked to."""

import numpy as np
import pytest
import torch
from scipy.signal import find_peaks

from milonga.maths.mel import log_mel, normalise
from milonga.nano import lexicon
from milonga.nano.build.corpus import MEL
from milonga.nano.sounds import COUNTABLE, SOUNDS
from milonga.nano.synthesis import RATE
from milonga.nano.world import CLASSES, render

RENDERS = 6
# Seconds over which a sound is smoothed so that one repetition is one hill, and how close two may be.
HILLS = {"Dog": 0.05, "Cat": 0.28, "Frog": 0.2, "Car horn": 0.05, "Bell": 0.05, "Telephone": 0.05, "Knock": 0.03,
         "Gunshot": 0.05}  # fmt: skip


def waves_of(label: str) -> list[np.ndarray]:
    return [SOUNDS[label](np.random.default_rng(seed), int(1.7 * RATE), None) for seed in range(3)]


@pytest.fixture(scope="module")
def pictures() -> dict[str, torch.Tensor]:
    """Log-mels (RENDERS, 256, 64) of each class alone, cut where the world's own background noise begins."""

    def of(label: str) -> torch.Tensor:
        waves = [normalise(render(((label,),), seed).clip.waveform) for seed in range(RENDERS)]
        return log_mel(torch.from_numpy(np.stack(waves)), MEL).clamp(min=-8)

    return {label: of(label) for label in CLASSES}


def hills(wave: np.ndarray, smoothing: float) -> int:
    """How often a wave swells: the prominent maxima of its smoothed envelope."""
    window = np.hanning(int(2 * smoothing * RATE))
    envelope = np.sqrt(np.convolve(wave**2, window / window.sum(), "same"))
    return len(find_peaks(np.r_[0, envelope / envelope.max(), 0], height=0.3, prominence=0.2)[0])


def test_the_world_knows_just_the_lexicons_classes_in_its_order() -> None:
    assert lexicon.CLASSES == CLASSES
    assert all(lexicon.VOICES[label].counted for label in COUNTABLE)


@pytest.mark.parametrize("label", CLASSES)
def test_a_sound_is_finite_fills_its_room_and_is_the_same_for_the_same_chance(label: str) -> None:
    first, second, third = waves_of(label)
    for wave in (first, second, third):
        assert wave.shape == (int(1.7 * RATE),)
        assert np.isfinite(wave).all()
        assert np.sqrt(np.mean(wave**2)) > 1e-3
    assert not np.allclose(first, second)
    assert not np.allclose(second, third)
    assert np.array_equal(waves_of(label)[0], first)


@pytest.mark.parametrize("label", CLASSES)
@pytest.mark.parametrize("samples", [1600, 8000, 65536])
def test_a_sound_fits_any_room_the_world_gives_it(label: str, samples: int) -> None:
    for count in (None, 1, 3):
        wave = SOUNDS[label](np.random.default_rng(0), samples, count)
        assert len(wave) == samples
        assert np.isfinite(wave).all()
        assert np.ptp(wave) > 0


@pytest.mark.parametrize("label", CLASSES)
def test_two_renders_of_a_class_differ_clearly(label: str, pictures: dict[str, torch.Tensor]) -> None:
    found = pictures[label]
    distances = [float((found[i] - found[j]).abs().mean()) for i in range(RENDERS) for j in range(i)]
    assert min(distances) > 0.25  # nepers of log-mel
    assert np.mean(distances) > 0.5


def test_a_render_is_nearest_to_its_own_class(pictures: dict[str, torch.Tensor]) -> None:
    rows = torch.cat([torch.cat([p.mean(1), p.std(1), p.diff(dim=1).abs().mean(1)], 1) for p in pictures.values()])
    distances = torch.cdist(rows, rows).fill_diagonal_(torch.inf)
    labels = torch.arange(len(CLASSES)).repeat_interleave(RENDERS)
    assert float((labels[distances.argmin(1)] == labels).float().mean()) > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("label", COUNTABLE)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_countable_sound_is_heard_as_often_as_asked(label: str, count: int) -> None:
    room = int(3.4 * RATE)
    heard = [hills(SOUNDS[label](np.random.default_rng(seed), room, count), HILLS[label]) for seed in range(8)]
    assert np.mean([found == count for found in heard]) >= 0.85, heard


@pytest.mark.parametrize("label", ["Dog", "Bell", "Gunshot", "Knock"])
def test_a_count_that_would_not_fit_is_squeezed(label: str) -> None:
    wave = SOUNDS[label](np.random.default_rng(1), int(0.9 * RATE), 3)
    assert hills(wave, 0.03) == 3


def test_a_rendered_clip_honours_its_counts() -> None:
    for count in (2, 3):
        sounding = render((("Gunshot",),), 5, {"Gunshot": count})
        assert sounding.counts == {"Gunshot": count}
        assert hills(sounding.clip.waveform, HILLS["Gunshot"]) == count
