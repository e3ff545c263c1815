"""Mel pictures as small PNG data URIs, and bytes as data URIs: what lets the page stand alone."""

import struct
import zlib
from base64 import b64encode
from functools import lru_cache

import numpy as np

from milonga.core.records import Clip

COLUMNS, BANDS, LEVELS = 160, 48, 48
RANGE = 7.5  # natural-log units shown below a picture's loudest point (65 dB)


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as a `data:` URI of a media type."""
    return f"data:{kind};base64,{b64encode(data).decode()}"


def mel_picture(clip: Clip) -> bytes:
    """A PNG of the clip's log-mel, low sounds at the bottom, COLUMNS × BANDS pixels, in even colours."""
    import torch

    from milonga.maths.mel import MelSettings, log_mel

    settings = MelSettings(rate=clip.rate, hop=256, bands=BANDS, low=40.0, high=min(8000.0, clip.rate / 2))
    wave = np.pad(clip.waveform, (0, max(0, 2 * settings.fft - len(clip.waveform)))).astype(np.float32)
    mel = log_mel(torch.from_numpy(wave)[None], settings)[0].numpy()
    columns = np.stack([mel[group].mean(axis=0) for group in _groups(len(mel))], axis=1)
    top = max(float(columns.max()), np.log(settings.floor) + RANGE)
    scaled = np.clip((columns - (top - RANGE)) / RANGE, 0, 1)
    return png(np.rint(scaled[::-1] * (LEVELS - 1)).astype(np.uint8), palette())


def png(pixels: np.ndarray, colours: np.ndarray) -> bytes:
    """An indexed PNG file: pixels (H, W) uint8 are places in `colours` (N, 3) uint8."""
    height, width = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", colours.tobytes()), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


@lru_cache(maxsize=1)
def palette() -> np.ndarray:
    """Matplotlib's magma in LEVELS steps, (LEVELS, 3) uint8: even steps of loudness look like even steps of light."""
    from matplotlib import colormaps

    colours = colormaps["magma"](np.linspace(0, 1, LEVELS))
    return np.rint(255 * np.asarray(colours)[:, :3]).astype(np.uint8)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _groups(frames: int) -> list[np.ndarray]:
    return np.array_split(np.arange(frames), min(COLUMNS, frames))
