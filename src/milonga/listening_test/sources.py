"""Sources of a listening test: clips of an evaluated run or of folders of audio files; the test's plan and links."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from secrets import randbits

from milonga.core.audio import from_flac, read_audio
from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.ids import content_id
from milonga.core.records import Clip, Prompt, Request
from milonga.core.store import Run
from milonga.data.captions import audio_files, clip_captions, tags_of
from milonga.data.pairs import evaluation_requests
from milonga.listening_test.database import FILE
from milonga.listening_test.material import Plan, Source, read_test
from milonga.listening_test.ratings import Ratings
from milonga.listening_test.records import DEFAULT_KINDS, KINDS, Kind

REFERENCE = "reference"
LONGEST = 300.0  # seconds
Sources = dict[str, dict[str, Source]]


def load_sources(source: Path, captions: Path | None, systems: Sequence[str]) -> tuple[list[Prompt], Sources]:
    """The prompts that all systems have clips for, and those clips by system and prompt id.

    `source` is a run folder or, with a CSV of captions, a folder with one folder of audio files per system. `systems`
    selects some of them; empty means all. Raises StoreError or DataError where there are no clips, RecipeError for a
    system that does not exist.
    """
    if not source.is_dir():
        raise StoreError(f"{source} is not a folder: give a run folder, or one with a folder of audio files per system")
    if captions is None and not (source / "evaluate" / "prompts").exists():
        raise StoreError(f"{source} is not an evaluated run folder: give --captions CSV for folders of audio files")
    prompts, clips = from_run(source, systems) if captions is None else from_folders(source, captions, systems)
    shared = [prompt for prompt in prompts if all(prompt.id in own for own in clips.values())]
    if not shared:
        raise DataError(f"{source}: no prompt has a clip of every system ({', '.join(clips)})")
    return shared, clips


def from_run(path: Path, systems: Sequence[str]) -> tuple[list[Prompt], Sources]:
    """Prompts and evaluated clips, the first of each, of a run; `reference` is a system where the run has it."""
    run = Run(path)
    requests = [(prompt, request) for prompt, request in evaluation_requests(run) if request.number == 0]
    prompts = [prompt for prompt, _ in requests]
    available = [folder.name for folder in sorted((path / "evaluate").glob("*/")) if folder.name != "prompts"]
    by_id = {request.id: request for _, request in requests}
    return prompts, {name: _evaluated_clips(run, name, by_id) for name in _select(systems, available)}


def from_folders(path: Path, captions: Path, systems: Sequence[str]) -> tuple[list[Prompt], Sources]:
    """Prompts of a table of captions, and each system's audio file of that clip with any suffix."""
    available = [folder.name for folder in sorted(path.glob("*/")) if audio_files(folder)]
    if not available:
        raise DataError(f"{path} has no folders with audio files: create one for each system")
    files = {system: audio_files(path / system) for system in _select(systems, available)}
    prompts = read_captions(captions, set().union(*files.values()))
    sources: Sources = {
        system: {prompt.id: Source(_short_clip(clips[key])) for key, prompt in prompts.items() if key in clips}
        for system, clips in files.items()
    }
    return list(prompts.values()), sources


def _short_clip(file: Path) -> Clip:
    """A clip that people can listen to. Raises DataError for one longer than LONGEST, of which no more is in memory."""
    clip = read_audio(file, mono="all", seconds=LONGEST)
    if clip.mean is not None:  # what a clip that was cut carries
        raise DataError(
            f"{file}: a clip of a listening test has at most {LONGEST:g} s; cut it to what people shall rate"
        )
    return clip


def read_captions(path: Path, known: Collection[str] = ()) -> dict[str, Prompt]:
    """Prompts by clip (`clip_key`) from a table of clips with captions.

    Raises DataError in one line for anything else: another header, an empty caption, a clip named twice.
    """
    prompts: dict[str, Prompt] = {}
    for row in clip_captions(path, known):
        if row.key in prompts:
            raise DataError(f"{row.where}: the clip {row.key} is there twice")
        tags = tags_of(row.caption)
        prompts[row.key] = Prompt(id=content_id(row.key, row.caption), text=row.caption, source=path.name, tags=tags)
    return prompts


def plan_of(
    systems: Sequence[str], title: str, kinds: Sequence[str], reference: str | None, prompts: int | None,
    per_rater: int, raters: int, seed: int | None,
) -> Plan:  # fmt: skip
    """A plan from the command's options; RecipeError for a kind that does not exist.

    Without a seed one is drawn at random, because a known seed reveals which system is where and every right tone.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise RecipeError(f"unknown kind of judging {kind!r}: there are {', '.join(KINDS)}")
    chosen: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind in (kinds or DEFAULT_KINDS))
    real = reference if reference is not None else REFERENCE if REFERENCE in systems else ""
    return Plan(title, chosen, real, prompts, per_rater, raters, randbits(63) if seed is None else seed)


def invitation_links(folder: Path, count: int, url: str | None) -> list[str]:
    """`count` new links, one per rater.

    Without `url` they have the address of the last `milonga listen serve`. Raises RecipeError where `url` is not a web
    address, or where there is none.
    """
    read_test(folder)
    ratings = Ratings(folder / FILE)
    base = check_url(url or ratings.setting("url"))
    return [f"{base}/r/{token}" for token in ratings.invite(count)]


def check_url(url: str) -> str:
    """A web address without the slash at its end; RecipeError where it is none, or has a query."""
    if not url:
        raise RecipeError("the test has not been served yet: give the address that raters reach as --url")
    if not re.fullmatch(r"https?://[^\s/]+(/[^\s?#]*)?", url):
        raise RecipeError(
            f"{url!r} is not a web address: give the one that raters reach, such as https://example.org:8000"
        )
    return url.rstrip("/")


def _evaluated_clips(run: Run, system: str, requests: Mapping[str, Request]) -> dict[str, Source]:
    """A system's clips by prompt id, with steps and seed; real clips have none."""
    shards, clips = run.stage(f"evaluate/{system}"), {}
    for shard in shards.names():
        for row in shards.read_table(shard, ["id", "audio", "latents"]).to_pylist():
            request = requests.get(row["id"])
            if request is not None:
                steps, seed = (0, 0) if system == REFERENCE else (request.steps, request.seed)
                clips[request.prompt_id] = Source(from_flac(row["audio"]["bytes"]), row["latents"], steps, seed)
    return clips


def _select(systems: Sequence[str], available: Sequence[str]) -> list[str]:
    for name in systems:
        if name not in available:
            raise RecipeError(f"no system {name!r}: there are {', '.join(available) or 'none'}")
    return list(dict.fromkeys(systems)) or list(available)
