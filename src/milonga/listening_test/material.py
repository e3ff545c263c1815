"""Making a test: systems' clips become a folder with everything that the test needs.

```
TEST/
  test.json          the test as a record
  generate/          the original clips, one shard per system, with latents where they exist
  playback/          the clips for playback: FLAC, those of a prompt equally loud
  ratings.sqlite     raters, sessions and ratings
  page.toml          your instructions and settings of the raters' page, where you wrote them (see `page`)
```

It is written beside its place and renamed: a folder that exists is complete. Only its owner can open it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from milonga.core.audio import clip_table, flac_bytes, resample
from milonga.core.errors import DataError, StoreError
from milonga.core.ids import content_id, derive_seed
from milonga.core.records import Clip, Prompt
from milonga.core.store import Run, atomic_dir, read_json, write_bytes, write_json
from milonga.listening_test.records import ANCHOR, BROKEN, Kind, PlaybackClip, Test
from milonga.maths.clip_view import loudness

TARGET = -23.0  # LUFS, the level of EBU R 128
QUIETEST = -40.0  # LUFS: a prompt is not played below this for the sake of one clip
PEAK = -1.0  # dBFS, the highest peak of a clip


def reachable(clip: Clip, lufs: float | None) -> float:
    """The loudness in LUFS, TARGET at most, that a clip reaches before its peak exceeds PEAK; TARGET for silence.

    A few clicks in silence stay below the target: a limiter would bring them there, but would change the sound that is
    judged.
    """
    return TARGET if lufs is None else min(TARGET, lufs + PEAK - 20 * float(np.log10(np.abs(clip.samples).max())))


def playback_gain(clip: Clip, lufs: float | None, target: float = TARGET) -> float:
    """The gain in dB that brings a clip to `target` LUFS, or as near as PEAK allows; 0 for silence."""
    return 0.0 if lufs is None else min(target, reachable(clip, lufs)) - lufs


def amplified(clip: Clip, gain: float) -> Clip:
    """The clip with `gain` dB applied."""
    return Clip.of((clip.samples * 10 ** (gain / 20)).astype(np.float32), clip.rate)


CHECK_PROMPTS = 2
RESERVED = 1 + CHECK_PROMPTS  # prompts that no system is judged on: the example and those of the checks
GRAIN = 0.06  # seconds of the pieces that a broken clip is cut into
CRUSHED_LEVELS = 4  # amplitude levels, on either side of zero, that a broken clip has
SILENT_SHARE = 1 / 3  # of a broken clip's pieces
NOISE = 10 ** (-70 / 20)  # rms of the noise under a broken clip
ANCHOR_HERTZ = 3500.0  # where MUSHRA's low anchor ends (ITU-R BS.1534-3, section 5)


@dataclass(frozen=True)
class Source:
    """One system's original clip: with raw latents, steps and seed where a model's run knows them."""

    clip: Clip
    latents: bytes | None = None
    steps: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """The design of a test; `prompts` None: as many as there are clips for."""

    title: str
    kinds: tuple[Kind, ...]
    reference: str
    prompts: int | None
    per_rater: int
    raters_per_clip: int
    seed: int


def make_test(folder: Path, plan: Plan, prompts: Sequence[Prompt], sources: Mapping[str, Mapping[str, Source]]) -> Test:
    """Writes a test folder from clips by system and prompt id (all must exist) and returns the test.

    Raises StoreError where `folder` is not empty, DataError where there are too few prompts or systems for it,
    AudioError for a clip that cannot be played.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} already exists and is not empty: choose another --out")
    _check(plan, prompts, sources)
    picked = [prompts[place] for place in np.random.default_rng(plan.seed).permutation(len(prompts))]
    picked = picked[: RESERVED + (len(picked) if plan.prompts is None else plan.prompts)]
    with atomic_dir(folder) as part:
        part.chmod(0o700)  # the seed in test.json gives away every right answer
        for number, (system, clips) in enumerate(sources.items()):
            ids = [content_id(system, prompt.id) for prompt in picked]
            own = [clips[prompt.id] for prompt in picked]
            rate = max(source.clip.rate for source in own)  # one for a shard: recordings of mixed rates lose nothing
            table = clip_table(ids, [resample(source.clip, rate) for source in own], [source.latents for source in own])
            Run(part).stage("generate").write_table(f"{number:05d}-of-{len(sources):05d}", table)
        test = Test(
            title=plan.title,
            kinds=plan.kinds,
            systems=tuple(sources),
            reference=plan.reference,
            prompts=tuple(picked[RESERVED:]),
            check_prompts=tuple(picked[1:RESERVED]),
            example=picked[0],
            clips=tuple(_write_playback(part, plan, picked, sources)),
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
        raise StoreError(f"{path} is damaged or was written by another version: restore it") from error


def clip_file(folder: Path, clip: PlaybackClip) -> Path:
    """The playback file of a clip."""
    return folder / "playback" / f"{clip.id}.flac"


def played_loudness(test: Test) -> list[tuple[str, float, float]]:
    """(system, mean loudness in LUFS, largest distance in dB from the loudest clip of a prompt) as clips are played.

    Attention checks and silence are left out.
    """
    levels: dict[str, dict[str, float]] = {}
    for clip in test.clips:
        if clip.lufs is not None and clip.system != BROKEN:
            levels.setdefault(clip.system, {})[clip.prompt_id] = clip.lufs + clip.gain
    loudest = {
        prompt: max(own.get(prompt, -np.inf) for own in levels.values()) for own in levels.values() for prompt in own
    }
    return [
        (system, float(np.mean(list(own.values()))), max(loudest[prompt] - level for prompt, level in own.items()))
        for system, own in levels.items()
    ]


def _check(plan: Plan, prompts: Sequence[Prompt], sources: Mapping[str, Mapping[str, Source]]) -> None:
    if plan.reference and plan.reference not in sources:
        raise DataError(f"no system {plan.reference} for the reference: there are {', '.join(sources)}")
    for name in {BROKEN, ANCHOR} & sources.keys():
        raise DataError(f"{name!r} is the name of clips that the test makes itself: give the system another name")
    if "mushra" in plan.kinds and not plan.reference:
        raise DataError("MUSHRA needs real clips for its hidden reference and anchor: name them with --reference")
    compared = len(sources) - bool(plan.reference)
    if "compare" in plan.kinds and compared < 2:
        raise DataError(f"a comparison needs two systems besides the reference, not {compared}: use --kind rate")
    needed = RESERVED + (plan.prompts or 1)
    if len(prompts) < needed:
        raise DataError(
            f"the test needs {needed} prompts that all systems have clips for, {RESERVED} of them for checks and an "
            f"example, and there are {len(prompts)}"
        )


def broken(clip: Clip, seed: int) -> Clip:
    """The clip cut into 60 ms pieces, shuffled, every third one silent, the others quantised to a few levels.

    Nobody who listens calls this good, whatever the clip was. Soft noise covers the silence and the levels, so that a
    program does not recognise the clip by its exact zeros.
    """
    rng, size = np.random.default_rng(seed), max(1, round(GRAIN * clip.rate))
    pieces = [clip.samples[start : start + size] for start in range(0, len(clip.samples), size)]
    peak = np.abs(clip.samples).max() or 1.0
    crushed = [
        np.sign(pieces[i]) * np.ceil(np.abs(pieces[i]) / peak * CRUSHED_LEVELS) / CRUSHED_LEVELS
        for i in rng.permutation(len(pieces))
    ]
    silent = set(rng.permutation(len(pieces))[: round(len(pieces) * SILENT_SHARE)].tolist())
    gated = np.concatenate([piece * (place not in silent) for place, piece in enumerate(crushed)])
    return Clip.of((0.5 * gated + NOISE * rng.normal(size=gated.shape)).astype(np.float32), clip.rate)


def anchor(clip: Clip) -> Clip:
    """The clip without what lies above 3.5 kHz: MUSHRA's low anchor (ITU-R BS.1534-3, section 5)."""
    from scipy.signal import butter, sosfiltfilt

    if clip.rate <= 2 * ANCHOR_HERTZ:
        return clip
    filtered = sosfiltfilt(butter(8, ANCHOR_HERTZ, fs=clip.rate, output="sos"), clip.samples, axis=0, padlen=0)
    return Clip.of(filtered.astype(np.float32), clip.rate)


def _write_playback(
    folder: Path, plan: Plan, prompts: Sequence[Prompt], sources: Mapping[str, Mapping[str, Source]]
) -> list[PlaybackClip]:
    """Writes the playback files: every system's clips, MUSHRA's anchors, and broken clips of the reserved prompts.

    The clips of a prompt are played at one loudness: the loudest that all of them reach. Louder is liked better, and
    which clips cannot be louder depends on the system.
    """
    playable = []
    for number, prompt in enumerate(prompts):
        rows = [(system, clips[prompt.id]) for system, clips in sources.items()]
        intact = sources[plan.reference or next(iter(sources))][prompt.id].clip
        if number < RESERVED:
            rows.append((BROKEN, Source(broken(intact, derive_seed(plan.seed, "broken", prompt.id)))))
        if "mushra" in plan.kinds:
            rows.append((ANCHOR, Source(anchor(intact))))
        levels = [loudness(source.clip) for _, source in rows]
        limits = [reachable(source.clip, lufs) for (_, source), lufs in zip(rows, levels, strict=True)]
        target = max(QUIETEST, min(limits))
        for (system, source), lufs in zip(rows, levels, strict=True):
            gain = playback_gain(source.clip, lufs, target)
            entry = PlaybackClip(
                id=content_id(system, prompt.id), prompt_id=prompt.id, system=system, steps=source.steps,
                seed=source.seed, lufs=lufs, gain=gain, seconds=source.clip.seconds,
            )  # fmt: skip
            path = clip_file(folder, entry)
            write_bytes(path, flac_bytes(amplified(source.clip, gain)))
            os.utime(path, (0, 0))  # browsers see the modification time, which would group the clips by system
            playable.append(entry)
    return playable
