"""The evaluate stage: every system generates the held-out prompts; features are stored; the evaluator computes."""

from collections.abc import Sequence
from functools import partial

from milonga.core.audio import clip_table, clips_of
from milonga.core.errors import DataError
from milonga.core.protocols import Model
from milonga.core.records import Prompt, Request
from milonga.core.store import cut, write_json
from milonga.experiment.registry import Context
from milonga.preference.candidates import generate_shard


def eval_requests(context: Context, prompts: Sequence[Prompt]) -> list[Request]:
    """One request a prompt; ids and seeds leave the system out, so that all systems start from the same noise."""
    table = context.recipe.evaluate
    return [Request.of(context.recipe.seed, one, one.text, table.steps, table.guidance) for one in prompts]


def generate_eval_clips(context: Context, name: str, prompts: Sequence[Prompt]) -> None:
    """One system's clips for the held-out prompts, in evaluate/NAME."""
    stage, base, scheduler = f"evaluate/{name}", context.recipe.models.model, context.recipe.models.scheduler
    parts = cut(eval_requests(context, prompts), context.recipe.plan.shard_size)
    trained = context.run.path / "checkpoints" / name / "model"

    def model() -> Model:
        return context.parts.load(base, scheduler) if name == "base" else context.parts.tuned(base, trained, scheduler)

    work = partial(generate_shard, context.run, stage, model, parts.__getitem__, context.recipe.generate.batch_size)
    context.over_shards(stage, {shard: len(part) for shard, part in parts.items()}, work)


def store_references(context: Context, prompts: Sequence[Prompt]) -> None:
    """The real clips of the held-out prompts, in evaluate/reference."""
    known = {prompt.id: prompt for prompt in prompts}
    parts = cut(eval_requests(context, prompts), context.recipe.plan.shard_size)

    def work(shard: str) -> int:
        clips = [context.parts.reference(known[request.prompt_id]) for request in parts[shard]]
        ids = [request.id for request in parts[shard]]
        context.run.stage("evaluate/reference").write_table(shard, clip_table(ids, clips, [None] * len(ids)))
        return len(ids)

    context.over_shards("evaluate/reference", {shard: len(part) for shard, part in parts.items()}, work)


def store_features(context: Context, name: str, prompts: Sequence[Prompt]) -> None:
    """The judge's and the tagger's features of one system's clips, in features/NAME."""
    from milonga.evaluation.features import ClipFeatures, extract_features

    models, known = context.recipe.models, {prompt.id: prompt for prompt in prompts}
    prompt_of = {request.id: known[request.prompt_id] for request in eval_requests(context, prompts)}
    shards = context.run.stage(f"evaluate/{name}")

    def work(shard: str) -> int:
        judge, tagger = context.parts.scorer(models.judge), context.parts.tagger(models.tagger)
        clips = clips_of(shards.read_table(shard, ["id", "audio"]))
        own, batch = [prompt_of[clip_id] for clip_id in clips], context.recipe.score.batch_size
        rows = extract_features(list(clips), own, list(clips.values()), judge, tagger, batch)
        context.run.stage(f"features/{name}").write_records(shard, rows, ClipFeatures)
        return len(rows)

    context.over_shards(f"features/{name}", {shard: shards.rows(shard) for shard in shards.names()}, work)


def write_metrics(context: Context, prompts: Sequence[Prompt]) -> None:
    """metrics/summary.json and metrics/comparisons.json of all systems: the numbers of `milonga evaluate RUN`."""
    from milonga.evaluation import EvalConfig
    from milonga.evaluation.evaluate import evaluate
    from milonga.evaluation.formatting import plain_rows

    if not prompts:
        raise DataError("evaluate.prompts names no captions: there is nothing to evaluate on")
    evaluation = evaluate([str(context.run.path)], None, None, EvalConfig())
    folder = context.run.path / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", plain_rows(evaluation.summaries))
    write_json(folder / "comparisons.json", plain_rows(evaluation.comparisons))
