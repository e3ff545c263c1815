"""What every listener does first: clips to batches of log-mel pictures, each clip at its own length."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from milonga.core.audio import resample
from milonga.core.records import Clip
from milonga.maths.mel import MelSettings, fit, log_mel

Answer = TypeVar("Answer")


def heard_by(
    listen: Callable[[torch.Tensor], Sequence[Answer]], clips: Sequence[Clip], settings: MelSettings
) -> list[Answer]:
    """The row of `listen(pictures)` that belongs to each clip; pictures are log-mels (B, frames, bands).

    Clips are resampled where their rate differs. Those of one length share a batch: a clip padded to the length of
    another would be heard with silence that is not its own. Only clips shorter than a window are padded, to one window.
    """
    waves = [resample(clip, settings.rate).waveform for clip in clips]
    waves = [fit(wave, max(len(wave), settings.fft)) for wave in waves]
    answers: dict[int, Answer] = {}
    for length in dict.fromkeys(map(len, waves)):
        places = [place for place, wave in enumerate(waves) if len(wave) == length]
        pictures = log_mel(torch.from_numpy(np.stack([waves[place] for place in places])), settings)
        answers |= zip(places, listen(pictures), strict=True)
    return [answers[place] for place in range(len(waves))]
