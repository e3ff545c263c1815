"""How a file becomes the waveform that is measured: the largest source of disagreement between published numbers.

`milonga` mixes channels and resamples by soxr; `audioldm` and `tango` do what those toolkits' code does, so that their
numbers can be had again (EVALUATION §1). They differ in the channel that is taken, in the mean that is removed, in
the resampler, and `tango` in two mistakes: a file at 32 kHz is halved twice, one at 48 kHz is thinned without a filter.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from milonga.core.errors import RecipeError
from milonga.core.records import Clip
from milonga.maths.mel import fit
from milonga.scorers.batching import SHORTEST, measured

RATE = 16000
# torchaudio's resampler: zero crossings of its sinc and roll-off. resampy's kaiser_best: the same and its window's β.
SINC = 6, 0.99
KAISER = 50, 0.9173, 12.98
Rule = Callable[[np.ndarray, int], np.ndarray]  # (samples, channels), rate → the waveform at 16 kHz


@dataclass(frozen=True)
class Loading:
    """A protocol's way from a file to what PANNs, VGGish and the mel images hear; in words, for stamps."""

    name: str
    panns: Rule
    vggish: Rule
    image: Rule
    told: str
    generated_offset: int = 0
    ssim_span: float | None = None


def of_protocol(name: str) -> Loading:
    """The loading rules called `name`. Raises RecipeError naming those that there are."""
    if name not in LOADINGS:
        raise RecipeError(f"no protocol {name!r}: there are {', '.join(LOADINGS)}")
    return LOADINGS[name]


def _mixed(samples: np.ndarray, rate: int) -> np.ndarray:
    return measured(Clip(samples.mean(axis=1), rate), RATE)


def _first(samples: np.ndarray) -> np.ndarray:
    """The first channel without its mean."""
    return (samples[:, 0] - samples[:, 0].mean()).astype(np.float32)


def _padded(wave: np.ndarray) -> np.ndarray:
    return fit(wave, max(len(wave), round(SHORTEST * RATE)))


def _audioldm(samples: np.ndarray, rate: int) -> np.ndarray:
    return _padded(sinc_resampled(_first(samples), rate, RATE))


def _tango(samples: np.ndarray, rate: int) -> np.ndarray:
    wave = _first(samples)
    if rate == 48000:
        return _padded(wave[::3])
    return _padded(sinc_resampled(wave[::2] if rate == 32000 else wave, rate, RATE))


def _tango_vggish(samples: np.ndarray, rate: int) -> np.ndarray:
    wave = samples.astype(np.float64).mean(axis=1)
    return wave[::2] if rate == 32000 else kaiser_best(wave, rate, RATE)


def _image(samples: np.ndarray, rate: int) -> np.ndarray:
    return sinc_resampled(_first(samples), rate, RATE)


def _mixed_image(samples: np.ndarray, rate: int) -> np.ndarray:
    from milonga.core.audio import resample

    mono = samples.mean(axis=1)
    return resample(Clip((mono - mono.mean()).astype(np.float32), rate), RATE).waveform


def sinc_resampled(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """A waveform at another rate by a Hann-windowed sinc of six crossings, float32, ceil(samples · wanted / rate) long.

    torchaudio's default: the published toolkits' features depend on it.
    """
    if rate == wanted:
        return wave
    shared = math.gcd(rate, wanted)
    kernels, reach = _sinc(rate // shared, wanted // shared)
    padded = torch.from_numpy(np.pad(wave.astype(np.float32), (reach, reach + rate // shared)))
    found = torch.nn.functional.conv1d(padded[None, None], kernels, stride=rate // shared)[0].T.reshape(-1)
    return found[: math.ceil(len(wave) * wanted / rate)].numpy()


@lru_cache(maxsize=8)
def _sinc(old: int, new: int) -> tuple[torch.Tensor, int]:
    """One filter for each of the `new` phases, (new, 1, taps), and how far it reaches in old samples."""
    crossings, rolloff = SINC
    cutoff = min(old, new) * rolloff
    reach = math.ceil(crossings * old / cutoff)
    times = np.arange(-reach, reach + old)[None] / old - np.arange(new)[:, None] / new
    phases = (times * cutoff).clip(-crossings, crossings)
    filters = np.sinc(phases) * np.cos(phases * np.pi / crossings / 2) ** 2 * cutoff / old
    return torch.from_numpy(filters.astype(np.float32)).unsqueeze(1), reach


def kaiser_best(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """A waveform at another rate by resampy's best filter, a sinc of 50 crossings under a Kaiser window from a table.

    floor(samples · wanted / rate) samples, float64; the original Tango's FAD hears files of odd rates through it.
    """
    if rate == wanted:
        return wave
    crossings, rolloff, beta = KAISER
    grid = np.linspace(0, crossings, 512 * crossings + 1)
    window = np.i0(beta * np.sqrt(1 - (grid / crossings) ** 2)) / np.i0(beta)
    table, scale = rolloff * np.sinc(rolloff * grid) * window, min(1.0, wanted / rate)
    reach, found = int(crossings / scale) + 1, []
    padded = np.pad(wave, reach)
    for part in np.array_split(np.arange(len(wave) * wanted // rate), max(1, len(wave) // 20000)):
        times = part * (rate / wanted)
        near = np.floor(times).astype(int)[:, None] + np.arange(-reach, reach + 1)
        weights = scale * np.interp(np.abs(times[:, None] - near) * scale, grid, table, right=0.0)
        found.append((weights * padded[near + reach]).sum(axis=1))
    return np.concatenate(found)


_QUIRKS = "first channel, mean removed, no crop, ≥ 2 s"
LOADINGS = {
    "milonga": Loading(
        "milonga", _mixed, _mixed, _mixed_image, "mean of channels, mean removed, soxr HQ to 16 kHz, no crop, ≥ 2 s"
    ),
    "audioldm": Loading(
        "audioldm", _audioldm, _audioldm, _image,
        f"audioldm_eval: {_QUIRKS}, sinc/Hann to 16 kHz; LSD without 1120 samples", generated_offset=7 * 160,
    ),
    "tango": Loading(
        "tango", _tango, _tango_vggish, _image,
        f"Tango's audioldm_eval: {_QUIRKS}, sinc/Hann to 16 kHz, 32 kHz halved twice, 48 kHz thinned unfiltered; "
        "VGGish: mean of channels, kaiser_best, no padding; SSIM range 2, LSD without 1120 samples",
        generated_offset=7 * 160, ssim_span=2.0,
    ),
}  # fmt: skip
