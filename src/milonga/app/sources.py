"""Where captions come from, and the real clips of those that the world can render."""

from pathlib import Path

from milonga.core.errors import DataError, RecipeError
from milonga.core.ids import derive_seed
from milonga.core.records import Clip, Prompt

LIMIT = 1000  # draws in a row that gave a caption already had, before a world source is called exhausted


def prompt_source(source: str) -> list[Prompt]:
    """Captions by their source: `world:SPLIT:COUNT`, or `audiocaps:FILE[:COUNT]` for those the world can render.

    Raises RecipeError for a source of another form, DataError for a file that cannot be used.
    """
    kind, _, rest = source.partition(":")
    name, _, count = rest.rpartition(":") if rest.rpartition(":")[2].isdecimal() else (rest, "", "")
    if kind == "world" and name in ("train", "tune", "test") and count:
        return world_prompts(name, int(count))
    if kind == "audiocaps" and name:
        return _audiocaps(Path(name), int(count) if count else None)
    raise RecipeError(f"{source!r} is no source of captions: write world:train:600 or audiocaps:FILE.csv[:COUNT]")


def world_prompts(split: str, count: int) -> list[Prompt]:
    """The first `count` different captions of one split of the world: always the same ones."""
    import numpy as np

    from milonga.nano.captions import caption_in
    from milonga.nano.world import draw_counts, draw_scene
    from milonga.stages.prompts import tags_of

    found: dict[str, Prompt] = {}
    rng, repeats = np.random.default_rng(derive_seed(0, "world prompts", split)), 0
    while len(found) < count and repeats < LIMIT:
        scene = draw_scene(rng)
        text = caption_in(split, scene, draw_counts(scene, rng), rng)
        repeats = repeats + 1 if text in found else 0
        found.setdefault(text, Prompt.of(text, f"world:{split}", tags_of(text, scene), scene))
    return list(found.values())


def _audiocaps(path: Path, count: int | None) -> list[Prompt]:
    """Real captions whose every sound the world knows, tagged; of more than `count`, those with the smallest ids."""
    from milonga.nano.reader import read_captions
    from milonga.stages.prompts import tags_of

    found = [one.model_copy(update={"tags": tags_of(one.text, one.scene)}) for one in read_captions(path)]
    return found if count is None else sorted(found, key=lambda one: one.id)[:count]


def reference(prompt: Prompt) -> Clip:
    """A real clip of what a prompt asks for, rendered by the world.

    Raises DataError for a prompt whose scene is not known, or holds a class that the world has not.
    """
    from milonga.maths.mel import normalise
    from milonga.nano.world import CLASSES, render

    if prompt.scene is None or not {label for group in prompt.scene for label in group} <= set(CLASSES):
        raise DataError(f"{prompt.text!r}: the world does not know its sounds, so it has no real clip")
    clip = render(prompt.scene, derive_seed(0, "reference", prompt.id)).clip
    return Clip(normalise(clip.waveform), clip.rate)
