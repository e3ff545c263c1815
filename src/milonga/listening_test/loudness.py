"""Loudness of clips for playback: every clip is brought to the same level before people hear it."""

import numpy as np

from milonga.core.records import Clip

TARGET = -23.0  # LUFS, the level of EBU R 128
PEAK = -1.0  # dBFS, the highest peak of a clip
BLOCK = 0.4  # seconds of a gating block (ITU-R BS.1770)


def loudness(clip: Clip) -> float | None:
    """Integrated loudness in LUFS by ITU-R BS.1770-4; None for silence. A clip shorter than 0.4 s is one block."""
    from pyloudnorm import Meter

    # One sample short: pyloudnorm compares in seconds, and a block of the clip's exact length may round above it.
    block = min(BLOCK, (len(clip.waveform) - 1) / clip.rate)
    if len(clip.waveform) < 2 or not np.any(clip.waveform):
        return None
    lufs = float(Meter(clip.rate, block_size=block).integrated_loudness(clip.waveform.astype(np.float64)))
    return lufs if np.isfinite(lufs) else None


def playback_gain(clip: Clip, lufs: float | None) -> float:
    """The gain in dB that brings a clip to TARGET, or as near as PEAK allows; 0 for silence.

    A few clicks in silence may stay below the target: a limiter would bring them there, but would change the sound
    that is judged.
    """
    if lufs is None:
        return 0.0
    return min(TARGET - lufs, PEAK - 20 * float(np.log10(np.abs(clip.waveform).max())))


def amplified(clip: Clip, gain: float) -> Clip:
    """The clip with `gain` dB applied."""
    return Clip((clip.waveform * 10 ** (gain / 20)).astype(np.float32), clip.rate)
