"""The command `listen`: where a test's clips come from, and what each of its doors does."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from secrets import randbits

from milonga.core.audio import from_flac, read_audio
from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.ids import content_id
from milonga.core.records import Prompt, Request
from milonga.core.store import Run
from milonga.data.captions import audio_files, clip_captions
from milonga.data.run_clips import evaluation_requests
from milonga.listening_test.material import Plan, Source, read_test

REFERENCE = "reference"
Sources = dict[str, dict[str, Source]]


def gather(source: Path, captions: Path | None, systems: Sequence[str]) -> tuple[list[Prompt], Sources]:
    """The prompts that all systems have clips for, and those clips, from a run folder or, with a CSV of captions, from
    a folder with one folder of audio files a system. `systems` names those that are wanted, none for all.

    Raises StoreError or DataError where there is nothing to hear, RecipeError for a system that is not there.
    """
    if not source.is_dir():
        raise StoreError(f"{source} is no folder: give a run folder, or one with a folder of audio files a system")
    if captions is None and not (source / "evaluate" / "prompts").exists():
        raise StoreError(f"{source} is no evaluated run folder: give --captions CSV for a folder of audio files")
    prompts, found = from_run(source, systems) if captions is None else from_folders(source, captions, systems)
    shared = [one for one in prompts if all(one.id in clips for clips in found.values())]
    if not shared:
        raise DataError(f"{source}: no prompt has a clip of every system ({', '.join(found)})")
    return shared, found


def from_run(path: Path, systems: Sequence[str]) -> tuple[list[Prompt], Sources]:
    """Prompts and evaluated clips of a run, `reference` among the systems where the run has it."""
    run = Run(path)
    requests = evaluation_requests(run)
    prompts = [prompt for prompt, _ in requests]
    there = [one.name for one in sorted((path / "evaluate").glob("*/")) if one.name != "prompts"]
    wanted = {request.id: request for _, request in requests}
    return prompts, {name: _evaluated(run, name, wanted) for name in _wanted(systems, there)}


def from_folders(path: Path, captions: Path, systems: Sequence[str]) -> tuple[list[Prompt], Sources]:
    """Prompts of a CSV with the columns clip and caption, and each system's file of that name, whatever its suffix."""
    there = [one.name for one in sorted(path.glob("*/")) if audio_files(one)]
    if not there:
        raise DataError(f"{path} has no folders with audio files: make one for each system")
    files = {system: audio_files(path / system) for system in _wanted(systems, there)}
    prompts = read_captions(captions, set().union(*files.values()))
    sources: Sources = {
        system: {prompt.id: Source(read_audio(clips[key])) for key, prompt in prompts.items() if key in clips}
        for system, clips in files.items()
    }
    return list(prompts.values()), sources


def read_captions(path: Path, known: Collection[str] = ()) -> dict[str, Prompt]:
    """Prompts by clip (`clip_key`) from a table of clips with captions.

    Raises DataError in one line for anything else: another header, an empty caption, a clip named twice.
    """
    prompts: dict[str, Prompt] = {}
    for row in clip_captions(path, known):
        if row.key in prompts:
            raise DataError(f"{row.where}: the clip {row.key} is there twice")
        prompts[row.key] = Prompt(id=content_id(row.key, row.caption), text=row.caption, source=path.name)
    return prompts


def plan_of(
    systems: Sequence[str], title: str, kinds: Sequence[str], reference: str | None, prompts: int | None,
    per_rater: int, raters: int, seed: int | None,
) -> Plan:  # fmt: skip
    """A plan from what the command was given; RecipeError for a kind that does not exist.

    A seed that is not given is drawn: who knew it could work out which system stands where, and every right tone.
    """
    from milonga.listening_test.records import KINDS, Kind

    for kind in kinds:
        if kind not in KINDS:
            raise RecipeError(f"no kind {kind!r} of judging: there are {' and '.join(KINDS)}")
    asked: tuple[Kind, ...] = tuple(one for one in KINDS if not kinds or one in kinds)
    real = reference if reference is not None else REFERENCE if REFERENCE in systems else ""
    return Plan(title, asked, real, prompts, per_rater, raters, randbits(63) if seed is None else seed)


def links(folder: Path, count: int, url: str) -> list[str]:
    """`count` new links, one for each rater. Raises RecipeError for what is no web address."""
    from milonga.listening_test.database import FILE
    from milonga.listening_test.ratings import Ratings

    if not re.fullmatch(r"https?://[^\s/]+(/[^\s?#]*)?", url):
        raise RecipeError(f"{url!r} is no web address: give what raters will reach, as in https://example.org:8000")
    read_test(folder)
    return [f"{url.rstrip('/')}/r/{token}" for token in Ratings(folder / FILE).invite(count)]


def _evaluated(run: Run, system: str, requests: Mapping[str, Request]) -> dict[str, Source]:
    """A system's clips by prompt id, with what is known of their making; real ones were not made."""
    shards, found = run.stage(f"evaluate/{system}"), {}
    for shard in shards.names():
        for row in shards.read_table(shard, ["id", "audio", "latents"]).to_pylist():
            one = requests.get(row["id"])
            if one is not None:
                steps, seed = (0, 0) if system == REFERENCE else (one.steps, one.seed)
                found[one.prompt_id] = Source(from_flac(row["audio"]["bytes"]), row["latents"], steps, seed)
    return found


def _wanted(systems: Sequence[str], there: Sequence[str]) -> list[str]:
    for name in systems:
        if name not in there:
            raise RecipeError(f"no system {name!r}: there are {', '.join(there) or 'none'}")
    return list(dict.fromkeys(systems)) or list(there)
