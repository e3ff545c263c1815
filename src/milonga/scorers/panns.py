"""PANNs (Kong et al. 2020), the classifiers of KL, inception score, FD and KAD: Cnn14 at 16 or 32 kHz, and
Wavegram-Logmel-CNN14 at 32 kHz, whose distances follow people's ratings best (Tailleur et al. 2024, arXiv 2403.17508).

Layers are named as in the original files, so the keys of our `state_dict` are theirs. Departures: the spectrum is an
FFT, where the original convolves with constants that its files carry (they are stored unchanged, and checked on
loading); what serves training alone (SpecAugment, mixup, dropout) is left out.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool1d, relu

from milonga.core.errors import RecipeError
from milonga.core.records import Clip
from milonga.core.weights import fill, read_weights
from milonga.maths.devices import AUTO, exact, full_precision, placed, where
from milonga.maths.mel import MelSettings, log_mel, mel_matrix
from milonga.scorers.mkldnn import Blocked, of_blocks, usable
from milonga.scorers.tagger import ConvBlock
from milonga.scorers.waveform import map_by_length, metric_waveform

CLASSES = 527  # of AudioSet
BATCH = 16  # clips at once: one of ten seconds takes some 60 MB in the first block

# Sampling rate → front end of Cnn14_16k_mAP=0.438.pth and of Cnn14_mAP=0.431.pth.
FRONT_ENDS = {
    16000: MelSettings(16000, 512, 160, 64, 50.0, 8000.0, power=2.0, floor=1e-10, decibels=True, tango=False),
    32000: MelSettings(32000, 1024, 320, 64, 50.0, 14000.0, power=2.0, floor=1e-10, decibels=True, tango=False),
}


class Cnn14(nn.Module):
    """Waveforms in, embeddings and class logits out; `width` is the channels of the first block, 64 as published."""

    def __init__(self, mel: MelSettings, width: int = 64) -> None:
        super().__init__()
        self.mel = mel
        cosines, sines = _waves(mel.fft)
        self.spectrogram_extractor = nn.ModuleDict(
            {"stft": nn.ModuleDict({"conv_real": Constants(weight=cosines), "conv_imag": Constants(weight=sines)})}
        )
        self.logmel_extractor = Constants(melW=mel_matrix(mel).T.contiguous())
        self.bn0 = nn.BatchNorm1d(mel.bands)
        self.conv_block1 = ConvBlock(1, width, (2, 2))
        self.conv_block2 = ConvBlock(width, 2 * width, (2, 2))
        self.conv_block3 = ConvBlock(2 * width, 4 * width, (2, 2))
        self.conv_block4 = ConvBlock(4 * width, 8 * width, (2, 2))
        self.conv_block5 = ConvBlock(8 * width, 16 * width, (2, 2))
        self.conv_block6 = ConvBlock(16 * width, 32 * width, (1, 1))
        self.fc1 = nn.Linear(32 * width, 32 * width)
        self.fc_audioset = nn.Linear(32 * width, CLASSES)

    def forward(self, waveforms: Tensor, blocks: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(B, samples), at least 31 hops of them → embeddings (B, 32·width), not negative, and logits (B, 527).

        `blocks` may replace those of `blocks()` by a function with the same output.
        """
        frames = (blocks or nn.Sequential(*self.blocks()))(self.picture(waveforms)).mean(dim=3)
        embeddings = relu(self.fc1(frames.amax(dim=2) + frames.mean(dim=2)))
        return embeddings, self.fc_audioset(embeddings)

    def picture(self, waveforms: Tensor) -> Tensor:
        """What the blocks are given, (B, channels, frames, bands): the normalised log-mels of (B, samples)."""
        # In float32 an FFT and the original's convolution round differently where a band is nearly silent.
        mels = log_mel(waveforms.to(exact(waveforms.device)).double(), self.mel).to(waveforms)
        return self.bn0(mels.transpose(1, 2)).transpose(1, 2).unsqueeze(1)

    def blocks(self) -> list[ConvBlock]:
        """The blocks behind the picture, in order."""
        return [
            self.conv_block1,
            self.conv_block2,
            self.conv_block3,
            self.conv_block4,
            self.conv_block5,
            self.conv_block6,
        ]


class WaveBlock(nn.Module):
    """Two convolutions over time, the second dilated by 2, with batch norm and ReLU, then a max pool by 4."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inside, outside, 3, padding=1, bias=False)
        self.conv2 = nn.Conv1d(outside, outside, 3, padding=2, dilation=2, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm1d(outside), nn.BatchNorm1d(outside)

    def forward(self, waves: Tensor) -> Tensor:
        """(B, inside, T) → (B, outside, T / 4)."""
        waves = relu(self.bn1(self.conv1(waves)))
        return max_pool1d(relu(self.bn2(self.conv2(waves))), 4)


class WavegramLogmelCnn14(Cnn14):
    """Cnn14 whose second block also sees a picture that is learnt from the waveform (Kong et al. 2020, section III-D).

    Departure: where the two pictures differ in length by a frame, which the original refuses, the longer one is cut.
    """

    def __init__(self, mel: MelSettings, width: int = 64) -> None:
        super().__init__(mel, width)
        self.pre_conv0 = nn.Conv1d(1, width, 11, stride=5, padding=5, bias=False)
        self.pre_bn0 = nn.BatchNorm1d(width)
        self.pre_block1 = WaveBlock(width, width)
        self.pre_block2 = WaveBlock(width, 2 * width)
        self.pre_block3 = WaveBlock(2 * width, 2 * width)
        self.pre_block4 = ConvBlock(4 * width // mel.bands, width, (2, 1))
        self.conv_block2 = ConvBlock(2 * width, 2 * width, (2, 2))

    def picture(self, waveforms: Tensor) -> Tensor:
        """The first block's output on the log-mels, and behind it the picture of the waveform, (B, 2·width, T, F)."""
        waves = relu(self.pre_bn0(self.pre_conv0(waveforms[:, None])))
        waves = self.pre_block3(self.pre_block2(self.pre_block1(waves)))
        wavegram = self.pre_block4(waves.unflatten(1, (-1, self.mel.bands // 2)).transpose(2, 3))
        mels = self.conv_block1(super().picture(waveforms))
        frames = min(mels.shape[2], wavegram.shape[2])
        return torch.cat([mels[:, :, :frames], wavegram[:, :, :frames]], dim=1)

    def blocks(self) -> list[ConvBlock]:
        """The blocks behind the two pictures, in order."""
        return super().blocks()[1:]


class Constants(nn.Module):
    """Constants that an original file carries: unused, but stored, so that a file can be written as it was read."""

    def __init__(self, **constants: Tensor) -> None:
        super().__init__()
        for name, constant in constants.items():
            self.register_buffer(name, constant)


def _waves(size: int) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of the Hann-windowed Fourier basis, each (size/2+1, 1, size), float32."""
    times = np.arange(size)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * times / size)
    basis = window * np.exp(-2j * np.pi * np.outer(np.arange(size // 2 + 1), times) / size)
    real, imaginary = (torch.from_numpy(part.astype(np.float32)).unsqueeze(1) for part in (basis.real, basis.imag))
    return real, imaginary


class PannsEmbedder:
    """Embeddings and class logits of clips by a `Cnn14`."""

    def __init__(self, name: str, network: Cnn14) -> None:
        self.name = name
        self.network = network.eval().requires_grad_(False)

    @cached_property
    def _blocks(self) -> Blocked | None:
        return of_blocks(self.network.blocks()) if usable(self.network) else None

    def features(self, clips: Sequence[Clip]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (N, 2048) and class logits (N, 527) of N clips of any length and rate, each as it is alone.

        Raises AudioError for a clip that is empty or not finite.
        """
        return self.of_waves([metric_waveform(clip, self.network.mel.rate) for clip in clips])

    @torch.no_grad()
    def of_waves(self, waves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The same of N waveforms (samples,) that are at the network's rate already."""
        device = where(self.network)
        with nullcontext() if self._blocks is None else full_precision(device):  # oneDNN's blocks have float32 weights
            rows = map_by_length(
                lambda batch: list(zip(*self.network(batch, self._blocks), strict=True)), waves, BATCH, device=device
            )
        embeddings, logits = zip(*rows, strict=True)
        return torch.stack(embeddings).float().cpu().numpy(), torch.stack(logits).float().cpu().numpy()


def load_panns(path: Path, rate: int = 16000, width: int = 64, device: Any = AUTO) -> PannsEmbedder:
    """Cnn14 for 16 or 32 kHz, or Wavegram-Logmel-CNN14, which its file's keys tell, on a device: from an original
    `.pth` (weights under `model`), or a `.safetensors` with the same keys.

    Raises CheckpointError naming the file and the key that does not fit, also where the file is of the other rate;
    RecipeError for another rate.
    """
    if rate not in FRONT_ENDS:
        raise RecipeError(f"Cnn14 takes 16000 or 32000 Hz, not at {rate}")
    tensors = read_weights(path, container="model")
    kind, name, rate = (
        (WavegramLogmelCnn14, "panns-wavegram-logmel-cnn14", 32000) if "pre_conv0.weight" in tensors
        else (Cnn14, "panns-cnn14", rate)
    )  # fmt: skip
    with torch.device("meta"):
        network = kind(FRONT_ENDS[rate], width)
    fill(network, tensors, path)
    return PannsEmbedder(f"{name}-{rate // 1000}k", placed(network, device))
