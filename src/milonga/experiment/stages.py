"""The body of each stage of a run: read the stage before, call the stage's functions, write shards."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from milonga.core.audio import clips_of
from milonga.core.errors import DataError
from milonga.core.progress import tracked
from milonga.core.protocols import Perturber
from milonga.core.records import Candidate, Pair, Prompt, Refusal, Request
from milonga.core.store import Shards, complete, cut, shard_name, write_json, write_text
from milonga.experiment.context import Context, needed
from milonga.experiment.recipe_tables import System
from milonga.experiment.reward import label, reward
from milonga.preference.produce import make_clips

if TYPE_CHECKING:
    from milonga.models.denoiser import Denoiser

ONE = shard_name(0, 1)
PRIOR_CLIPS = 1000  # real clips for the prior-preservation term, where it is on


def prompts(context: Context) -> None:
    """The recipe's captions, each once, and of them τ1 and τ2 where clusters are asked for."""
    table, shards = context.recipe.prompts, context.run.stage("prompts")
    if shards.has(ONE):
        return
    found = list({one.id: one for source in table.sources for one in context.parts.prompt_source(source)}.values())
    if not found:
        raise DataError(f"{', '.join(table.sources)}: no captions; check prompts.sources")
    found = subsets(context, found) if table.clusters else found
    shards.write_records(ONE, found, Prompt)


def subsets(context: Context, found: Sequence[Prompt]) -> list[Prompt]:
    """τ1, and of all captions those of τ2 that are not in it, unless τ2 is to be taken among τ1; in the order given."""
    from milonga.preference.select import temporal

    kept = {prompt.id for prompt in diverse(context, found)}
    wider = temporal(found) if context.recipe.prompts.temporal == "all" else []
    print(
        f"prompts: {len(kept)} diverse, {len({one.id for one in wider} - kept)} temporal beside them", file=sys.stderr
    )
    wanted = kept | {prompt.id for prompt in wider}
    return [one.model_copy(update={"diverse": one.id in kept}) for one in found if one.id in wanted]


def diverse(context: Context, found: Sequence[Prompt]) -> list[Prompt]:
    """τ1, and what it was chosen from: clusters.html to be looked at, metrics/clusters.json for programs."""
    from milonga.preference.select import cluster, taken
    from milonga.reports.clusters import cluster_rows, page

    table, seed, path = context.recipe.prompts, context.recipe.seed, context.run.path
    embedder = context.parts.text_embedder(table.embedder)
    print(f"prompts: {len(found)} captions, {table.clusters} clusters by {embedder.name}", file=sys.stderr)
    clusters = cluster(found, embedder, table.clusters, seed)
    kept = taken(clusters, table.per_cluster, seed, table.nearest)
    write_json(
        path / "metrics" / "clusters.json", [row.model_dump(mode="json") for row in cluster_rows(clusters, kept)]
    )
    write_text(path / "clusters.html", page(clusters, kept, embedder.name))
    return kept


def plan(context: Context) -> None:
    """The requests of all strategies, in shards; what a perturber could not do is kept in refused/plan."""
    from milonga.preference.plan import plan as planned

    shards, table = context.run.stage("plan"), context.recipe.plan
    if complete(shards):
        return
    found = needed(context, "prompts").read_records(Prompt)
    perturber = context.parts.perturber(table.perturber, table.llm)
    try:
        with tracked("plan", len(found)) as advance:
            requests, refusals = planned(found, table.strategies, perturber, context.recipe.seed, advance)
    finally:
        tell_spent(context, perturber)
    shared = sum(len(request.strategies) - 1 for request in requests)
    print(f"plan: {len(requests)} clips; strategies share {shared}, which are made once", file=sys.stderr)
    context.run.stage("refused/plan").write_records(ONE, refusals, Refusal)
    for name, part in cut(requests, table.shard).items():
        if not shards.has(name):
            shards.write_records(name, part, Request)


def tell_spent(context: Context, perturber: Perturber) -> None:
    """Notes what a perturber took of a paid service, in metrics/perturber.json and on stderr; others took nothing."""
    if hasattr(perturber, "spent"):
        spent = perturber.spent()  # type: ignore[attr-defined]
        write_json(context.run.path / "metrics" / "perturber.json", spent)
        cost = "" if spent["cost"] is None else f", cost {spent['cost']:.4f}"
        told = f"{spent['requests']} requests, {spent['tokens_in']} + {spent['tokens_out']} tokens"
        print(f"plan: {told}, {spent['cached']} answers from the cache{cost}", file=sys.stderr)


def generate(context: Context) -> None:
    """A clip for each request; clips that cannot be written (NaN) are kept by name in refused/generate."""
    planned = needed(context, "plan")
    sizes = {name: planned.rows(name) for name in planned.names()}

    def work(name: str) -> int:
        model = context.parts.load(context.recipe.models.model, context.recipe.models.scheduler)
        return make_clips(
            context.run, "generate", name, planned.read_records(Request, [name]), model, context.recipe.generate.batch
        )

    context.over_shards("generate", sizes, work)


def score(context: Context) -> None:
    """Every scorer's similarity of each clip with its prompt's own words."""
    planned, clips = needed(context, "plan"), needed(context, "generate")
    sizes = {name: clips.rows(name) for name in clips.names()}

    def work(name: str) -> int:
        requests = {request.id: request for request in planned.read_records(Request, [name])}
        candidates = _scored(context, requests, clips, name)
        context.run.stage("score").write_records(name, candidates, Candidate)
        return len(candidates)

    context.over_shards("score", sizes, work)


def pair(context: Context) -> None:
    """Winners and losers from the stored scores; the refused are kept with their reasons."""
    from milonga.preference.pair import pair as paired

    if context.run.stage("pair").has(ONE):
        return
    table = context.recipe.pair
    found = paired(needed(context, "score").read_records(Candidate), table.thresholds, table.rank_by, table.losers)
    context.run.stage("refused").write_records(ONE, [one for one in found if one.refused], Pair)
    context.run.stage("pair").write_records(ONE, [one for one in found if not one.refused], Pair)


def train(context: Context) -> None:
    """Each system of the recipe from the base, by its phases; a finished one is left alone, a begun one resumed."""
    from milonga.experiment.rounds import in_rounds

    for system in context.recipe.train.systems:
        if (context.run.path / "checkpoints" / system.name / "model").exists():
            continue
        if system.data == "rounds":
            in_rounds(context, system, STEPS)
        else:
            _train(context, system)


def evaluate(context: Context) -> None:
    """Clips of every system for the held-out prompts, all from the same seeds, and what the metrics say of them."""
    from milonga.experiment.evaluation import generate_eval_clips, store_features, store_references, write_metrics

    folder = context.run.path / "metrics"
    if all((folder / name).exists() for name in ("summary.json", "comparisons.json")):
        return
    shards = context.run.stage("evaluate/prompts")
    if not shards.has(ONE):
        sources = [context.parts.prompt_source(source) for source in context.recipe.evaluate.prompts]
        found = {prompt.id: prompt for source in sources for prompt in source}
        shards.write_records(ONE, list(found.values()), Prompt)
    prompts = shards.read_records(Prompt)
    systems = ["base", *(system.name for system in context.recipe.train.systems)]
    for name in systems:
        generate_eval_clips(context, name, prompts)
    store_references(context, prompts)
    for name in [*systems, "reference"]:
        store_features(context, name, prompts)
    write_metrics(context, prompts)


def report(context: Context) -> None:
    """report.html, from whatever the run holds."""
    from milonga.reports.html import write_report

    write_report(context.run.path)


def _scored(context: Context, requests: Mapping[str, Request], clips: Shards, name: str) -> list[Candidate]:
    from milonga.preference.score import score as scored

    heard = clips_of(clips.read_table(name, ["id", "audio"]))
    scorers = [context.parts.scorer(one) for one in context.recipe.models.scorers]
    texts = [requests[one].prompt for one in heard]
    scores = scored(list(heard.values()), texts, scorers, context.recipe.score.batch)
    return [Candidate(request=requests[one], scores=row) for one, row in zip(heard, scores, strict=True)]


def _train(context: Context, system: System) -> None:
    from milonga.data.examples import train_val_split
    from milonga.experiment.examples import examples_of
    from milonga.training.distributed import Ranks
    from milonga.training.trackers import print_betas, show_training
    from milonga.training.trainer import train as train_model

    main, recipe, path = Ranks().is_main, context.recipe, context.run.path
    settings, fraction = recipe.train.settings(system), recipe.train.heldout
    examples = examples_of(context, system, PRIOR_CLIPS if settings.prior_weight > 0 else 0)
    denoiser = context.parts.load_denoiser(recipe.models.model)
    folder, logs = path / "checkpoints" / system.name, path / "metrics" / "training"
    if system.data != "pairs":  # only pairs can be validated by their order
        settings, fraction = settings.model_copy(update={"patience": 0}), 0.0
    examples, val = train_val_split(examples, fraction, recipe.seed)
    if main:
        print_betas(system.phases, examples)
    trackers, config = recipe.train.trackers if main else (), recipe.model_dump(mode="json")["train"]
    with show_training(f"train {system.name}", system.name, logs, trackers, config) as on_step:
        train_model(
            denoiser, examples, system.phases, settings, recipe.seed, folder, on_step, val=val,
            log_path=logs / f"{system.name}.jsonl", sample=_sampler(context, system, denoiser, logs / system.name),
        )  # fmt: skip


def _sampler(
    context: Context, system: System, denoiser: "Denoiser", folder: Path
) -> "Callable[[int], dict[str, float]] | None":
    """Makes clips of a few fixed prompts every `sample_every` steps; the first of the recipe's scorers stands for what
    trains, its judge for what does not. None where `sample_every` is 0.
    """
    from milonga.training.trackers import SAMPLED_PROMPTS, sample_prompts

    recipe, parts = context.recipe, context.parts
    if not recipe.train.settings(system).sample_every:
        return None
    prompts = sorted(parts.prompt_source(recipe.prompts.sources[0])[:SAMPLED_PROMPTS], key=lambda prompt: prompt.id)
    model = parts.generator_of(recipe.models.model, denoiser)
    scorer, judge = parts.scorer(recipe.models.scorers[0]), parts.scorer(recipe.models.judge)
    sampling = recipe.evaluate.steps, recipe.evaluate.guidance
    return lambda step: sample_prompts(model, prompts, sampling, recipe.seed, scorer, judge, folder / f"{step:08d}")


STEPS: dict[str, Callable[[Context], None]] = {
    "prompts": prompts,
    "plan": plan,
    "generate": generate,
    "score": score,
    "pair": pair,
    "label": label,
    "reward": reward,
    "train": train,
    "evaluate": evaluate,
    "report": report,
}
