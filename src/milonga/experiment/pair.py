"""The command `pair`: a run's stored scores under other thresholds. Nothing is generated, scored or loaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from milonga.core.config import Threshold
from milonga.core.errors import RecipeError, StoreError
from milonga.core.records import Candidate, Pair, Record
from milonga.core.store import Run, complete, read_manifest
from milonga.data.pairs import Row, refusals, table2
from milonga.experiment import run as pipeline
from milonga.experiment.manifest import aligned
from milonga.experiment.recipe import Recipe, load_recipe
from milonga.experiment.registry import Registry
from milonga.preference.pair import pair as paired
from milonga.preference.sweep import Flip, Trial, flips, trials


class Pairing(Record):
    """What thresholds made of a run's candidates: pairs made and kept, refused by condition, and Table 2."""

    pairs: int
    accepted: int
    refused: dict[str, int]
    scorer: str
    table2: tuple[Row, ...]


class Sweep(Record):
    """What other thresholds would keep of the pairs made, and where the scorers disagree."""

    pairs: int
    accepted: int
    trials: tuple[Trial, ...]
    flips: tuple[Flip, ...]


class _Recorded(Registry):
    """A run's parts as far as their hashes go: pairing again needs no weights, so they need not be there."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        super().__init__()
        models, named = manifest["fingerprints"]["models"], manifest["recipe"]["models"]
        roles = [role for role in ("model", "judge", "tagger") if role in models]
        self._hashes = models["scorers"] | {named[role]: models[role] for role in roles}

    def fingerprint(self, name: str) -> str:
        """The hash in the run's manifest; of a part that it does not record, the name's own."""
        return self._hashes.get(name) or super().fingerprint(name)


def pair(path: Path, changes: Sequence[str] = ()) -> Pairing:
    """Pairs a run's candidates again under its recipe with `changes` (`pair.KEY=VALUE`), and says what came of it.

    Raises StoreError when `path` is no run folder, its scores are not complete, or systems were trained on pairs that
    would change; RecipeError for a change of anything else.
    """
    recipe, manifest = _recipe_and_manifest(path, changes)
    trained = sorted(file.name for file in (path / "checkpoints").glob("*/"))
    if trained and recipe.pair.model_dump(mode="json") != manifest["recipe"]["pair"]:
        raise StoreError(
            f"{path} holds {', '.join(trained)}, trained on its present pairs: look with --sweep, pair again in a copy "
            f"of the folder, or train anew with `milonga run {path} --out {path} --set ...`"
        )
    run = pipeline.run(recipe, path, only="pair", parts=_Recorded(manifest))
    return _pairing([*run.stage("pair").read_records(Pair), *run.stage("refused").read_records(Pair)], recipe)


def sweep(path: Path, changes: Sequence[str] = ()) -> Sweep:
    """What each bound would keep at other values, and how often the scorers disagree near it; writes nothing.

    Without thresholds in the recipe, open ones of all scorers are moved. Raises as `pair` does.
    """
    recipe, _ = _recipe_and_manifest(path, changes)
    thresholds = recipe.pair.thresholds or tuple(Threshold(name) for name in recipe.models.scorers)
    table = recipe.pair
    pairs = paired(Run(path).stage("score").read_records(Candidate), thresholds, table.rank_by, table.losers)
    accepted = sum(not one.refused for one in pairs)
    return Sweep(
        pairs=len(pairs),
        accepted=accepted,
        trials=tuple(trials(pairs, thresholds)),
        flips=tuple(flips(pairs, thresholds)),
    )


def as_json(result: Pairing | Sweep) -> str:
    """The result as a JSON object."""
    return json.dumps(result.model_dump(mode="json"), indent=2, ensure_ascii=False)


def pairing_text(result: Pairing) -> str:
    """Table 2 and the refusals as text."""
    lines = [("strategy", "kept", "winner", "loser", "delta")]
    lines += [(row.strategy, str(row.n), *map(_score, (row.winner, row.loser, row.delta))) for row in result.table2]
    refused = ", ".join(f"{reason} {count}" for reason, count in result.refused.items() if count) or "none"
    head = f"{result.accepted} of {result.pairs} pairs kept; mean scores by {result.scorer}"
    return "\n".join([head, "", aligned(lines), "", f"refused: {refused}"])


def sweep_text(result: Sweep) -> str:
    """The sweep as two tables; the present thresholds have a star."""
    rows = [("scorer", "bound", "value", "", "kept", "share")]
    for one in result.trials:
        value = "off" if one.value is None else f"{one.value:g}"
        share = f"{one.count / result.pairs:.1%}" if result.pairs else "-"
        rows.append((one.scorer, one.bound, value, "*" if one.present else "", str(one.count), share))
    head = f"{result.accepted} of {result.pairs} pairs kept as it is (*); one bound moved, the others as they are:"
    return "\n".join([head, "", aligned(rows), *_flips_text(result.flips)])


def _flips_text(flips: Sequence[Flip]) -> list[str]:
    if not flips:
        return []
    rows: list[Sequence[str]] = [("scorer", "against", "near", "within", "pairs", "other order", "other verdict")]
    for one in flips:
        near = "all pairs" if one.bound is None else f"{one.bound} {one.value:g}"
        within = "" if one.within is None else f"{one.within:.3g}"
        shares = ["-" if share is None else f"{share:.1%}" for share in (one.order, one.verdict)]
        rows.append((one.scorer, one.other, near, within, str(one.n), *shares))
    return ["", "how often the scorers disagree, near each threshold:", "", aligned(rows)]


def _recipe_and_manifest(path: Path, changes: Sequence[str]) -> tuple[Recipe, dict[str, Any]]:
    """A run's recipe with changes of its pairing, and its manifest."""
    manifest = read_manifest(Run(path))
    if manifest is None:
        raise StoreError(f"{path} is no run folder: make one with `milonga run RECIPE --out {path}`")
    for change in changes:
        if not change.strip().startswith("pair."):
            raise RecipeError(f"--set {change}: only the keys of [pair] can change here, such as pair.rank_by=mean")
    recipe = load_recipe(path / "recipe.toml", changes)
    if not complete(Run(path).stage("score")):
        raise StoreError(f"{path} has no complete score yet: run `milonga run {path} --out {path} --until score` first")
    return recipe, manifest


def _pairing(pairs: Sequence[Pair], recipe: Recipe) -> Pairing:
    scorer = recipe.pair.thresholds[0].scorer if recipe.pair.thresholds else recipe.models.scorers[0]
    refused = refusals(pairs)
    accepted = len(pairs) - sum(refused.values())
    return Pairing(
        pairs=len(pairs), accepted=accepted, refused=refused, scorer=scorer, table2=tuple(table2(pairs, scorer))
    )


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
