"""Captions: of a table's row, of the clips in a folder, and of the sources that a recipe names."""

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milonga.core.errors import DataError, RecipeError, brief
from milonga.core.ids import content_id, derive_seed
from milonga.core.records import Clip, Prompt, Scene
from milonga.data.tables import CAPTION_COLUMNS, NUMBERED, PATH_COLUMNS, Row, read_rows

# Files that count as clips. Those that libsndfile cannot decode (the last four) are refused by name, not passed over.
SOUND_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".w64", ".caf", ".au",
    ".m4a", ".aac", ".wma", ".wv",
)  # fmt: skip
METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
MULTI = ":multi"  # the end of a source of captions of several sounds
WORLD = re.compile(rf"world:(train|tune|test):(\d+)({MULTI})?")  # captions of the small world, or its clips
LIMIT = 1000  # draws in a row that gave a caption already drawn, before a world source is called exhausted

_TEMPORAL = re.compile(r"\b(while|as|before|after|then|followed)\b", re.IGNORECASE)  # the evaluation's words, §5.5
_BETWEEN = re.compile(r"\b(?:while|as|before|after|then|followed|and|with|over|during|along|alongside)\b|[,;.]", re.I)
# Words that tell where, how or how often something sounds: a part of a caption with no other word is no sound.
_ASIDE = re.compile(
    r"(?:an?|the|in|on|of|off|by|at|to|it|is|background|foreground|distance|nearby|far|away|very"
    r"|close|closely|loudly|softly|quietly|faintly|distant|distantly|continuously|repeatedly|again|briefly|quickly"
    r"|slowly|rapidly|once|twice|several|times|more|later|soon|shortly|eventually)"
)


def caption_texts(path: Path, columns: Sequence[str] = CAPTION_COLUMNS) -> Iterator[str]:
    """The captions of a table (`data.tables.read_rows`), stripped, in its order.

    They stand in the first of `columns` that there is. Raises DataError when the table cannot be read, has no row or no
    such column, or when a row has no caption.
    """
    empty = True
    for row in read_rows(path):
        empty = False
        yield from captions_of(row, columns)
    if empty:
        raise DataError(f"{path}: no captions in it")


def captions_of(row: Row, columns: Sequence[str] = CAPTION_COLUMNS) -> list[str]:
    """A row's captions, stripped: of the first of `columns` that it has, which may hold a list; else of Clotho's
    caption_1 to caption_5. Raises DataError where there is none."""
    name = next((name for name in columns if name in row.cells), None)
    if name is not None:
        texts = row.cells[name] if isinstance(row.cells[name], list) else [row.cells[name]]
    else:
        numbered = [name for name in row.cells if NUMBERED.fullmatch(name)]
        if not numbered or columns is not CAPTION_COLUMNS:
            wanted = " or ".join(f"`{name}`" for name in columns)
            raise DataError(f"{row.where}: no column {wanted} (it has: {', '.join(row.cells)}); rename or add it")
        texts = [text for name in numbered if (text := row.cells[name])]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{row.where}: the caption is empty; fill or delete that row")
    for text in texts:
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError(f"{row.where}: the caption holds half a character (a lone surrogate); save it as UTF-8")
    return [text.strip() for text in texts]


@dataclass(frozen=True)
class ClipCaption:
    """A row that names a clip: where it stands, the file as it is named, the clip's key, its caption, all its cells."""

    where: str
    file: str
    key: str
    caption: str
    cells: dict[str, str]


def clip_captions(path: Path, known: Collection[str] = ()) -> Iterator[ClipCaption]:
    """The clips that a table names, with the caption of each: the first where a row holds several.

    A clip stands in the column `clip`, in one of a path, or under AudioCaps' ids; among the keys that these allow, one
    that is `known` is taken. Raises DataError for a table that cannot be read or is empty, or a row without the two.
    """
    empty = True
    for row in read_rows(path):
        empty = False
        if not any(name in row.cells for name in ("clip", *PATH_COLUMNS, "youtube_id")):
            held = ", ".join(row.cells)
            raise DataError(
                f"{row.where}: needs the columns clip and caption, and a row for each clip (it has: {held})"
            )
        names = clip_names(row)
        if not names:
            raise DataError(f"{row.where}: clip and caption must both be filled")
        keys = [clip_key(name) for name in names]
        key = next((key for key in keys if key in known), keys[0])
        cells = {name: str(cell).strip() for name, cell in row.cells.items() if cell is not None}
        yield ClipCaption(row.where, names[0], key, captions_of(row)[0], cells)
    if empty:
        raise DataError(f"{path} needs the columns clip and caption, and a row for each clip")


def clip_names(row: Row) -> list[str]:
    """The names by which a row's clip may be called, likeliest first: paths or names as they are given, else AudioCaps'
    clips by their ids, without suffix; its test subset has them in one column, `clip`. None where no cell is filled.
    """
    cells = [row.cells.get(column) for column in ("clip", *PATH_COLUMNS)]
    names = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    if isinstance(clip := row.cells.get("clip"), str) and clip.strip():
        names.insert(1, f"Y{clip}")
    video, start = row.cells.get("youtube_id"), row.cells.get("start_time")
    if names or not video:
        return names
    return [f"{video}_{start}", f"Y{video}_{start}", video, f"Y{video}", str(row.cells.get("audiocap_id") or video)]


def clip_key(name: str) -> str:
    """What a clip is called whatever its folder, its kind of file and the form of its letters: `dogs/Café 1.5.wav` is
    `Café 1.5`, in Unicode's composed form (NFC), without spaces around it."""
    base = unicodedata.normalize("NFC", name.replace("\\", "/").rpartition("/")[2].strip())
    stem, dot, suffix = base.rpartition(".")
    return stem.strip() if dot and f".{suffix.lower()}" in SOUND_SUFFIXES else base


def utf8_name(name: str) -> str:
    """A file's name read as UTF-8 whatever the locale, as tables and other machines have it.

    Raises UnicodeDecodeError where its bytes are no UTF-8.
    """
    return os.fsencode(name).decode()


def audio_files(folder: Path) -> dict[str, Path]:
    """Audio files by `clip_key`, hidden ones left out.

    Raises DataError where two have one key, or where a name is not UTF-8.
    """
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in SOUND_SUFFIXES or file.name.startswith("."):
            continue
        try:
            key = clip_key(utf8_name(file.name))
        except UnicodeDecodeError:
            shown = os.fsencode(file.name).decode(errors="backslashreplace")
            raise DataError(f"{folder}: the name of {shown} is not UTF-8; rename that file") from None
        if key in files:
            raise DataError(f"{folder}: {file.name} and {files[key].name} are one clip: remove one of them")
        files[key] = file
    return files


def metadata_of(folder: Path) -> Path | None:
    """The table of an AudioFolder; None where the folder has none."""
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def prompt_source(source: str, draw: int | None = None) -> list[Prompt]:
    """Captions by their source, each once, tagged; a COUNT takes that many.

    `world:SPLIT:COUNT` are those of the small world, `audiocaps:FILE[:COUNT]` real ones that the world can render,
    `captions:FILE[:COUNT]` all those of a table, `dataset:NAME[:SPLIT[:COLUMN]][:COUNT]` those of a data set on the Hub
    or in a folder. With `:multi` at the end only captions of several sounds count. A COUNT is always the same choice;
    a seed `draw` makes it another one. Raises RecipeError for a source of another form or where `datasets` is not
    installed, DataError for a file or data set that cannot be used.
    """
    kind, _, rest = source.removesuffix(MULTI).partition(":")
    name, _, count = rest.rpartition(":") if rest.rpartition(":")[2].isdecimal() else (rest, "", "")
    if world := WORLD.fullmatch(source):
        return world_prompts(world[1], int(world[2]), bool(world[3]), draw)
    if not name or kind not in ("audiocaps", "captions", "dataset"):
        raise RecipeError(
            f"{source!r} is no source of captions: write world:train:600 or audiocaps:FILE.csv[:COUNT], "
            "captions:FILE.csv|FILE.jsonl|FILE.parquet[:COUNT] or dataset:NAME[:SPLIT[:COLUMN]][:COUNT], "
            "each with :multi at its end for captions of several sounds alone"
        )
    if kind == "audiocaps":
        from milonga.nano.reader import read_captions

        texts = caption_texts(Path(name), ["caption"])
        prompts = [
            prompt.model_copy(update={"tags": tags_of(prompt.text, prompt.scene)})
            for prompt in read_captions(texts, Path(name).name)
        ]
    elif kind == "captions":
        prompts = _prompts(caption_texts(Path(name)), Path(name).name)
    else:
        prompts = _dataset_prompts(name)
    prompts = [prompt for prompt in prompts if "multi-concept" in prompt.tags] if source.endswith(MULTI) else prompts
    if not count:
        return prompts
    # Of more than COUNT those with the smallest ids, or hashes: the same choice whatever the order.
    ranked = sorted(prompts, key=lambda prompt: prompt.id if draw is None else content_id("draw", draw, prompt.id))
    return ranked[: int(count)]


def world_prompts(split: str, count: int, multi: bool = False, draw: int | None = None) -> list[Prompt]:
    """The first `count` different captions of one split of the world, with `multi` those of several sounds among its
    captions: always the same ones, others for each seed `draw`.
    """
    import numpy as np

    from milonga.nano.captions import caption_in
    from milonga.nano.world import draw_counts, draw_scene

    prompts: dict[str, Prompt] = {}
    seed = derive_seed(0, "world prompts", split) if draw is None else derive_seed(draw, "world prompts", split)
    rng, repeats = np.random.default_rng(seed), 0
    while len(prompts) < count and repeats < LIMIT:
        scene = draw_scene(rng)
        try:
            text = caption_in(split, scene, draw_counts(scene, rng), rng)
        except DataError:  # all of this scene's few captions are in other splits
            repeats += 1
            continue
        if multi and sum(map(len, scene)) < 2:
            continue
        repeats = repeats + 1 if text in prompts else 0
        prompts.setdefault(text, Prompt.of(text, f"world:{split}", tags_of(text, scene), scene))
    return list(prompts.values())


def _dataset_prompts(source: str) -> list[Prompt]:
    """Every caption of `NAME`, `NAME:SPLIT` or `NAME:SPLIT:COLUMN` (else the first usual column)."""
    name, split, column = (*source.split(":"), "", "")[:3]
    table = metadata_of(Path(name))
    if table and split in ("", "train"):  # an AudioFolder: `datasets` would decode its sounds
        return _prompts(caption_texts(table, [column] if column else CAPTION_COLUMNS), name)
    rows = loaded(name, split or "train")
    usable = caption_columns(rows.column_names, column)
    if not usable:
        wanted, held = column or " or ".join(CAPTION_COLUMNS), ", ".join(rows.column_names)
        raise DataError(
            f"the data set {name} has no column {wanted} (it has: {held}); name one: dataset:{name}:train:COLUMN"
        )
    # Only the captions are taken out: the sounds beside them would be decoded, which costs time and more libraries.
    cells = enumerate(rows.select_columns(usable))
    columns = [column] if column else CAPTION_COLUMNS
    return _prompts((text for at, row in cells for text in captions_of(Row(f"{name}, row {at}", row), columns)), name)


def caption_columns(names: Sequence[str], column: str = "") -> list[str]:
    """Of a data set's columns those that hold its captions: `column`, or the first usual one, or Clotho's five."""
    wanted = [column] if column else CAPTION_COLUMNS
    usable = [name for name in wanted if name in names][:1]
    return usable or ([] if column else [name for name in names if NUMBERED.fullmatch(name)])


def loaded(name: str, split: str) -> Any:
    """A split of a data set, on the Hub or in a folder.

    Raises RecipeError where `datasets` is not installed, DataError where the data set cannot be loaded.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise RecipeError(f"dataset:{name} needs `datasets`: pip install 'milonga[data]'") from error
    try:
        return load_dataset(name, split=split)
    except Exception as error:  # the library raises its own, the Hub's, the system's and Arrow's errors
        cause: BaseException = error
        while type(cause).__name__ == "DatasetGenerationError" and cause.__cause__:  # says only that there was an error
            cause = cause.__cause__
        raise DataError(f"the data set {name}, split {split}, cannot be loaded: {brief(cause)}") from error


def _prompts(texts: Iterable[str], source: str) -> list[Prompt]:
    return list({text: Prompt.of(text, source, tags_of(text)) for text in texts}.values())


def reference(prompt: Prompt) -> Clip:
    """A real clip of what a prompt asks for, rendered by the world.

    Raises DataError for a prompt whose scene is not known, or holds a class that the world has not.
    """
    from milonga.maths.mel import normalise
    from milonga.nano.world import CLASSES, render

    if prompt.scene is None or not {label for group in prompt.scene for label in group} <= set(CLASSES):
        raise DataError(f"{prompt.text!r}: the world does not know its sounds, so it has no real clip: take clips:…")
    clip = render(prompt.scene, derive_seed(0, "reference", prompt.id)).clip
    return Clip(normalise(clip.waveform), clip.rate)


def tags_of(text: str, scene: Scene | None = None) -> tuple[str, ...]:
    """The evaluation's subsets that a caption belongs to (§5.5): "temporal" and "multi-concept".

    Temporal: one of the whole words while, as, before, after, then, followed. Multi-concept: more than one sound in its
    scene or, where the scene is unknown, in the caption (`sounds_in`).
    """
    in_time = bool(_TEMPORAL.search(text))
    several = (sounds_in(text) if scene is None else sum(len(group) for group in scene)) > 1
    return (*(("temporal",) if in_time else ()), *(("multi-concept",) if several else ()))


def sounds_in(text: str) -> int:
    """How many sounds a caption names: its parts between words of time, words that join (and, with, over, during,
    along, alongside) and punctuation, but for parts that only say where, how or how often.

    "A dog barks loudly, then rain falls in the distance" has two, "a dog barks, far away" one. A part is counted
    whatever it names, so two actions of one source count twice, and so do two sources of one action.
    """
    parts = [re.findall(r"[^\W\d_]+", part.lower()) for part in _BETWEEN.split(text)]
    return sum(any(not _ASIDE.fullmatch(word) for word in part) for part in parts)
