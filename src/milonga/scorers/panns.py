"""PANNs Cnn14 (Kong et al. 2020), the classifier of KL, inception score and FD, at 16 or 32 kHz.

Layers are named as in the original files, so the keys of our `state_dict` are theirs. Departures: the spectrum is an
FFT, where the original convolves with constants that its files carry (they are stored unchanged, and checked on
loading); what serves training alone (SpecAugment, mixup, dropout) is left out.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from milonga.core.errors import RecipeError
from milonga.core.records import Clip
from milonga.core.weights import fill, read_weights
from milonga.maths.devices import AUTO, exact, placed, where
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

        `blocks` may replace the six blocks by a function with the same output.
        """
        # In float32 an FFT and the original's convolution round differently where a band is nearly silent.
        mels = log_mel(waveforms.to(exact(waveforms.device)).double(), self.mel).to(waveforms)
        picture = self.bn0(mels.transpose(1, 2)).transpose(1, 2).unsqueeze(1)
        frames = (blocks or nn.Sequential(*self.blocks()))(picture).mean(dim=3)
        embeddings = relu(self.fc1(frames.amax(dim=2) + frames.mean(dim=2)))
        return embeddings, self.fc_audioset(embeddings)

    def blocks(self) -> list[ConvBlock]:
        """The six blocks, in order."""
        return [
            self.conv_block1,
            self.conv_block2,
            self.conv_block3,
            self.conv_block4,
            self.conv_block5,
            self.conv_block6,
        ]


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
        rows = map_by_length(
            lambda batch: list(zip(*self.network(batch, self._blocks), strict=True)),
            waves,
            BATCH,
            device=where(self.network),
        )
        embeddings, logits = zip(*rows, strict=True)
        return torch.stack(embeddings).cpu().numpy(), torch.stack(logits).cpu().numpy()


def load_panns(path: Path, rate: int = 16000, width: int = 64, device: Any = AUTO) -> PannsEmbedder:
    """Cnn14 for 16 or 32 kHz from an original `.pth` (weights under `model`), or a `.safetensors` with the same keys,
    on a device.

    Raises CheckpointError naming the file and the key that does not fit, also where the file is of the other rate;
    RecipeError for another rate.
    """
    if rate not in FRONT_ENDS:
        raise RecipeError(f"Cnn14 takes 16000 or 32000 Hz, not at {rate}")
    with torch.device("meta"):
        network = Cnn14(FRONT_ENDS[rate], width)
    fill(network, read_weights(path, container="model"), path)
    return PannsEmbedder(f"panns-cnn14-{rate // 1000}k", placed(network, device))
