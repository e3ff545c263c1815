"""Online alignment: clips, scores and training by the latest policy, iteration after iteration.

An iteration is a run within the run, in `rounds/SYSTEM/01` and so on: its model is the policy that the iteration before
left, its seed derives from the run's and its number, so no caption is drawn by the same numbers and no noise comes
twice. It generates K clips of each caption, scores them, and trains on all of them (group-wise losses, as DGPO, arXiv
2510.08425) or on pairs of them (CRPO, arXiv 2412.21037). A judge that gave no reward scores the policy on captions kept
for that, from the same noise every time, decides whether to go on and which policy becomes the system. Beside it stand
the signs of reward hacking: the scorers' own gain, diversity, silence, clipping, loudness.

Training waits for the clips, so a clip is never older than its policy; with `overlap` those of the next iteration are
made while one trains, by the policy before it. All of it resumes where it was stopped, and results depend on recipe and
seed alone. Departures from TangoFlux's rounds: the captions of an iteration are drawn anew, pairs pass the recipe's
thresholds, and the judge ends them.
"""

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from milonga.core.config import Strategy
from milonga.core.errors import DataError, RecipeError
from milonga.core.ids import content_id, derive_seed, file_hash
from milonga.core.protocols import Engine, Model
from milonga.core.records import Pair, Prompt, Round
from milonga.core.store import Run, atomic_dir, complete, shard_name, write_json, write_text
from milonga.experiment.judged import JudgedClips, hacking, progress_line, store_scores
from milonga.experiment.manifest import describe, fingerprints, write_manifest
from milonga.experiment.recipe import Recipe, System
from milonga.experiment.registry import Context, Registry
from milonga.experiment.stages import generate_eval_clips, store_features, train_system
from milonga.models.load import NETWORKS
from milonga.preference.build import needed

POLICY = "policy"
FOLDER = "rounds"


class PolicyRegistry(Registry):
    """The parts of a run, with a policy's network in the place of the base's."""

    def __init__(self, parts: Registry, trained: Path) -> None:
        super().__init__(parts.objects, parts.device)
        self._parts, self._trained = parts, trained

    def load(
        self, name: str, scheduler: str | None = None, precision: str = "fp32", seconds: float | None = None
    ) -> Model:
        """The policy."""
        return self._parts.tuned(name, self._trained, scheduler, precision, seconds)

    def load_denoiser(self, name: str, trained: Path | None = None, parts: Sequence[str] = NETWORKS) -> Any:
        """The policy, to be trained on; it is the reference too, unless that is the base."""
        return self._parts.load_denoiser(name, trained or self._trained, parts)

    def model_hash(self, name: str) -> str:
        """The hash of the base with the policy's weights."""
        return content_id(self._parts.fingerprint(name), [file_hash(one) for one in sorted(self._trained.iterdir())])


class CancellableEngine:
    """An engine that raises CancelledError after the shards under way, once `stop` is set."""

    def __init__(self, engine: Engine, stop: Event) -> None:
        self.engine, self.name, self.stop = engine, engine.name, stop

    def __getstate__(self) -> dict[str, Any]:
        """Work may refer to its engine; an event does not travel to workers."""
        return {"engine": self.engine, "name": self.name}

    def run(self, work: Callable[[str], int], shards: Sequence[str]) -> Iterator[tuple[str, int]]:
        """As the engine's own."""
        for done in self.engine.run(work, shards):
            yield done
            if self.stop.is_set():
                raise CancelledError


@dataclass(frozen=True)
class OnlineTrainer:
    """Trains one system of a run with clips of its latest policy."""

    context: Context
    system: System

    def train(self) -> None:
        """Trains until the judge gains no more; the policy that it likes best becomes the system.

        metrics/rounds/SYSTEM.json has a row for the base and for each iteration. Raises DataError where the first
        iteration has nothing to train on; RecipeError for losses of groups and pairs together, and under torchrun or
        `accelerate launch`: all but the training of an iteration is one process's work.
        """
        from milonga.training.distributed import Ranks

        name, recipe, engine = self.system.name, self.context.recipe, self.context.engine.name
        if Ranks().world > 1:
            raise RecipeError(f"{name} is trained online, which one process does: use `milonga run`")
        data_of(self.system)
        prompts = self._judged_prompts()
        if recipe.online.overlap:
            print(f"{name}: clips are made while the iteration before trains: staleness 1", file=sys.stderr)
        elif engine != "local":
            print(f"{name}: engine {engine} makes the clips, and training waits for them: staleness 0", file=sys.stderr)
        self._describe(self._judging(0))
        rows = [self._judge(0, prompts, [])]
        while not over(rows, recipe):
            number = len(rows)
            if not self._iterate(number):
                if number > 1 and not math.isfinite(rows[-1].judge):
                    rows[-1] = self._judge(number - 1, prompts, rows[:-1])
                break
            due = number % recipe.online.every == 0 or number == recipe.online.iterations
            rows.append(self._judge(number, prompts, rows) if due else self._row(number))
            print(progress_line(rows[-1]), file=sys.stderr, flush=True)
            self._write(rows)
        self._write(rows)
        self._finish(rows)

    def path(self, number: int) -> Path:
        """The folder of an iteration; the base's, which is number 0, serves all systems."""
        folder = self.context.run.path / FOLDER
        return folder / "base" if number == 0 else folder / self.system.name / f"{number:02d}"

    def trained(self, number: int) -> Path:
        """The network that an iteration left."""
        return self.path(number) / "checkpoints" / POLICY / "model"

    def _at(self, number: int, policy: int) -> Context:
        """What an iteration's stages are given, with the policy that the iteration `policy` left (0: the base)."""
        parts = PolicyRegistry(self.context.parts, self.trained(policy)) if policy > 0 else self.context.parts
        recipe = recipe_of(self.context.recipe, self.system, number)
        return replace(self.context, recipe=recipe, run=Run(self.path(number)), parts=parts)

    def _judging(self, number: int) -> Context:
        """What judging an iteration's policy is given: its captions, and the same noise every time."""
        recipe, online = self.context.recipe, self.context.recipe.online
        table = recipe.evaluate.model_copy(update={"prompts": online.prompts, "noises": online.noises})
        return replace(self.context, recipe=recipe.model_copy(update={"evaluate": table}), run=Run(self.path(number)))

    def _judged_prompts(self) -> list[Prompt]:
        """The captions on which the judge decides.

        DataError where there are too few, or one of them is learnt from or evaluated on: the judge would be asked what
        it thinks of its own choice.
        """
        recipe, parts = self.context.recipe, self.context.parts
        prompts = {prompt.id: prompt for source in recipe.online.prompts for prompt in parts.prompt_source(source)}
        if len(prompts) < 2:
            raise DataError(f"online.prompts: {', '.join(recipe.online.prompts)} hold fewer than two captions")
        learnt = () if recipe.online.sources else needed(self.context.run, "prompts").read_records(Prompt)
        reported = [prompt for source in recipe.evaluate.prompts for prompt in parts.prompt_source(source)]
        for others, what in ((learnt, "learnt from"), (reported, "evaluated on")):
            if any(prompt.id in prompts for prompt in others):
                raise DataError(f"online.prompts holds captions that are {what}: name others, such as world:tune:100")
        return list(prompts.values())

    def _iterate(self, number: int) -> bool:
        """Makes, scores and trains on an iteration's clips; False where a later one keeps no pair."""
        if self.trained(number).exists():
            return True
        context = self._at(number, number - 1)
        self._make_clips(number)
        (policy,) = context.recipe.train.systems
        if policy.data == "pairs":
            context.pair_builder().pair()
            if number > 1 and not context.run.stage("pair").read_records(Pair):
                print(f"{self.system.name}: iteration {number} keeps no pair, so it is the end", file=sys.stderr)
                return False
        base, load = self.context.recipe.online.reference == "base" and number > 1, self.context.parts.load_denoiser
        with self._next_clips(number + 1):
            train_system(context, policy, load(context.recipe.models.model) if base else None)
        return True

    def _make_clips(self, number: int, stop: Event | None = None) -> None:
        """Generates and scores an iteration's clips by the policy before it; with `overlap`, by the one before that."""
        context = self._at(number, number - 1 - self.context.recipe.online.overlap)
        if stop is not None:
            context = replace(context, engine=CancellableEngine(context.engine, stop))
        self._describe(context)
        self._draw_prompts(context)
        builder = context.pair_builder()
        builder.plan()
        # Pairs are listened to (`milonga pairs`), so they need the vocoder; groups may do without.
        mels = context.recipe.online.score_mels and data_of(self.system) != "pairs"
        if not (mels and builder.generate_scored()):
            builder.generate()
            builder.score()

    @contextmanager
    def _next_clips(self, number: int) -> Iterator[None]:
        """With `overlap`, makes an iteration's clips beside what is done within, which is the training before it."""
        online = self.context.recipe.online
        if not online.overlap or number > online.iterations:
            yield
            return
        stop = Event()
        with ThreadPoolExecutor(1, thread_name_prefix="clips") as beside:
            clips = beside.submit(self._make_clips, number, stop)
            try:
                yield
            except BaseException:
                stop.set()
                raise
            clips.result()

    def _describe(self, context: Context) -> None:
        """An iteration's recipe.toml and manifest.json, by which it is a run: workers anywhere know its folder."""
        weights = fingerprints(context.recipe, context.parts)
        if isinstance(context.parts, PolicyRegistry):
            weights["models"]["model"] = context.parts.model_hash(context.recipe.models.model)
        write_manifest(context.run, context.recipe, describe(context.recipe, weights))

    def _draw_prompts(self, context: Context) -> None:
        """The captions of an iteration, drawn anew: of the sources, none of them kept to judge or to evaluate; or of
        the run's own.
        """
        shards, online, parts = context.run.stage("prompts"), self.context.recipe.online, self.context.parts
        if complete(shards):
            return
        seed = derive_seed(context.recipe.seed, "captions")
        if online.sources:
            apart = (*online.prompts, *self.context.recipe.evaluate.prompts)
            kept_apart = {prompt.id for source in apart for prompt in parts.prompt_source(source)}
            drawn = {one.id: one for source in online.sources for one in parts.prompt_source(source, seed)}
            chosen = [prompt for prompt in drawn.values() if prompt.id not in kept_apart]
        else:
            known = needed(self.context.run, "prompts").read_records(Prompt)
            order = np.random.default_rng(seed).permutation(len(known))
            chosen = [known[place] for place in sorted(order[: online.captions or len(known)].tolist())]
        if not chosen:
            raise DataError(f"online.sources: {', '.join(online.sources)} hold no caption to train on")
        shards.write_records(shard_name(0, 1), chosen, Prompt)

    def _row(self, number: int, **judged: Any) -> Round:
        """A row of the table: what an iteration made, and what was `judged` of its policy (else not a number)."""
        shards = {stage: Run(self.path(number)).stage(stage) for stage in ("prompts", "generate", "pair")}
        sizes = {stage: sum(map(own.rows, own.names())) for stage, own in shards.items()}
        groups = sizes["prompts"] if data_of(self.system) == "groups" else 0
        counts = {"clips": sizes["generate"], "pairs": sizes["pair"], "groups": groups}
        return Round(system=self.system.name, number=number, **counts, **judged)

    def _judge(self, number: int, prompts: Sequence[Prompt], before: Sequence[Round]) -> Round:
        """A row with the judge's numbers; the clips that it scored and their features stay in the folder."""
        from milonga.maths.statistics import bootstrap, paired

        recipe, system = self.context.recipe, POLICY if number else "base"
        context, seed = self._judging(number), derive_seed(recipe.seed, "rounds")
        generate_eval_clips(context, system, prompts)
        store_features(context, system, prompts)
        store_scores(context, system, prompts)
        own, base = JudgedClips(context.run, system, prompts), JudgedClips(Run(self.path(0)), "base", prompts)
        judge = bootstrap(own.by_caption("clap"), seed, recipe.evaluate.resamples)
        numbers: dict[str, Any] = own.means()
        numbers |= {"reward": own.reward(base), "judge": judge.value, "low": judge.low, "high": judge.high}
        numbers |= {"n": judge.n, "gain": 0.0, "gain_low": 0.0, "gain_high": 0.0}
        if before:
            best = max((row for row in before if math.isfinite(row.judge)), key=lambda row: (row.judge, -row.number))
            rival = JudgedClips(Run(self.path(best.number)), POLICY if best.number else "base", prompts)
            gain = paired(own.by_caption("clap"), rival.by_caption("clap"), seed)
            numbers |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
            change = paired(own.by_caption("clap"), base.by_caption("clap"), seed)
            numbers["alert"] = hacking(numbers, before[0], change.high < 0)
        return self._row(number, **numbers)

    def _write(self, rows: Sequence[Round]) -> None:
        plain = [json.loads(row.model_dump_json()) for row in rows]  # NaN becomes null
        write_json(self.context.run.path / "metrics" / FOLDER / f"{self.system.name}.json", plain)

    def _finish(self, rows: Sequence[Round]) -> None:
        """The best policy and the curves of all iterations in the places where every system has its own."""
        path, name = self.context.run.path, self.system.name
        write_text(path / "metrics" / "training" / f"{name}.jsonl", self._curves(len(rows) - 1))
        with atomic_dir(path / "checkpoints" / name / "model") as part:
            shutil.copytree(self.trained(best_of(rows).number), part, dirs_exist_ok=True)

    def _curves(self, count: int) -> str:
        """The training logs of all iterations as one: steps count on, and phases have their iteration before them."""
        lines, done = [], 0
        for number in range(1, count + 1):
            text = (self.path(number) / "metrics" / "training" / f"{POLICY}.jsonl").read_text(encoding="utf-8")
            rows = [json.loads(line) for line in text.splitlines()]
            lines += [row | {"step": row["step"] + done, "phase": f"{number}: {row['phase']}"} for row in rows]
            done += len(rows)
        return "".join(json.dumps(row) + "\n" for row in lines)


def data_of(system: System) -> str:
    """What an iteration trains on, by the losses: "groups" or "pairs"; RecipeError for losses of both kinds."""
    from milonga.training.schedule import loss_spec

    kinds = {loss_spec(phase.loss).groups for phase in system.phases}
    if len(kinds) > 1:
        raise RecipeError(f"{system.name} has losses of groups and of pairs: train them as two systems")
    return "groups" if kinds.pop() else "pairs"


def recipe_of(recipe: Recipe, system: System, number: int) -> Recipe:
    """An iteration's own recipe: the run's with a seed of its own and one system, the policy, trained on its clips."""
    online, policy = recipe.online, system.model_copy(update={"name": POLICY, "data": data_of(system)})
    strategies = online.strategies or recipe.plan.strategies
    if online.clips:
        strategies = (Strategy.same_prompt([online.steps] * online.clips, online.guidance, "online"),)
    models = recipe.models.model_copy(update={"scheduler": online.scheduler or recipe.models.scheduler})
    plan = recipe.plan.model_copy(update={"strategies": strategies})
    train = recipe.train.model_copy(update={"pairs": ("run",), "systems": (policy,)})
    seed = derive_seed(recipe.seed, "round", system.name, number)
    changes = {"seed": seed, "models": models, "plan": plan, "pair": online.pair or recipe.pair, "train": train}
    return recipe.model_copy(update={"name": f"{system.name}-{number:02d}", **changes})


def over(rows: Sequence[Round], recipe: Recipe) -> bool:
    """Whether the iterations so far, the base first, are all there will be: as many as asked for, or no gain any more.

    A policy gains when the judge's mean rises by more than `min_gain` over the best one before it; `patience`
    judgements in a row without a gain are the end.
    """
    waited = 0
    for row in rows[1:]:
        if math.isfinite(row.judge):
            waited = 0 if row.gain > recipe.online.min_gain else waited + 1
    return len(rows) > recipe.online.iterations or waited >= recipe.online.patience


def best_of(rows: Sequence[Round]) -> Round:
    """The iteration whose policy the judge likes best, of those that it scored; the earlier one of equals."""
    return max((row for row in rows[1:] if math.isfinite(row.judge)), key=lambda row: (row.judge, -row.number))
