"""Who makes clips, by what a user types: `nano`, a model's folder, a run, or one system of it (`RUN/aligned`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milonga.core.errors import RecipeError
from milonga.core.ids import content_id
from milonga.experiment import registry  # type: ignore[attr-defined]


@dataclass(frozen=True)
class System:
    """A model, and the folder of its trained network where a run trained one."""

    name: str
    model: str
    trained: Path | None = None

    def load(self, scheduler: str | None = None, seconds: float | None = None) -> Any:
        """The model, ready to generate, with its own scheduler and length or with these; loaded once and kept."""
        if self.trained is None:
            return registry.load(self.model, scheduler, seconds)
        return registry.tuned(self.model, self.trained, scheduler, seconds)

    def sampling(self) -> tuple[int, float]:
        """The steps and the guidance that it is best sampled with."""
        return registry.sampling(self.model)

    def fingerprint(self) -> str:
        """A hash of its weights."""
        base = registry.fingerprint(self.model)
        return base if self.trained is None else content_id(base, registry.fingerprint(str(self.trained)))


def system(name: str) -> System:
    """The one system of that name. Raises RecipeError for none, and for a run folder, which holds several."""
    found = systems([name])
    if len(found) > 1:
        raise RecipeError(f"{name} is a run with several systems: name one, such as {found[-1].name}")
    return found[0]


def systems(names: Sequence[str]) -> list[System]:
    """All systems of these names, each once; a run folder stands for its base and every system that it trained.

    Raises RecipeError for a name that is nothing of the kind.
    """
    found = [one for name in names for one in _named(name)]
    return list({(one.model, one.trained): one for one in found}.values())


def _named(name: str) -> list[System]:
    path = Path(name)
    if _is_run(path):
        trained = [folder.parent.name for folder in sorted(path.glob("checkpoints/*/model"))]
        return [System(base := _base(path), base), *(_trained(path, one) for one in trained)]
    if name not in registry.SHIPPED and _is_run(path.parent):
        if not (path.parent / "checkpoints" / path.name / "model").is_dir():
            raise RecipeError(
                f"{path.parent} has trained no system {path.name!r} yet: see `milonga status {path.parent}`"
            )
        return [_trained(path.parent, path.name)]
    registry.weights_of(name)
    return [System(name, name)]


def _is_run(path: Path) -> bool:
    return (path / "recipe.toml").is_file() and (path / "manifest.json").is_file()


def _base(run: Path) -> str:
    from milonga.experiment.recipe import load_recipe

    return load_recipe(run).models.model


def _trained(run: Path, name: str) -> System:
    return System(f"{run}/{name}", _base(run), run / "checkpoints" / name / "model")
