"""Captions in, preference pairs out (§4.1 of the paper): `build_pairs`, and the stages that a run of a recipe shares.

Everything lives in a run folder that resumes: a stage does only what is missing in it. The folder's manifest is a
recipe, so `milonga status`, `pair`, `pairs`, `export` and `run` work on it.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from milonga.core.audio import clips_of
from milonga.core.config import Strategy, Threshold, Workers
from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.ids import content_id
from milonga.core.progress import Advance, tracked
from milonga.core.protocols import Engine, Model, Perturber, Scorer
from milonga.core.records import Candidate, Pair, Prompt, Refusal, Request
from milonga.core.store import Run, Shards, complete, cut, read_manifest, shard_name, software, write_json, write_text
from milonga.core.weights import RANKERS
from milonga.data.pairs import RunPairs, kept_pairs
from milonga.maths.devices import AUTO
from milonga.preference.candidates import generate_scored_shard, generate_shard, score_clips
from milonga.preference.pair import pair
from milonga.preference.plan import plan

ONE = shard_name(0, 1)
PAPER = (Strategy.same_prompt([50] * 4), Strategy.perturbed(5), Strategy.temporal(5))


@dataclass(frozen=True)
class PairBuilder:
    """The four stages from prompts to pairs in one run folder; each does what is missing there.

    Models, scorers and the perturber are loaded when a stage needs them, in the worker that does.
    """

    run: Run
    engine: Engine
    load_model: Callable[[], Model]
    load_scorers: Callable[[], Sequence[Scorer]]
    load_perturber: Callable[[], Perturber]
    strategies: Sequence[Strategy]
    thresholds: Sequence[Threshold] = ()
    rank_by: str = "mean"
    losers: str = "all"
    seed: int = 0
    shard_size: int = 64
    generate_batch_size: int = 16
    score_batch_size: int = 16
    precision: str = "fp32"  # of the scorers' networks, which are on `device`
    device: Any = AUTO

    def plan(self) -> None:
        """The requests of all strategies, in shards; what a perturber could not do is in refused/plan."""
        shards = self.run.stage("plan")
        if complete(shards):
            return
        prompts, perturber = needed(self.run, "prompts").read_records(Prompt), self.load_perturber()
        try:
            with tracked("plan", len(prompts)) as advance:
                requests, refusals = plan(prompts, self.strategies, perturber, self.seed, advance)
        finally:
            _note_spending(self.run, perturber)
        shared = sum(len(request.strategies) - 1 for request in requests)
        print(f"plan: {len(requests)} clips; strategies share {shared}, generated once", file=sys.stderr)
        self.run.stage("refused/plan").write_records(ONE, refusals, Refusal)
        for name, part in cut(requests, self.shard_size).items():
            if not shards.has(name):
                shards.write_records(name, part, Request)

    def generate(self) -> None:
        """A clip for each request; clips that cannot be written (NaN) are refused by id in refused/generate."""
        planned = needed(self.run, "plan")
        sizes = {shard: planned.rows(shard) for shard in planned.names()}
        work = partial(
            generate_shard, self.run, "generate", self.load_model,
            lambda shard: planned.read_records(Request, [shard]), self.generate_batch_size,
        )  # fmt: skip
        with shards_left(self.run, "generate", sizes) as (left, advance):
            for shard, _ in self.engine.run(work, left):
                advance(sizes[shard])

    def score(self) -> None:
        """Every scorer's score of each clip against its prompt's own words."""
        needed(self.run, "plan")
        clips = needed(self.run, "generate")
        sizes = {shard: clips.rows(shard) for shard in clips.names()}
        work = partial(_score_shard, self.run, self.load_scorers, self.score_batch_size, self.precision, self.device)
        with shards_left(self.run, "score", sizes) as (left, advance):
            for shard, _ in self.engine.run(work, left):
                advance(sizes[shard])

    def generate_scored(self) -> bool:
        """Latents and scores of each request, from the log-mel picture that the model's autoencoder decodes.

        There is no vocoder and no audio. False, with nothing done, where the model decodes no picture, a scorer reads
        others, or clips have been generated otherwise; their scores are there or not.
        """
        model, scorers = self.load_model(), self.load_scorers()
        picture = getattr(model, "mel_config", None)
        if picture is None or any(getattr(scorer, "mel", None) != picture for scorer in scorers):
            return False
        if complete(self.run.stage("generate")):
            return complete(self.run.stage("score"))
        planned = needed(self.run, "plan")
        sizes = {shard: planned.rows(shard) for shard in planned.names()}
        load, batches = (self.load_model, self.load_scorers), (self.generate_batch_size, self.score_batch_size)
        work = partial(generate_scored_shard, self.run, *load, *batches, self.precision, self.device)
        with shards_left(self.run, "generate", sizes) as (left, advance):
            for shard, _ in self.engine.run(work, left):
                advance(sizes[shard])
        return True

    def pair(self) -> None:
        """Winners and losers from the stored scores; the refused are stored with their reasons."""
        if self.run.stage("pair").has(ONE):
            return
        candidates = needed(self.run, "score").read_records(Candidate)
        pairs = pair(candidates, self.thresholds, self.rank_by, self.losers)
        self.run.stage("refused").write_records(ONE, [row for row in pairs if row.refused], Pair)
        self.run.stage("pair").write_records(ONE, kept_pairs(pairs), Pair)


def needed(run: Run, stage: str) -> Shards:
    """The shards of an earlier stage; StoreError when it is not complete."""
    shards = run.stage(stage)
    if not complete(shards):
        raise StoreError(f"{run.path} has no complete {stage} yet: run `milonga run` without --only first")
    return shards


@contextmanager
def shards_left(run: Run, stage: str, sizes: Mapping[str, int]) -> Iterator[tuple[list[str], Advance]]:
    """The shards of `sizes` (shard: items) that a stage does not have yet, and a function that shows progress."""
    finished = set(run.stage(stage).names())
    left = [name for name in sizes if name not in finished]
    if not left:
        yield [], lambda count: None
        return
    done = sum(size for name, size in sizes.items() if name in finished)
    with tracked(stage, sum(sizes.values()), done) as advance:
        yield left, advance


def _score_shard(
    run: Run, load_scorers: Callable[[], Sequence[Scorer]], batch_size: int, precision: str, device: Any, shard: str
) -> int:
    run.check_visible()
    requests = {request.id: request for request in run.stage("plan").read_records(Request, [shard])}
    clips = clips_of(run.stage("generate").read_table(shard, ["id", "audio"]))
    texts = [requests[clip].prompt for clip in clips]
    scores = score_clips(list(clips.values()), texts, load_scorers(), batch_size, precision, device)
    candidates = [Candidate(request=requests[clip], scores=row) for clip, row in zip(clips, scores, strict=True)]
    run.stage("score").write_records(shard, candidates, Candidate)
    return len(candidates)


def _note_spending(run: Run, perturber: Perturber) -> None:
    """What a perturber used of a paid service goes to metrics/perturber.json and to stderr."""
    if hasattr(perturber, "spent"):
        spent = perturber.spent()  # type: ignore[attr-defined]
        write_json(run.path / "metrics" / "perturber.json", spent)
        cost = "" if spent["cost"] is None else f", cost {spent['cost']:.4f}"
        tokens = f"{spent['requests']} requests, {spent['tokens_in']} + {spent['tokens_out']} tokens"
        print(f"plan: {tokens}, {spent['cached']} answers from the cache{cost}", file=sys.stderr)


def build_pairs(
    captions: Sequence[str | Prompt] | str,
    *,
    out: Path | str,
    model: Any = "nano",
    scorers: Sequence[Any] = RANKERS,
    strategies: Sequence[Strategy] = PAPER,
    thresholds: Sequence[Threshold] = (),
    rank_by: str = "mean",
    losers: str = "all",
    perturber: Any = "rules",
    scheduler: str | None = None,
    engine: Engine | str = "local",
    seed: int = 0,
    shard_size: int = 64,
    batch_size: int = 16,
    device: Any = AUTO,
) -> RunPairs:
    """Preference pairs of captions: clips by `model`, ranked and filtered by `scorers` (§4.1 of the paper).

    `captions` are texts, `Prompt`s, or a source such as `captions:FILE.csv`. `model`, `scorers` and `perturber` are
    names as in a recipe, or objects (a loaded pipeline, a `Scorer`, a `Perturber`). Without `thresholds` every pair
    whose winner ranks higher is kept; a threshold names a scorer by its name or by the stem of its file. `rank_by` is a
    scorer's name or "mean"; with `losers="worst"` only the worst candidate may lose. What is named is loaded on
    `device`; objects stay where they are.

    `out` is a run folder. Calling again does only what is missing; other thresholds pair again, other scorers score
    again. Raises StoreError when the folder was begun with another model, other captions, strategies, seed or
    perturber; DataError without captions; RecipeError for an unknown name.
    """
    from milonga.data.captions import prompt_source
    from milonga.engines.local import engine_named
    from milonga.models.load import as_model, object_fingerprint
    from milonga.perturbers.llm import perturber as load_perturber
    from milonga.scorers.load import fingerprint
    from milonga.scorers.load import scorer as load_scorer

    if isinstance(captions, str):
        captions = prompt_source(captions)
    given = [Prompt.of(caption, "captions") if isinstance(caption, str) else caption for caption in captions]
    prompts = list({prompt.id: prompt for prompt in given}.values())
    if not prompts:
        raise DataError("there are no captions: give texts, or a source such as captions:FILE.csv")

    def hashed(part: Any) -> str:
        return fingerprint(part) if isinstance(part, str) else object_fingerprint(part)

    model = str(model) if isinstance(model, Path) else model
    model_name = model if isinstance(model, str) else getattr(as_model(model, device=device), "name", "model")
    names = {scorer if isinstance(scorer, str) else scorer.name: scorer for scorer in scorers}
    if len(names) < len(scorers):
        raise RecipeError("two scorers have one name: give each a `name` of its own")
    limits = [limit.model_copy(update={"scorer": _scorer_named(limit.scorer, list(names))}) for limit in thresholds]
    run = Run(Path(out))
    recipe = {
        "name": run.path.resolve().name,
        "seed": seed,
        "models": {"model": model_name, "scheduler": scheduler, "scorers": list(names)},
        "prompts": {"sources": [f"captions:{run.path / 'captions.jsonl'}"]},
        "plan": {
            "perturber": perturber if isinstance(perturber, str) else perturber.name,
            "shard_size": shard_size,
            "strategies": [strategy.model_dump(mode="json") for strategy in strategies],
        },
        "pair": {
            "rank_by": rank_by if rank_by == "mean" else _scorer_named(rank_by, list(names)),
            "losers": losers,
            "thresholds": [limit.model_dump(mode="json") for limit in limits],
        },
    }
    weights = {"model": hashed(model), "scorers": {name: hashed(scorer) for name, scorer in names.items()}}
    builder = PairBuilder(
        run=run,
        engine=engine_named(engine, Workers()) if isinstance(engine, str) else engine,
        load_model=partial(as_model, model, scheduler, device),
        load_scorers=lambda: [load_scorer(part, device) if isinstance(part, str) else part for part in names.values()],
        load_perturber=lambda: load_perturber(perturber) if isinstance(perturber, str) else perturber,
        strategies=strategies,
        thresholds=limits,
        rank_by=recipe["pair"]["rank_by"],
        losers=losers,
        seed=seed,
        shard_size=shard_size,
        generate_batch_size=batch_size,
        score_batch_size=batch_size,
    )
    with run.lock():
        _accept(run, recipe, weights, content_id(sorted(prompt.id for prompt in prompts)))
        if not run.stage("prompts").has(ONE):
            rows = "".join(json.dumps({"caption": prompt.text}, ensure_ascii=False) + "\n" for prompt in prompts)
            write_text(run.path / "captions.jsonl", rows)
            run.stage("prompts").write_records(ONE, prompts, Prompt)
        builder.plan()
        builder.generate()
        builder.score()
        builder.pair()
    return RunPairs(run)


def _scorer_named(name: str, scorers: Sequence[str]) -> str:
    """The scorer of that name, or whose file has that stem; DataError where there is none, or more than one."""
    if name in scorers:
        return name
    matching = [scorer for scorer in scorers if Path(scorer.rpartition(":")[2].partition("@")[0]).stem == name]
    if len(matching) != 1:
        raise DataError(f"no scorer is called {name!r}: the scorers are {', '.join(scorers)}")
    return matching[0]


def _accept(run: Run, recipe: dict[str, Any], weights: dict[str, Any], captions: str) -> None:
    """Compares a folder with what is asked of it, clears what must be done again, and writes its manifest."""
    import tomli_w

    manifest = read_manifest(run)
    identity = {
        "captions": captions,
        "seed": recipe["seed"],
        "model": [weights["model"], recipe["models"]["scheduler"]],
        "strategies": recipe["plan"]["strategies"],
        "perturber": recipe["plan"]["perturber"],
        "shard_size": recipe["plan"]["shard_size"],
    }
    wanted = software() | {
        "seed": recipe["seed"],
        "fingerprints": {"models": weights},
        "recipe": recipe,
        "build": identity,
    }
    if manifest is not None:
        held = manifest.get("build")
        if held is None:
            raise StoreError(f"{run.path} is the run of a recipe: use `milonga run`, or choose another folder")
        other = [name for name in identity if held.get(name) != identity[name]]
        if other:
            raise StoreError(
                f"{run.path} was begun with other values of {', '.join(other)}: "
                "restore them, choose another folder, or delete it"
            )
        scorers_changed = manifest["fingerprints"]["models"]["scorers"] != weights["scorers"]
        if scorers_changed:
            run.stage("score").clear()
        if scorers_changed or manifest["recipe"]["pair"] != recipe["pair"]:
            run.stage("pair").clear()
            for file in (run.path / "refused").glob("*.parquet"):
                file.unlink()
    if manifest != wanted:
        plain = json.loads(json.dumps(recipe))
        plain["models"] = {key: value for key, value in plain["models"].items() if value is not None}
        write_text(run.path / "recipe.toml", tomli_w.dumps(plain))
        write_json(run.path / "manifest.json", wanted)
