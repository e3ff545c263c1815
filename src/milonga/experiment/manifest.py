"""What made a run: its recipe as resolved, the versions, the commit, and the fingerprints of models and listeners."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from milonga.core.store import Run, write_json, write_text
from milonga.experiment.overrides import to_toml
from milonga.experiment.recipe import Recipe

PACKAGES = ("milonga", "torch", "diffusers", "transformers", "numpy", "scikit-learn", "pyarrow", "soundfile")


def describe(recipe: Recipe, fingerprints: dict[str, Any]) -> dict[str, Any]:
    """A manifest: `recipe` in full, `seed`, `versions`, `commit` (None outside git) and `fingerprints`."""
    found = {"seed": recipe.seed} | software() | {"fingerprints": fingerprints}
    return found | {"recipe": recipe.model_dump(mode="json")}


def software() -> dict[str, Any]:
    """This `commit`, the `versions` of what it stands on, and the kind of `machine`."""
    return {
        "commit": commit(Path(__file__).parent),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}",
    }


def fingerprints(recipe: Recipe, parts: Any) -> dict[str, Any]:
    """The hashes of the weights that a recipe's run rests on, by role; `parts` as `context.Parts`."""
    models, fingerprint = recipe.models, parts.fingerprint
    scorers = {name: fingerprint(name) for name in models.scorers}
    single = {role: fingerprint(getattr(models, role)) for role in ("model", "judge", "tagger")}
    return {"models": {**single, "scorers": scorers}}


def write_manifest(run: Run, recipe: Recipe, manifest: dict[str, Any]) -> None:
    """Writes recipe.toml, then manifest.json: the manifest is the truth, so it comes last."""
    write_text(run.path / "recipe.toml", to_toml(recipe))
    write_json(run.path / "manifest.json", manifest)


def commit(folder: Path) -> str | None:
    """The git commit of the checkout that `folder` is in, with `+` when files differ from it; None outside git."""
    head = _git(folder, "rev-parse", "HEAD")
    changed = head and _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+" if changed else head


def _git(folder: Path, *words: str) -> str | None:
    try:
        found = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
