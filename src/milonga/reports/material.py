"""What the pages are made of: the view of an evaluation, and of a run whatever else its folder holds."""

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
from milonga.core.records import Comparison, Event, Pair, Prompt, Record, RewardReport, Round, SearchPoint, Summary
from milonga.core.store import Run, read_json
from milonga.data.recordings import left_out_of

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class ClipView:
    """One clip as a page shows it: the CLAP score (may be NaN) and the detected events."""

    id: str
    prompt_id: str
    clap: float
    events: tuple[Event, ...]


@dataclass(frozen=True)
class EvaluationView:
    """An evaluation as a page shows it: the numbers, and the clips to listen to by system and prompt id.

    `read_clips` gives a system's clips as FLAC bytes by id; where there is none, nothing can be listened to.
    `place_clip` puts a clip of a system beside the page and gives its address; without it clips are inside the page.
    Differences are from `baseline`. `sources` names where features come from (`evaluation.metrics.metrics_named`).
    `files` are tables beside the page, to download.
    """

    name: str
    read_clips: Callable[[str, set[str]], dict[str, bytes]] | None
    summaries: list[Summary]
    comparisons: list[Comparison]
    prompts: dict[str, Prompt]
    clips: dict[str, dict[str, ClipView]]
    baseline: str = "base"
    warnings: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
    agreement: list[Any] = field(default_factory=list)  # tables of `evaluation.formatting.agreement_tables`
    ratings: list[str] = field(default_factory=list)
    place_clip: Callable[[str, str, bytes], str] | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunMaterial:
    """A run as its report shows it; what the run does not hold yet is empty.

    `training` is by system, a row per step. `rounds` are of the systems that were trained in rounds, the base first;
    `reward` is the reward model's report, `searches` are the curves of best of N. `left_out` is what could not be
    used of each data set (`left_out_of`).
    """

    evaluation: EvaluationView
    accepted: list[Pair]
    refused: list[Pair]
    training: dict[str, list[dict[str, Any]]]
    recipe: str
    thresholds: list[Threshold]
    manifest: dict[str, Any]
    rounds: dict[str, list[Round]]
    reward: RewardReport | None
    searches: list[SearchPoint] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name, that of its folder."""
        return self.evaluation.name


def read_material(path: Path) -> RunMaterial:
    """Reads a run folder. Raises StoreError when `path` is no run folder or a file in it is damaged."""
    if not path.is_dir():
        raise StoreError(f"{path} is no run folder: make one with `milonga run RECIPE --out {path}`")
    run = Run(path)
    recipe, manifest = path / "recipe.toml", path / "manifest.json"
    text = recipe.read_text(encoding="utf-8") if recipe.exists() else ""
    facts = read_json(manifest) if manifest.exists() else {}
    pairs = [*run.stage("pair").read_records(Pair), *run.stage("refused").read_records(Pair)]
    prompts = run.stage("evaluate/prompts").read_records(Prompt)
    models = facts.get("recipe", {}).get("models", {})
    sources = {"clap_title": "Judge CLAP", "clap": models.get("judge", "the judge")}
    if "tagger" in models:
        sources |= {"tagger": models["tagger"], "classifier": f"{models['tagger']}’s"}
    return RunMaterial(
        evaluation=EvaluationView(
            name=path.resolve().name,
            read_clips=partial(clips_of_run, run),
            summaries=read_rows(path / "metrics" / "summary.json", Summary),
            comparisons=read_rows(path / "metrics" / "comparisons.json", Comparison),
            prompts={prompt.id: prompt for prompt in prompts},
            clips={folder.name: read_clip_views(run, folder.name) for folder in sorted((path / "features").glob("*/"))},
            sources=sources,
        ),
        accepted=[pair for pair in pairs if not pair.refused],
        refused=[pair for pair in pairs if pair.refused],
        training={file.stem: read_steps(file) for file in sorted((path / "metrics" / "training").glob("*.jsonl"))},
        recipe=text,
        thresholds=read_thresholds(text, recipe),
        manifest=facts,
        rounds={file.stem: read_rows(file, Round) for file in sorted((path / "metrics" / "rounds").glob("*.json"))},
        reward=next(iter(read_rows(path / "metrics" / "reward.json", RewardReport)), None),
        searches=read_rows(path / "metrics" / "search.json", SearchPoint),
        left_out=left_out_of(path),
    )


def clips_of_run(run: Run, system: str, names: set[str]) -> dict[str, bytes]:
    """A run's evaluated clips of a system whose id is in `names`, by id, as FLAC of 16 bits: pages should be light."""
    shards, clips = run.stage(f"evaluate/{system}"), {}
    for shard in shards.names():
        for row in shards.read_table(shard, columns=["id", "audio"]).to_pylist():
            if row["id"] in names:
                clips[row["id"]] = flac_bytes(from_flac(row["audio"]["bytes"]))
    return clips


def read_clip_views(run: Run, system: str) -> dict[str, ClipView]:
    """A system's clips by prompt; of several clips of a prompt the first by id.

    Ids leave the system out, so that choice is the same request, and the same seed, for every system.
    """
    shards = run.stage(f"features/{system}")
    columns = ["id", "prompt_id", "clap", "events"]
    rows = [row for shard in shards.names() for row in shards.read_table(shard, columns).to_pylist()]
    views: dict[str, ClipView] = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        events = tuple(Event(label=e["label"], onset=e["onset"], offset=e["offset"]) for e in row["events"])
        clap = math.nan if row["clap"] is None else float(row["clap"])
        views.setdefault(row["prompt_id"], ClipView(row["id"], row["prompt_id"], clap, events))
    return views


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Records from a JSON list, or the only one of a file; none if there is no such file; null stands for NaN.

    Raises StoreError for anything else.
    """
    if not path.exists():
        return []
    try:
        content = read_json(path)
        listed = [content] if isinstance(content, dict) else content
        rows = [{key: math.nan if value is None else value for key, value in row.items()} for row in listed]
        return [kind.model_validate(row) for row in rows]
    except (AttributeError, TypeError, ValidationError) as error:
        message = f"{path} does not hold {kind.__name__} rows: delete it and run `evaluate` again"
        raise StoreError(message) from error


def read_steps(path: Path) -> list[dict[str, Any]]:
    """A training log, one row per (phase, step), the latest where a resumed run logged a step again.

    A last line without its end is what a killed run leaves and is ignored; any other bad line is a StoreError.
    """
    steps: dict[tuple[str, int], dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n") or not line.strip():
            continue
        try:
            row = json.loads(line)
            steps[str(row.get("phase", "")), int(row["step"])] = row
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"{path}, line {number}: not a step of training: delete the line") from error
    return list(steps.values())


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
