"""The door `generate`: prompts in, playable files out, each with what made it in its tags."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from milonga.core.audio import write_audio
from milonga.core.errors import DataError, RecipeError
from milonga.core.ids import clip_seed
from milonga.core.progress import tracked
from milonga.core.protocols import Model
from milonga.core.records import Prompt, Request

# Clips made at once; a clip is the same in any batch.
BATCH = 8


def make(
    model: Model,
    prompts: Sequence[str],
    out: Path,
    steps: int,
    guidance: float,
    seed: int = 0,
    count: int = 1,
    details: Mapping[str, str] | None = None,
) -> Iterator[Path]:
    """Writes `count` clips of each prompt into `out` as `a-dog-barks-SEED-NUMBER.wav`; gives their paths in order.

    A clip's seed derives from `seed`, its prompt's text and its number: the same arguments give the same files, other
    steps the same noise. `details` go into the files' tags beside what is known here.
    """
    requests = [_request(seed, text, steps, guidance, n) for text in prompts for n in range(count)]
    with tracked("generate", len(requests)) as advance:
        for first in range(0, len(requests), BATCH):
            part = requests[first : first + BATCH]
            for request, clip in zip(part, model.generate(part), strict=True):
                path = out / f"{slug(request.prompt)}-{seed}-{request.number}.wav"
                write_audio(path, clip, _tags(request, model, seed) | dict(details or {}))
                advance(1)
                yield path


def check(prompts: Sequence[str], steps: int, guidance: float, count: int, duration: float | None) -> None:
    """Raises DataError for an empty prompt, RecipeError for numbers that make no sense: before a model is loaded."""
    if not prompts or any(not text.strip() for text in prompts):
        raise DataError('a prompt is empty: say what to hear, such as "a dog barks then a bell rings"')
    if steps < 1 or count < 1:
        raise RecipeError("--steps and -n must be at least 1")
    if not 0 <= guidance < float("inf"):
        raise RecipeError("--guidance must be 0 or a positive number")
    if duration is not None and not 0 < duration < float("inf"):
        raise RecipeError("--duration must be more than 0 seconds")


def slug(text: str, length: int = 60) -> str:
    """A prompt as a file name: small ASCII letters, digits and dashes; `clip` where nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:length].strip("-") or "clip"


def _request(seed: int, text: str, steps: int, guidance: float, number: int) -> Request:
    words = " ".join(text.split())
    made = Request.of(seed, Prompt.of(words, "command line"), words, steps, guidance, number)
    return made.model_copy(update={"seed": clip_seed(seed, words, number)})


def _tags(request: Request, model: Model, seed: int) -> dict[str, str]:
    numbers = {"seed": seed, "number": request.number, "steps": request.steps, "guidance": request.guidance}
    return {"prompt": request.prompt, "model": model.name} | {name: str(value) for name, value in numbers.items()}
