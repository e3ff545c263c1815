"""`milonga export RUN DIR --system NAME`: a trained system as a pipeline in diffusers' layout, with its model card.

The folder holds the base's parts beside the trained U-Net, `README.md`, the run's `recipe.toml` and its `metrics/`, and
a `pipeline.py` that tells diffusers where the pipeline's class is. It is written aside and renamed: what is there is
whole.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from milonga.core.errors import RecipeError, StoreError
from milonga.core.ids import content_id, file_hash
from milonga.core.store import Run, atomic_dir, read_json, read_manifest, write_json, write_text
from milonga.experiment.export import NOTE, check_credentials, export, made_by, push
from milonga.experiment.recipe import Recipe

SHARE = 0.05  # of the captions, whose pairs form the split validation
PIPELINE = '''"""Where diffusers finds this model's pipeline: `pip install milonga`."""

from milonga.models.tango import TangoPipeline

__all__ = ["TangoPipeline"]
'''


def export_any(
    path: Path, folder: Path, system: str | None, validation: float | None, hub: str | None, public: bool
) -> Iterator[str]:
    """The command: exports a run's pairs, or one `system`, and where `hub` names a repository uploads it; says where
    each is. Raises RecipeError for a `validation` share beside a system, and as the exports and `push` do.
    """
    if system is not None and validation is not None:
        raise RecipeError("--validation splits pairs, and --system exports a model: leave one of them out")
    if hub:
        check_credentials()
    share = SHARE if validation is None else validation
    yield str(export(path, folder, share) if system is None else export_system(path, folder, system))
    if hub:
        yield push(folder, hub, not public, "dataset" if system is None else "model")


def export_system(path: Path, folder: Path, system: str) -> Path:
    """Writes a system of a run into `folder`, and gives it back; a folder that already holds it is left alone.

    Raises StoreError for what is no run, or a folder that holds something else; RecipeError for a system that the run
    does not have, or has not trained yet.
    """
    manifest = read_manifest(Run(path))
    if manifest is None:
        raise StoreError(f"{path} is no run folder: make one with `milonga run RECIPE --out {path}`")
    recipe = Recipe.model_validate(manifest["recipe"]).model_dump(mode="json")
    table, trained = _trained(path, recipe, system)
    made = _made(path, trained, manifest)
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        return _the_same(folder, made)
    if folder.exists():
        folder.rmdir()
    with atomic_dir(folder) as part:
        _write(part, path, trained, recipe["models"]["model"])
        _write_card(part, path, table, recipe, manifest)
        write_json(part / NOTE, {"made": made})
    return folder


def _trained(path: Path, recipe: dict[str, Any], system: str) -> tuple[dict[str, Any], Path]:
    """A system's table of the recipe, and the folder of its trained network."""
    tables = {one["name"]: one for one in recipe["train"]["systems"]}
    if system not in tables:
        raise RecipeError(f"{path} has no system {system!r}: it has {', '.join(tables) or 'none'}")
    trained = path / "checkpoints" / system / "model"
    if not trained.exists():
        raise RecipeError(f"{path} has not trained {system} yet: run it until `train`")
    return tables[system], trained


def _made(path: Path, trained: Path, manifest: dict[str, Any]) -> str:
    """The name of what is exported: other weights or other numbers have another."""
    numbers = [file_hash(file) for file in sorted((path / "metrics").glob("*.json"))]
    return content_id([file_hash(file) for file in sorted(trained.iterdir())], numbers, manifest["fingerprints"])


def _the_same(folder: Path, made: str) -> Path:
    note = folder / NOTE
    if not folder.is_dir() or not note.exists() or read_json(note).get("made") != made:
        raise StoreError(f"{folder} is not empty and holds something else: choose another folder, or delete it")
    return folder


def write_pipeline(part: Path, trained: Path, base: str) -> None:
    """The base's parts with a trained network, its adapter where there is one, and what diffusers finds it by."""
    from milonga.models.load import pipeline

    pipeline(base, trained).save_pretrained(part)
    adapter = trained.parent / "adapter"
    if adapter.is_dir():
        shutil.copytree(adapter, part / "adapter")
    write_text(part / "pipeline.py", PIPELINE)


def _write(part: Path, path: Path, trained: Path, base: str) -> None:
    """The pipeline and what else a user of it may need."""
    write_pipeline(part, trained, base)
    shutil.copy(path / "recipe.toml", part)
    for file in sorted((path / "metrics").glob("*.json")):
        (part / "metrics").mkdir(exist_ok=True)
        shutil.copy(file, part / "metrics")


def _write_card(
    part: Path, path: Path, table: dict[str, Any], recipe: dict[str, Any], manifest: dict[str, Any]
) -> None:
    from milonga.reports.cards import model_card
    from milonga.reports.material import read_material

    write_text(part / "README.md", model_card(read_material(path), table, recipe, made_by(manifest)))
