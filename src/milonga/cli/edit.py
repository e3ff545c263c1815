"""The command `edit`: audio files in, edited ones of the same rate, channels and subtype out.

Names, tags and the manifest are as `generate` writes them.
"""

import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from milonga.cli.common import Device, Guidance, ModelName, Steps, handle_errors
from milonga.core.errors import DataError, MilongaWarning, RecipeError
from milonga.core.ids import clip_seed, content_id, file_hash, slug
from milonga.core.progress import tracked

VARIATION = 0.4  # strength of a variation: on nano nine of ten events stay, even under other words


@handle_errors
def edit(
    sources: Annotated[
        list[Path], typer.Argument(metavar="IN...", help="Audio files, of any rate and channels.", show_default=False)
    ],
    prompt: Annotated[
        str | None, typer.Option(help="What the edited sound should be.", show_default="the file's own, from its tags")
    ] = None,
    region: Annotated[
        str | None, typer.Option(metavar="FROM-TO", help="Repaint these seconds only, such as 1.2-2.0.")
    ] = None,
    extend: Annotated[
        float | None, typer.Option("--continue", metavar="SECONDS", help="Continue the clip by so many seconds.")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Repaint the seam, so that the end leads back in.")] = False,
    variation: Annotated[
        bool, typer.Option("--variation", help="A close variation of the clip; needs no prompt.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repaint what a tagger finds wrong: sounds missing, extra, out of order.")
    ] = False,
    best_of: Annotated[
        int | None, typer.Option(metavar="N", help="With --repair: takes of each fault.", show_default="8")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="SCORER", help="With --repair: events:TAGGER.", show_default="nano-events for nano"),
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="With --repair: write each as a preference pair into OUT/pairs.")
    ] = False,
    strength: Annotated[
        float | None,
        typer.Option(
            help="How much to change: 0 returns the input, 1 keeps nothing.",
            show_default="1 for a part; for a whole clip 0.6, for a variation 0.4",
        ),
    ] = None,
    negative: Annotated[str, typer.Option(metavar="TEXT", help="What it should not sound like.")] = "",
    model: ModelName = "nano",
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same edit.", min=0)] = 0,
    number: Annotated[int, typer.Option("-n", help="Edits per file.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(help="A sampler, as in generate.", show_default="the model's own")
    ] = None,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path(),
    device: Device = "auto",
) -> None:
    """Edit audio files and print the results' paths: the whole clip, a region, a continuation, a loop, a variation, or
    a repair.

    Outside a region (and 15 ms beside it) all samples stay as they are. A whole clip passes the model's autoencoder,
    which has one channel and its own rate. With several files, re-run the same command to resume.
    """
    from milonga.cli.generate import check
    from milonga.models.load import system

    if variation and (region is not None or extend is not None or loop):
        raise RecipeError("--variation is of the whole clip: leave --region, --continue and --loop out")
    if repair and (region or extend or loop or variation or negative or strength is not None or number > 1):
        raise RecipeError(
            "--repair finds its regions itself, once a file: leave the other edits, --negative and -n out"
        )
    if not repair and (best_of is not None or by is not None or pairs):
        raise RecipeError("--best-of, --by and --pairs belong to --repair")
    values = {
        "region": None if region is None else parse_region(region),
        "extend": extend,
        "loop": loop or None,
        "strength": VARIATION if variation and strength is None else strength,
    }
    change = {name: value for name, value in values.items() if value is not None}
    selected = system(model)
    own_steps, own_guidance = selected.sampling()
    steps, guidance = own_steps if steps is None else steps, own_guidance if guidance is None else guidance
    words = [text for text in (prompt, negative or None) if text is not None]
    check(words or ["from the tags"], steps, guidance, number, None, negative=negative)
    settings = {"scheduler": scheduler, "negative": negative or None, "weights": selected.fingerprint()}
    details = {name: str(value) for name, value in settings.items() if value is not None}
    resume = len(sources) > 1
    if repair:
        from milonga.preference.repair import event_scorer_of

        events, count = event_scorer_of(model, by, device), 8 if best_of is None else best_of
        pipe = selected.load(scheduler, device=device)
        paths = repair_files(pipe, sources, out, steps, guidance, events, prompt, count, seed, details, pairs, resume)
    else:
        pipe = selected.load(scheduler, device=device)
        paths = edit_files(
            pipe, sources, out, steps, guidance, prompt, change, negative, seed, number, details, variation, resume
        )
    for path in paths:
        typer.echo(path)


def edit_files(
    model: Any,
    sources: Sequence[Path],
    out: Path,
    steps: int,
    guidance: float,
    prompt: str | None = None,
    change: Mapping[str, Any] | None = None,
    negative: str = "",
    seed: int = 0,
    count: int = 1,
    details: Mapping[str, str] | None = None,
    wordless: bool = False,
    resume: bool = False,
) -> Iterator[Path]:
    """Writes `count` edits of each file into `out` and gives their paths; names, tags and manifest as `generate_clips`.
    With `resume` those that are there already are not made again.

    `change` are `region`, `extend`, `loop` and `strength` of `models.editing.edit`. Without a `prompt` a file's own is
    taken, from its tags; where it has none, `wordless` edits by no words at all. Rate, channels and subtype are the
    file's; what is neither WAV nor FLAC becomes a WAV, with a warning. Raises DataError for a file without words,
    RecipeError for a model that cannot edit, and what `edit` raises.
    """
    from milonga.cli.generate import BATCH, MANIFEST, listed_files
    from milonga.models.editing import edit as edit_samples
    from milonga.models.editing import editable_denoiser

    denoiser = editable_denoiser(model)
    change, listed = change or {}, listed_files(out / MANIFEST)
    finished = {name for name in listed if resume and (out / name).is_file()}
    with tracked("edit", len(sources) * count) as advance:
        for source in sources:
            samples, rate, suffix, subtype, words = read_source(source, prompt, wordless)
            missing: list[tuple[str, dict[str, Any]]] = []
            for number in range(count):
                settings = {
                    "prompt": words, "model": model.name, "seed": seed, "number": number, "steps": steps,
                    "guidance": guidance, "source": source.name, "source_hash": file_hash(source)[:16],
                    **{name: str(value) for name, value in change.items()}, **(details or {}),
                }  # fmt: skip
                name = f"{slug(words or source.stem)}-{seed}-{number}-{content_id(settings)[:10]}{suffix}"
                if name in finished:
                    advance(1)
                    yield out / name
                else:
                    missing.append((name, settings))
            for first in range(0, len(missing), BATCH):
                part = missing[first : first + BATCH]
                takes = edit_samples(
                    denoiser, samples, rate, words, steps=steps, guidance=guidance, negative=negative,
                    seeds=[clip_seed(seed, words, settings["number"]) for _, settings in part], **change,
                )  # fmt: skip
                for (name, settings), take in zip(part, takes, strict=True):
                    write_edit(out / name, take, rate, subtype, settings, listed)
                    advance(1)
                    yield out / name


def repair_files(
    model: Any,
    sources: Sequence[Path],
    out: Path,
    steps: int,
    guidance: float,
    scorer: Any,
    prompt: str | None = None,
    best_of: int = 8,
    seed: int = 0,
    details: Mapping[str, str] | None = None,
    pairs: bool = False,
    resume: bool = False,
) -> Iterator[Path]:
    """Writes the repair of each file into `out`, as `edit_files` does; a file without an accepted repair is copied.

    Tags and manifest also say which faults were detected before and after, the scores, and every attempt. With `pairs`
    each accepted repair is also a localised pair, `OUT/pairs/NAME.parquet`, before its file is written.
    """
    from milonga.cli.generate import MANIFEST, listed_files
    from milonga.data.audio_alpaca import Origin, write_pairs
    from milonga.models.editing import editable_denoiser
    from milonga.preference.repair import repair_samples

    denoiser = editable_denoiser(model)
    listed = listed_files(out / MANIFEST)
    finished = {name for name in listed if resume and (out / name).is_file()}
    with tracked("repair", len(sources)) as advance:
        for source in sources:
            samples, rate, suffix, subtype, words = read_source(source, prompt)
            settings = {
                "prompt": words, "model": model.name, "seed": seed, "steps": steps, "guidance": guidance,
                "source": source.name, "source_hash": file_hash(source)[:16], "repaired_by": scorer.name,
                "best_of": best_of, **(details or {}),
            }  # fmt: skip
            name = f"{slug(words or source.stem)}-{seed}-{content_id(settings)[:10]}{suffix}"
            if name in finished:
                advance(1)
                yield out / name
                continue
            result = repair_samples(
                denoiser, samples, rate, words, scorer, steps=steps, guidance=guidance, best_of=best_of, seed=seed
            )
            outcome = {
                "faults_before": "; ".join(map(str, result.before.faults)) or "none",
                "faults_after": "; ".join(map(str, result.after.faults)) or "none",
                "score_before": result.before.score, "score_after": result.after.score,
                "region": str(result.region), "attempts": " | ".join(map(str, result.attempts)),
            }  # fmt: skip
            settings |= outcome
            pair = result.pair() if pairs else None
            if pair is not None:
                origin = Origin(model.name, (details or {}).get("weights", ""), {scorer.name: ""})
                write_pairs(out / "pairs" / f"{name}.parquet", [pair], origin, guidance)
            write_edit(out / name, result.samples, rate, subtype, settings, listed)
            advance(1)
            yield out / name


def write_edit(
    path: Path, samples: Any, rate: int, subtype: str, settings: Mapping[str, Any], listed: Collection[str]
) -> None:
    """Writes edited samples with their settings as tags, and lists them in the manifest unless they are `listed`."""
    from milonga.cli.generate import MANIFEST, append_entry
    from milonga.core.audio import write_samples

    write_samples(path, samples, rate, subtype, {key: str(value) for key, value in settings.items()})
    if path.name not in listed:
        append_entry(path.parent / MANIFEST, {"file_name": path.name, **settings})


def read_source(source: Path, prompt: str | None, wordless: bool = False) -> tuple[Any, int, str, str, str]:
    """A file's samples (samples, channels), rate, the suffix and subtype to write it with, and its words: those of its
    tags without a `prompt`. Raises DataError for a file without words, unless it may be `wordless`."""
    from milonga.core.audio import read_samples, read_tags

    samples, rate, suffix, subtype = read_samples(source)
    words = " ".join((read_tags(source).get("prompt", "") if prompt is None else prompt).split())
    if prompt is None and not words and not wordless:
        raise DataError(f"{source} has no prompt in its tags: say with --prompt what it should sound like")
    if suffix != source.suffix.lower():
        warnings.warn(f"{source} becomes a {suffix} with its decoded samples", MilongaWarning, stacklevel=2)
    return samples, rate, suffix, subtype, words


def parse_region(text: str) -> tuple[float, float]:
    """The seconds from and to of "1.2-2.0"; RecipeError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*-\s*(\d+(?:\.\d*)?|\.\d+)\s*", text)
    if match is None:
        raise RecipeError(f"--region {text!r} is not read: write seconds from and to, such as 1.2-2.0")
    return float(match[1]), float(match[2])
