"""The resamplers of the published toolkits, where numbers must equal theirs; everything else resamples by soxr HQ.

`windowed_sinc` is torchaudio's default and `kaiser_best` resampy's, written from the filters' published definitions.
"""

from functools import lru_cache
from math import ceil, gcd
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

ZEROS = 6  # crossings of the sinc on each side (`lowpass_filter_width`)
ROLLOFF = 0.99  # of the lower of the two Nyquist frequencies
KAISER = 50, 0.9173, 12.98  # kaiser_best: crossings, roll-off and the window's β


def windowed_sinc(waveform: np.ndarray, old: int, new: int) -> np.ndarray:
    """A waveform (samples,) at `new` Hz instead of `old`, ceil(samples · new / old) samples, float32.

    The filter is a sinc of six crossings under a Hann window, cut off at 0.99 of the lower Nyquist frequency. It lets
    more aliasing through than soxr.
    """
    if old == new:
        return waveform
    step, count = old // gcd(old, new), new // gcd(old, new)
    kernels, reach = _kernels(step, count)
    padded = np.pad(waveform.astype(np.float32), (reach, reach + step))
    frames = np.lib.stride_tricks.sliding_window_view(padded, kernels.shape[1])[::step]
    return np.ascontiguousarray((frames @ kernels.T).reshape(-1)[: ceil(len(waveform) * count / step)])


def resample_waves(waves: "Tensor", old: int, new: int) -> "Tensor":
    """`windowed_sinc` of waveforms (B, samples) with gradients by them, (B, ceil(samples · new / old))."""
    import torch

    if old == new:
        return waves
    step, count = old // gcd(old, new), new // gcd(old, new)
    kernels, reach = _kernels(step, count)
    frames = torch.nn.functional.pad(waves, (reach, reach + step)).unfold(1, kernels.shape[1], step)
    rows = frames @ torch.from_numpy(kernels).to(waves).T
    return rows.flatten(1)[:, : ceil(waves.shape[1] * count / step)]


def kaiser_best(waveform: np.ndarray, old: int, new: int) -> np.ndarray:
    """A waveform (samples,) at `new` Hz instead of `old`, floor(samples · new / old) samples, float64.

    resampy's best filter: a sinc of 50 crossings under a Kaiser window, read from a table. The original Tango's FAD
    resamples files of odd rates by it.
    """
    if old == new:
        return waveform
    crossings, rolloff, beta = KAISER
    grid = np.linspace(0, crossings, 512 * crossings + 1)
    window = np.i0(beta * np.sqrt(1 - (grid / crossings) ** 2)) / np.i0(beta)
    table, scale = rolloff * np.sinc(rolloff * grid) * window, min(1.0, new / old)
    reach, parts = int(crossings / scale) + 1, []
    padded = np.pad(waveform, reach)
    for places in np.array_split(np.arange(len(waveform) * new // old), max(1, len(waveform) // 20000)):
        times = places * (old / new)
        near = np.floor(times).astype(int)[:, None] + np.arange(-reach, reach + 1)
        weights = scale * np.interp(np.abs(times[:, None] - near) * scale, grid, table, right=0.0)
        parts.append((weights * padded[near + reach]).sum(axis=1))
    return np.concatenate(parts)


@lru_cache(maxsize=16)
def _kernels(step: int, count: int) -> tuple[np.ndarray, int]:
    """The filter at each of `count` phases, (count, taps) float32, and how many samples it reaches to either side.

    All in float32 and in this order, as in torchaudio: in float64 quiet mel bands differ by 6e-4.
    """
    unit, pi = np.float32(1), np.float32(np.pi)
    cutoff = min(step, count) * ROLLOFF
    reach = ceil(ZEROS * step / cutoff)
    phases = -np.arange(count, dtype=np.float32) / np.float32(count)
    times = phases[:, None] + np.arange(-reach, reach + step, dtype=np.float32) / np.float32(step)
    times = np.clip(times * np.float32(cutoff), -ZEROS, ZEROS)
    windows = np.cos(times * pi / np.float32(ZEROS) / np.float32(2)) ** 2
    angles = np.where(times == 0, unit, times * pi)
    sincs = np.where(times == 0, unit, np.sin(angles) / angles)
    return (sincs * windows * np.float32(cutoff / step)).astype(np.float32), reach
