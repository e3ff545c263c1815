"""Systems by search: of N clips of a held-out caption the best by scorers that measure nothing afterwards.

A pool of clips of every caption is made once for each system that is searched (search/clips/SYSTEM, in shards): first
those that the system is evaluated by, and then others. A search is then a system like any other: its clips are in
evaluate/NAME under the ids of the other systems' clips, which it is compared with. The gain against N comes from the
whole pool, by an unbiased estimator.
"""

from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

import numpy as np

from milonga.core.audio import clip_table, clips_of, from_flac
from milonga.core.errors import RecipeError
from milonga.core.ids import derive_seed
from milonga.core.protocols import Scorer
from milonga.core.records import Candidate, Prompt, Record, Request, SearchPoint
from milonga.core.store import cut, write_json
from milonga.evaluation.features import ClipFeatures
from milonga.evaluation.formatting import plain_rows
from milonga.evaluation.metrics import all_metrics, clip_values
from milonga.experiment.recipe import Search
from milonga.experiment.registry import Context
from milonga.maths.statistics import bootstrap, expected_best, mean_z_scores
from milonga.preference.candidates import best_first, score_clips


class Duration(Record):
    """The seconds that a worker took for a shard's clips."""

    clips: int
    seconds: float


def timed(
    context: Context, system: str, what: str, prepare: Callable[[], object], work: Callable[[str], int], shard: str
) -> int:
    """Does one shard's work and notes its seconds in search/seconds/SYSTEM; models are loaded by `prepare`, before."""
    prepare()
    start = monotonic()
    clips = work(shard)
    duration = Duration(clips=clips, seconds=monotonic() - start)
    context.run.stage(f"search/seconds/{system}").write_records(f"{what}-{shard}", [duration], Duration)
    return clips


def check_searches(context: Context) -> None:
    """RecipeError where a search chooses by the weights that measure its clips, under whatever name."""
    models, fingerprint = context.recipe.models, context.parts.fingerprint
    measures = {fingerprint(name): name for name in (models.judge, models.tagger)}
    for search in context.recipe.evaluate.search:
        for name in context.recipe.search_scorers(search):
            if fingerprint(name) in measures:
                raise RecipeError(
                    f"evaluate.search: {search.name} chooses by {name}, the weights of {measures[fingerprint(name)]}, "
                    "which measures the result: choose by other scorers"
                )


def store_first_clips(context: Context, system: str) -> None:
    """The clips that a system is evaluated by, and their features, in its pool: they are the first of each caption."""
    for source, target in (("evaluate", "clips"), ("features", "features")):
        evaluated = context.run.stage(f"{source}/{system}")
        pool = context.run.stage(f"search/{target}/{system}")
        for shard in evaluated.names():
            if not pool.has(f"first-{shard}"):
                pool.write_table(f"first-{shard}", evaluated.read_table(shard))


def store_scores(context: Context, system: str, requests: Sequence[Request]) -> None:
    """Every selecting scorer's score of each clip of a system's pool, in search/scores/SYSTEM."""
    searches = [search for search in context.recipe.evaluate.search if search.system == system]
    names = list(dict.fromkeys(name for search in searches for name in context.recipe.search_scorers(search)))
    pool, by_id = context.run.stage(f"search/clips/{system}"), {request.id: request for request in requests}

    def scorers() -> list[Scorer]:
        return [context.parts.scorer(name) for name in names]

    def work(shard: str) -> int:
        clips = clips_of(pool.read_table(shard, ["id", "audio"]))
        given = list(clips.values()), [by_id[clip].prompt for clip in clips]
        how = context.recipe.score.batch_size, context.recipe.models.precision, context.parts.device
        columns = [score_clips(*given, [scorer], *how) for scorer in scorers()]
        rows = []
        for clip, *cells in zip(clips, *columns, strict=True):
            scores = {name: next(iter(cell.values())) for name, cell in zip(names, cells, strict=True)}
            rows.append(Candidate(request=by_id[clip], scores=scores))
        context.run.stage(f"search/scores/{system}").write_records(shard, rows, Candidate)
        return len(rows)

    sizes = {shard: pool.rows(shard) for shard in pool.names()}
    context.over_shards(f"search/scores/{system}", sizes, partial(timed, context, system, "score", scorers, work))


def store_search(context: Context, search: Search, slots: Sequence[Request]) -> None:
    """A search's clips in evaluate/NAME and their features in features/NAME, each under the id of its slot.

    `slots` are the requests that every system answers; slot k of a caption gets the best of the pool's clips kN to
    kN + N − 1, so slots share no clip.
    """
    run, pool = context.run, context.run.stage(f"search/clips/{search.system}")
    candidates = run.stage(f"search/scores/{search.system}").read_records(Candidate)
    by_place = {(row.request.prompt_id, row.request.number): row for row in candidates}
    features = {row.id: row for row in run.stage(f"search/features/{search.system}").read_records(ClipFeatures)}
    shard_of = {name: shard for shard in pool.names() for name in pool.read_table(shard, ["id"])["id"].to_pylist()}
    for shard, part in cut(slots, context.recipe.plan.shard_size).items():
        if run.stage(f"features/{search.name}").has(shard):  # written last
            continue
        chosen: list[tuple[Request, str]] = []
        for slot in part:
            numbers = range(slot.number * search.n, (slot.number + 1) * search.n)
            group = [by_place[key] for number in numbers if (key := (slot.prompt_id, number)) in by_place]
            if group:
                place, _ = best_first([_selecting(context, search, row) for row in group])[0]
                chosen.append((slot, group[place].request.id))
        rows = {
            row["id"]: row
            for name in sorted({shard_of[clip] for _, clip in chosen})
            for row in pool.read_table(name).to_pylist()
        }
        clips = [from_flac(rows[clip]["audio"]["bytes"]) for _, clip in chosen]
        latents = [rows[clip]["latents"] for _, clip in chosen]
        run.stage(f"evaluate/{search.name}").write_table(
            shard, clip_table([slot.id for slot, _ in chosen], clips, latents)
        )
        own = [features[clip].model_copy(update={"id": slot.id, "number": slot.number}) for slot, clip in chosen]
        run.stage(f"features/{search.name}").write_records(shard, own, ClipFeatures)


def write_curves(context: Context, prompts: Sequence[Prompt]) -> None:
    """metrics/search.json: every search's expected metrics for N = 1 … M, with intervals over captions."""
    points = [point for search in context.recipe.evaluate.search for point in curve(context, search, prompts)]
    write_json(context.run.path / "metrics" / "search.json", plain_rows(points))


def curve(context: Context, search: Search, prompts: Sequence[Prompt]) -> list[SearchPoint]:
    """The best of N of one search's pool for every N and every metric of judge and tagger (`expected_best`).

    Captions that lost a clip of their pool are left out. So is a metric that applies to some clips of a caption only,
    such as the order of those where all events are detected: it has no mean over subsets.
    """
    table, run = context.recipe.evaluate, context.run
    known = {prompt.id: prompt for prompt in prompts}
    features = {row.id: row for row in run.stage(f"search/features/{search.system}").read_records(ClipFeatures)}
    groups: dict[str, list[Candidate]] = {}
    for row in run.stage(f"search/scores/{search.system}").read_records(Candidate):
        groups.setdefault(row.request.prompt_id, []).append(row)
    groups = {name: rows for name, rows in groups.items() if len(rows) == table.pool}
    ranks = {
        name: mean_z_scores(np.array([list(_selecting(context, search, row).values()) for row in rows]))
        for name, rows in groups.items()
    }
    seconds = [_seconds(context, search.system, what) for what in ("clips", "score")]
    passes = context.recipe.sampling_steps(search.system) * (2 if table.guidance > 1 else 1)
    points = []
    for metric in all_metrics():
        if metric.kind != "clip" or metric.feature not in ("clap", "events"):
            continue
        curves = []
        for name, rows in groups.items():
            ids = [row.request.id for row in rows]
            column = {clip: getattr(features[clip], metric.feature) for clip in ids}
            values = clip_values(metric, column, dict.fromkeys(ids, known[name]), ids)
            curves.append(expected_best(ranks[name], values) if not np.isnan(values).all() else values)
            if np.isnan(curves[-1]).any() != np.isnan(values).all():
                curves = []
                break
        means = np.array([row for row in curves if not np.isnan(row).any()])
        if len(means) < 2:
            continue
        draw = derive_seed(context.recipe.seed, "search", metric.name)
        for n in range(1, table.pool + 1):
            value = bootstrap(means[:, n - 1], draw, table.resamples)
            gain = bootstrap(means[:, n - 1] - means[:, 0], draw, table.resamples)
            points.append(
                SearchPoint(
                    search=search.name, system=search.system, scorers=context.recipe.search_scorers(search),
                    chosen=search.n, metric=metric.name, n=n, value=value.value, low=value.low, high=value.high,
                    gain=gain.value, gain_low=gain.low, gain_high=gain.high, captions=value.n,
                    passes=n * passes,
                    seconds=n * (seconds[0] + (seconds[1] if n > 1 else 0.0)),
                )
            )  # fmt: skip
    return points


def _selecting(context: Context, search: Search, row: Candidate) -> dict[str, float]:
    """Of a clip's scores those that a search chooses by."""
    return {name: row.scores[name] for name in context.recipe.search_scorers(search)}


def _seconds(context: Context, system: str, what: str) -> float:
    """The mean seconds that a clip of a pool took to generate, or to score."""
    shards = context.run.stage(f"search/seconds/{system}")
    rows = shards.read_records(Duration, [name for name in shards.names() if name.startswith(what)])
    return sum(row.seconds for row in rows) / max(1, sum(row.clips for row in rows))
