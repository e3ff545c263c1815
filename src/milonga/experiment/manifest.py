"""What made a run: its recipe as resolved, the versions, the commit, and the fingerprints of models and listeners."""

from typing import Any

from milonga.core.store import Run, software, write_json, write_text
from milonga.experiment.overrides import to_toml
from milonga.experiment.recipe import Recipe


def describe(recipe: Recipe, fingerprints: dict[str, Any]) -> dict[str, Any]:
    """A manifest: `recipe` in full, `seed`, `versions`, `commit` (None outside git) and `fingerprints`."""
    found = {"seed": recipe.seed} | software() | {"fingerprints": fingerprints}
    return found | {"recipe": recipe.model_dump(mode="json")}


def fingerprints(recipe: Recipe, parts: Any) -> dict[str, Any]:
    """The hashes of the weights that a recipe's run rests on, by role; `parts` as `Parts`."""
    models, fingerprint = recipe.models, parts.fingerprint
    scorers = {name: fingerprint(name) for name in models.scorers}
    single = {role: fingerprint(getattr(models, role)) for role in ("model", "judge", "tagger")}
    return {"models": {**single, "scorers": scorers}}


def write_manifest(run: Run, recipe: Recipe, manifest: dict[str, Any]) -> None:
    """Writes recipe.toml, then manifest.json: the manifest is the truth, so it comes last."""
    write_text(run.path / "recipe.toml", to_toml(recipe))
    write_json(run.path / "manifest.json", manifest)
