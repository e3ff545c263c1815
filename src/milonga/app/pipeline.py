"""A run from its recipe to its report: each stage does what is missing in the run folder, and nothing twice."""

import os
import sys
from pathlib import Path
from typing import Any

from milonga.app.changes import STAGES, changed_keys, check_change, clear_changed
from milonga.app.context import Context, Parts
from milonga.app.manifest import describe, read_manifest, write_manifest
from milonga.app.recipe import Recipe
from milonga.app.steps import STEPS
from milonga.core.errors import RecipeError
from milonga.core.parts import Engine
from milonga.core.store import Run


def run(
    recipe: Recipe,
    out: Path | None = None,
    until: str | None = None,
    only: str | None = None,
    engine: Engine | None = None,
    parts: Parts | None = None,
) -> Run:
    """Walks the stages, all of them or `until` one or `only` one, in the run folder `out` (default runs/NAME).

    Running again goes on where it stopped. A recipe that changed clears the first stage it changes and all later ones;
    StoreError when that would throw clips away, or when another process is on the folder. RecipeError for a stage
    that does not exist.
    """
    stages = chosen(until, only)
    folder = Run(out or Path("runs") / recipe.name)
    with folder.lock():
        context = Context(recipe, folder, parts or _registry(), engine or engine_named("local"))
        _accept(context)
        for stage in stages:
            STEPS[stage](context)
    return folder


def chosen(until: str | None = None, only: str | None = None) -> tuple[str, ...]:
    """The stages to walk; RecipeError for one that does not exist or for both limits at once."""
    if until and only:
        raise RecipeError("--until and --only exclude each other: give one of them")
    for name in filter(None, (until, only)):
        if name not in STAGES:
            raise RecipeError(f"no stage {name!r}: the stages are {', '.join(STAGES)}")
    return (only,) if only else STAGES[: STAGES.index(until) + 1] if until else STAGES


# Threads share the models, so more of them cost little memory; beyond four, Python itself is in their way.
MOST_WORKERS = 4


def engine_named(name: str) -> Engine:
    """The engine of that name; RecipeError lists those there are."""
    if name != "local":
        raise RecipeError(f"no engine {name!r}: there is local")
    from milonga.engines.local import LocalEngine

    return LocalEngine(min(MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))


def _accept(context: Context) -> None:
    """Checks the recipe and the parts' weights against what the folder was made with, and notes them.

    Old results go before the new manifest is written: after a crash in between, the change is seen again.
    """
    manifest = describe(context.recipe, _fingerprints(context))
    before = read_manifest(context.run)
    if before is not None:
        keys = _changes(before, manifest)
        stage = check_change(context.run, keys)
        if stage is not None:
            later = ", ".join(STAGES[STAGES.index(stage) :])
            print(f"milonga: {', '.join(keys)} changed: doing {later} again", file=sys.stderr)
            clear_changed(context.run, keys)
    if before != manifest:
        write_manifest(context.run, context.recipe, manifest)


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Changed keys of the recipe, and `models.model` and the like where their weights changed."""
    keys = changed_keys(before["recipe"], after["recipe"])
    return sorted({*keys, *changed_keys(before["fingerprints"], after["fingerprints"])})


def _fingerprints(context: Context) -> dict[str, Any]:
    models, fingerprint = context.recipe.models, context.parts.fingerprint
    scorers = {name: fingerprint(name) for name in models.scorers}
    single = {role: fingerprint(getattr(models, role)) for role in ("model", "judge", "tagger")}
    return {"models": {**single, "scorers": scorers}}


def _registry() -> Any:
    from milonga.app import registry  # type: ignore[attr-defined]

    return registry
