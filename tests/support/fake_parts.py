"""Parts that need no weights: a model that makes noise from seeds, scorers that read the words, and a small recipe."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.config import Asking
from milonga.core.records import Clip, Prompt, Request

RECIPE = """
name = "fake"
seed = 3
[models]
model = "noise"
scorers = ["one", "two"]
[prompts]
sources = ["words:10"]
[plan]
shard_size = 8
perturber = "shout"
[[plan.strategies]]
name = "1"
steps = [4, 4]
guidance = 3.0
[[plan.strategies]]
name = "2"
negatives = "perturbed"
num_negatives = 2
steps = [4]
guidance = 3.0
"""


class NoiseModel:
    """Noise from each request's seed; `log` gets a line per clip, and `slow` seconds pass for each."""

    name = "noise"
    rate = 8000

    def __init__(self, log: Path | None = None, slow: float = 0.0, silent: bool = False) -> None:
        self.log, self.slow, self.silent = log, slow, silent

    def generate(self, requests: Sequence[Request]) -> list[Clip]:
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Clip:
        time.sleep(self.slow)
        if self.log:
            with self.log.open("a") as file:
                file.write(request.id + "\n")
        wave = np.random.default_rng(request.seed).uniform(-0.5, 0.5, 200).astype(np.float32)
        if self.silent and not request.faithful:
            wave[0] = np.nan
        return Clip(wave, self.rate)


class LoudScorer:
    """A number from the clip and its text, the same every time."""

    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        return np.array([self._one(clip, text) for clip, text in zip(clips, texts, strict=True)])

    def _one(self, clip: Clip, text: str) -> float:
        digest = hashlib.sha256(clip.waveform.tobytes() + text.encode() + self.name.encode()).digest()
        return digest[0] / 255


class Shouter:
    name = "shout"

    def perturb(self, prompt: Prompt, count: int, temporal: bool, seed: int) -> list[str]:
        return [f"{prompt.text} and thing {n}" for n in range(count)]


class FakeParts:
    """The registry's functions, with `model` as every model."""

    device = "cpu"

    def __init__(self, model: NoiseModel | None = None, weights: str = "w") -> None:
        self.model, self.weights = model or NoiseModel(), weights

    def load(
        self, name: str, scheduler: str | None = None, precision: str = "fp32", seconds: float | None = None
    ) -> NoiseModel:
        return self.model

    def scorer(self, name: str) -> LoudScorer:
        return LoudScorer(name)

    def prompt_source(self, source: str) -> list[Prompt]:
        return [Prompt.of(f"sound number {n}", source) for n in range(int(source.partition(":")[2]))]

    def perturber(self, name: str, asking: Asking | None = None) -> Shouter:
        return Shouter()

    def fingerprint(self, name: str) -> str:
        return self.weights if name == "noise" else name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling look for these
            raise AttributeError(name)
        raise AssertionError(f"no test should ask for {name}")
