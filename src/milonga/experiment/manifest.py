"""What made a run (its recipe as resolved, versions, commit, hashes of weights), and what its folder holds by now."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from milonga.core.errors import StoreError
from milonga.core.records import Record
from milonga.core.store import Run, Shards, expected, read_json, software, write_json, write_text
from milonga.experiment.invalidation import OUTPUTS, stages_of
from milonga.experiment.overrides import to_toml
from milonga.experiment.recipe import Recipe, stored_recipe


def describe(recipe: Recipe, fingerprints: dict[str, Any]) -> dict[str, Any]:
    """A manifest: `recipe` in full, `seed`, `versions`, `commit` (None outside git) and `fingerprints`."""
    manifest = {"seed": recipe.seed} | software() | {"fingerprints": fingerprints}
    return manifest | {"recipe": recipe.model_dump(mode="json")}


def fingerprints(recipe: Recipe, parts: Any) -> dict[str, Any]:
    """The hashes of the weights that a recipe's run rests on, by role; `parts` as `Parts`."""
    models, fingerprint = recipe.models, parts.fingerprint
    own = (name for system in recipe.train.systems for name in system.scorers)
    scorers = {name: fingerprint(name) for name in dict.fromkeys((*models.scorers, *own))}
    single = {role: fingerprint(getattr(models, role)) for role in ("model", "judge", "tagger")}
    selecting = {name for search in recipe.evaluate.search for name in search.scorers}
    evaluated = {
        "search": {name: fingerprint(name) for name in sorted(selecting)},
        "models": {model.name: fingerprint(model.model) for model in recipe.evaluate.models},
    }
    evaluated = {kind: own for kind, own in evaluated.items() if own}
    return {"models": {**single, "scorers": scorers}, **({"evaluate": evaluated} if evaluated else {})}


def write_manifest(run: Run, recipe: Recipe, manifest: dict[str, Any]) -> None:
    """Writes recipe.toml, then manifest.json: the manifest is the truth, so it comes last."""
    write_text(run.path / "recipe.toml", to_toml(recipe))
    write_json(run.path / "manifest.json", manifest)


# Stages whose shards follow the plan's, one for one.
AS_PLANNED = ("plan", "generate", "score", "label", "reward")


class StageStatus(Record):
    """A stage: parts done of those expected (None: not known yet), items in them, items refused, last write (UTC)."""

    stage: str
    done: int
    expected: int | None
    items: int
    refused: int
    written: str | None


def status(path: Path) -> list[StageStatus]:
    """One row for each stage, in order. Raises StoreError when `path` is not a run folder or a file is damaged."""
    manifest = Path(path) / "manifest.json"
    if not manifest.exists():
        raise StoreError(f"{path} is no run folder: make one with `milonga run RECIPE --out {path}`")
    recipe, run = stored_recipe(read_json(manifest)["recipe"]), Run(path)
    table = recipe.model_dump(mode="json")
    rows = [_stage(run, stage, table) for stage in stages_of(recipe)]
    rounds = [
        _rounds(run, system.name, recipe.online.iterations)
        for system in recipe.train.systems
        if system.data == "online"
    ]
    place = next(place for place, row in enumerate(rows) if row.stage == "train")
    return [*rows[:place], *rounds, *rows[place:]]


def as_json(rows: list[StageStatus]) -> str:
    """The rows as a JSON list."""
    return json.dumps([row.model_dump() for row in rows], indent=2)


def as_table(rows: list[StageStatus]) -> str:
    """The rows as aligned text."""
    lines = [("stage", "done", "items", "refused", "last write")]
    for row in rows:
        due = "?" if row.expected is None else row.expected
        lines.append((row.stage, f"{row.done}/{due}", str(row.items), str(row.refused), row.written or "-"))
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _stage(run: Run, stage: str, recipe: dict[str, Any]) -> StageStatus:
    done, due, items = _progress(run, stage, recipe)
    folder = run.path / "refused" if stage == "pair" else run.path / "refused" / stage
    inner = [path for path in folder.glob("*/") if stage == "evaluate"]
    refused = sum(_items(Shards(path)) for path in (folder, *inner))
    written = _last_write([run.path / output for output in OUTPUTS[stage]])
    return StageStatus(stage=stage, done=done, expected=due, items=items, refused=refused, written=written)


def _rounds(run: Run, system: str, count: int) -> StageStatus:
    """A system's iterations: those that left a policy, of those asked for; a judge may end them earlier."""
    folders = sorted((run.path / "rounds" / system).glob("*/"))
    done = [folder for folder in folders if (folder / "checkpoints" / "policy" / "model").exists()]
    ended = (run.path / "checkpoints" / system / "model").exists()
    pairs, clips = (sum(_items(Shards(folder / stage)) for folder in folders) for stage in ("pair", "score"))
    return StageStatus(
        stage=f"rounds/{system}", done=len(done), expected=len(done) if ended else count, items=pairs or clips,
        refused=sum(_items(Shards(folder / "refused")) for folder in folders),
        written=_last_write([run.path / "rounds" / system]),
    )  # fmt: skip


def _progress(run: Run, stage: str, recipe: dict[str, Any]) -> tuple[int, int | None, int]:
    """(parts done, parts expected, items): shards of most stages, systems of train and evaluate, the report's file."""
    systems = [system["name"] for system in recipe["train"]["systems"]]
    if stage == "train":
        done = [name for name in systems if (run.path / "checkpoints" / name / "model").exists()]
        return len(done), len(systems), sum(_lines(run.path / "metrics/training" / f"{name}.jsonl") for name in systems)
    if stage == "evaluate":
        others = [row["name"] for kind in ("models", "search") for row in recipe["evaluate"].get(kind, [])]
        return _evaluated(run, ["base", *systems, *others])
    if stage == "report":
        done = int((run.path / "report.html").exists())
        return done, 1, done
    shards = run.stage(stage)
    due = (expected(run.stage("plan").names()) or None) if stage in AS_PLANNED else 1
    return len(shards.names()), due, _items(shards)


def _evaluated(run: Run, systems: list[str]) -> tuple[int, int | None, int]:
    folders = [run.stage(f"evaluate/{name}") for name in systems]
    due = max(expected(one.names()) for one in folders)
    done = sum(len(one.names()) for one in folders)
    return done, due * len(systems) or None, sum(_items(one) for one in folders)


def _items(shards: Shards) -> int:
    return sum(shards.rows(name) for name in shards.names())


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _last_write(paths: list[Path]) -> str | None:
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    latest = max((file.stat().st_mtime for file in files), default=None)
    return None if latest is None else datetime.fromtimestamp(latest, UTC).isoformat(timespec="seconds")
