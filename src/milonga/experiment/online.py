"""Rounds: clips, scores, pairs and training by the latest policy, again and again (CRPO, arXiv 2412.21037).

A round is a run within the run, in `rounds/SYSTEM/01` and so on: its model is the policy that the round before left,
its seed derives from the run's and its number, so no noise comes twice. After each round the judge hears the policy on
captions kept for that, from the same noise every round, and decides whether to go on. All of it goes on where it was
stopped. Where it differs from TangoFlux: the captions of a round are drawn from the run's, pairs pass the recipe's
thresholds, no two rounds share a noise, and rounds end by a rule. The reference is the policy of the round before.
"""

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.errors import DataError, RecipeError
from milonga.core.ids import content_id, derive_seed, file_hash
from milonga.core.protocols import Model
from milonga.core.records import Pair, Prompt, Round
from milonga.core.store import Run, atomic_dir, complete, shard_name, write_json, write_text
from milonga.experiment.manifest import describe, fingerprints, write_manifest
from milonga.experiment.recipe import Recipe, System
from milonga.experiment.registry import Context, Registry
from milonga.experiment.stages import generate_eval_clips, store_features
from milonga.preference.build import needed

Steps = Callable[[Context], Mapping[str, Callable[[], None]]]
POLICY = "policy"
FOLDER = "rounds"
STAGES = ("plan", "generate", "score", "pair")


class PolicyRegistry(Registry):
    """The parts of a run, with a policy's network in the place of the base's."""

    def __init__(self, parts: Registry, trained: Path) -> None:
        super().__init__(parts.objects)
        self._parts, self._trained = parts, trained

    def load(self, name: str, scheduler: str | None = None) -> Model:
        """The policy."""
        return self._parts.tuned(name, self._trained, scheduler)

    def load_denoiser(self, name: str, trained: Path | None = None) -> Any:
        """The policy, to be trained on; it is the reference too."""
        return self._parts.load_denoiser(name, trained or self._trained)

    def model_hash(self, name: str) -> str:
        """The hash of the base with the policy's weights."""
        return content_id(self._parts.fingerprint(name), [file_hash(one) for one in sorted(self._trained.iterdir())])


@dataclass(frozen=True)
class _Rounds:
    """One system's rounds: where they lie, and what each is given."""

    context: Context
    system: System
    steps: Steps

    @property
    def folder(self) -> Path:
        return self.context.run.path / FOLDER / self.system.name

    def path(self, number: int) -> Path:
        """The folder of a round; the base's, which is round 0, serves all systems."""
        return self.context.run.path / FOLDER / "base" if number == 0 else self.folder / f"{number:02d}"

    def trained(self, number: int) -> Path:
        """The network that a round left."""
        return self.path(number) / "checkpoints" / POLICY / "model"

    def of(self, number: int) -> Context:
        """What a round's stages are given."""
        parts = self.context.parts if number == 1 else PolicyRegistry(self.context.parts, self.trained(number - 1))
        recipe = recipe_of(self.context.recipe, self.system, number)
        return replace(self.context, recipe=recipe, run=Run(self.path(number)), parts=parts)

    def judging(self, number: int) -> Context:
        """What hearing a round's policy is given: the captions that decide, and the same noise in every round."""
        recipe = self.context.recipe
        table = recipe.evaluate.model_copy(update={"prompts": recipe.rounds.prompts})
        return replace(self.context, recipe=recipe.model_copy(update={"evaluate": table}), run=Run(self.path(number)))


def train_online(context: Context, system: System, steps: Steps) -> None:
    """Trains a system in rounds until the judge gains no more; the best round's network is the system's.

    metrics/rounds/SYSTEM.json has a row for the base and for each round. Raises DataError where the first round keeps
    no pair; RecipeError under torchrun or `accelerate launch`: all but the training of a round is one process's work.
    """
    from milonga.training.distributed import Ranks

    if Ranks().world > 1:
        raise RecipeError(f"{system.name} is trained in rounds, which one process does: use `milonga run`")
    rounds, prompts = _Rounds(context, system, steps), _deciding(context)
    _note(rounds.judging(0))
    rows = [_judged(rounds, 0, prompts, [])]
    while not over(rows, context.recipe):
        number = len(rows)
        if not _train_round(rounds, number):
            break
        rows.append(_judged(rounds, number, prompts, rows))
        _tell(rows[-1])
        _write_rows(context, system, rows)
    _write_rows(context, system, rows)
    _finish(rounds, rows)


def over(rows: Sequence[Round], recipe: Recipe) -> bool:
    """Whether the rounds so far, the base first, are all there will be: as many as asked for, or no gain any more.

    A round gains when the judge's mean rises by more than `min_gain` over the best round before it; `patience`
    rounds in a row without a gain are the end.
    """
    waited = 0
    for one in rows[1:]:
        waited = 0 if one.gain > recipe.rounds.min_gain else waited + 1
    return len(rows) > recipe.rounds.count or waited >= recipe.rounds.patience


def best_of(rows: Sequence[Round]) -> Round:
    """The round, of those that trained, whose policy the judge likes best; the earlier one of equals."""
    return max(rows[1:], key=lambda one: (one.judge, -one.number))


def recipe_of(recipe: Recipe, system: System, number: int) -> Recipe:
    """A round's own recipe: the run's, with a seed of its own, and one system, the policy, trained on its pairs."""
    table, policy = recipe.rounds, system.model_copy(update={"name": POLICY, "data": "pairs"})
    plan = recipe.plan.model_copy(update={"strategies": table.strategies or recipe.plan.strategies})
    train = recipe.train.model_copy(update={"pairs": ("run",), "systems": (policy,)})
    seed = derive_seed(recipe.seed, "round", system.name, number)
    changes = {"seed": seed, "plan": plan, "pair": table.pair or recipe.pair, "train": train}
    return recipe.model_copy(update={"name": f"{system.name}-{number:02d}", **changes})


def _deciding(context: Context) -> list[Prompt]:
    """The captions on which the judge decides; DataError where there are none, or one of them is learnt from, or is
    evaluated on: the judge would be asked what it thinks of its own choice.
    """
    sources, evaluated = context.recipe.rounds.prompts, context.recipe.evaluate.prompts
    prompts = {one.id: one for source in sources for one in context.parts.prompt_source(source)}
    learnt = {one.id for one in needed(context.run, "prompts").read_records(Prompt)}
    reported = {one.id for source in evaluated for one in context.parts.prompt_source(source)}
    if len(prompts) < 2:
        raise DataError(f"rounds.prompts: {', '.join(sources)} hold fewer than two captions")
    for others, what in ((learnt, "learnt from"), (reported, "evaluated on")):
        if others & set(prompts):
            raise DataError(f"rounds.prompts holds captions that are {what}: name others, such as world:tune:100")
    return list(prompts.values())


def _train_round(rounds: _Rounds, number: int) -> bool:
    """Makes, scores and pairs a round's clips and trains on them; False where a later round keeps no pair."""
    context, trained = rounds.of(number), rounds.trained(number)
    if trained.exists():
        return True
    _note(context)
    _draw_prompts(rounds, context, number)
    steps = rounds.steps(context)
    for stage in STAGES:
        steps[stage]()
    if number > 1 and not context.run.stage("pair").read_records(Pair):
        print(f"{rounds.system.name}: round {number} keeps no pair, so there is no more to learn", file=sys.stderr)
        return False
    steps["train"]()
    return True


def _note(context: Context) -> None:
    """A round's recipe.toml and manifest.json, by which it is a run: workers anywhere know its folder by them."""
    weights = fingerprints(context.recipe, context.parts)
    if isinstance(context.parts, PolicyRegistry):
        weights["models"]["model"] = context.parts.model_hash(context.recipe.models.model)
    write_manifest(context.run, context.recipe, describe(context.recipe, weights))


def _draw_prompts(rounds: _Rounds, context: Context, number: int) -> None:
    """The captions of a round: so many of the run's, drawn anew each round."""
    shards, count = context.run.stage("prompts"), rounds.context.recipe.rounds.captions
    if complete(shards):
        return
    known = needed(rounds.context.run, "prompts").read_records(Prompt)
    order = np.random.default_rng(derive_seed(context.recipe.seed, "captions")).permutation(len(known))
    taken = sorted(order[: count or len(known)].tolist())
    shards.write_records(shard_name(0, 1), [known[place] for place in taken], Prompt)


def _judged(rounds: _Rounds, number: int, prompts: Sequence[Prompt], before: Sequence[Round]) -> Round:
    """A round's row; its clips and their features are stored in its folder."""
    from milonga.evaluation.features import load_features
    from milonga.evaluation.metrics import clip_values, get_metric
    from milonga.maths.statistics import bootstrap, paired

    def values(name: str, context: Context, system: str) -> np.ndarray:
        """A metric's value for each prompt, NaN where it does not apply."""
        row, known = get_metric(name), {prompt.id: prompt for prompt in prompts}
        return clip_values(row, load_features(context.run, system).columns[row.feature], known, list(known))

    def share(name: str) -> float:
        """The mean of an event metric over the captions that it applies to; NaN where there are none."""
        shares = values(name, context, system)
        return float(np.nanmean(shares)) if np.isfinite(shares).any() else float("nan")

    context, seed = rounds.judging(number), derive_seed(rounds.context.recipe.seed, "rounds")
    system = POLICY if number else "base"
    generate_eval_clips(context, system, prompts)
    store_features(context, system, prompts)
    scores = values("clap", context, system)
    judge = bootstrap(scores, seed, context.recipe.evaluate.resamples)
    gain = (0.0, 0.0, 0.0)
    if before:
        best = max(before, key=lambda row: (row.judge, -row.number))
        best_scores = values("clap", rounds.judging(best.number), POLICY if best.number else "base")
        difference = paired(scores, best_scores, seed)
        gain = (difference.value, difference.low, difference.high)
    clips, pairs = _sizes(Run(rounds.path(number)))
    return Round(
        system=rounds.system.name, number=number, clips=clips, pairs=pairs, judge=judge.value, low=judge.low,
        high=judge.high, n=judge.n, gain=gain[0], gain_low=gain[1], gain_high=gain[2],
        present=share("full_recall"), order=share("order_accuracy"),
    )  # fmt: skip


def _sizes(run: Run) -> tuple[int, int]:
    """(clips made, pairs kept) of a round."""
    clips, pairs = (sum(map(shards.rows, shards.names())) for shards in map(run.stage, ("generate", "pair")))
    return clips, pairs


def _tell(row: Round) -> None:
    gain = f"{row.gain:+.4f} [{row.gain_low:+.4f}, {row.gain_high:+.4f}]"
    line = f"{row.system}: round {row.number}, {row.pairs} pairs, judge {row.judge:.4f}, gain over the best {gain}"
    print(line, file=sys.stderr, flush=True)


def _write_rows(context: Context, system: System, rows: Sequence[Round]) -> None:
    plain = [json.loads(row.model_dump_json()) for row in rows]  # NaN becomes null
    path = context.run.path / "metrics" / FOLDER / f"{system.name}.json"
    write_json(path, plain)


def _finish(rounds: _Rounds, rows: Sequence[Round]) -> None:
    """The best round's network and the curves of all rounds in the places where every system has its own."""
    path, name = rounds.context.run.path, rounds.system.name
    write_text(path / "metrics" / "training" / f"{name}.jsonl", _curves(rounds, len(rows) - 1))
    with atomic_dir(path / "checkpoints" / name / "model") as part:
        shutil.copytree(rounds.trained(best_of(rows).number), part, dirs_exist_ok=True)


def _curves(rounds: _Rounds, count: int) -> str:
    """The training logs of all rounds as one: steps count on, and phases have their round before them."""
    lines, done = [], 0
    for number in range(1, count + 1):
        text = (rounds.path(number) / "metrics" / "training" / f"{POLICY}.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        lines += [row | {"step": row["step"] + done, "phase": f"{number}: {row['phase']}"} for row in rows]
        done += len(rows)
    return "".join(json.dumps(row) + "\n" for row in lines)
