"""What a changed recipe means for a run that has begun: which stages still stand, and what may not be thrown away."""

import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from milonga.core.errors import StoreError
from milonga.core.store import Run, read_manifest
from milonga.experiment.overrides import flat
from milonga.experiment.recipe import TAGGER, Recipe

STAGES = ("prompts", "plan", "generate", "score", "pair", "label", "reward", "train", "evaluate", "report")

# The first stage that a key of the recipe changes, by the longest prefix that fits; "" changes no result at all.
FIRST_CHANGED = {
    "name": "report",
    "seed": "prompts",
    "models.model": "generate",
    "models.scheduler": "generate",
    "models.precision": "generate",
    "models.seconds": "generate",
    "models.scorers": "score",
    "models.judge": "evaluate",
    "models.tagger": "evaluate",
    "prompts": "prompts",
    "plan": "plan",
    "plan.llm": "",
    "workers": "",
    "generate": "",
    "score": "",
    "pair": "pair",
    "label": "label",
    "reward": "reward",
    "online": "train",
    "train": "train",
    "train.checkpoint_every": "",
    "train.save_total_limit": "",
    "train.sample_every": "",
    "train.fsdp": "",
    "train.gradient_checkpointing": "",
    "train.trackers": "",
    "train.allow_missing": "",
    "evaluate": "evaluate",
}
# What a stage writes into the run folder.
OUTPUTS = {
    "prompts": ("prompts", "clusters.html", "metrics/clusters.json"),
    "plan": ("plan", "refused/plan", "metrics/perturber.json"),
    "generate": ("generate", "refused/generate"),
    "score": ("score",),
    "pair": ("pair", "refused"),
    "label": ("label",),
    "reward": ("embed", "reward", "metrics/reward.json"),
    "train": ("checkpoints", "metrics/training", "rounds", "metrics/rounds"),
    "evaluate": (
        "evaluate",
        "refused/evaluate",
        "features",
        "search/clips",
        "refused/search/clips",
        "search/features",
        "search/seconds",
        "search/scores",
        "metrics/summary.json",
        "metrics/comparisons.json",
        "metrics/search.json",
    ),
    "report": ("report.html",),
}
# Clips of systems that no training made: they stay when it is only the training that changed.
UNTRAINED = ("base", "reference", "prompts")
SYSTEMS, MODELS = "train.systems.", "evaluate.models."  # before a name
# What systems are measured by, and the pools that searches choose from: which search chooses how changes none of them.
CLIPS = ("evaluate", "refused/evaluate", "features")
POOLS = ("search/clips", "refused/search/clips", "search/features", "search/seconds")
SEARCH, POOL = "evaluate.search", "evaluate.pool"
CLIP_SOURCES = "train.clips."  # before a source: the hash of its contents
# Keys that only decide after how many iterations to stop: the iterations that were done stand.
ENDS = {"online.iterations", "online.patience", "online.min_gain"}


def stages_of(recipe: Recipe) -> tuple[str, ...]:
    """The stages that a recipe asks for: what no system is trained on is not made."""
    left_out: set[str] = set()
    if not recipe.makes_clips:
        left_out |= {"plan", "generate", "score", "pair"}
    if recipe.train.systems and not recipe.trains_on("pairs", "rewards", "labels", "online"):
        left_out.add("pair")  # groups need scores alone
    if not recipe.makes_clips and not recipe.needs_captions:
        left_out.add("prompts")
    if not (recipe.trains_on("rewards", "labels") and TAGGER in recipe.label.sources):
        left_out.add("label")
    if not recipe.trains_on("rewards"):
        left_out.add("reward")
    if recipe.train.systems and not (recipe.prompts.sources or recipe.evaluate.prompts):
        left_out.add("evaluate")  # a model trained on one's own data, with no captions to evaluate it on
    return tuple(stage for stage in STAGES if stage not in left_out)


def rules_of(*recipes: Recipe) -> dict[str, str]:
    """`FIRST_CHANGED` for a run that had these recipes: tables that no system needs decide nothing, while a tagger
    that labels, and a judge that ends online training, decide more than what is measured.
    """
    rules = dict(FIRST_CHANGED)
    stages = {stage for recipe in recipes for stage in stages_of(recipe)}
    if not any(recipe.trains_on("rewards", "labels") for recipe in recipes):
        rules["label"] = ""
    if "reward" not in stages:
        rules["reward"] = ""
    if not any(recipe.trains_on("online") for recipe in recipes):
        rules["online"] = ""
    else:
        rules |= dict.fromkeys(("models.judge", "evaluate.steps", "evaluate.guidance"), "train")
    if "label" in stages:
        rules["models.tagger"] = "label"
    return rules


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The dotted keys in which two recipes (or fingerprints) differ, sorted; a system's keys have its name in them."""
    before, after = flat(_by_name(old)), flat(_by_name(new))
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def first_stage(keys: list[str], rules: Mapping[str, str] = FIRST_CHANGED) -> str | None:
    """The first stage whose result depends on any of the keys; None when no result does."""
    stages = {_stage_of(key, rules) for key in keys} - {""}
    return min(stages, key=STAGES.index) if stages else None


def check_change(
    run: Run, keys: list[str], rules: Mapping[str, str] = FIRST_CHANGED, overwrite: bool = False
) -> str | None:
    """The stage to begin again from after these keys changed, None for nothing to do again.

    Raises StoreError, naming the keys, when that would throw away clips that were generated or, without `overwrite`, a
    training on clips whose files or captions were changed.
    """
    stage = first_stage(keys, rules)
    source = next((key.removeprefix(CLIP_SOURCES) for key in keys if key.startswith(CLIP_SOURCES)), None)
    if source and not overwrite and any(run.path.glob("checkpoints/*/*")):
        raise StoreError(
            f"{run.path} holds a training on other contents of {source}: restore them, choose another --out, or "
            "train again by `milonga train --overwrite`"
        )
    shards = len(run.stage("generate").names())
    if stage in ("prompts", "plan", "generate") and shards:
        blamed = ", ".join(key for key in keys if _stage_of(key, rules) in ("prompts", "plan", "generate"))
        raise StoreError(
            f"{run.path} was begun with other values of {blamed}, and {shards} shards of clips depend on them: "
            "restore them, choose another --out, or delete the folder"
        )
    return stage


def cleared_trainings(run: Run, keys: list[str], rules: Mapping[str, str] = FIRST_CHANGED) -> list[str]:
    """The systems with a training, finished or begun, that `clear_changed` would clear."""
    blamed = [key for key in keys if _stage_of(key, rules) in STAGES[: STAGES.index("train") + 1]]
    if not blamed:
        return []
    systems = {path.parent.name for path in run.path.glob("checkpoints/*/*")}
    if set(blamed) <= ENDS:
        return sorted(systems & _started_from(run, _online(run)))
    if all(key.startswith(SYSTEMS) for key in blamed):
        systems &= {key.removeprefix(SYSTEMS).partition(".")[0] for key in blamed}
    return sorted(systems)


def _online(run: Run) -> set[str]:
    """The systems that the run has trained online."""
    return {path.name for path in (run.path / "rounds").glob("*/")} - {"base"}


def _started_from(run: Run, names: set[str]) -> set[str]:
    """The systems of the stored recipe whose `start` leads to one of these names."""
    stored = read_manifest(run) or {"recipe": {"train": {"systems": []}}}
    after = set[str]()
    for row in stored["recipe"]["train"]["systems"]:  # a system starts from one before it
        if row.get("start") in names | after:
            after.add(row["name"])
    return after


def clear_changed(
    run: Run, keys: list[str], rules: Mapping[str, str] = FIRST_CHANGED, searches: Collection[str] = ()
) -> None:
    """Removes what the first stage that these keys change, and every later one, wrote; the last one goes first.

    `searches` are the names of systems by search, which choose anew from what stays. Where only training or what it
    learns from changed, the untrained systems' clips stay; where only some systems did, the others stay whole.
    """
    stage = first_stage(keys, rules)
    changed = [key for key in keys if _stage_of(key, rules) not in ("", "report")]
    spared = _spared(run, changed, {_stage_of(key, rules) for key in changed}, searches)
    for one in reversed(STAGES[STAGES.index(stage) :] if stage else ()):
        for output in OUTPUTS[one]:
            _remove(run, output, spared)


def _spared(run: Run, changed: list[str], stages: set[str], searches: Collection[str]) -> Callable[[str, str], bool]:
    """Whether a file or folder `name` inside `output` stays, although its stage is done again."""
    systems = {key.removeprefix(SYSTEMS).removeprefix(MODELS).partition(".")[0] for key in changed}
    some, untrained = all(key.startswith((SYSTEMS, MODELS)) for key in changed), stages <= set(STAGES[3:8])
    if set(changed) <= ENDS:
        online = _online(run)
        systems, some = online | _started_from(run, online), True
    of_systems = (*CLIPS, *POOLS)
    searched, pooled = (all(key.startswith(prefix) for key in changed) for prefix in (SEARCH, (SEARCH, POOL)))

    def stays(output: str, name: str) -> bool:
        if output == "search/scores" or (output in CLIPS and name in searches):
            return False
        if pooled:
            return output in CLIPS or (searched and output in POOLS)
        if some and output in (*OUTPUTS["train"], *of_systems):
            return Path(name).stem not in systems or (output == "rounds" and set(changed) <= ENDS)
        return untrained and output in of_systems and name in UNTRAINED

    return stays


def _remove(run: Run, output: str, stays: Callable[[str, str], bool]) -> None:
    path = run.path / output
    if path.is_file():
        path.unlink()
    elif output == "refused":
        for file in path.glob("*.parquet"):
            file.unlink()
    elif path.exists():
        for inner in [inner for inner in path.iterdir() if not stays(output, inner.name)]:
            shutil.rmtree(inner) if inner.is_dir() else inner.unlink()


def _by_name(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe's table whose lists of systems and other models are tables by their names; their notes do not count.

    A system holds the table of the one that it starts from: what changes that one changes it.
    """
    train, evaluate = recipe.get("train", {}), recipe.get("evaluate", {})
    if isinstance(train.get("systems"), list):
        named = dict[str, dict[str, Any]]()
        for one in train["systems"]:
            start = {"start": named.get(one.get("start"))}
            named[one["name"]] = {key: value for key, value in one.items() if key != "name"} | start
        recipe = recipe | {"train": train | {"systems": named}}
    if isinstance(evaluate.get("models"), list):
        recipe = recipe | {"evaluate": evaluate | {"models": {one["name"]: one["model"] for one in evaluate["models"]}}}
    return recipe


def _stage_of(key: str, rules: Mapping[str, str]) -> str:
    fitting = [prefix for prefix in rules if f"{key}.".startswith(f"{prefix}.")]
    return rules[max(fitting, key=len)] if fitting else "prompts"
