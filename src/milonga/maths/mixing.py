"""Two captioned clips as one (§3.2, Eqs. 9–10): mixed so that neither masks the other, their captions joined.

Departures from the released code: silence is not mixed, because its caption would name a sound that is absent; every
mix has a peak of its own; everything is float32. `compat` restores the original's batch-wide peak.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

FRAME, HOP = 2048, 1024  # samples, at any rate
QUIETEST = -80.0  # dB: neither the A-weighting nor a level goes lower
# Corner frequencies of the A-weighting in Hz (IEC 61672).
LOW, MIDDLE_LOW, MIDDLE_HIGH, HIGH = 20.6, 107.7, 737.9, 12194.0


@lru_cache(maxsize=8)
def a_weighting(rate: int) -> np.ndarray:
    """How loud the ear finds each bin of a frame, in dB, shape (1025,), float64; not below -80."""
    squares = np.linspace(0, rate / 2, FRAME // 2 + 1) ** 2
    squares[0] = 1.0
    ratio = squares**2 * HIGH**2 / ((squares + LOW**2) * (squares + HIGH**2))
    ratio /= np.sqrt((squares + MIDDLE_LOW**2) * (squares + MIDDLE_HIGH**2))
    return np.maximum(2.0 + 20 * np.log10(ratio), QUIETEST)


def levels(waveform: np.ndarray, rate: int) -> np.ndarray:
    """The A-weighted sound pressure level of each whole frame, in dB (relative), float64; at least one frame.

    Of a waveform with several channels, (channels, samples), it is that of their mean.
    """
    waveform = waveform if waveform.ndim == 1 else waveform.mean(axis=0)
    wave = np.pad(waveform.astype(np.float64), (0, max(0, FRAME - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(wave, FRAME)[::HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    return 10 * np.log10(np.maximum(power @ 10 ** (a_weighting(rate) / 10), 10 ** (QUIETEST / 10)))


def share(first: np.ndarray, second: np.ndarray, rate: int, ratio: float = 0.5) -> float:
    """p of Eq. 9 from the loudest frames of two waveforms; `ratio` is the first's perceived share (Eq. 9: a half)."""
    difference = levels(first, rate).max() - levels(second, rate).max()
    return float(1 / (1 + 10 ** (difference / 20) * (1 - ratio) / ratio))


def mix(first: np.ndarray, second: np.ndarray, rate: int, ratio: float = 0.5) -> np.ndarray:
    """Eq. 10: two waveforms of one length as one, float32."""
    p = share(first, second, rate, ratio)
    return ((p * first + (1 - p) * second) / np.sqrt(p**2 + (1 - p) ** 2)).astype(np.float32)


def mixes(
    waves: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]], rate: int, compat: bool = False
) -> list[np.ndarray]:
    """The mixes of some pairs of waveforms of one length, each with a peak of 0.5.

    With `compat` one of them has that peak and the others keep their distance from it, as in the original, where one
    silent waveform (NaN, see `training_wave`) makes all mixes NaN. Else silence must not be among the pairs
    (`audible_pairs`).
    """
    mixed = [mix(waves[first], waves[other], rate) for first, other in pairs]
    peaks = [np.abs(wave).max() for wave in mixed]
    return [
        (wave / (np.max(peaks) if compat else peak) * 0.5).astype(np.float32)
        for wave, peak in zip(mixed, peaks, strict=True)
    ]


def audible_pairs(waves: Sequence[np.ndarray], count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Up to `count` different pairs of those waveforms that are not silent, drawn by `rng`, as (earlier, later)."""
    audible = [place for place, wave in enumerate(waves) if np.abs(wave).max() > 0]
    pairs = [(first, other) for at, first in enumerate(audible) for other in audible[at + 1 :]]
    return [pairs[place] for place in rng.permutation(len(pairs))[:count]]


def joined(first: str, second: str) -> str:
    """The caption of a mix: "A dog barks" and "Rain falls" make "A dog barks and rain falls"."""
    return f"{first} and {second[:1].lower()}{second[1:]}"
