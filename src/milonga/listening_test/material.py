"""Making a test: systems' clips become a folder with everything that the test will ever need.

```
TEST/
  test.json          the test as a record
  generate/          the clips as they came, one shard a system, latents included where there are any
  playback/          the clips as they are played: FLAC, matched in loudness
  ratings.sqlite     raters, sessions and ratings
```

It is made beside its place and renamed: a folder that is there is whole.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from milonga.core.audio import clip_table, flac_bytes
from milonga.core.errors import DataError, StoreError
from milonga.core.ids import content_id, derive_seed
from milonga.core.records import Clip, Prompt
from milonga.core.store import Run, atomic_dir, read_json, write_bytes, write_json
from milonga.listening_test.playback import amplified, broken, gain_of, loudness
from milonga.listening_test.records import BROKEN, Kind, Played, Test

CHECK_PROMPTS = 2
RESERVED = 1 + CHECK_PROMPTS  # prompts that are no system's to win: an example, and those of the checks


@dataclass(frozen=True)
class Source:
    """One system's clip as it came: with raw latents, steps and seed where a model's run knows them."""

    clip: Clip
    latents: bytes | None = None
    steps: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """What a test is asked to be; `prompts` None: as many as there are clips for."""

    title: str
    kinds: tuple[Kind, ...]
    reference: str
    prompts: int | None
    per_rater: int
    raters_per_clip: int
    seed: int


def make_test(folder: Path, plan: Plan, prompts: Sequence[Prompt], sources: Mapping[str, Mapping[str, Source]]) -> Test:
    """Writes a test folder from clips by system and prompt id, all of which must be there, and gives the test.

    Raises StoreError where `folder` is not empty, DataError where there are too few prompts or systems for it,
    AudioError for a clip that cannot be played.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} is there already and not empty: choose another --out")
    _check(plan, prompts, sources)
    picked = [prompts[place] for place in np.random.default_rng(plan.seed).permutation(len(prompts))]
    picked = picked[: RESERVED + (len(picked) if plan.prompts is None else plan.prompts)]
    with atomic_dir(folder) as part:
        for number, (system, clips) in enumerate(sources.items()):
            _keep(part, f"{number:05d}-of-{len(sources):05d}", system, picked, clips)
        test = Test(
            title=plan.title,
            kinds=plan.kinds,
            systems=tuple(sources),
            reference=plan.reference,
            prompts=tuple(picked[RESERVED:]),
            check_prompts=tuple(picked[1:RESERVED]),
            example=picked[0],
            clips=tuple(_playable(part, plan, picked, sources)),
            per_rater=plan.per_rater,
            raters_per_clip=plan.raters_per_clip,
            seed=plan.seed,
        )
        write_json(part / "test.json", test.model_dump(mode="json"))
    return test


def read_test(folder: Path) -> Test:
    """The test in a folder; StoreError when there is none or it is damaged."""
    path = Path(folder) / "test.json"
    if not path.exists():
        raise StoreError(f"{folder} holds no listening test: make one with `milonga listen make SOURCE --out {folder}`")
    try:
        return Test.model_validate(read_json(path))
    except ValidationError as error:
        raise StoreError(f"{path} is damaged or was written by another version: put it back") from error


def clip_file(folder: Path, clip: Played) -> Path:
    """Where a clip is, as it is played."""
    return folder / "playback" / f"{clip.id}.flac"


def quieter(test: Test) -> int:
    """How many clips their peaks keep more than 1 dB below the loudness of the others."""
    from milonga.listening_test.playback import TARGET

    return sum(one.lufs is not None and one.lufs + one.gain < TARGET - 1 for one in test.clips)


def _check(plan: Plan, prompts: Sequence[Prompt], sources: Mapping[str, Mapping[str, Source]]) -> None:
    if plan.reference and plan.reference not in sources:
        raise DataError(f"no system {plan.reference} to be the reference: there are {', '.join(sources)}")
    if BROKEN in sources:
        raise DataError(f'"{BROKEN}" is what clips of attention checks are called: give the system another name')
    compared = len(sources) - bool(plan.reference)
    if "compare" in plan.kinds and compared < 2:
        raise DataError(f"comparing needs two systems beside the reference, and there is {compared}: use --kind rate")
    wanted = RESERVED + (plan.prompts or 1)
    if len(prompts) < wanted:
        raise DataError(
            f"the test needs {wanted} prompts that all systems have clips for, {RESERVED} of them for checks and an "
            f"example, and there are {len(prompts)}"
        )


def _keep(folder: Path, shard: str, system: str, prompts: Sequence[Prompt], clips: Mapping[str, Source]) -> None:
    """One system's clips as they came, in the layout of a run's `generate`."""
    found = [clips[prompt.id] for prompt in prompts]
    ids = [content_id(system, prompt.id) for prompt in prompts]
    try:
        table = clip_table(ids, [one.clip for one in found], [one.latents for one in found])
    except DataError as error:
        raise DataError(f"{system}: {error}") from error
    Run(folder).stage("generate").write_table(shard, table)


def _playable(
    folder: Path, plan: Plan, prompts: Sequence[Prompt], sources: Mapping[str, Mapping[str, Source]]
) -> list[Played]:
    """Writes what is played, and says what it is: every system's clips, and broken ones of the reserved prompts."""
    whole = plan.reference or next(iter(sources))
    found = [
        _played(folder, system, prompt, clips[prompt.id]) for system, clips in sources.items() for prompt in prompts
    ]
    for prompt in prompts[:RESERVED]:
        torn = broken(sources[whole][prompt.id].clip, derive_seed(plan.seed, "broken", prompt.id))
        found.append(_played(folder, BROKEN, prompt, Source(torn)))
    return found


def _played(folder: Path, system: str, prompt: Prompt, source: Source) -> Played:
    lufs = loudness(source.clip)
    gain = gain_of(source.clip, lufs)
    clip = Played(
        id=content_id(system, prompt.id), prompt_id=prompt.id, system=system, steps=source.steps, seed=source.seed,
        lufs=lufs, gain=gain,
    )  # fmt: skip
    path = clip_file(folder, clip)
    write_bytes(path, flac_bytes(amplified(source.clip, gain)))
    os.utime(path, (0, 0))  # the hour of writing, which browsers are told, would group the clips by system
    return clip
