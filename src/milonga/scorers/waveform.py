"""From clips to what a network is given: batches of equal length, and the waveforms of the published metrics.

How a file becomes a waveform is the largest source of disagreement between published numbers. Protocol `milonga` mixes
channels and resamples by soxr; `audioldm` and `tango` do what those toolkits' code does, so that their numbers can be
reproduced. They take the first channel, resample by other filters, and `tango` makes two mistakes: a file at 32 kHz is
halved twice, one at 48 kHz is decimated without a filter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from milonga.core.audio import resample
from milonga.core.errors import AudioError, RecipeError
from milonga.core.records import Clip
from milonga.maths.devices import batch_size
from milonga.maths.mel import MelSettings, fit, log_mel
from milonga.maths.resampling import kaiser_best, windowed_sinc

Row = TypeVar("Row")
Rule = Callable[[np.ndarray, int], np.ndarray]  # (samples, channels), rate → the waveform at 16 kHz
BATCH = 64  # clips at once, at most
RATE = 16000
CPU = torch.device("cpu")
SHORTEST = 2.0  # seconds, to which the published metrics pad a clip


def mel_waveforms(clips: Sequence[Clip], settings: MelSettings) -> list[np.ndarray]:
    """The waveform of each clip that log-mels of `settings` are taken of, at their sampling rate.

    Clips are resampled where their rate differs. Only those shorter than a window are padded, to one window. A clip
    that is a log-mel picture of these settings already is given as it is, (frames, bands). RecipeError for a picture of
    other settings.
    """
    inputs = []
    for clip in clips:
        if clip.mel is None:
            wave = resample(clip, settings.rate).waveform
            inputs.append(fit(wave, max(len(wave), settings.fft)))
        elif clip.mel_config == settings:
            inputs.append(clip.mel)
        else:
            raise RecipeError("a clip without a waveform can be scored in its own mel front end alone: decode it first")
    return inputs


def map_by_length(
    network: Callable[[Tensor], Sequence[Row]],
    waves: Sequence[np.ndarray],
    batch: int = BATCH,
    mel: MelSettings | None = None,
    device: torch.device = CPU,
) -> list[Row]:
    """The row of `network(waveforms)` that belongs to each of `waves`; waveforms are (B, samples) on `device`, B at
    most `batch` on a CPU.

    With `mel` the network is given their log-mels (B, frames, bands), or those pictures that are there instead of a
    waveform. Only waveforms of one length share a batch: padding would add silence to what a shorter one is scored by.
    """
    rows: dict[int, Row] = {}
    batch = batch_size(batch, device)
    for shape in dict.fromkeys(wave.shape for wave in waves):
        places = [place for place, wave in enumerate(waves) if wave.shape == shape]
        for start in range(0, len(places), batch):
            part = places[start : start + batch]
            inputs = torch.from_numpy(np.stack([waves[place] for place in part])).to(device)
            rows |= zip(part, network(log_mel(inputs, mel) if mel and len(shape) == 1 else inputs), strict=True)
    return [rows[place] for place in range(len(waves))]


def metric_waveform(clip: Clip, rate: int) -> np.ndarray:
    """The waveform (samples,) at `rate` Hz that the published metrics are taken of.

    It has no mean, is at least two seconds long, and otherwise keeps its length and level. Departures from the
    toolkits: mono is the mean of the channels, not the first, and the resampler is soxr. Raises AudioError for a clip
    that is empty or has samples that are not finite.
    """
    if not len(clip.waveform) or not np.isfinite(clip.waveform).all():
        raise AudioError("a clip to measure is empty or has NaN or infinite samples: make or decode it again")
    centred = (clip.waveform - clip.waveform.mean()).astype(np.float32)
    return _padded(resample(Clip(centred, clip.rate), rate).waveform, rate)


@dataclass(frozen=True)
class Loading:
    """A protocol's ways from a file to the waveform for PANNs, VGGish and mel images; in words, for protocol stamps."""

    name: str
    panns: Rule
    vggish: Rule
    image: Rule
    description: str
    generated_offset: int = 0
    ssim_span: float | None = None


def of_protocol(name: str) -> Loading:
    """The loading rules called `name`. Raises RecipeError naming those that there are."""
    if name not in LOADINGS:
        raise RecipeError(f"no protocol {name!r}: there are {', '.join(LOADINGS)}")
    return LOADINGS[name]


def _mixed(samples: np.ndarray, rate: int) -> np.ndarray:
    return metric_waveform(Clip(samples.mean(axis=1), rate), RATE)


def _first(samples: np.ndarray) -> np.ndarray:
    """The first channel without its mean."""
    return (samples[:, 0] - samples[:, 0].mean()).astype(np.float32)


def _padded(wave: np.ndarray, rate: int = RATE) -> np.ndarray:
    return fit(wave, max(len(wave), round(SHORTEST * rate)))


def _audioldm(samples: np.ndarray, rate: int) -> np.ndarray:
    return _padded(windowed_sinc(_first(samples), rate, RATE))


def _tango(samples: np.ndarray, rate: int) -> np.ndarray:
    wave = _first(samples)
    if rate == 48000:
        return _padded(wave[::3])
    return _padded(windowed_sinc(wave[::2] if rate == 32000 else wave, rate, RATE))


def _tango_vggish(samples: np.ndarray, rate: int) -> np.ndarray:
    wave = samples.astype(np.float64).mean(axis=1)
    return wave[::2] if rate == 32000 else kaiser_best(wave, rate, RATE)


def _image(samples: np.ndarray, rate: int) -> np.ndarray:
    return windowed_sinc(_first(samples), rate, RATE)


def _mixed_image(samples: np.ndarray, rate: int) -> np.ndarray:
    mono = samples.mean(axis=1)
    return resample(Clip((mono - mono.mean()).astype(np.float32), rate), RATE).waveform


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
