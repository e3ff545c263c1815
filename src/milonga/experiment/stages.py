"""The body of each stage of a run: read the stage before, call the stage's functions, write shards.

The stages from plan to pair are those of `preference.build`; label and reward are in `examples`.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from milonga.core.audio import clip_table, clips_of
from milonga.core.errors import DataError
from milonga.core.protocols import Model
from milonga.core.records import Prompt, Request
from milonga.core.store import cut, write_json, write_text
from milonga.experiment.examples import examples_of
from milonga.experiment.recipe import System
from milonga.experiment.registry import Context
from milonga.maths.devices import release
from milonga.preference.build import ONE
from milonga.preference.candidates import generate_shard

if TYPE_CHECKING:
    from milonga.models.denoiser import Denoiser


PRIOR_CLIPS = 1000  # real clips for the prior-preservation term, where it is on


def prompts(context: Context) -> None:
    """The recipe's captions, each once, and of them τ1 and τ2 where clusters are asked for."""
    table, shards = context.recipe.prompts, context.run.stage("prompts")
    if shards.has(ONE):
        return
    captions = list({one.id: one for source in table.sources for one in context.parts.prompt_source(source)}.values())
    if not captions:
        raise DataError(f"{', '.join(table.sources)}: no captions; check prompts.sources")
    captions = subsets(context, captions) if table.clusters else captions
    shards.write_records(ONE, captions, Prompt)


def subsets(context: Context, captions: Sequence[Prompt]) -> list[Prompt]:
    """τ1, and of all captions those of τ2 that are not in it, unless τ2 is to be taken among τ1; in the order given."""
    from milonga.preference.select import temporal

    chosen = {prompt.id for prompt in diverse(context, captions)}
    wider = temporal(captions) if context.recipe.prompts.temporal == "all" else []
    print(
        f"prompts: {len(chosen)} diverse, {len({one.id for one in wider} - chosen)} temporal beside them",
        file=sys.stderr,
    )
    wanted = chosen | {prompt.id for prompt in wider}
    return [one.model_copy(update={"diverse": one.id in chosen}) for one in captions if one.id in wanted]


def diverse(context: Context, captions: Sequence[Prompt]) -> list[Prompt]:
    """τ1, and what it was chosen from: clusters.html to be looked at, metrics/clusters.json for programs."""
    from milonga.preference.select import cluster, sample_clusters
    from milonga.reports.clusters import cluster_rows, page

    table, seed, path = context.recipe.prompts, context.recipe.seed, context.run.path
    embedder = context.parts.text_embedder(table.embedder)
    print(f"prompts: {len(captions)} captions, {table.clusters} clusters by {embedder.name}", file=sys.stderr)
    clusters = cluster(captions, embedder, table.clusters, seed)
    chosen = sample_clusters(clusters, table.per_cluster, seed, table.nearest)
    write_json(
        path / "metrics" / "clusters.json", [row.model_dump(mode="json") for row in cluster_rows(clusters, chosen)]
    )
    write_text(path / "clusters.html", page(clusters, chosen, embedder.name))
    return chosen


def train_system(context: Context, system: System, reference: "Denoiser | None" = None) -> None:
    """One system by its phases, from the run's model or the system it starts from; a begun one is resumed. The
    reference is the model it starts from or another.

    Under torchrun every rank comes here; the first one encodes the data, and the others read what it stored.
    """
    from milonga.models.load import DENOISING, NETWORKS
    from milonga.training.align import AlignConfig, AlignTrainer
    from milonga.training.distributed import Ranks

    recipe, path = context.recipe, context.run.path
    folder, logs = path / "checkpoints" / system.name, path / "metrics" / "training"
    settings, fraction = recipe.train.settings(system), recipe.train.val_fraction
    if system.data != "pairs":  # only pairs can be validated by their order
        settings, fraction = settings.model_copy(update={"patience": 0}), 0.0
    prior = PRIOR_CLIPS if settings.prior_weight > 0 else 0
    examples = Ranks().main_process_first(partial(examples_of, context, system, prior))
    release()
    sampled = recipe.train.settings(system).sample_every > 0 or system.data == "captions"  # clips while it trains
    start = path / "checkpoints" / system.start / "model" if system.start else None
    denoiser = context.parts.load_denoiser(recipe.models.model, start, NETWORKS if sampled else DENOISING)
    config = AlignConfig(
        output_dir=folder, phases=system.phases, seed=recipe.seed, val_fraction=fraction,
        device=str(context.parts.device), trackers=recipe.train.trackers, save_whole_model=False,
        **settings.model_dump(),
    )  # fmt: skip
    sampler = _sampler(context, system, denoiser, logs / system.name)
    scorers = [context.parts.scorer(name) for name in recipe.rewards_of(system)] if system.data == "captions" else ()
    trainer = AlignTrainer(denoiser, examples, config, ref_model=reference, scorers=scorers)
    trainer.train(log_path=logs / f"{system.name}.jsonl", sample=sampler)


def evaluate(context: Context) -> None:
    """Clips of every system for the held-out prompts, all from the same seeds, and what the metrics say of them."""
    folder = context.run.path / "metrics"
    if all((folder / name).exists() for name in ("summary.json", "comparisons.json")):
        return
    shards = context.run.stage("evaluate/prompts")
    if not shards.has(ONE):
        sources = [context.parts.prompt_source(source) for source in context.recipe.evaluate.prompts]
        prompts_by_id = {prompt.id: prompt for source in sources for prompt in source}
        shards.write_records(ONE, list(prompts_by_id.values()), Prompt)
    prompts = shards.read_records(Prompt)
    systems = context.recipe.sampled_systems
    store_references(context, prompts)  # what has no real clip is told before any other is made
    for name in systems:
        generate_eval_clips(context, name, prompts)
    for name in [*systems, "reference"]:
        store_features(context, name, prompts)
    if context.recipe.evaluate.search:
        search(context, prompts)
    write_metrics(context, prompts)


def search(context: Context, prompts: Sequence[Prompt]) -> None:
    """A pool of clips of every searched system, the searches' own clips, and their curves against N."""
    from milonga.experiment.search import check_searches, store_first_clips, store_scores, store_search, write_curves

    check_searches(context)
    table = context.recipe.evaluate
    pool = eval_requests(context, prompts, range(table.pool))
    for name in dict.fromkeys(search.system for search in table.search):
        store_first_clips(context, name)
        generate_eval_clips(context, name, prompts, pool[table.noises * len(prompts) :])
        store_features(context, name, prompts, pool)
        store_scores(context, name, pool)
    for search in table.search:
        store_search(context, search, eval_requests(context, prompts))
    write_curves(context, prompts)


def report(context: Context) -> None:
    """report.html, from whatever the run holds."""
    from milonga.reports.html import write_report

    write_report(context.run.path)


def _sampler(
    context: Context, system: System, denoiser: "Denoiser", folder: Path
) -> "Callable[[int], dict[str, float]] | None":
    """Makes clips of a few fixed prompts every `sample_every` steps; the first of the recipe's scorers stands for what
    trains, its judge for what does not. None where `sample_every` is 0.
    """
    from milonga.training.trackers import SAMPLED_PROMPTS, sample_prompts

    recipe, parts = context.recipe, context.parts
    if not recipe.train.settings(system).sample_every or recipe.sampled_source is None:
        return None
    prompts = sorted(parts.prompt_source(recipe.sampled_source)[:SAMPLED_PROMPTS], key=lambda prompt: prompt.id)
    model = parts.generator_of(recipe.models.model, denoiser, recipe.models.seconds)
    scorer, judge = parts.scorer(recipe.models.scorers[0]), parts.scorer(recipe.models.judge)
    sampling = recipe.evaluate.steps, recipe.evaluate.guidance
    return lambda step: sample_prompts(model, prompts, sampling, recipe.seed, scorer, judge, folder / f"{step:08d}")


def eval_requests(context: Context, prompts: Sequence[Prompt], numbers: Sequence[int] | None = None) -> list[Request]:
    """The requests of the `numbers` (None: of all `noises`) for each prompt, the first of each before the rest; ids and
    seeds leave the system out, so that all systems start from the same noise.
    """
    table, seed = context.recipe.evaluate, context.recipe.seed
    return [
        Request.of(seed, prompt, prompt.text, table.steps, table.guidance, number)
        for number in (range(table.noises) if numbers is None else numbers)
        for prompt in prompts
    ]


def generate_eval_clips(context: Context, name: str, prompts: Sequence[Prompt], pool: Sequence[Request] = ()) -> None:
    """One system's clips for the held-out prompts, in evaluate/NAME, or those of a search's `pool`, in
    search/clips/NAME, with the seconds that each shard took.
    """
    from milonga.experiment.search import timed

    stage, size = f"search/clips/{name}" if pool else f"evaluate/{name}", context.recipe.generate.batch_size
    table = context.recipe.models
    requests = list(pool or eval_requests(context, prompts))
    steps = context.recipe.sampling_steps(name)
    if steps != context.recipe.evaluate.steps:  # a distilled system's: from the same noise, since ids and seeds stay
        requests = [request.model_copy(update={"steps": steps}) for request in requests]
    parts = cut(requests, context.recipe.plan.shard_size)
    trained = context.run.path / "checkpoints" / name / "model"
    others = {model.name: model.model for model in context.recipe.evaluate.models}

    def model() -> Model:
        if name in others:
            return context.parts.load(others[name], table.scheduler, seconds=table.seconds)
        if name == "base":
            return context.parts.load(table.model, *table.loading)
        return context.parts.tuned(table.model, trained, *table.loading)

    generate = partial(generate_shard, context.run, stage, model, parts.__getitem__, size)
    work = partial(timed, context, name, "clips", model, generate) if pool else generate
    context.over_shards(stage, {shard: len(part) for shard, part in parts.items()}, work)


def store_references(context: Context, prompts: Sequence[Prompt]) -> None:
    """The real clips of the held-out prompts, one each, in evaluate/reference."""
    known = {prompt.id: prompt for prompt in prompts}
    parts = cut(eval_requests(context, prompts)[: len(prompts)], context.recipe.plan.shard_size)

    def work(shard: str) -> int:
        clips = [context.parts.reference(known[request.prompt_id]) for request in parts[shard]]
        ids = [request.id for request in parts[shard]]
        context.run.stage("evaluate/reference").write_table(shard, clip_table(ids, clips, [None] * len(ids)))
        return len(ids)

    context.over_shards("evaluate/reference", {shard: len(part) for shard, part in parts.items()}, work)


def store_features(context: Context, name: str, prompts: Sequence[Prompt], pool: Sequence[Request] = ()) -> None:
    """The judge's and the tagger's features of one system's clips, in features/NAME, or of a search's `pool`, in
    search/features/NAME.
    """
    from milonga.evaluation.features import ClipFeatures, extract_features

    models, known = context.recipe.models, {prompt.id: prompt for prompt in prompts}
    requests = {request.id: request for request in pool or eval_requests(context, prompts)}
    shards = context.run.stage(f"search/clips/{name}" if pool else f"evaluate/{name}")
    features = f"search/features/{name}" if pool else f"features/{name}"

    def work(shard: str) -> int:
        judge, tagger = context.parts.scorer(models.judge), context.parts.tagger(models.tagger)
        clips = clips_of(shards.read_table(shard, ["id", "audio"]))
        own, batch = [known[requests[clip_id].prompt_id] for clip_id in clips], context.recipe.score.batch_size
        rows = extract_features(list(clips), own, list(clips.values()), judge, tagger, batch)
        rows = [row.model_copy(update={"number": requests[row.id].number}) for row in rows]
        context.run.stage(features).write_records(shard, rows, ClipFeatures)
        return len(rows)

    context.over_shards(features, {shard: shards.rows(shard) for shard in shards.names()}, work)


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
