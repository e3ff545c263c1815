"""How close a clip is to the very clip it should be: PSNR and SSIM of mel images, and log-spectral distance.

For what is rebuilt (a codec, a vocoder, a VAE): of two clips that merely answer one caption they say nothing.
Formulas are the AudioLDM toolkit's; its habits that change numbers are arguments here.
"""

import numpy as np
import torch

from milonga.core.errors import DataError
from milonga.maths.mel import MelSettings, log_mel

IMAGE = MelSettings(16000, 512, 160, 64, 50.0, 8000.0, power=1.0, floor=1e-5, decibels=True, tango=False)
WINDOW = 7  # pixels, of SSIM
OFFSET = 7 * 160  # samples that the original toolkit drops of a generated clip before LSD, for its vocoder
FFT = int(2048 / (44100 / 16000))
TINY = 1e-12


def mel_image(waveform: np.ndarray) -> np.ndarray:
    """The picture that PSNR and SSIM compare: (frames, 64) in [0, 1], 100 dB wide, of a waveform at 16 kHz."""
    wave = np.pad(waveform, (0, max(0, IMAGE.fft - len(waveform)))).astype(np.float32)
    decibels = 2 * log_mel(torch.from_numpy(wave)[None], IMAGE)[0].numpy() - 20
    return np.clip((decibels + 100) / 100, 0, 1)


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two images in [0, 1]; infinite where they are alike."""
    error = float(np.mean(np.square(image.astype(np.float64) - reference)))
    return float(-10 * np.log10(error)) if error else float("inf")


def ssim(image: np.ndarray, reference: np.ndarray, span: float | None = None) -> float:
    """Mean structural similarity (Wang et al. 2004) of two images (H, W): 7×7 windows of even weight, unbiased.

    `span` is the range of values that its constants are a share of: that of both images where it is not given. Raises
    DataError for images smaller than a window or of different shapes.
    """
    x, y = image.astype(np.float64), reference.astype(np.float64)
    if x.shape != y.shape or min(x.shape) < WINDOW:
        raise DataError(f"SSIM needs two images of one shape, {WINDOW} or more a side, not {x.shape} and {y.shape}")
    reach = float(max(x.max(), y.max()) - min(x.min(), y.min())) if span is None else span
    if reach == 0:
        return 1.0
    c1, c2 = (0.01 * reach) ** 2, (0.03 * reach) ** 2
    mean_x, mean_y = _windows(x), _windows(y)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    var_x, var_y = (unbiased * (_windows(z * z) - mean * mean) for z, mean in ((x, mean_x), (y, mean_y)))
    both = unbiased * (_windows(x * y) - mean_x * mean_y)
    similar = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(similar.mean())


def spectra(generated: np.ndarray, reference: np.ndarray, offset: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Linear magnitudes (frames, 372) of two waveforms at 16 kHz, each without its mean and brought to peak 1.

    `offset` samples of the generated one are dropped first (the toolkit: `OFFSET`); the longer one is cut. Raises
    DataError for silence, which has no spectrum to compare: the original divides by zero there.
    """
    sides = [np.asarray(wave, dtype=np.float64) for wave in (generated[offset:], reference)]
    sides = [side - side.mean() if len(side) else side for side in sides]
    peaks = [np.abs(side).max(initial=0) for side in sides]
    if min(peaks) == 0:
        raise DataError("a log-spectral distance needs two clips that are not silent")
    shorter = min(map(len, sides))
    first, second = (_magnitudes(side[:shorter] / peak) for side, peak in zip(sides, peaks, strict=True))
    return first, second


def lsd(spectrum: np.ndarray, reference: np.ndarray) -> float:
    """Log-spectral distance of two `spectra`: over frames, the mean root of the mean square of log10 power ratios."""
    ratio = np.log10(reference**2 / (spectrum + TINY) ** 2 + TINY) ** 2
    return float(np.sqrt(ratio.mean(axis=1)).mean())


def _magnitudes(wave: np.ndarray) -> np.ndarray:
    samples, window = torch.from_numpy(wave.astype(np.float32)), torch.hann_window(FFT)
    spectrum = torch.stft(samples, FFT, 160, window=window, center=True, pad_mode="constant", return_complex=True)
    return spectrum.abs().numpy().T.astype(np.float64)


def _windows(image: np.ndarray) -> np.ndarray:
    """The mean of every whole WINDOW × WINDOW window of an image."""
    total = np.pad(image, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    w = WINDOW
    return (total[w:, w:] - total[:-w, w:] - total[w:, :-w] + total[:-w, :-w]) / w**2
