"""A run from its recipe to its report: each stage does what is missing in the run folder, and nothing twice."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from milonga.core.config import Settings, Workers
from milonga.core.errors import RecipeError, StoreError
from milonga.core.protocols import Engine
from milonga.core.records import Prompt
from milonga.core.store import Run, read_manifest
from milonga.engines.local import engine_named as engine_named
from milonga.experiment.examples import hashes, label, reward
from milonga.experiment.invalidation import (
    CLIP_SOURCES,
    OUTPUTS,
    STAGES,
    changed_keys,
    check_change,
    clear_changed,
    cleared_trainings,
    rules_of,
    stages_of,
)
from milonga.experiment.manifest import describe, fingerprints, write_manifest
from milonga.experiment.recipe import Evaluate, Models, Online, Prompts, Recipe, System, Train, stored_recipe
from milonga.experiment.registry import Context, Registry
from milonga.experiment.stages import evaluate, prompts, report, train_system

if TYPE_CHECKING:
    from milonga.training.align import AlignConfig

ALIGNED = "aligned"  # the system that `align_online` trains


def run(
    recipe: Recipe,
    out: Path | None = None,
    until: str | None = None,
    only: str | None = None,
    engine: Engine | None = None,
    parts: Registry | None = None,
    overwrite: bool | None = None,
    around: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> Run:
    """Walks the stages, all of them or `until` one or `only` one, in the run folder `out` (default runs/NAME).

    Running again goes on where it stopped. A recipe that changed clears the first stage it changes and all later ones;
    StoreError when that would throw clips away, a training on clips that were changed since (unless `overwrite`) or
    any training (`overwrite` False), or when another process is on the folder. RecipeError for a stage not asked for.
    Each stage is done within the context `around(stage)`.
    """
    stages = _selected(recipe, chosen(until, only), only)
    folder = Run(out or Path("runs") / recipe.name)
    with folder.lock():
        parts = parts or Registry(device=recipe.workers.device)
        recipe = with_precision(recipe, folder, parts)
        context = Context(recipe, folder, parts, engine or engine_named("local", recipe.workers))
        _accept(context, stages, overwrite)
        steps = steps_of(context)
        for stage in stages:
            with around(stage):
                steps[stage]()
    return folder


def train(
    recipe: Recipe, out: Path | None = None, parts: Registry | None = None, overwrite: bool = False
) -> list[Path]:
    """Trains a recipe's systems in the run folder `out` (default runs/NAME), and gives `RUN/SYSTEM` of each.

    What they are trained on is made first where it is missing. A training that is finished or begun there with other
    data, settings or seed is refused (StoreError), or with `overwrite` trained again. Under torchrun or `accelerate
    launch` the first rank does that and the others wait. Raises RecipeError without systems, and what `run` raises.
    """
    from milonga.training.distributed import Ranks

    if not recipe.train.systems:
        raise RecipeError(f"{recipe.name} trains no system: add a table [[train.systems]]")
    ranks, folder = Ranks(), Run(out or Path("runs") / recipe.name)
    if ranks.is_main:
        run(recipe, folder.path, until="reward", parts=parts, overwrite=overwrite)  # the last stage before it
    ranks.wait()
    with folder.lock() if ranks.is_main else nullcontext():
        parts = parts or Registry(device=recipe.workers.device)
        recipe = with_precision(recipe, folder, parts)
        context = Context(recipe, folder, parts, engine_named("local", recipe.workers))
        for training in trainings(context):
            training()
    return [folder.path / system.name for system in recipe.train.systems]


def with_precision(recipe: Recipe, run: Run, parts: Registry) -> Recipe:
    """The recipe with "fp32" or "bf16" in the place of `precision = "auto"`: what the run began with, else what samples
    faster here. So a run that is resumed on another machine keeps its precision.
    """
    if recipe.models.precision != "auto":
        return recipe
    before, name = read_manifest(run), recipe.models.model
    chosen = before["recipe"]["models"].get("precision", "fp32") if before else parts.choose_precision(name)
    return recipe.model_copy(update={"models": recipe.models.model_copy(update={"precision": chosen})})


def trainings(context: Context) -> Iterator[Callable[[], object]]:
    """What trains each system of the recipe that is not finished, by its phases; a begun one resumes."""
    from milonga.experiment.online import OnlineTrainer

    for system in context.recipe.train.systems:
        if not (context.run.path / "checkpoints" / system.name / "model").exists():
            online = system.data == "online"
            yield OnlineTrainer(context, system).train if online else partial(train_system, context, system)


def steps_of(context: Context) -> dict[str, Callable[[], object]]:
    """The body of each stage by name."""
    builder = context.pair_builder()
    return {
        "prompts": partial(prompts, context),
        "plan": builder.plan,
        "generate": builder.generate,
        "score": builder.score,
        "pair": builder.pair,
        "label": partial(label, context),
        "reward": partial(reward, context),
        "train": lambda: [training() for training in trainings(context)],
        "evaluate": partial(evaluate, context),
        "report": partial(report, context),
    }


def align_online(
    captions: "str | Sequence[str | Prompt]",
    *,
    config: "AlignConfig",
    online: Online,
    model: Any = "nano",
    scorers: Sequence[Any] = ("nano-clap-a", "nano-clap-b"),
    judge: Any = "nano-judge",
    tagger: Any = "nano-tagger",
    engine: Engine | str = "local",
) -> Path:
    """Aligns a model by clips of its latest policy, as a recipe's system with `data = "online"`; gives its place.

    `captions` are a source such as "world:train:360:multi", of which each iteration draws anew, or texts, of which each
    takes `online.captions`. `config` has the phases, the trainer's settings, the seed and the folder, which is a run
    folder that resumes. `milonga.load` reads the path that is returned, where the model is a name. Models, scorers,
    judge and tagger are names or objects. The judge's clips have the steps and guidance of `online`, by the model's own
    scheduler. Raises as `run` does.
    """
    named = {"model": model, "judge": judge, "tagger": tagger} | {f"scorer {n}": one for n, one in enumerate(scorers)}
    objects = {role: part for role, part in named.items() if not isinstance(part, str | Path)}
    names = {role: role if role in objects else str(part) for role, part in named.items()}
    if isinstance(captions, str):
        online = online.model_copy(update={"sources": (captions,)})
    else:
        objects["captions"] = list(captions)
    settings = {name: getattr(config, name) for name in Settings.model_fields}
    workers = Workers(device=config.device)
    recipe = Recipe(
        name=config.output_dir.name,
        seed=config.seed,
        models=Models(
            model=names["model"], judge=names["judge"], tagger=names["tagger"],
            scorers=tuple(name for role, name in names.items() if role.startswith("scorer")),
        ),
        prompts=Prompts(sources=("captions",) if "captions" in objects else ()),
        online=online,
        evaluate=Evaluate(steps=online.steps, guidance=online.guidance),
        workers=workers,
        train=Train(
            **settings, trackers=config.trackers, val_fraction=config.val_fraction,
            systems=(System(name=ALIGNED, data="online", phases=config.phases),),
        ),
    )  # fmt: skip
    where = engine_named(engine, recipe.workers) if isinstance(engine, str) else engine
    return (
        run(recipe, config.output_dir, until="train", engine=where, parts=Registry(objects, config.device)).path
        / ALIGNED
    )


def chosen(until: str | None = None, only: str | None = None) -> tuple[str, ...]:
    """The stages to walk; RecipeError for one that does not exist or for both limits at once."""
    if until and only:
        raise RecipeError("--until and --only exclude each other: give one of them")
    for name in filter(None, (until, only)):
        if name not in STAGES:
            raise RecipeError(f"no stage {name!r}: the stages are {', '.join(STAGES)}")
    return (only,) if only else STAGES[: STAGES.index(until) + 1] if until else STAGES


def _selected(recipe: Recipe, stages: tuple[str, ...], only: str | None) -> tuple[str, ...]:
    """Of some stages those that a recipe asks for; RecipeError for the `only` one when it does not."""
    in_recipe = stages_of(recipe)
    if only and only not in in_recipe:
        raise RecipeError(f"this recipe asks for no {only}: nothing in it is trained on that")
    return tuple(stage for stage in stages if stage in in_recipe)


def _accept(context: Context, stages: Sequence[str], overwrite: bool | None) -> None:
    """Checks the recipe and the parts' weights against what the folder was made with, and notes them.

    With `overwrite` False, raises StoreError for a change that would clear a training. Old results go before the new
    manifest is written: after a crash in between, the change is seen again.
    """
    manifest = describe(context.recipe, fingerprints(context.recipe, context.parts) | hashes(context.recipe))
    before = read_manifest(context.run)
    if before is not None:
        earlier = _earlier(before["recipe"])
        keys = _changes(before, earlier, manifest)
        recipes = [recipe for recipe in (earlier, context.recipe) if recipe]
        rules = rules_of(*recipes)
        searches = {search.name for recipe in recipes for search in recipe.evaluate.search}
        stage = check_change(context.run, keys, rules, overwrite is True)
        if overwrite is False and (lost := cleared_trainings(context.run, keys, rules)):
            raise StoreError(
                f"{context.run.path} holds a training of {', '.join(lost)} with other values of {', '.join(keys)}: "
                "choose another --out, or add --overwrite to train again"
            )
        if stage is not None:
            print(f"milonga: {', '.join(keys)} changed: {_consequence(context.run, stage, stages)}", file=sys.stderr)
            clear_changed(context.run, keys, rules, searches)
    if before != manifest:
        write_manifest(context.run, context.recipe, manifest)


def _consequence(run: Run, stage: str, stages: Sequence[str]) -> str:
    """What a walk over `stages` does again when all from `stage` on is cleared, and what it leaves to be done."""
    later = STAGES[STAGES.index(stage) :]
    again = ", ".join(one for one in later if one in stages)
    there = [one for one in later if any((run.path / output).exists() for output in OUTPUTS[one])]
    left = ", ".join(one for one in there if one not in stages)
    parts = (
        f"doing {again} again" if again else "",
        f"cleared and to be done again by `milonga run`: {left}" * bool(left),
    )
    return "; ".join(filter(None, parts)) or "nothing is lost by it"


def _changes(before: dict[str, Any], earlier: Recipe | None, after: dict[str, Any]) -> list[str]:
    """Changed keys of the recipe, and `models.model` and the like where their weights changed.

    Keys that came after the `earlier` recipe count by their defaults: an upgrade alone is no change. Where a key of its
    time is gone (None), the recipe is compared as it was stored, so that this key differs and is named.
    """
    old = before["recipe"] if earlier is None else earlier.model_dump(mode="json")
    keys, prints = changed_keys(old, after["recipe"]), (before["fingerprints"], after["fingerprints"])
    # Clips that only one of them names are another recipe's, or the manifest is older than their hash.
    # So are scorers: `models.scorers` and a system's own `scorers` say when others are named.
    first, second = (
        {f"{CLIP_SOURCES}{name}" for name in one.get("train", {}).get("clips", {})}
        | {f"models.scorers.{name}" for name in one["models"]["scorers"]}
        for one in prints
    )
    return sorted({*keys, *changed_keys(*prints)} - (first ^ second))


def _earlier(recipe: dict[str, Any]) -> Recipe | None:
    """A stored recipe as this version reads it; None where a key of its time is gone since."""
    try:
        return stored_recipe(recipe)
    except ValidationError:
        return None
