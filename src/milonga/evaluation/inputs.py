"""What `milonga evaluate` is given, read: a run, folders of audio files, or a table of clips; and their splits.

A system's clips come as `Sound`s by key: a prompt's id in a run, a file's name without suffix in folders and tables.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from milonga.core.audio import read_channels
from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.ids import content_id, file_hash
from milonga.core.records import Prompt
from milonga.core.store import Run
from milonga.data.captions import ClipCaption, audio_files, clip_captions, tags_of
from milonga.data.run_clips import evaluation_requests
from milonga.evaluation.run_metrics import splits_of

SPLITS = ("overall", "temporal", "non-temporal", "multi-concept", "single-concept")
LABELLED = ("one label", "several labels")
REFERENCE = "reference"


@dataclass(frozen=True)
class Sound:
    """A clip as it lies on disk: a file, or bytes that a run holds; `id` is its name there."""

    id: str
    source: Path | Callable[[], bytes]

    def hash(self) -> str:
        """SHA-256 of the encoded audio."""
        return file_hash(self.source) if isinstance(self.source, Path) else hashlib.sha256(self.source()).hexdigest()

    def samples(self) -> tuple[np.ndarray, int]:
        """Samples (samples, channels) and rate. Raises AudioError naming the clip."""
        if isinstance(self.source, Path):
            return read_channels(self.source, str(self.source))
        return read_channels(self.source(), f"clip {self.id}")

    def encoded(self) -> bytes:
        """The encoded audio's bytes."""
        return self.source.read_bytes() if isinstance(self.source, Path) else self.source()


@dataclass
class Gathered:
    """Systems' clips by name and key, the real ones, the prompts where captions are known, and splits of keys."""

    name: str
    systems: dict[str, dict[str, Sound]]
    reference: dict[str, Sound] = field(default_factory=dict)
    prompts: dict[str, Prompt] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)  # key → column → value

    def splits(self, columns: Sequence[str] = (), labels: str | None = None) -> dict[str, list[str]]:
        """Keys by split: all; by the rules of §5.5 where captions are known; by every value of the named columns; by
        whether the column `labels` holds several class labels, divided by commas, or one.

        Raises RecipeError for a column that the table has not.
        """
        keys = sorted(set().union(*self.systems.values()))
        found = {"overall": keys}
        if self.prompts:
            of_prompt = {prompt.id: key for key, prompt in self.prompts.items()}
            known = [self.prompts[key] for key in keys if key in self.prompts]
            parts = splits_of(known, SPLITS[1:])
            found |= {name: [of_prompt[one.id] for one in part] for name, part in parts.items()}
        for column in columns:
            found |= self._by(column, keys, lambda value, column=column: f"{column}: {value}")
        return found | (self._by(labels, keys, lambda value: LABELLED["," in value]) if labels else {})

    def _by(self, column: str, keys: Sequence[str], name_of: Callable[[str], str]) -> dict[str, list[str]]:
        """Keys by what `name_of` makes of their cell in `column`; those whose cell is empty are in no split."""
        there = sorted({name for row in self.labels.values() for name in row})
        if column not in there:
            raise RecipeError(f"no column {column!r} to split by: there are {', '.join(there) or 'none'}")
        found: dict[str, list[str]] = {}
        for key in keys:
            value = self.labels.get(key, {}).get(column, "")
            if value:
                found.setdefault(name_of(value), []).append(key)
        return dict(sorted(found.items()))


def agreement(splits: Mapping[str, Sequence[str]]) -> list[str]:
    """How far the sounds that captions tell of agree with the labels that clips carry, where both are known."""
    one, several = (set(splits.get(name, ())) for name in LABELLED)
    told = set(splits.get("multi-concept", ()))
    if not one | several:
        return []
    same = len(several & told) + len(one - told)
    return [
        f"multi-concept by caption: {len((one | several) & told)} clips, by labels: {len(several)} of "
        f"{len(one | several)}; they agree on {same} ({same / len(one | several):.0%})"
    ]


def gather(sources: Sequence[str], reference: Path | None, captions: Path | None) -> Gathered:
    """What is to be evaluated, from a run folder, folders (NAME=DIR or DIR; the last is the reference where none is
    given apart), or a CSV table.

    Raises StoreError, DataError or RecipeError, each in one line, for anything else.
    """
    paths = [_named(source) for source in sources]
    if len(paths) == 1 and paths[0][1].is_file():
        return from_table(paths[0][1], reference)
    for _, path in paths:
        if not path.is_dir():
            raise StoreError(f"{path} is not there, or no folder: give a run, folders of audio files, or one .csv")
    if len(paths) == 1 and (paths[0][1] / "evaluate" / "prompts").is_dir():
        return from_run(paths[0][1])
    if reference is None and len(paths) > 1:
        paths, reference = paths[:-1], paths[-1][1]
    return from_folders(paths, reference, captions)


def from_run(path: Path) -> Gathered:
    """A run's evaluated systems and its real clips, by prompt id; several clips of a prompt are not expected."""
    run = Run(path)
    requests = evaluation_requests(run)
    prompts, asked = [prompt for prompt, _ in requests], {request.id: prompt.id for prompt, request in requests}
    names = [one.name for one in (path / "evaluate").glob("*/") if one.name != "prompts"]
    systems = {name: _of_run(run, name, asked) for name in sorted(names, key=lambda one: (one != "base", one))}
    real = systems.pop(REFERENCE, {})
    if not any(systems.values()):
        raise StoreError(f"{path} holds no system's clips yet: do `milonga run {path / 'recipe.toml'} --out {path}`")
    return Gathered(path.resolve().name, systems, real, {one.id: one for one in prompts})


def _of_run(run: Run, system: str, asked: Mapping[str, str]) -> dict[str, Sound]:
    shards, found = run.stage(f"evaluate/{system}"), {}
    for shard in shards.names():
        for one in shards.read_table(shard, ["id"])["id"].to_pylist():
            if one in asked:
                found[asked[one]] = Sound(one, _Stored(run.path, system, shard, one))
    return found


@dataclass(frozen=True)
class _Stored:
    """The FLAC bytes of one clip of a run, read when they are wanted."""

    run: Path
    system: str
    shard: str
    id: str

    def __call__(self) -> bytes:
        return _shard(self.run, self.system, self.shard)[self.id]


@lru_cache(maxsize=4)
def _shard(run: Path, system: str, shard: str) -> dict[str, bytes]:
    """A shard's audio by clip; clips are wanted one by one, and shards are read whole."""
    rows = Run(run).stage(f"evaluate/{system}").read_table(shard, ["id", "audio"]).to_pylist()
    return {row["id"]: row["audio"]["bytes"] for row in rows}


def from_folders(folders: Sequence[tuple[str, Path]], reference: Path | None, captions: Path | None) -> Gathered:
    """One system a folder, clips by file name without suffix. DataError for a folder without audio, or a name twice."""
    names = [name for name, _ in folders]
    if len(set(names)) < len(names) or REFERENCE in names:
        raise RecipeError(f"systems need names of their own, not {', '.join(names)}: write NAME=DIR")
    systems = {name: _folder(path) for name, path in folders}
    found = Gathered(names[0] if len(names) == 1 else "systems", systems)
    found.reference = _folder(reference) if reference else {}
    if captions is not None:
        for row in clip_captions(captions, set().union(*systems.values())):
            if row.key in found.prompts:
                raise DataError(f"{row.where}: the clip {row.key} is there twice")
            found.prompts[row.key] = _prompt(row.key, row.caption, captions)
            found.labels[row.key] = row.cells
        lost = sorted(set().union(*systems.values()) - set(found.prompts))
        if lost:
            raise DataError(f"{captions} has no caption for {len(lost)} clips, {lost[0]} first: add their rows")
    return found


def _folder(path: Path) -> dict[str, Sound]:
    if not path.is_dir():
        raise StoreError(f"{path} is not there, or no folder: it should hold audio files")
    found = {stem: Sound(stem, file) for stem, file in audio_files(path).items()}
    if not found:
        raise DataError(f"{path} holds no audio files (.wav, .flac, .ogg, .mp3, .aiff)")
    return found


def from_table(path: Path, reference: Path | None) -> Gathered:
    """A CSV with the columns clip (a file, relative to the table) and caption; and, where they are there, system and
    reference (the real clip's file). Any other column can split.

    Raises DataError naming the row for a file that is missing, an empty caption, or a clip that is there twice.
    """
    found, first = Gathered(path.stem, {}), dict[str, ClipCaption]()
    for row in clip_captions(path):
        system = row.cells.get("system") or path.stem
        files = [("clip", row.file, found.systems.setdefault(system, {}))]
        if row.cells.get("reference"):
            files.append(("reference", row.cells["reference"], found.reference))
        before = first.setdefault(row.key, row)
        for column in ("caption", "reference"):
            values = [one.caption if column == "caption" else one.cells.get(column, "") for one in (before, row)]
            if values[0] != values[1]:
                raise DataError(
                    f"{row.where}: the clip {row.key} has the {column} {values[1]!r}, and {values[0]!r} in "
                    f"{before.where.rpartition(', ')[2]}; give clips of different {column}s different names"
                )
        for column, name, sounds in files:
            file = path.parent / name
            if not file.is_file():
                raise DataError(f"{row.where}: {column} {name} is not there (looked for {file})")
            if column == "clip" and row.key in sounds:
                raise DataError(f"{row.where}: {system} has the clip {row.key} twice")
            sounds[row.key] = Sound(row.key, file)
        found.prompts.setdefault(row.key, _prompt(row.key, row.caption, path))
        found.labels[row.key] = row.cells
    if reference is not None:
        found.reference = _folder(reference)
    return found


def _prompt(key: str, text: str, path: Path) -> Prompt:
    return Prompt(id=content_id(key, text), text=text, source=path.name, tags=tags_of(text))


def _named(source: str) -> tuple[str, Path]:
    """NAME=DIR, or DIR, which is then called by its own name."""
    name, mark, path = source.partition("=")
    if mark and not Path(source).exists():
        return name, Path(path)
    return Path(source).resolve().name, Path(source)
