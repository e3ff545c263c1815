"""The command `generate`: prompts in, playable files out, with their settings in their tags and in a manifest.

Two requests that differ in anything never share a file: its name ends in a hash of everything that the clip depends on.
The manifest `clips.jsonl` beside the clips is a table that `clips:`, `captions:` and `evaluate --captions` read.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from milonga.core.audio import write_audio
from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.ids import clip_seed, content_id, slug
from milonga.core.progress import tracked
from milonga.core.protocols import Model, Scorer
from milonga.core.records import Clip, Prompt, Request
from milonga.core.store import write_bytes
from milonga.preference.candidates import rank_clips, score_clips

BATCH = 8  # clips that are generated at once; a clip is the same in any batch
MANIFEST = "clips.jsonl"
SHORTEST = 0.01  # seconds: less is not even one row of a latent picture


def generate_clips(
    model: Model,
    prompts: Sequence[str],
    out: Path,
    steps: int,
    guidance: float,
    seed: int = 0,
    count: int = 1,
    details: Mapping[str, str] | None = None,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """Writes `count` clips of each prompt into `out` as `a-dog-barks-SEED-NUMBER-HASH.wav`; gives their paths in order.

    A clip's seed derives from `seed`, its prompt's text and its number: the same arguments replace the same files,
    other steps start from the same noise. `details` are what the clips depend on beside the arguments (scheduler,
    duration, the hash of the weights); they go into the name's hash, the tags and the manifest. With `resume` a clip
    that the manifest names and that is there is not generated again. `options` go to the model as they are (`negative`,
    `timeline`), and stand in `details` too. Raises StoreError when the disk refuses.
    """
    requests = {
        name: planned
        for text in prompts
        for name, planned in plan_clips(model, text, steps, guidance, seed, count, details).items()
    }
    listed = listed_files(out / MANIFEST)
    finished = {name for name in requests if resume and name in listed and (out / name).is_file()}
    yield from (out / name for name in requests if name in finished)
    missing = [name for name in requests if name not in finished]
    with tracked("generate", len(requests), len(finished)) as advance:
        for first in range(0, len(missing), BATCH):
            batch = missing[first : first + BATCH]
            clips = model.generate([requests[name][0] for name in batch], **(options or {}))
            for name, clip in zip(batch, clips, strict=True):
                write_clip(out, name, clip, requests[name][1], listed)
                advance(1)
                yield out / name


def generate_best(
    model: Model,
    prompts: Sequence[str],
    out: Path,
    steps: int,
    guidance: float,
    scorers: Sequence[Scorer],
    n: int,
    seed: int = 0,
    count: int = 1,
    details: Mapping[str, str] | None = None,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """Generates `n` clips of each prompt and writes the `count` that `scorers` rank highest; gives their paths, the
    best first.

    Files, tags and manifest are those of `generate_clips`, with rank, mean z-score and every scorer's score beside the
    settings; `details` must name the scorers, `options` are as there. A prompt is generated as a whole: with `resume`,
    one whose best clips are all there is not generated again. Raises StoreError when the disk refuses.
    """
    planned = [plan_clips(model, text, steps, guidance, seed, n, details) for text in prompts]
    groups = list({next(iter(group)): group for group in planned}.values())  # a prompt that comes twice is done once
    listed = listed_files(out / MANIFEST)
    missing: list[dict[str, tuple[Request, dict[str, object]]]] = []
    for group in groups:
        ranked = sorted((listed[name].get("rank", n + 1), name) for name in group if name in listed)[:count]
        if resume and len(ranked) == count == ranked[-1][0] and all((out / name).is_file() for _, name in ranked):
            yield from (out / name for _, name in ranked)
        else:
            missing.append(group)
    with tracked("generate", n * len(groups), n * (len(groups) - len(missing))) as advance:
        for first in range(0, len(missing), max(1, BATCH // n)):
            part = missing[first : first + max(1, BATCH // n)]
            requests = [request for group in part for request, _ in group.values()]
            clips: list[Clip] = []
            for start in range(0, len(requests), BATCH):
                clips += model.generate(requests[start : start + BATCH], **(options or {}))
            scores = score_clips(clips, [request.prompt for request in requests], scorers, BATCH)
            for place, group in enumerate(part):
                own = slice(place * n, place * n + n)
                names = list(group)
                for ranked in rank_clips(clips[own], scores[own])[:count]:
                    name, ranks = names[ranked.number], {"rank": ranked.rank, "score": ranked.score}
                    ranks |= {f"score {scorer}": score for scorer, score in ranked.scores.items()}
                    entry = group[name][1] | {key: value if isfinite(value) else None for key, value in ranks.items()}
                    write_clip(out, name, ranked.clip, entry, listed)
                    yield out / name
                advance(n)


def write_clip(out: Path, name: str, clip: Clip, settings: Mapping[str, object], listed: Collection[str]) -> None:
    """Writes a clip with its settings as tags, and lists it in the manifest unless it is among the names `listed`."""
    write_audio(out / name, clip, {key: str(value) for key, value in settings.items()})
    if name not in listed:
        append_entry(out / MANIFEST, {"file_name": name, **settings})


def plan_clips(
    model: Model, text: str, steps: int, guidance: float, seed: int, count: int, details: Mapping[str, str] | None
) -> dict[str, tuple[Request, dict[str, object]]]:
    """The files of a prompt's `count` clips by name, each with its request and with what it depends on."""
    words, files = " ".join(text.split()), {}
    for number in range(count):
        request = Request.of(seed, Prompt.of(words, "command line"), words, int(steps), float(guidance), number)
        settings = {
            "prompt": words, "model": model.name, "seed": seed, "number": number, "steps": request.steps,
            "guidance": request.guidance, **(details or {}),
        }  # fmt: skip
        name = f"{slug(words)}-{seed}-{number}-{content_id(settings)[:10]}.wav"
        files[name] = request.model_copy(update={"seed": clip_seed(seed, words, number)}), settings
    return files


def check(
    prompts: Sequence[str],
    steps: int,
    guidance: float,
    count: int,
    duration: float | None,
    best_of: int | None = None,
    negative: str = "",
) -> None:
    """Raises DataError for a prompt that is empty or not UTF-8, RecipeError for numbers that make no sense: before a
    model is loaded."""
    if not prompts or any(not text.strip() for text in prompts):
        raise DataError('a prompt is empty: say what to hear, such as "a dog barks then a bell rings"')
    for text in prompts:
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            shown = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
            raise DataError(f"the prompt {shown!r} is not UTF-8: type it in a terminal whose encoding is UTF-8")
    if steps < 1 or count < 1:
        raise RecipeError("--steps and -n must be at least 1")
    if best_of is not None and not count <= best_of:
        raise RecipeError(f"--best-of must be at least -n, the number of clips that are saved ({count})")
    if not 0 <= guidance < float("inf"):
        raise RecipeError("--guidance must be 0 or a positive number")
    if negative and guidance <= 1:
        raise RecipeError("--negative has no effect without guidance: choose a --guidance above 1")
    if duration is not None and 0 < duration < SHORTEST:
        raise RecipeError(f"--duration must be at least {SHORTEST} seconds")
    if duration is not None and not 0 < duration < float("inf"):
        raise RecipeError("--duration must be more than 0 seconds")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: of a table (.csv, .tsv, .json, .jsonl, .parquet) its captions, of other text its lines.

    Raises DataError for a file that cannot be read or holds no prompt.
    """
    from milonga.data.captions import caption_texts
    from milonga.data.tables import TABLE_SUFFIXES, read_text

    if path.suffix.lower() in TABLE_SUFFIXES:
        return list(caption_texts(path))
    prompts = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not prompts:
        raise DataError(f"{path} holds no prompt: write one a line")
    return prompts


def listed_files(manifest: Path) -> dict[str, dict[str, Any]]:
    """The manifest's entries by file; a last line that a crash cut off is removed."""
    try:
        data = manifest.read_bytes() if manifest.exists() else b""
        if data and not data.endswith(b"\n"):
            data = data[: data.rfind(b"\n") + 1]
            write_bytes(manifest, data)
        entries = [json.loads(line) for line in data.splitlines() if line.strip()]
        return {entry["file_name"]: entry for entry in entries}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{manifest} is no manifest of clips ({error}): move it away, or choose another --out"
        ) from error


def append_entry(manifest: Path, entry: Mapping[str, object]) -> None:
    """Adds a line to the manifest and asks the disk to keep it; StoreError when the disk refuses."""
    try:
        with manifest.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"cannot write {manifest}: {error.strerror}; make room or choose another --out") from error
