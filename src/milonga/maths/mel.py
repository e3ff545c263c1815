"""The mel front end: one function for every log-mel picture in Milonga, configured by a few settings.

Tango's has magnitudes, Slaney's mel scale, the natural logarithm of at least 1e-5, and time as rows; scorers differ
only in their settings. The DC part is not removed here; `normalise` sets the level.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from milonga.maths.devices import full_precision


@dataclass(frozen=True)
class MelSettings:
    """A front end: rate and band edges in Hz, window, FFT and hop in samples, `power` 1 (magnitude) or 2.

    `tango` keeps two habits of Tango's original that PANNs' has not: clipping to [-1, 1], and cropping the last frame.
    `htk` is HTK's mel scale with triangles of height 1, in place of Slaney's with triangles of one area.
    """

    rate: int = 16000
    fft: int = 1024
    hop: int = 160
    bands: int = 64
    low: float = 0.0
    high: float = 8000.0
    power: float = 1.0
    floor: float = 1e-5
    decibels: bool = False
    tango: bool = True
    htk: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for a config file."""
        return asdict(self)


def hertz_to_mel(hertz: np.ndarray) -> np.ndarray:
    """Slaney's mel scale: linear below 1 kHz (200/3 Hz a mel), logarithmic above."""
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1e-9) / 1000) * 27 / np.log(6.4))


def mel_to_hertz(mels: np.ndarray) -> np.ndarray:
    """The inverse of `hertz_to_mel`."""
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))


@lru_cache(maxsize=16)
def mel_matrix(settings: MelSettings) -> torch.Tensor:
    """Triangular bands, shape (bands, fft/2+1), float32: of equal area (Slaney's), or of equal height (HTK's)."""
    edges = _edges(settings)
    hertz = np.linspace(0, settings.rate / 2, settings.fft // 2 + 1)
    rising = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    heights = 1.0 if settings.htk else (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy((triangles * heights).astype(np.float32))


def _edges(settings: MelSettings) -> np.ndarray:
    """Where bands begin, peak and end, in Hz, shape (bands + 2,)."""
    ends = np.array([settings.low, settings.high])
    if settings.htk:
        low, high = 2595 * np.log10(1 + ends / 700)
        return 700 * (10 ** (np.linspace(low, high, settings.bands + 2) / 2595) - 1)
    low, high = hertz_to_mel(ends)
    return mel_to_hertz(np.linspace(low, high, settings.bands + 2))


def magnitudes(waveforms: torch.Tensor, settings: MelSettings) -> torch.Tensor:
    """Short-time magnitudes, shape (B, fft/2+1, frames), of waveforms (B, samples).

    Centred frames with reflected edges and a periodic Hann window, samples // hop + 1 of them. With `settings.tango`
    values are clipped to [-1, 1] and NaN becomes 0 before the transform, as in the released code.
    """
    if settings.tango:
        waveforms = torch.nan_to_num(waveforms.clamp(-1, 1))
    window = torch.hann_window(settings.fft, device=waveforms.device, dtype=waveforms.dtype)
    return torch.stft(
        waveforms, settings.fft, settings.hop, window=window, center=True, pad_mode="reflect", return_complex=True
    ).abs()


def log_mel(waveforms: torch.Tensor, settings: MelSettings) -> torch.Tensor:
    """Log-mel pictures, shape (B, frames, bands), of waveforms (B, samples), from their `magnitudes`.

    With `settings.tango` the last, surplus frame is cropped. In float32 or better also where networks run in bfloat16.
    """
    with full_precision(waveforms.device):
        spectrum = magnitudes(waveforms, settings)
        matrix = mel_matrix(settings).to(spectrum)
        mel = (matrix @ spectrum**settings.power).clamp(min=settings.floor)
    picture = 10 * torch.log10(mel) if settings.decibels else torch.log(mel)
    frames = picture.shape[-1] - 1 if settings.tango else picture.shape[-1]
    return picture[..., :frames].transpose(-1, -2)


def normalise(waveform: np.ndarray, mean: float | None = None) -> np.ndarray:
    """Removes the mean and brings the peak to 0.5, as the released code does.

    Silence, also one with an offset, becomes zeros; the original divides zero by zero there, or amplifies rounding.
    `mean` is that of the recording whose beginning this is.
    """
    centred = waveform - (waveform.mean() if mean is None else np.float32(mean))
    peak, rounding = np.abs(centred).max(), 1e-6 * np.abs(waveform).max()
    return (centred / peak * 0.5 if peak > rounding else np.zeros_like(centred)).astype(np.float32)


def fit(waveform: np.ndarray, samples: int) -> np.ndarray:
    """Crops or zero-pads a waveform at its end to `samples` samples."""
    return np.pad(waveform[:samples], (0, max(0, samples - len(waveform))))


def training_wave(waveform: np.ndarray, samples: int, compat: bool = False, mean: float | None = None) -> np.ndarray:
    """A mono waveform as Tango is trained on it, (samples,) float32.

    The mean is removed, the peak brought to 0.5, the waveform cropped or zero-padded to `samples`, and the peak of the
    rest brought to 0.5 again. Silence stays silent; with `compat` it becomes NaN, as in the original, which `log_mel`
    turns into the floor. `mean` is that of the recording whose beginning this is; the peak of what was cropped has no
    influence.
    """
    if not compat:
        fitted = fit(normalise(waveform, mean), samples)
        peak = np.abs(fitted).max()
        return (fitted / peak * 0.5).astype(np.float32) if peak > 0 else fitted
    centred = waveform - (waveform.mean() if mean is None else np.float32(mean))
    fitted = fit(centred / (np.abs(centred).max() + 1e-8) * 0.5, samples)
    with np.errstate(invalid="ignore"):
        return (fitted / np.abs(fitted).max() * 0.5).astype(np.float32)
