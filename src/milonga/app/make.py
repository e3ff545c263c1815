"""The door `generate`: prompts in, playable files out, each with what made it in its tags."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from milonga.core.audio import write_audio
from milonga.core.errors import DataError, RecipeError
from milonga.core.parts import Model
from milonga.core.records import Clip, Prompt, Request

FADE_SECONDS = 0.02


def make(
    model: Model,
    prompts: Sequence[str],
    out: Path,
    steps: int,
    guidance: float,
    seed: int = 0,
    count: int = 1,
    duration: float | None = None,
) -> list[Path]:
    """Writes `count` clips of each prompt into `out` as `a-dog-barks-SEED-NUMBER.wav`; gives their paths in order.

    The same arguments give the same files. Raises DataError for an empty prompt, RecipeError for numbers that make no
    sense or a `duration` (seconds) longer than the model's clips; then nothing is written.
    """
    _check(prompts, steps, guidance, count, duration)
    captions = [Prompt.of(" ".join(text.split()), "command line") for text in prompts]
    requests = [Request.of(seed, one, one.text, steps, guidance, n) for one in captions for n in range(count)]
    clips = [_cut(clip, duration) for clip in model.generate(requests)]
    paths = [out / f"{slug(request.prompt)}-{seed}-{request.number}.wav" for request in requests]
    for path, request, clip in zip(paths, requests, clips, strict=True):
        write_audio(path, clip, _tags(request, model, seed))
    return paths


def slug(text: str, length: int = 60) -> str:
    """A prompt as a file name: small ASCII letters, digits and dashes; `clip` where nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:length].strip("-") or "clip"


def _check(prompts: Sequence[str], steps: int, guidance: float, count: int, duration: float | None) -> None:
    if not prompts or any(not text.strip() for text in prompts):
        raise DataError('a prompt is empty: say what to hear, such as "a dog barks then a bell rings"')
    if steps < 1 or count < 1:
        raise RecipeError("--steps and -n must be at least 1")
    if not 0 <= guidance < float("inf"):
        raise RecipeError("--guidance must be 0 or a positive number")
    if duration is not None and not duration > 0:
        raise RecipeError("--duration must be more than 0 seconds")


def _cut(clip: Clip, duration: float | None) -> Clip:
    """The first `duration` seconds with a short fade-out, so that the cut does not click."""
    if duration is None:
        return clip
    if duration > clip.seconds + 0.5 / clip.rate:
        raise RecipeError(f"--duration {duration:g}: this model's clips are {clip.seconds:.2f} s long; ask for less")
    wave = clip.waveform[: max(1, round(duration * clip.rate))].copy()
    fade = min(len(wave), round(FADE_SECONDS * clip.rate))
    wave[-fade:] *= np.linspace(1.0, 0.0, fade, dtype=wave.dtype)
    return Clip(wave, clip.rate)


def _tags(request: Request, model: Model, seed: int) -> dict[str, str]:
    numbers = {"seed": seed, "number": request.number, "steps": request.steps, "guidance": request.guidance}
    return {"prompt": request.prompt, "model": model.name} | {name: str(value) for name, value in numbers.items()}
