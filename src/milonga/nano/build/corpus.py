"""What nano's networks are trained on: a corpus of rendered scenes, and tasks with their steps and learning rates.

The corpus has log-mel pictures with frame-level truth, in shards of safetensors that are written atomically: a shard
that exists is finished, so rendering can be killed and started again. Captions are not stored: they are drawn anew from
a clip's scene whenever it is used. Every draw in a training derives from (seed, task, step).
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from milonga.core.ids import derive_seed
from milonga.core.records import Scene
from milonga.core.store import write_bytes
from milonga.maths.mel import MelSettings, log_mel, normalise
from milonga.nano.world import CLASSES, SECONDS, Sounding, draw_counts, draw_scene, render

# One front end for all of nano; hop 256 makes 4.096 s exactly 256 frames, three halvings of which the VAE takes.
MEL = MelSettings(hop=256)
FRAMES = 256
SHARD = 500
# Truth is stored at a quarter of the mel's frame rate: 64 frames of 64 ms, the tagger's resolution.
TRUTH_FRAMES = 64
Loss = Callable[[int], dict[str, torch.Tensor]]  # a step's number → named terms, of which "loss" is minimised


@dataclass(frozen=True)
class TrainTask:
    """A training of one network: `ema` is the decay of the weights' moving average (0: none)."""

    name: str
    steps: int
    batch_size: int
    lr: float
    warmup_steps: int = 50
    weight_decay: float = 0.01
    ema: float = 0.0
    checkpoint_every: int = 200

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step: linear up to `lr`, then a half cosine down to a twentieth of it."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def step_rng(seed: int, task: str, step: int) -> np.random.Generator:
    """The random generator of one step of one task."""
    return np.random.default_rng(derive_seed(seed, task, step))


@dataclass
class Corpus:
    """Clips as tensors: mels (N, 256, 64) float16, truth (N, 64, classes) uint8, their scenes and counts."""

    mels: torch.Tensor
    truth: torch.Tensor
    scenes: list[Scene]
    counts: list[dict[str, int]]

    def __len__(self) -> int:
        return len(self.scenes)

    def part(self, start: int, stop: int, stride: int = 1) -> "Corpus":
        """The clips from `start` up to `stop`, or every `stride`th of them."""
        chosen = slice(start, stop, stride)
        return Corpus(self.mels[chosen], self.truth[chosen], self.scenes[chosen], self.counts[chosen])

    def at(self, places: np.ndarray) -> "Corpus":
        """The clips at these places."""
        scenes, counts = [self.scenes[place] for place in places], [self.counts[place] for place in places]
        return Corpus(self.mels[places], self.truth[places], scenes, counts)

    def and_(self, other: "Corpus") -> "Corpus":
        """This corpus's clips, then the other's."""
        mels, truth = torch.cat([self.mels, other.mels]), torch.cat([self.truth, other.truth])
        return Corpus(mels, truth, self.scenes + other.scenes, self.counts + other.counts)


def sounding(seed: int, index: int) -> Sounding:
    """Clip number `index` of the corpus with this seed: a random scene, rendered."""
    rng = np.random.default_rng(derive_seed(seed, "scene", index))
    scene = draw_scene(rng)
    return render(scene, clip_seed(seed, index), draw_counts(scene, rng))


def clip_seed(seed: int, index: int) -> int:
    """The seed that clip number `index` is rendered with."""
    return derive_seed(seed, "clip", index)


def frame_truth(clip: Sounding) -> np.ndarray:
    """Which classes sound in which of 64 frames, shape (64, classes), uint8."""
    centres = (np.arange(TRUTH_FRAMES) + 0.5) * SECONDS / TRUTH_FRAMES
    truth = np.zeros((TRUTH_FRAMES, len(CLASSES)), dtype=np.uint8)
    for event in clip.events:
        truth[(centres >= event.onset) & (centres <= event.offset), CLASSES.index(event.label)] = 1
    return truth


def write_shard(path: Path, seed: int, first: int) -> None:
    """Renders `SHARD` clips from number `first` on into one file."""
    clips = [sounding(seed, first + offset) for offset in range(SHARD)]
    waves = torch.from_numpy(np.stack([normalise(clip.clip.waveform) for clip in clips]))
    mels = torch.cat([log_mel(part, MEL) for part in waves.split(50)]).half()
    truth = torch.from_numpy(np.stack([frame_truth(clip) for clip in clips]))
    scenes = json.dumps([[clip.scene, clip.counts] for clip in clips])
    write_bytes(path, save({"mels": mels, "truth": truth}, metadata={"scenes": scenes}))


def shard_paths(folder: Path, seed: int, clips: range) -> list[tuple[Path, int]]:
    """The path of each shard that holds some of `clips`, and the number of its first clip."""
    firsts = range(clips.start - clips.start % SHARD, clips.stop, SHARD)
    return [(folder / f"{seed}-{first:06d}.safetensors", first) for first in firsts]


def build(folder: Path, seed: int, clips: range, done: Callable[[int], None]) -> None:
    """Renders the missing shards of some clips; `done(n)` is called after each with its number of clips.

    Several processes may work on one folder: each skips what another has finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path, first in shard_paths(folder, seed, clips):
        if not path.exists():
            write_shard(path, seed, first)
        done(len(range(max(first, clips.start), min(first + SHARD, clips.stop))))


def read_shard(path: Path) -> tuple[torch.Tensor, torch.Tensor, list[tuple[Scene, dict[str, int]]]]:
    """One shard's mels, truth, and (scene, counts) of every clip."""
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["scenes"])
        rows = [(tuple(tuple(group) for group in scene), counts) for scene, counts in described]
        return file.get_tensor("mels"), file.get_tensor("truth"), rows


def load(folder: Path, seed: int, clips: range) -> Corpus:
    """The rendered clips of these numbers as one `Corpus`.

    Raises FileNotFoundError for a shard that `build` has not rendered.
    """
    shards = [read_shard(path) for path, _ in shard_paths(folder, seed, clips)]
    rows = [row for shard in shards for row in shard[2]]
    corpus = Corpus(
        torch.cat([shard[0] for shard in shards]),
        torch.cat([shard[1] for shard in shards]),
        [scene for scene, _ in rows],
        [counts for _, counts in rows],
    )
    offset = clips.start % SHARD
    return corpus.part(offset, offset + len(clips))
