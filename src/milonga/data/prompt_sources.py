"""Where captions come from, and the real clips of those that the world can render."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from milonga.core.errors import DataError, RecipeError, brief
from milonga.core.ids import derive_seed
from milonga.core.records import Clip, Prompt
from milonga.data.captions import COLUMNS, caption_texts, captions_of

LIMIT = 1000  # draws in a row that gave a caption already had, before a world source is called exhausted


def prompt_source(source: str) -> list[Prompt]:
    """Captions by their source, each once, tagged; a COUNT takes that many.

    `world:SPLIT:COUNT` are those of the small world, `audiocaps:FILE[:COUNT]` real ones that the world can render,
    `captions:FILE[:COUNT]` all those of a CSV table or of JSON lines, `dataset:NAME[:SPLIT[:COLUMN]][:COUNT]` those of
    a data set on the Hub or in a folder. Raises RecipeError for a source of another form or where `datasets` is not
    installed, DataError for a file or data set that cannot be used.
    """
    kind, _, rest = source.partition(":")
    name, _, count = rest.rpartition(":") if rest.rpartition(":")[2].isdecimal() else (rest, "", "")
    if kind == "world" and name in ("train", "tune", "test") and count:
        return world_prompts(name, int(count))
    readers = {"audiocaps": _audiocaps, "captions": _captions, "dataset": _dataset}
    if kind in readers and name:
        found = readers[kind](name)
        return _fewer(found, int(count)) if count else found
    raise RecipeError(
        f"{source!r} is no source of captions: write world:train:600 or audiocaps:FILE.csv[:COUNT], "
        "captions:FILE.csv|FILE.jsonl[:COUNT] or dataset:NAME[:SPLIT[:COLUMN]][:COUNT]"
    )


def world_prompts(split: str, count: int) -> list[Prompt]:
    """The first `count` different captions of one split of the world: always the same ones."""
    import numpy as np

    from milonga.data.captions import tags_of
    from milonga.nano.captions import caption_in
    from milonga.nano.world import draw_counts, draw_scene

    found: dict[str, Prompt] = {}
    rng, repeats = np.random.default_rng(derive_seed(0, "world prompts", split)), 0
    while len(found) < count and repeats < LIMIT:
        scene = draw_scene(rng)
        try:
            text = caption_in(split, scene, draw_counts(scene, rng), rng)
        except DataError:  # all of this scene's few captions are in other splits
            repeats += 1
            continue
        repeats = repeats + 1 if text in found else 0
        found.setdefault(text, Prompt.of(text, f"world:{split}", tags_of(text, scene), scene))
    return list(found.values())


def _fewer(prompts: list[Prompt], count: int) -> list[Prompt]:
    """Of more than `count` prompts, those with the smallest ids: the same choice whatever the order."""
    return sorted(prompts, key=lambda one: one.id)[:count]


def _audiocaps(path: str) -> list[Prompt]:
    """Real captions whose every sound the world knows."""
    from milonga.data.captions import tags_of
    from milonga.nano.reader import read_captions

    texts = caption_texts(Path(path), ["caption"])
    return [
        one.model_copy(update={"tags": tags_of(one.text, one.scene)}) for one in read_captions(texts, Path(path).name)
    ]


def _captions(path: str) -> list[Prompt]:
    """Every caption of a file."""
    return _prompts(caption_texts(Path(path)), Path(path).name)


def _dataset(named: str) -> list[Prompt]:
    """Every caption of a data set: `NAME`, or `NAME:SPLIT`, or `NAME:SPLIT:COLUMN` (else the first usual column)."""
    name, split, column = (*named.split(":"), "", "")[:3]
    rows = loaded(name, split or "train")
    usable = [one for one in ([column] if column else COLUMNS) if one in rows.column_names]
    if not usable:
        wanted, held = column or " or ".join(COLUMNS), ", ".join(rows.column_names)
        raise DataError(
            f"the data set {name} has no column {wanted} (it has: {held}); name one: dataset:{name}:train:COLUMN"
        )
    # Only the captions are taken out: the sounds beside them would be decoded, which is dear and needs more libraries.
    texts = enumerate(rows.select_columns(usable[:1]))
    return _prompts((one for at, row in texts for one in captions_of(row, usable, f"{name}, row {at}")), name)


def loaded(name: str, split: str) -> Any:
    """A split of a data set, on the Hub or in a folder.

    Raises RecipeError where `datasets` is not installed, DataError where the data set cannot be had.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise RecipeError(f"dataset:{name} needs `datasets`: pip install 'milonga[data]'") from error
    try:
        return load_dataset(name, split=split)
    except Exception as error:  # the library raises its own, the Hub's, the system's and Arrow's errors
        raise DataError(f"the data set {name}, split {split}, cannot be loaded: {brief(error)}") from error


def _prompts(texts: Iterable[str], source: str) -> list[Prompt]:
    from milonga.data.captions import tags_of

    return list({text: Prompt.of(text, source, tags_of(text)) for text in texts}.values())


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
