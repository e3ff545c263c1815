"""Building blocks of the world's sounds: noises, tones, resonances, envelopes, repetition and speech.

All functions take a `numpy.random.Generator` where chance is involved, work at `RATE`, and return float64 arrays.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import lfilter, oaconvolve

Sound = Callable[[np.random.Generator, int, int | None], np.ndarray]

RATE = 16000
# Formants in Hz of the vowels of `speech`.
VOWELS = (
    (730, 1090, 2440),
    (270, 2290, 3010),
    (300, 870, 2240),
    (530, 1840, 2480),
    (570, 840, 2410),
    (440, 1020, 2240),
)


def seconds(length: float) -> int:
    """A length in seconds as a number of samples (at least 8)."""
    return max(8, int(length * RATE))


def noise(rng: np.random.Generator, samples: int, low: float, high: float, tilt: float = 0.0) -> np.ndarray:
    """Gaussian noise between `low` and `high` Hz with soft edges; `tilt` in dB per octave above `low`. Unit RMS."""
    size: Any = next_fast_len(samples, real=True)
    spectrum: Any = rfft(rng.standard_normal(size))
    hertz = np.fft.rfftfreq(size, 1 / RATE) + 1e-3
    gain = 1 / (1 + (low / hertz) ** 6) / (1 + (hertz / high) ** 6) * (hertz / low) ** (tilt / 6.02)
    wave = np.asarray(irfft(spectrum * gain, size))[:samples]
    return wave / (np.sqrt(np.mean(wave**2)) + 1e-9)


def glide(points: list[float], samples: int) -> np.ndarray:
    """A contour through evenly spaced `points`, shape (samples,)."""
    return np.interp(np.linspace(0, 1, samples), np.linspace(0, 1, len(points)), points)


def tone(hertz: np.ndarray | float, samples: int, harmonics: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """A tone along a frequency contour, with the given harmonic amplitudes; harmonics above 7.5 kHz are left out."""
    contour = np.broadcast_to(np.asarray(hertz, dtype=float), (samples,))
    phase = 2 * np.pi * np.cumsum(contour) / RATE
    wave = np.zeros(samples)
    for number, amplitude in enumerate(harmonics, start=1):
        if contour.max() * number < 7500:
            wave += amplitude * np.sin(number * phase)
    return wave


def buzz(rng: np.random.Generator, hertz: np.ndarray | float, samples: int) -> np.ndarray:
    """A pulse-like source rich in harmonics (a voice's or an engine's), from the phase of a contour."""
    contour = np.broadcast_to(np.asarray(hertz, dtype=float), (samples,))
    phase = np.cumsum(contour * (1 + 0.01 * rng.standard_normal(samples))) / RATE
    return (1 - (phase % 1.0)) ** 4 - 0.2


def resonate(wave: np.ndarray, hertz: float, width: float) -> np.ndarray:
    """Rings `wave` through a two-pole resonator at `hertz` with bandwidth `width` Hz."""
    radius = np.exp(-np.pi * width / RATE)
    poles = [1.0, -2 * radius * np.cos(2 * np.pi * min(hertz, 7800.0) / RATE), radius**2]
    return np.asarray(lfilter([1 - radius], poles, wave))


def fade(wave: np.ndarray, rise: float = 0.01, fall: float = 0.03) -> np.ndarray:
    """Rounds both ends of a wave: `rise` and `fall` in seconds, shortened where the wave is short."""
    up, down = min(seconds(rise), len(wave) // 2), min(seconds(fall), len(wave) // 2)
    wave = wave.copy()
    wave[:up] *= np.linspace(0, 1, up)
    wave[len(wave) - down :] *= np.linspace(1, 0, down)
    return wave


def decay(samples: int, length: float) -> np.ndarray:
    """An exponential envelope that falls by 1/e every `length` seconds."""
    return np.exp(-np.arange(samples) / (length * RATE))


def place(canvas: np.ndarray, wave: np.ndarray, start: int) -> None:
    """Adds `wave` to `canvas` from sample `start`, cut at the canvas's end."""
    room = len(canvas) - start
    if room > 0:
        canvas[start : start + len(wave)] += wave[:room]


def scatter(rng: np.random.Generator, samples: int, rate: float, grain: np.ndarray, spread: float = 0.6) -> np.ndarray:
    """`rate` copies a second of a short grain at random moments with random loudness: drops, claps, keys."""
    impulses = np.zeros(samples)
    count = max(1, rng.poisson(rate * samples / RATE))
    impulses[rng.integers(0, samples, count)] = rng.uniform(1 - spread, 1, count) * rng.choice([-1.0, 1.0], count)
    wave: Any = lfilter(grain, [1.0], impulses) if len(grain) < 100 else oaconvolve(impulses, grain)[:samples]
    return wave


def repeat(
    rng: np.random.Generator,
    samples: int,
    count: int | None,
    gap: tuple[float, float],
    single: Callable[[], np.ndarray],
) -> np.ndarray:
    """Places `single()` repeatedly, `gap` seconds from start to start, `count` times or until `samples` are filled.

    A count that does not fit shrinks the gap, so that every repetition is audible.
    """
    canvas = np.zeros(samples)
    step = seconds(rng.uniform(*gap))
    if count is not None:
        step = min(step, samples // count)
    limit = count if count is not None else 1 + max(0, samples - seconds(gap[0])) // step
    for number in range(limit):
        place(canvas, single() * rng.uniform(0.75, 1.0), int(number * step * rng.uniform(0.96, 1.04)))
    return canvas


def speech(low: float, high: float, scale: float) -> Sound:
    """Babble of voiced syllables with moving formants: pitch between `low` and `high` Hz, formants times `scale`."""

    def syllable(rng: np.random.Generator, pitch: float) -> np.ndarray:
        length = seconds(rng.uniform(0.11, 0.24))
        source = buzz(
            rng, glide([pitch, pitch * rng.uniform(0.9, 1.25), pitch * rng.uniform(0.8, 1.0)], length), length
        )
        vowel = VOWELS[rng.integers(len(VOWELS))]
        voice = sum(
            (resonate(source, hertz * scale, 60 + 40 * place_) / (1 + place_) for place_, hertz in enumerate(vowel)),
            np.zeros(length),
        )
        return fade(voice, 0.02, 0.05)

    def speak(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
        canvas, start, pitch = np.zeros(samples), 0, rng.uniform(low, high)
        while start < samples:
            sound = syllable(rng, pitch * rng.uniform(0.92, 1.12))
            place(canvas, sound / (np.abs(sound).max() + 1e-9) * rng.uniform(0.5, 1.0), start)
            if rng.random() < 0.35:
                hiss = fade(noise(rng, seconds(0.05), 2800 * scale**0.5, 6500)) * 0.12
                place(canvas, hiss, start + len(sound))
            start += len(sound) + seconds(rng.uniform(0.01, 0.05) if rng.random() < 0.8 else rng.uniform(0.1, 0.2))
        return canvas

    return speak
