"""`milonga run RECIPE --rehearse`: all stages of a recipe at full size with few clips, and what the real run will take.

The networks, batches and files are the real ones; what is not on this machine has a stand-in with random weights. Two
captions stand for all, a phase has two steps and nothing is filtered. On a CPU sampling has two steps, a strategy makes
two clips of a caption, a batch is one example and all is float32 (few CPUs have bf16), so memory is not the real run's.
"""

import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from milonga.core.config import Phase, Workers
from milonga.core.errors import MilongaError, StoreError
from milonga.core.records import Prompt, Request
from milonga.core.store import Run, complete, write_json
from milonga.engines.local import LocalEngine
from milonga.experiment.recipe import OWN, Pairing, Recipe, System
from milonga.experiment.registry import Registry
from milonga.experiment.rehearsal.cost import num_pairs, sampling_passes
from milonga.experiment.rehearsal.stand_ins import noise_clips, noise_pairs, random_scorer, stand_in_model
from milonga.experiment.run import run
from milonga.maths.devices import device_of
from milonga.preference.plan import plan
from milonga.reports.material import read_steps

# Captions of two sounds in an order that strategy 3 can perturb.
CAPTIONS = ("a dog barks then a bell rings", "rain falls after a man speaks")
EVALUATED, JUDGED = "world:test:2", "world:tune:2"  # evaluation needs real clips, which the small world renders
STEPS = 2  # of each phase, and of sampling on a CPU
GROUP = 2  # clips of a caption in a group on a CPU
SOURCE = "rehearsal"


def rehearse(recipe: Recipe, out: Path | None = None, parts: Registry | None = None) -> list[dict[str, Any]]:
    """Walks all stages of a recipe in the folder `out` (default runs/NAME-rehearsal); gives a row for each stage.

    A row has the stage, its seconds, the most memory in bytes (of the accelerator, or of the process), the bytes it
    wrote, and `real_seconds` and `real_bytes` of the whole run, None where they do not grow with it or are not known.
    The rows are stored in rehearsal.json. Raises StoreError for a folder that holds a run, and what `run`
    raises: a stage that fails here fails there too.
    """
    folder = out or Path("runs") / f"{recipe.name}-rehearsal"
    if (folder / "manifest.json").exists():  # finished stages would cost no time, and a real run would be cleared
        raise StoreError(f"{folder} holds a run: rehearse in a new folder (--out), or delete it")
    device = device_of(recipe.workers.device)
    parts = parts or Registry(device=device)
    small, objects = _shrunk(recipe, folder, parts, on_cpu=device.type == "cpu")
    registry, rows = Registry(parts.objects | objects, parts.device), []

    @contextmanager
    def measured(stage: str) -> Iterator[None]:
        before, start = _folder_bytes(folder), time.perf_counter()
        with _watched(device) as peak:
            yield
        row = {"stage": stage, "seconds": time.perf_counter() - start, "memory": peak[-1]}
        rows.append(row | {"bytes": _folder_bytes(folder) - before})
        print(f"rehearsal: {stage} took {row['seconds']:.1f} s", file=sys.stderr)

    until = None if recipe.train.systems or recipe.evaluate.prompts else "pair"  # a recipe for data alone ends there
    walked = run(small, folder, until, engine=LocalEngine(1), parts=registry, around=measured)
    scales = _scales(recipe, walked, parts)
    for row in rows:
        scale = scales.get(row["stage"])
        row["real_seconds"] = None if scale is None else row["seconds"] * scale
        row["real_bytes"] = None if scale is None else row["bytes"] * scale
        if row["stage"] == "train":
            row["real_seconds"] = _training_seconds(recipe, small, walked)
    write_json(folder / "rehearsal.json", rows)
    return rows


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows as text: what each stage took here, and what it will take in the real run."""
    lines = [f"{'stage':<10}{'seconds':>10}{'memory GB':>11}{'disk MB':>10}{'run hours':>12}{'run disk GB':>13}"]
    for row in rows:
        hours = "" if row["real_seconds"] is None else f"{row['real_seconds'] / 3600:,.2f}"
        disk = "" if row["real_bytes"] is None else f"{row['real_bytes'] / 1e9:,.1f}"
        lines.append(
            f"{row['stage']:<10}{row['seconds']:>10.1f}{row['memory'] / 1e9:>11.2f}{row['bytes'] / 1e6:>10.1f}"
            f"{hours:>12}{disk:>13}"
        )
    return "\n".join(lines)


def _shrunk(recipe: Recipe, folder: Path, parts: Registry, on_cpu: bool) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with two captions and few steps, and the objects that stand for what is not on this machine."""
    models, place = recipe.models, folder / "stand-ins"
    objects: dict[str, Any] = {SOURCE: list(CAPTIONS)}
    names = {*models.scorers, models.judge}
    names |= {name for own in (*recipe.evaluate.search, *recipe.train.systems) for name in own.scorers}
    for name in sorted(names):
        try:
            parts.fingerprint(name)
        except MilongaError:
            print(f"rehearsal: {name} is not here, random weights of its size stand for it", file=sys.stderr)
            objects[name] = random_scorer(name, CAPTIONS, parts.device)
    model = models.model if models.model in parts.objects else stand_in_model(models.model, place / "model", CAPTIONS)
    if model != models.model:
        print(f"rehearsal: {models.model} is not here, a random Tango of its size stands for it", file=sys.stderr)

    train, batch = recipe.train, 1 if on_cpu else recipe.train.batch_size
    pairs = tuple(
        name if name == OWN else noise_pairs(place / "pairs", CAPTIONS, max(STEPS, batch)) for name in train.pairs
    )
    clips = None if train.clips is None else noise_clips(place / "clips", CAPTIONS, max(STEPS, batch))
    precision: dict[str, Any] = {"precision": "fp32"} if on_cpu else {}
    drafts = {"draft_steps": STEPS, "draft_last": min(STEPS, train.draft_last)} if on_cpu else {}
    changes = {
        "batch_size": batch, "gradient_accumulation_steps": 1, "checkpoint_every": STEPS, "save_total_limit": 1,
        "patience": 0, "sample_every": 0, **precision, **drafts,
    }  # fmt: skip
    systems = tuple(_brief(system, changes) for system in train.systems)
    strategies = recipe.plan.strategies
    if on_cpu:
        strategies = tuple(
            one.model_copy(
                update={"steps": (STEPS,) * min(2, len(one.steps)), "num_negatives": min(1, one.num_negatives)}
            )
            for one in strategies
        )
    online, evaluate = recipe.online, recipe.evaluate
    few: dict[str, Any] = {"steps": STEPS} if on_cpu else {}
    if on_cpu and online.clips:
        few["clips"] = min(GROUP, online.clips)
    return recipe.model_copy(
        update={
            "models": models.model_copy(update={"model": model} | precision),
            "workers": Workers(device=recipe.workers.device),
            "prompts": recipe.prompts.model_copy(
                update={
                    "sources": (SOURCE,) if recipe.prompts.sources else (), "clusters": 0, "embedder": "tfidf-svd",
                }
            ),
            "plan": recipe.plan.model_copy(update={"perturber": "rules", "strategies": strategies}),
            "pair": recipe.pair.model_copy(update={"thresholds": ()}),
            "label": recipe.label.model_copy(update={"sources": ("tagger",)}),
            "train": train.model_copy(
                update=changes
                | {"pairs": pairs, "clips": clips, "systems": systems, "val_fraction": 0.0, "trackers": ()}
            ),
            "online": online.model_copy(
                update={
                    **few, "iterations": min(STEPS, online.iterations), "sources": (SOURCE,) if online.sources else (),
                    "prompts": (JUDGED,), "pair": online.pair and Pairing(), "noises": 1, "every": 1,
                }
            ),
            "evaluate": evaluate.model_copy(
                update={
                    "prompts": (EVALUATED,) if evaluate.prompts else (), "noises": 1, "search": (),
                    **({"steps": STEPS} if on_cpu else {}),
                }
            ),
        }
    ), objects  # fmt: skip


def _brief(system: System, changes: dict[str, Any]) -> System:
    """A system whose phases have two steps each, with the rehearsal's settings in the place of its own."""
    phases = tuple(
        Phase(loss=phase.loss, steps=STEPS, beta=phase.beta, learning_rate=phase.learning_rate)
        for phase in system.phases
    )
    own = {name: value for name, value in changes.items() if name in system.settings.model_fields_set}
    settings = system.settings.model_copy(update=own)
    sources = (SOURCE,) if system.sources else ()
    return system.model_copy(update={"phases": phases, "settings": settings, "sources": sources})


def _scales(recipe: Recipe, walked: Run, parts: Registry) -> dict[str, float]:
    """How many times the rehearsal's clips and passes the real run has, for the stages of which that is known.

    Both captions of the rehearsal belong to τ1 and, counted so, to τ2.
    """
    captions, planned = _num_captions(recipe, parts), walked.stage("plan")
    if captions is None or not complete(planned):
        return {}
    rehearsed = planned.read_records(Request)
    prompts = walked.stage("prompts").read_records(Prompt)
    real, _ = plan(prompts, recipe.plan.strategies, parts.perturber("rules"), recipe.seed, lambda count: None)
    temporal = {strategy.name for strategy in recipe.plan.strategies if strategy.negatives == "temporal"}
    alone = [request for request in real if set(request.strategies) <= temporal]  # those of strategy 3 only
    shared = [request for request in real if not set(request.strategies) <= temporal]
    diverse, ordered = (count / len(CAPTIONS) for count in captions)
    passes = sampling_passes(shared) * diverse + sampling_passes(alone) * ordered
    return {
        "generate": passes / sampling_passes(rehearsed),
        "score": (len(shared) * diverse + len(alone) * ordered) / len(rehearsed),
    }


def _training_seconds(recipe: Recipe, small: Recipe, walked: Run) -> float | None:
    """The seconds of all the run's training steps, at the pace of the last step that each phase rehearsed.

    None where they are not known: of a system trained online, on groups (of fewer clips here), for epochs of clips that
    are not counted yet, or on captions that are sampled in fewer steps here, as on a CPU.
    """
    seconds, pairs = 0.0, num_pairs(recipe, Run(Path("runs") / recipe.name))
    for system, brief in zip(recipe.train.systems, small.train.systems, strict=True):
        settings, own = recipe.train.settings(system), small.train.settings(brief)
        fewer = system.data == "captions" and own.draft_steps < settings.draft_steps
        if fewer or system.data in ("online", "groups"):
            return None
        log = walked.path / "metrics" / "training" / f"{system.name}.jsonl"
        paces = [row["samples_per_second"] for row in read_steps(log)]
        batch = settings.batch_size * settings.gradient_accumulation_steps
        for phase, pace in zip(system.phases, paces[STEPS - 1 :: STEPS], strict=True):
            if phase.steps:
                seconds += phase.steps * batch / pace
            elif system.data == "pairs" and pairs is not None:
                seconds += phase.epochs * pairs / pace
            else:
                return None
    return seconds


def _num_captions(recipe: Recipe, parts: Registry) -> tuple[int, int] | None:
    """The captions of the real run, and those of strategy 3 (τ2); None where a source is not on this machine."""
    from milonga.preference.select import temporal

    try:
        captions = {prompt.id: prompt for source in recipe.prompts.sources for prompt in parts.prompt_source(source)}
    except (MilongaError, OSError):
        return None
    table = recipe.prompts
    diverse = min(len(captions), table.clusters * table.per_cluster) if table.clusters else len(captions)
    return diverse, len(temporal(list(captions.values())))


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@contextmanager
def _watched(device: Any) -> Iterator[list[int]]:
    """A list whose last entry is in the end the most memory in bytes: of the accelerator since the beginning, or of the
    process, looked at once a second.
    """
    peak, over = [0], threading.Event()
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device))
        return

    def watch() -> None:
        while not over.wait(1.0):
            peak.append(max(peak[-1], _memory()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
    peak.append(max(peak[-1], _memory()))


def _memory() -> int:
    """This process's memory in bytes, a page once however often it is mapped; off Linux the most that it had so far."""
    rollup = Path("/proc/self/smaps_rollup")
    if rollup.exists():
        return 1024 * int(next(row.split()[1] for row in rollup.read_text().splitlines() if row.startswith("Pss:")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
