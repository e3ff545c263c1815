"""What a player shows of a clip: its waveform, its mel picture and its level."""

from base64 import b64encode
from io import BytesIO
from typing import Any

import numpy as np

from milonga.core.records import Clip

POINTS = 480  # of a waveform: as many pairs of lowest and highest sample
COLUMNS, BANDS, LEVELS = 160, 48, 48  # of a mel picture: its pixels, and its colours
RANGE = 7.5  # natural-log units shown below a picture's loudest point (65 dB)
BLOCK = 0.4  # seconds of a gating block (ITU-R BS.1770)
# The colour map magma in LEVELS steps, RGB: even steps of loudness look like even steps of brightness.
MAGMA = bytes.fromhex(
    "00000402020b0504160a0822100b2d160f3b1d11472512552d116138106c400f7449107852137c5a167e641a806b1d81"
    "7521817c23828627818e2a81962c80a02f7fa8327db2357bba3878c43c75cc3f71d5446ddc4869e34e65ea5661ef5d5e"
    "f4675cf7705cf97b5dfb8560fc9065fd9a6afea36ffeae77feb77efec287fecc8ffed799fde0a1fdebacfcf4b6fcfdbf"
)


def clip_view(clip: Clip) -> dict[str, Any]:
    """What the pages' player draws of a clip, as JSON: seconds, sampling rate, waveform, mel picture, level.

    `points` are the lowest and the highest sample of up to POINTS equal parts, in turn, in per cent of full scale;
    `picture` is a data URI; `lufs` and `peak` (dBFS) are None for silence.
    """
    wave = clip.waveform
    parts = np.array_split(wave, min(POINTS, len(wave)))
    lufs, peak = loudness(clip), float(np.abs(clip.samples).max())
    return {
        "seconds": len(wave) / clip.rate,
        "rate": clip.rate,
        "points": [round(100 * float(edge(part)), 1) for part in parts for edge in (np.min, np.max)],
        "picture": "data:image/png;base64," + b64encode(mel_picture(clip, 2 * COLUMNS)).decode(),
        "lufs": None if lufs is None else round(lufs, 1),
        "peak": round(20 * float(np.log10(peak)), 1) if peak else None,
    }


def loudness(clip: Clip) -> float | None:
    """Integrated loudness in LUFS by ITU-R BS.1770-4; None for silence. A clip shorter than 0.4 s is one block."""
    from pyloudnorm import Meter

    # One sample short: pyloudnorm compares in seconds, and a block of the clip's exact length may round above it.
    block = min(BLOCK, (len(clip.waveform) - 1) / clip.rate)
    if len(clip.waveform) < 2 or not np.any(clip.waveform):
        return None
    lufs = float(Meter(clip.rate, block_size=block).integrated_loudness(clip.samples.astype(np.float64)))
    lufs -= 10 * np.log10(clip.samples.shape[1])  # BS.1770 sums channels, and one channel is played on both speakers
    return lufs if np.isfinite(lufs) else None


def mel_picture(clip: Clip, width: int = COLUMNS) -> bytes:
    """A PNG of the clip's log-mel, low sounds at the bottom, up to `width` × BANDS pixels, in even colours."""
    import torch

    from milonga.maths.mel import MelSettings, log_mel

    settings = MelSettings(rate=clip.rate, hop=256, bands=BANDS, low=40.0, high=min(8000.0, clip.rate / 2))
    wave = np.pad(clip.waveform, (0, max(0, 2 * settings.fft - len(clip.waveform)))).astype(np.float32)
    mel = log_mel(torch.from_numpy(wave)[None], settings)[0].numpy()
    groups = np.array_split(np.arange(len(mel)), min(width, len(mel)))
    columns = np.stack([mel[group].mean(axis=0) for group in groups], axis=1)
    top = max(float(columns.max()), np.log(settings.floor) + RANGE)
    scaled = np.clip((columns - (top - RANGE)) / RANGE, 0, 1)
    return png(np.rint(scaled[::-1] * (LEVELS - 1)).astype(np.uint8))


def png(pixels: np.ndarray) -> bytes:
    """An indexed PNG file: pixels (H, W) uint8 are places in MAGMA."""
    from PIL import Image

    image, buffer = Image.frombytes("P", pixels.shape[::-1], pixels.tobytes()), BytesIO()
    image.putpalette(MAGMA)
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
