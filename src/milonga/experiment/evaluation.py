"""The evaluate step in parts: every system performs the held-out prompts, all are heard, the numbers are written."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from milonga.core.audio import clip_table, clips_of
from milonga.core.errors import DataError
from milonga.core.progress import tracked
from milonga.core.records import Prompt, Request
from milonga.core.store import Run, cut, write_json
from milonga.experiment.context import Context
from milonga.preference.produce import make_clips

if TYPE_CHECKING:
    from milonga.evaluation.run_metrics import System


def requests_of(context: Context, prompts: Sequence[Prompt]) -> list[Request]:
    """One request a prompt; ids and seeds leave the system out, so that all systems start from the same noise."""
    table = context.recipe.evaluate
    return [Request.of(context.recipe.seed, one, one.text, table.steps, table.guidance) for one in prompts]


def perform(context: Context, name: str, prompts: Sequence[Prompt]) -> None:
    """One system's clips for the held-out prompts, in evaluate/NAME."""
    stage, base, scheduler = f"evaluate/{name}", context.recipe.models.model, context.recipe.models.scheduler
    parts = cut(requests_of(context, prompts), context.recipe.plan.shard)
    trained = context.run.path / "checkpoints" / name / "model"

    def work(shard: str) -> int:
        own = name == "base"
        model = context.parts.load(base, scheduler) if own else context.parts.tuned(base, trained, scheduler)
        return make_clips(context.run, stage, shard, parts[shard], model, context.recipe.generate.batch)

    context.over_shards(stage, {shard: len(part) for shard, part in parts.items()}, work)


def references(context: Context, prompts: Sequence[Prompt]) -> None:
    """The real clips of the held-out prompts, in evaluate/reference."""
    known = {prompt.id: prompt for prompt in prompts}
    parts = cut(requests_of(context, prompts), context.recipe.plan.shard)

    def work(shard: str) -> int:
        clips = [context.parts.reference(known[request.prompt_id]) for request in parts[shard]]
        ids = [request.id for request in parts[shard]]
        context.run.stage("evaluate/reference").write_table(shard, clip_table(ids, clips, [None] * len(ids)))
        return len(ids)

    context.over_shards("evaluate/reference", {shard: len(part) for shard, part in parts.items()}, work)


def heard_by_all(context: Context, name: str, prompts: Sequence[Prompt]) -> None:
    """What judge and tagger hear in one system's clips, in heard/NAME."""
    from milonga.evaluation.hear import Heard, hear

    models, known = context.recipe.models, {prompt.id: prompt for prompt in prompts}
    prompt_of = {request.id: known[request.prompt_id] for request in requests_of(context, prompts)}
    clips = context.run.stage(f"evaluate/{name}")

    def work(shard: str) -> int:
        judge, tagger = context.parts.scorer(models.judge), context.parts.tagger(models.tagger)
        made = clips_of(clips.read_table(shard, ["id", "audio"]))
        asked = [prompt_of[one] for one in made]
        heard = hear(list(made), asked, list(made.values()), judge, tagger, context.recipe.score.batch)
        context.run.stage(f"heard/{name}").write_records(shard, heard, Heard)
        return len(heard)

    context.over_shards(f"heard/{name}", {shard: clips.rows(shard) for shard in clips.names()}, work)


def as_heard(run: Run, name: str) -> "System":
    """A system's clips as judge and tagger heard them, by caption."""
    from milonga.evaluation.hear import Heard
    from milonga.evaluation.run_metrics import System

    rows = run.stage(f"heard/{name}").read_records(Heard)
    return System(name, {row.prompt_id: row for row in rows})


def measure(context: Context, names: Sequence[str], prompts: Sequence[Prompt]) -> None:
    """metrics/summary.json and metrics/comparisons.json of all systems."""
    from milonga.evaluation.run_metrics import comparisons, numbers, splits_of, summaries

    table, seed = context.recipe.evaluate, context.recipe.seed
    if not prompts:
        raise DataError("evaluate.prompts names no captions: there is nothing to evaluate on")

    systems, real = [as_heard(context.run, name) for name in names], as_heard(context.run, "reference")
    splits = splits_of(prompts, table.splits)
    with tracked("measure", numbers(systems, splits)) as advance:
        rows = summaries(systems, real, splits, table.resamples, seed, protocol(context), advance)
        found = comparisons(systems, real, splits, table.resamples, seed, advance)
    folder = context.run.path / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", [row.model_dump(mode="json") for row in rows])
    write_json(folder / "comparisons.json", [row.model_dump(mode="json") for row in found])


def protocol(context: Context) -> str:
    """The stamp on every number: who listened, by weights; how the clips were sampled; the seed."""
    models, table = context.recipe.models, context.recipe.evaluate
    listeners = [f"{name}@{context.parts.fingerprint(name)[:8]}" for name in (models.judge, models.tagger)]
    how = f"steps {table.steps}, guidance {table.guidance:g}, seed {context.recipe.seed}, one clip a prompt"
    return f"judge {listeners[0]}; events, FD, KL, IS by {listeners[1]} at 16 kHz mono; {how}"
