"""The inputs of an evaluation: a run, folders of audio files, or a table of clips; and their splits.

A system's clips are `AudioRef`s by key: `Request.key` in a run, a file's name without suffix in folders and tables.
Clips whose keys have one prompt are clips of one caption.
"""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from milonga.core.audio import read_channels
from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.ids import content_id, file_hash
from milonga.core.records import Prompt
from milonga.core.store import Run, read_manifest
from milonga.data.captions import ClipCaption, audio_files, clip_captions, tags_of
from milonga.data.pairs import evaluation_requests
from milonga.data.recordings import FileFinder

# §5.5: the splits of captions by their tags.
SPLITS: dict[str, Callable[[Prompt], bool]] = {
    "overall": lambda prompt: True,
    "temporal": lambda prompt: "temporal" in prompt.tags,
    "non-temporal": lambda prompt: "temporal" not in prompt.tags,
    "multi-concept": lambda prompt: "multi-concept" in prompt.tags,
    "single-concept": lambda prompt: "multi-concept" not in prompt.tags,
}
LABELLED = ("one label", "several labels")
REFERENCE = "reference"


@dataclass(frozen=True)
class AudioRef:
    """A clip on disk: a file, or bytes in a run's shard; `id` is its name there."""

    id: str
    source: Path | Callable[[], bytes]

    def hash(self) -> str:
        """SHA-256 of the encoded audio."""
        return file_hash(self.source) if isinstance(self.source, Path) else hashlib.sha256(self.source()).hexdigest()

    def samples(self, seconds: float | None = None) -> tuple[np.ndarray, int]:
        """Samples (samples, channels), at most the first `seconds`, and rate. Raises AudioError naming the clip."""
        if isinstance(self.source, Path):
            return read_channels(self.source, str(self.source), seconds)
        return read_channels(self.source(), f"clip {self.id}", seconds)

    def encoded(self) -> bytes:
        """The encoded audio's bytes."""
        return self.source.read_bytes() if isinstance(self.source, Path) else self.source()


@dataclass
class EvalInputs:
    """Systems' clips by name and key, the real ones, the prompts where captions are known, and columns to split by.

    A run also brings its own `splits`, and the manifest in which its judge, tagger, seed and sampling are recorded.
    """

    name: str
    systems: dict[str, dict[str, AudioRef]]
    reference: dict[str, AudioRef] = field(default_factory=dict)
    prompts: dict[str, Prompt] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)  # key → column → value
    run: Run | None = None
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def paired(self) -> bool:
        """Whether real clips are those of the systems' own prompts, by their names."""
        return any(set(clips) & set(self.reference) for clips in self.systems.values())

    def splits(self, columns: Sequence[str] = (), labels: str | None = None) -> dict[str, list[str]]:
        """Keys by split: all; by the rules of §5.5 where captions are known, those of a run's recipe only; by every
        value of the named columns; by whether the column `labels` holds one or several class labels.

        Raises RecipeError for a column that the table does not have.
        """
        keys = sorted(set().union(*self.systems.values()))
        names = self.manifest["recipe"]["evaluate"]["splits"] if self.manifest else list(SPLITS)
        if self.run:
            keys = list(self.prompts)
        splits = {"overall": keys} if "overall" in names else {}
        for name in names if self.prompts else ():
            split = [key for key in keys if key in self.prompts and SPLITS[name](self.prompts[key])]
            if split and name != "overall":
                splits[name] = split
        for column in columns:
            splits |= self._by(column, keys, lambda value, column=column: f"{column}: {value}")
        return splits | (self._by(labels, keys, lambda value: LABELLED["," in value]) if labels else {})

    def _by(self, column: str, keys: Sequence[str], name_of: Callable[[str], str]) -> dict[str, list[str]]:
        """Keys by the split that `name_of` gives their cell in `column`; those whose cell is empty are in no split."""
        columns = sorted({name for row in self.labels.values() for name in row})
        if column not in columns:
            raise RecipeError(f"no column {column!r} to split by: there are {', '.join(columns) or 'none'}")
        splits: dict[str, list[str]] = {}
        for key in keys:
            value = self.labels.get(key, {}).get(column, "")
            if value:
                splits.setdefault(name_of(value), []).append(key)
        return dict(sorted(splits.items()))


def label_agreement(splits: Mapping[str, Sequence[str]]) -> list[str]:
    """How far the number of sounds in captions agrees with the clips' labels, where both are known."""
    single, several = (set(splits.get(name, ())) for name in LABELLED)
    multiple, labelled = set(splits.get("multi-concept", ())), single | several
    if not labelled:
        return []
    same = len(several & multiple) + len(single - multiple)
    return [
        f"multi-concept by caption: {len(labelled & multiple)} clips, by labels: {len(several)} of {len(labelled)}; "
        f"they agree on {same} ({same / len(labelled):.0%})"
    ]


def load_inputs(sources: Sequence[str], reference: Path | None, captions: Path | None) -> EvalInputs:
    """The inputs from a run folder, folders (NAME=DIR or DIR; the last is the reference where none is named), or a CSV.

    Raises StoreError, DataError or RecipeError, each in one line, for anything else.
    """
    paths = [_named(source) for source in sources]
    only = paths[0][1] if len(paths) == 1 else None
    is_run = only is not None and (only / "evaluate" / "prompts").is_dir()
    if captions is not None and only is not None and (only.is_file() or is_run):
        raise RecipeError(f"{only} has captions of its own: leave out --captions")
    if only is not None and only.is_file():
        return from_table(only, reference)
    for _, path in paths:
        if not path.is_dir():
            raise StoreError(f"{path} is not there, or no folder: give a run, folders of audio files, or one .csv")
    if only is not None and is_run:
        if reference is not None:
            raise RecipeError(f"{only} is a run with real clips of its own: leave out --reference")
        return from_run(only)
    if reference is None and len(paths) > 1:
        paths, reference = paths[:-1], paths[-1][1]
    return from_folders(paths, reference, captions)


def from_run(path: Path) -> EvalInputs:
    """A run's evaluated systems, base first and then in the recipe's order, and its real clips, by `Request.key`.

    Raises StoreError when the folder is no run or holds no evaluated clips.
    """
    run = Run(path)
    requests = evaluation_requests(run)
    key_of = {request.id: request.key for _, request in requests}
    manifest = read_manifest(run) or {}
    trained = [system["name"] for system in manifest["recipe"].get("train", {}).get("systems", [])]
    names = [folder.name for folder in sorted((path / "evaluate").glob("*/")) if folder.name != "prompts"]
    order = ["base", *trained, *names]
    clips = {name: _run_clips(run, name, key_of) for name in sorted(names, key=order.index)}
    reference = clips.pop(REFERENCE, {})
    if not any(clips.values()):
        raise StoreError(f"{path} holds no evaluated clips: do `milonga run {path / 'recipe.toml'} --out {path}` first")
    prompts = {request.key: prompt for prompt, request in requests}
    return EvalInputs(path.resolve().name, clips, reference, prompts, run=run, manifest=manifest)


def _run_clips(run: Run, system: str, key_of: Mapping[str, str]) -> dict[str, AudioRef]:
    shards, clips = run.stage(f"evaluate/{system}"), {}
    for shard in shards.names():
        for name in shards.read_table(shard, ["id"])["id"].to_pylist():
            if name in key_of:
                clips[key_of[name]] = AudioRef(name, _Stored(run.path, system, shard, name))
    return clips


@dataclass(frozen=True)
class _Stored:
    """The FLAC bytes of one clip of a run, read when they are needed."""

    run: Path
    system: str
    shard: str
    id: str

    def __call__(self) -> bytes:
        return _shard(self.run, self.system, self.shard)[self.id]


@lru_cache(maxsize=4)
def _shard(run: Path, system: str, shard: str) -> dict[str, bytes]:
    """A shard's audio by clip; clips are needed one by one, and shards are read whole."""
    rows = Run(run).stage(f"evaluate/{system}").read_table(shard, ["id", "audio"]).to_pylist()
    return {row["id"]: row["audio"]["bytes"] for row in rows}


def from_folders(folders: Sequence[tuple[str, Path]], reference: Path | None, captions: Path | None) -> EvalInputs:
    """One system a folder, clips by file name without suffix. DataError for a folder without audio, or a name twice."""
    names = [name for name, _ in folders]
    if len(set(names)) < len(names) or REFERENCE in names:
        raise RecipeError(f"systems need names of their own, not {', '.join(names)}: write NAME=DIR")
    inputs = EvalInputs(names[0] if len(names) == 1 else "systems", {name: _folder(path) for name, path in folders})
    inputs.reference = _folder(reference) if reference else {}
    if captions is not None:
        names_of_clips = set().union(*inputs.systems.values())
        for row in clip_captions(captions, names_of_clips):
            if row.key in inputs.prompts:
                raise DataError(f"{row.where}: the clip {row.key} is there twice")
            inputs.prompts[row.key] = _prompt(row.key, row.caption, captions)
            inputs.labels[row.key] = row.cells
        missing = sorted(names_of_clips - set(inputs.prompts))
        if missing:
            raise DataError(f"{captions} has no caption for {len(missing)} clips, {missing[0]} first: add their rows")
    return inputs


def _folder(path: Path) -> dict[str, AudioRef]:
    if not path.is_dir():
        raise StoreError(f"{path} is not there, or no folder: it should hold audio files")
    clips = {stem: AudioRef(stem, file) for stem, file in audio_files(path).items()}
    if not clips:
        raise DataError(f"{path} holds no audio files (.wav, .flac, .ogg, .mp3, .aiff)")
    return clips


def from_table(path: Path, reference: Path | None) -> EvalInputs:
    """A table with the columns clip (a file, relative to the table) and caption; and, where they are there, system and
    reference (the real clip's file). Any other column can split.

    A clip's key is its path without suffix below the folder that all clips of its system are in, so `a/dogs/1.wav` of
    one system and `b/dogs/1.wav` of another are compared. Raises DataError naming the row for a file that is missing,
    an empty caption, a clip that is there twice, and two rows of one key that contradict each other.
    """
    rows = [(row, row.cells.get("system") or path.stem) for row in clip_captions(path)]
    folders: dict[str, list[str]] = {}
    for row, system in rows:
        folders.setdefault(system, []).append(str(_parent(row.file)))
    if REFERENCE in folders:
        raise DataError(f"{path}: {REFERENCE!r} is what real clips are called: put them in the column reference")
    try:
        common = {system: os.path.commonpath(parents) for system, parents in folders.items()}
    except ValueError:
        raise DataError(f"{path}: some clips have absolute paths and others relative ones: write all alike") from None
    inputs, first, finder = EvalInputs(path.stem, {}), dict[str, ClipCaption](), FileFinder(path.parent)
    for row, system in rows:
        key = str(_parent(row.file).relative_to(common[system] or ".") / row.key)
        before = first.setdefault(key, row)
        for column, old, new in (
            ("caption", before.caption, row.caption),
            ("reference", before.cells.get("reference"), row.cells.get("reference")),
        ):
            if old and new and old != new:
                raise DataError(
                    f"{row.where}: the clip {key} has the {column} {new!r}, and {old!r} in "
                    f"{before.where.rpartition(', ')[2]}; give clips of different {column}s different names"
                )
        for column, name, clips in (
            ("clip", row.file, inputs.systems.setdefault(system, {})),
            ("reference", row.cells.get("reference"), inputs.reference),
        ):
            if not name:
                continue
            file = finder.find([name])
            if not file.is_file():
                raise DataError(f"{row.where}: {column} {name} is not there (looked for {file})")
            if column == "clip" and key in clips:
                raise DataError(f"{row.where}: {system} has the clip {key} twice")
            clips[key] = AudioRef(key, file)
        inputs.prompts.setdefault(key, _prompt(key, row.caption, path))
        inputs.labels[key] = row.cells
    if reference is not None:
        inputs.reference = _folder(reference)
    return inputs


def _parent(name: str) -> PurePosixPath:
    return PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/"))).parent


def _prompt(key: str, text: str, path: Path) -> Prompt:
    return Prompt(id=content_id(key, text), text=text, source=path.name, tags=tags_of(text))


def _named(source: str) -> tuple[str, Path]:
    """NAME=DIR, or DIR, which is then called by its own name."""
    name, mark, path = source.partition("=")
    if mark and not Path(source).exists():
        return name, Path(path)
    return Path(source).resolve().name, Path(source)
