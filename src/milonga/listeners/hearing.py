"""What every listener does first: clips to one batch of log-mel pictures."""

from collections.abc import Sequence

import numpy as np
import torch

from milonga.core.audio import resample
from milonga.core.records import Clip
from milonga.maths.mel import MelSettings, fit, log_mel


def mels_of(clips: Sequence[Clip], settings: MelSettings) -> torch.Tensor:
    """Log-mel pictures (N, frames, bands) of clips, resampled where their rate differs, padded to the longest."""
    waves = [resample(clip, settings.rate).waveform for clip in clips]
    longest = max(len(wave) for wave in waves)
    return log_mel(torch.from_numpy(np.stack([fit(wave, longest) for wave in waves])), settings)
