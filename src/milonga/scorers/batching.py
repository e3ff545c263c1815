"""What every listener does first: clips to batches of waveforms or log-mel pictures, each clip at its own length."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from milonga.core.audio import resample
from milonga.core.errors import AudioError
from milonga.core.records import Clip
from milonga.maths.mel import MelSettings, fit, log_mel

Answer = TypeVar("Answer")
BATCH = 64  # clips heard at once, at most
SHORTEST = 2.0  # seconds, to which the published metrics pad a clip


def heard_by(
    listen: Callable[[Tensor], Sequence[Answer]], clips: Sequence[Clip], settings: MelSettings
) -> list[Answer]:
    """The row of `listen(pictures)` that belongs to each clip; pictures are log-mels (B, frames, bands).

    Clips are resampled where their rate differs. Only those shorter than a window are padded, to one window.
    """
    waves = [resample(clip, settings.rate).waveform for clip in clips]
    waves = [fit(wave, max(len(wave), settings.fft)) for wave in waves]
    return by_length(lambda batch: listen(log_mel(batch, settings)), waves)


def by_length(
    listen: Callable[[Tensor], Sequence[Answer]], waves: Sequence[np.ndarray], batch: int = BATCH
) -> list[Answer]:
    """The row of `listen(waveforms)` that belongs to each of `waves`; waveforms are (B, samples), B at most `batch`.

    Waves of one length share a batch: one padded to the length of another would be heard with silence not its own.
    """
    answers: dict[int, Answer] = {}
    for length in dict.fromkeys(map(len, waves)):
        places = [place for place, wave in enumerate(waves) if len(wave) == length]
        for start in range(0, len(places), batch):
            part = places[start : start + batch]
            answers |= zip(part, listen(torch.from_numpy(np.stack([waves[place] for place in part]))), strict=True)
    return [answers[place] for place in range(len(waves))]


def measured(clip: Clip, rate: int) -> np.ndarray:
    """The waveform at `rate` Hz that the published metrics are taken of (EVALUATION §1a): without its mean, at least
    two seconds long, otherwise at its own length and level.

    Departures: the mono rule is `core.audio`'s (the mean of the channels, not the first) and so is the resampler.
    Raises AudioError for a clip that is empty or has samples that are not finite: the original hears another one.
    """
    if not len(clip.waveform) or not np.isfinite(clip.waveform).all():
        raise AudioError("a clip to measure is empty or has NaN or infinite samples: make or decode it again")
    centred = (clip.waveform - clip.waveform.mean()).astype(np.float32)
    wave = resample(Clip(centred, clip.rate), rate).waveform
    return fit(wave, max(len(wave), round(SHORTEST * rate)))
