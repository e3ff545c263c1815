"""How clips are played: matched in loudness, and one torn to pieces on purpose."""

import numpy as np

from milonga.core.records import Clip

TARGET = -23.0  # LUFS, the level of EBU R 128
PEAK = -1.0  # dB of full scale that no sample passes
BLOCK = 0.4  # seconds that loudness is gated by (ITU-R BS.1770)
GRAIN = 0.06  # seconds of the pieces that a broken clip is cut into
LEVELS = 4  # of amplitude, on either side of zero, that are left of it


def loudness(clip: Clip) -> float | None:
    """Integrated loudness in LUFS by ITU-R BS.1770-4; None for silence. A shorter clip than 0.4 s is one block."""
    from pyloudnorm import Meter

    # One sample short: pyloudnorm compares in seconds, and a block of the clip's very length may round above it.
    block = min(BLOCK, (len(clip.waveform) - 1) / clip.rate)
    if len(clip.waveform) < 2 or not np.any(clip.waveform):
        return None
    found = float(Meter(clip.rate, block_size=block).integrated_loudness(clip.waveform.astype(np.float64)))
    return found if np.isfinite(found) else None


def gain_of(clip: Clip, lufs: float | None) -> float:
    """The gain in dB that brings a clip to TARGET, or as near as PEAK allows; 0 for silence.

    A few clicks in silence may stay below the target: a limiter would bring them there, and would change the sound
    that is judged.
    """
    if lufs is None:
        return 0.0
    return min(TARGET - lufs, PEAK - 20 * float(np.log10(np.abs(clip.waveform).max())))


def amplified(clip: Clip, gain: float) -> Clip:
    """The clip louder by `gain` dB."""
    return Clip((clip.waveform * 10 ** (gain / 20)).astype(np.float32), clip.rate)


def broken(clip: Clip, seed: int) -> Clip:
    """The clip cut into 60 ms pieces, shuffled, every third silent, the rest crushed to a few levels.

    Nobody who listens calls this good, whatever the clip was.
    """
    size = max(1, round(GRAIN * clip.rate))
    pieces = [clip.waveform[start : start + size] for start in range(0, len(clip.waveform), size)]
    order = np.random.default_rng(seed).permutation(len(pieces))
    loud = np.abs(clip.waveform).max() or 1.0
    crushed = [np.sign(pieces[i]) * np.ceil(np.abs(pieces[i]) / loud * LEVELS) / LEVELS for i in order]
    torn = [piece * (place % 3 > 0) for place, piece in enumerate(crushed)]
    return Clip((0.5 * np.concatenate(torn)).astype(np.float32), clip.rate)
