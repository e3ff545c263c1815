"""What a run folder holds for its report: read once, with everything that is not there yet simply empty."""

import json
import math
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from milonga.core.audio import flac_bytes, from_flac
from milonga.core.config import Threshold
from milonga.core.errors import StoreError
from milonga.core.records import Comparison, Event, Pair, Prompt, Record, RewardReport, Round, Summary
from milonga.core.store import Run, read_json

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Heard:
    """What the listeners heard in one clip: the judge's similarity (may be NaN) and the events."""

    id: str
    prompt_id: str
    clap: float
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Material:
    """What a page tells of: `heard` is by system and prompt id, `training` by system, a row per step.

    `clips` gives a system's clips as FLAC bytes by id, of the ids that are asked for. Differences are told from
    `baseline`. `whole` is a run with all its stages; otherwise systems were only evaluated. `rounds` are those of the
    systems that were trained in rounds, the base first; `reward` is the reward model's report, where there is one.
    """

    name: str
    clips: Callable[[str, set[str]], dict[str, bytes]]
    kept: list[Pair]
    refused: list[Pair]
    summaries: list[Summary]
    comparisons: list[Comparison]
    training: dict[str, list[dict[str, Any]]]
    prompts: dict[str, Prompt]
    heard: dict[str, dict[str, Heard]]
    recipe: str
    thresholds: list[Threshold]
    manifest: dict[str, Any]
    baseline: str = "base"
    whole: bool = True
    warnings: tuple[str, ...] = ()
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    reward: RewardReport | None = None


def clips_of_run(run: Run, system: str, names: set[str]) -> dict[str, bytes]:
    """A run's evaluated clips of a system whose id is in `names`, by id, as FLAC of 16 bits: pages should be light."""
    shards = run.stage(f"evaluate/{system}")
    found = {}
    for shard in shards.names():
        for row in shards.read_table(shard, columns=["id", "audio"]).to_pylist():
            if row["id"] in names:
                found[row["id"]] = flac_bytes(from_flac(row["audio"]["bytes"]))
    return found


def read_material(path: Path) -> Material:
    """Reads a run folder. Raises StoreError when `path` is no run folder or a file in it is damaged."""
    if not path.is_dir():
        raise StoreError(f"{path} is no run folder: make one with `milonga run RECIPE --out {path}`")
    run = Run(path)
    recipe = path / "recipe.toml"
    text = recipe.read_text(encoding="utf-8") if recipe.exists() else ""
    pairs = [*run.stage("pair").read_records(Pair), *run.stage("refused").read_records(Pair)]
    prompts = run.stage("evaluate/prompts").read_records(Prompt)
    manifest = path / "manifest.json"
    return Material(
        name=path.resolve().name,
        clips=partial(clips_of_run, run),
        kept=[pair for pair in pairs if not pair.refused],
        refused=[pair for pair in pairs if pair.refused],
        summaries=read_rows(path / "metrics" / "summary.json", Summary),
        comparisons=read_rows(path / "metrics" / "comparisons.json", Comparison),
        training={file.stem: read_steps(file) for file in sorted((path / "metrics" / "training").glob("*.jsonl"))},
        prompts={prompt.id: prompt for prompt in prompts},
        heard={folder.name: read_heard(run, folder.name) for folder in sorted((path / "heard").glob("*/"))},
        recipe=text,
        thresholds=read_thresholds(text, recipe),
        manifest=read_json(manifest) if manifest.exists() else {},
        rounds={file.stem: read_rows(file, Round) for file in sorted((path / "metrics" / "rounds").glob("*.json"))},
        reward=next(iter(read_rows(path / "metrics" / "reward.json", RewardReport)), None),
    )


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Records from a JSON list, or the only one of a file; none if there is no such file; null stands for NaN.

    Raises StoreError for anything else.
    """
    if not path.exists():
        return []
    try:
        found = read_json(path)
        listed = [found] if isinstance(found, dict) else found
        rows = [{key: math.nan if value is None else value for key, value in row.items()} for row in listed]
        return [kind.model_validate(row) for row in rows]
    except (AttributeError, TypeError, ValidationError) as error:
        message = f"{path} does not hold {kind.__name__} rows: delete it and run `evaluate` again"
        raise StoreError(message) from error


def read_steps(path: Path) -> list[dict[str, Any]]:
    """A training log, one row per (phase, step), the latest where a resumed run logged a step again.

    A last line without its end is what a killed run leaves and is passed over; any other bad line is a StoreError.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n") or not line.strip():
            continue
        try:
            row = json.loads(line)
            found[str(row.get("phase", "")), int(row["step"])] = row
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"{path}, line {number}: not a step of training: delete the line") from error
    return list(found.values())


def read_heard(run: Run, system: str) -> dict[str, Heard]:
    """What was heard in a system's clips, by prompt; of several clips of a prompt the first by id.

    Ids leave the system out, so that choice is the same request, and the same seed, for every system.
    """
    shards = run.stage(f"heard/{system}")
    rows = [row for shard in shards.names() for row in shards.read_table(shard).to_pylist()]
    found: dict[str, Heard] = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        events = tuple(Event(label=e["label"], onset=e["onset"], offset=e["offset"]) for e in row["events"])
        clap = math.nan if row["clap"] is None else float(row["clap"])
        found.setdefault(row["prompt_id"], Heard(row["id"], row["prompt_id"], clap, events))
    return found


def read_thresholds(recipe: str, path: Path) -> list[Threshold]:
    """The thresholds of a recipe's text, wherever its tables keep them; StoreError when it is no TOML."""
    try:
        tables = tomllib.loads(recipe)
    except tomllib.TOMLDecodeError as error:
        raise StoreError(f"{path} is not TOML ({error}): put the recipe's copy back") from error
    keys = set(Threshold.model_fields)
    return [Threshold.model_validate(table) for table in _tables(tables) if set(table) == keys]


def _tables(value: Any) -> Iterator[dict[str, Any]]:
    """Every table inside a TOML value, outermost first."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from _tables(inner)
