"""The tagger: a PANNs-style convolutional network with frame-level outputs, which detects what sounds and when.

After Kong et al. 2020 (PANNs, the DecisionLevelMax family): batch norm over mel bands, blocks of two 3×3 convolutions
and average pooling, the mean over frequency, and a linear layer on every remaining frame; a clip's posterior is the
maximum over its frames. Departure: a recurrent-free temporal convolution before the outputs, and few channels.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from milonga.core.errors import CheckpointError, brief
from milonga.core.records import Clip, Event
from milonga.maths.devices import AUTO, placed, where
from milonga.maths.mel import MelSettings, log_mel
from milonga.maths.resampling import resample_waves
from milonga.scorers.waveform import map_by_length, mel_waveforms


class ConvBlock(nn.Module):
    """Two 3×3 convolutions with batch norm and ReLU, then average pooling by `pool` (time, frequency)."""

    def __init__(self, inside: int, outside: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.bn2 = nn.BatchNorm2d(outside)
        self.pool = pool

    def forward(self, picture: Tensor) -> Tensor:
        """(B, inside, T, F) → (B, outside, T / pool[0], F / pool[1])."""
        picture = relu(self.bn1(self.conv1(picture)))
        return avg_pool2d(relu(self.bn2(self.conv2(picture))), self.pool)


class FrameTagger(nn.Module):
    """Log-mel pictures in, one row of class logits per frame out, and an embedding of the whole clip."""

    def __init__(self, classes: int, bands: int, channels: Sequence[int], pools: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm1d(bands)
        widths = [1, *channels]
        blocks = zip(widths[:-1], widths[1:], pools, strict=True)
        self.blocks = nn.ModuleList(ConvBlock(inside, outside, (pool[0], pool[1])) for inside, outside, pool in blocks)
        self.context = nn.Conv1d(channels[-1], channels[-1], 5, padding=2)
        self.answer = nn.Linear(channels[-1], classes)

    def hidden(self, mels: Tensor) -> Tensor:
        """(B, T, bands) → (B, T', D), the features of each frame."""
        picture = self.bn0(mels.transpose(1, 2)).transpose(1, 2).unsqueeze(1)
        for block in self.blocks:
            picture = block(picture)
        return relu(self.context(picture.mean(dim=3))).transpose(1, 2)

    def forward(self, mels: Tensor) -> Tensor:
        """(B, T, bands) → logits (B, T', classes)."""
        return self.answer(self.hidden(mels))

    def embed(self, mels: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, D), the mean plus the maximum over time (PANNs' pooling), and clip logits (B, classes)."""
        frames = self.hidden(mels)
        return frames.mean(dim=1) + frames.amax(dim=1), self.answer(frames).amax(dim=1)

    def embed_rows(self, mels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The same clip by clip: (embedding (D,), logits (classes,)) of each of B."""
        return list(zip(*self.embed(mels), strict=True))


def events_of(posterior: np.ndarray, classes: Sequence[str], seconds: float, threshold: float) -> list[Event]:
    """The events in frame posteriors (T, K): each class whose maximum passes `threshold`, from its first frame at
    half of that maximum or more to its last."""
    step = seconds / len(posterior)
    events = []
    for place in np.flatnonzero(posterior.max(axis=0) >= threshold).tolist():
        active = np.flatnonzero(posterior[:, place] >= 0.5 * posterior[:, place].max())
        events.append(Event(label=classes[place], onset=active[0] * step, offset=(active[-1] + 1) * step))
    return sorted(events, key=lambda event: (event.onset, event.label))


class EventTagger:
    """A `Tagger` around a `FrameTagger`: clips in, events, embeddings and logits out."""

    def __init__(
        self, name: str, network: FrameTagger, classes: Sequence[str], mel: MelSettings, threshold: float
    ) -> None:
        self.name = name
        self.network = network.eval().requires_grad_(False)
        self.classes = tuple(classes)
        self.mel = mel
        self.threshold = threshold

    @torch.no_grad()
    def posteriors(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        """Each clip's frame posteriors, shape (T', K)."""
        waves = mel_waveforms(clips, self.mel)
        device = where(self.network)
        return map_by_length(
            lambda mels: list(torch.sigmoid(self.network(mels).float()).cpu().numpy()),
            waves,
            mel=self.mel,
            device=device,
        )

    def wave_logits(self, waves: Tensor, rate: int) -> Tensor:
        """The frame logits of waveforms (B, samples) at `rate` Hz, shape (B, T', K), with gradients by them."""
        waves = resample_waves(waves.to(where(self.network)), rate, self.mel.rate)
        return self.network(log_mel(waves, self.mel))

    def detect(self, clips: Sequence[Clip]) -> list[list[Event]]:
        """The events detected in each clip, sorted by onset."""
        rows = zip(self.posteriors(clips), clips, strict=True)
        return [events_of(posterior, self.classes, clip.seconds, self.threshold) for posterior, clip in rows]

    @torch.no_grad()
    def features(self, clips: Sequence[Clip]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (N, D) and class logits (N, K)."""
        waves, device = mel_waveforms(clips, self.mel), where(self.network)
        rows = map_by_length(self.network.embed_rows, waves, mel=self.mel, device=device)
        embeddings, logits = zip(*rows, strict=True)
        return torch.stack(embeddings).float().cpu().numpy(), torch.stack(logits).float().cpu().numpy()


def save_tagger(folder: Path, network: FrameTagger, config: dict[str, Any]) -> None:
    """Writes `config.json` (network arguments, classes, mel settings, threshold) and float16 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(
        {key: value.half().contiguous() for key, value in network.state_dict().items()}, folder / "model.safetensors"
    )


def load_tagger(folder: Path, name: str, device: Any = AUTO) -> EventTagger:
    """The tagger that `save_tagger` wrote, on a device.

    Raises CheckpointError naming the file that is missing or does not fit.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        network = FrameTagger(**config["network"])
        state = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
        network.load_state_dict(state)
        if config["network"]["classes"] != len(config["classes"]):
            raise ValueError("config.json names more or fewer classes than the network has")
        return EventTagger(
            name, placed(network, device), config["classes"], MelSettings(**config["mel"]), config["threshold"]
        )
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename} is missing: {folder} holds no tagger") from None
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no usable tagger: {brief(error)}") from None
