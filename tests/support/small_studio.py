"""A studio of two systems that make tones at once or slowly, and one that cannot be loaded; also as a process.

`python small_studio.py FOLDER PORT SECONDS` serves it; SECONDS pass for each step of the slow ones.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from milonga.core.errors import CheckpointError
from milonga.core.records import Clip, Request
from milonga.studio.studio import Studio
from milonga.studio.worker import System

RATE = 8000
HOSTILE = "<script>document.title='owned'</script> a bell & \"quotes\" '<img src=x onerror=alert(1)>'"


class Tones:
    """A tone whose pitch is the seed's, with latents; `pause` seconds pass at each step."""

    name, rate = "tones", RATE

    def __init__(self, pause: float = 0.0, seconds: float = 0.5) -> None:
        self.pause, self.seconds, self.denoiser = pause, seconds, self

    def generate(
        self, requests: Sequence[Request], on_step: Callable[[int], None] | None = None, negative: str = ""
    ) -> list[Clip]:
        return [self._one(request, on_step) for request in requests]

    def _one(self, request: Request, on_step: Callable[[int], None] | None) -> Clip:
        for step in range(request.steps):
            time.sleep(self.pause)
            if on_step is not None:
                on_step(step + 1)
        hertz, time_ = 200 + request.seed % 1500, np.arange(round(RATE * self.seconds)) / RATE
        wave = 0.3 * np.sin(2 * np.pi * hertz * time_)
        return Clip(wave.astype(np.float32), RATE, np.full((2, 2, 2), request.seed % 7, dtype=np.float32))


def no_weights(scheduler: str | None = None) -> Tones:
    raise CheckpointError("runs/lost/unet holds no usable model: make it again")


def systems(pause: float = 0.0) -> list[System]:
    return [
        System("nano", "w1", 4, 3.0, lambda scheduler: Tones(pause)),
        System("runs/demo/aligned", "w2", 4, 3.0, lambda scheduler: Tones(pause)),
        System("lost", "w3", 4, 3.0, no_weights),
    ]


class Low:
    """A scorer that prefers low tones."""

    name = "low"

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        return np.array([-float(np.abs(np.diff(np.sign(clip.waveform))).sum()) for clip in clips])


def edit(denoiser: Tones, samples: np.ndarray, rate: int, prompt: str, **options) -> np.ndarray:
    """In the place of `models.editing.edit`: silence where something new is wanted."""
    for step in range(options["steps"]):
        time.sleep(denoiser.pause)
        options["on_step"](step + 1)
    extra = np.zeros((round((options.get("extend") or 0) * rate), samples.shape[1]))
    edited = np.concatenate([samples, extra])
    first, last = options.get("region", (0, 0))
    edited[round(first * rate) : round(last * rate)] = 0
    return edited[None]


def small_studio(folder: Path, pause: float = 0.0) -> Studio:
    return Studio(folder, systems(pause), [Low()])


def until(true: Callable[[], bool], seconds: float = 200.0) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


if __name__ == "__main__":
    from milonga.models import editing
    from milonga.studio.server import serve

    editing.edit = edit
    serve(small_studio(Path(sys.argv[1]), float(sys.argv[3])), "127.0.0.1", int(sys.argv[2]), print)
