"""VGGish (Hershey et al. 2017), the embedding of FAD: signed rows of 128, one for each 0.96 s.

Layers are numbered as in `vggish-10086976.pth`, so the keys of our `state_dict` are the file's. As in the published
metric the last ReLU and PCA are left out; Google's own FAD has both.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from milonga.core.records import Clip
from milonga.core.weights import fill, read_weights
from milonga.maths.devices import AUTO, batch_size, placed, where
from milonga.scorers.mkldnn import Blocked, of_layers, usable
from milonga.scorers.waveform import metric_waveform

RATE, WINDOW, HOP, FFT = 16000, 400, 160, 512
BANDS, LOW, HIGH, OFFSET = 64, 125.0, 7500.0, 0.01
FRAMES = 96  # of an example: 0.96 s
BATCH = 64  # examples at once


def mel_bands() -> np.ndarray:
    """HTK's triangles, which are straight in mel and not normalised, shape (257, 64), float64; DC counts nowhere."""
    bins = _mel(np.linspace(0, RATE / 2, FFT // 2 + 1))[:, None]
    edges = np.linspace(_mel(LOW), _mel(HIGH), BANDS + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    bands = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    bands[0] = 0
    return bands


def _mel(hertz: float | np.ndarray) -> np.ndarray:
    return 1127 * np.log1p(np.asarray(hertz) / 700)


def examples(waveform: np.ndarray) -> np.ndarray:
    """Log-mel pictures (examples, 96, 64), float32, of a waveform (samples,) at 16 kHz; the incomplete tail is dropped.

    Frames of 400 samples every 160, without centring or padding; magnitudes, ln(mel + 0.01), all in float64.
    A waveform shorter than one example has none.
    """
    waveform = np.pad(waveform, (0, max(0, WINDOW - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), WINDOW)[::HOP]
    frames = frames[: len(frames) // FRAMES * FRAMES]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    magnitudes = np.abs(np.fft.rfft(frames * window, FFT))
    return np.log(magnitudes @ mel_bands() + OFFSET).reshape(-1, FRAMES, BANDS).astype(np.float32)


class Vggish(nn.Module):
    """Examples in, rows of 128 out; `width` is the channels of the first convolution, 64 as published."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            nn.MaxPool2d(2),
            *_convolution(2 * width, 4 * width),
            *_convolution(4 * width, 4 * width),
            nn.MaxPool2d(2),
            *_convolution(4 * width, 8 * width),
            *_convolution(8 * width, 8 * width),
            nn.MaxPool2d(2),
        )
        self.embeddings = nn.Sequential(
            nn.Linear(FRAMES // 16 * (BANDS // 16) * 8 * width, 64 * width),
            nn.ReLU(),
            nn.Linear(64 * width, 64 * width),
            nn.ReLU(),
            nn.Linear(64 * width, 128),
        )

    def forward(self, pictures: Tensor, features: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(B, 96, 64) → (B, 128); pictures are flattened in the order time, frequency, channel.

        `features` may replace the convolutions by a function with the same output.
        """
        hidden = (features or self.features)(pictures.unsqueeze(1))
        return self.embeddings(hidden.permute(0, 2, 3, 1).flatten(1))


def _convolution(inside: int, outside: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU()


class VggishEmbedder:
    """The rows of each clip by a `Vggish`."""

    name = "vggish"

    def __init__(self, network: Vggish) -> None:
        self.network = network.eval()

    @cached_property
    def _features(self) -> Blocked | None:
        return of_layers(self.network.features) if usable(self.network) else None

    def embed(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        """For each clip of any length and rate its rows (seconds // 0.96, 128), as they are for the clip alone.

        FAD stacks the rows of all clips. Raises AudioError for a clip that is empty or not finite.
        """
        return self.of_waves([metric_waveform(clip, RATE) for clip in clips])

    @torch.no_grad()
    def of_waves(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The same of waveforms (samples,) that are ready at 16 kHz; too short ones, unpadded, have no rows."""
        pictures = [examples(wave) for wave in waves]
        device = where(self.network)
        batches = torch.from_numpy(np.concatenate(pictures)).split(batch_size(BATCH, device))
        rows = torch.cat([self.network(batch.to(device), self._features).cpu() for batch in batches])
        return [part.numpy() for part in rows.split([len(picture) for picture in pictures])]


def load_vggish(path: Path, width: int = 64, device: Any = AUTO) -> VggishEmbedder:
    """VGGish from the original `.pth` (nothing but its weights) or a `.safetensors` with the same keys, on a device.

    Raises CheckpointError naming the file and the key that does not fit.
    """
    with torch.device("meta"):
        network = Vggish(width)
    fill(network, read_weights(path), path)
    return VggishEmbedder(placed(network, device))
