"""Candidates: clips for requests (§4.1.1 of the paper), their scores against the prompt, the best of N, and labels.

Each function works on any number of items in batches; no result depends on the size of a batch or on the order.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.audio import clip_table, pack_latents, to_int16
from milonga.core.errors import AudioError, DataError, RecipeError
from milonga.core.ids import clip_seed
from milonga.core.protocols import Model, Scorer, Tagger
from milonga.core.records import Candidate, Clip, Label, Prompt, Refusal, Request
from milonga.core.store import Run
from milonga.core.weights import SELECTORS, SHIPPED
from milonga.maths.devices import AUTO, autocast, device_of, out_of_memory
from milonga.maths.metrics import order_accuracy
from milonga.maths.statistics import mean_z_scores

log = logging.getLogger(__name__)


def generate_clips(
    requests: Sequence[Request], generate: Callable[[Sequence[Request]], list[Clip]], batch_size: int
) -> Iterator[tuple[Request, Clip]]:
    """Each request with its clip, sorted by steps, guidance and id; those that share steps and guidance are generated
    together, at most `batch_size`, and half as many from where an accelerator's memory is short.
    """
    ordered = sorted(requests, key=lambda request: (request.steps, request.guidance, request.id))
    for _, same in groupby(ordered, key=lambda request: (request.steps, request.guidance)):
        left = list(same)
        while left:
            batch = left[:batch_size]
            try:
                clips = generate(batch)
            except RuntimeError as error:
                if len(batch) == 1 or not out_of_memory(error):
                    raise
                batch_size = len(batch) // 2
                log.warning("memory is short for %d clips at once: %d from here", len(batch), batch_size)
            else:
                yield from zip(batch, clips, strict=True)
                left = left[len(batch) :]


def generate_shard(
    run: Run,
    stage: str,
    load_model: Callable[[], Model],
    read_requests: Callable[[str], Sequence[Request]],
    batch_size: int,
    shard: str,
) -> int:
    """Generates one shard of clips into a stage of a run, and gives the number of requests.

    Clips that cannot be written (NaN) are refused by id in `refused/STAGE`. Refusals are written first, so the shard
    of clips is there only when both are.
    """
    run.check_visible()
    requests, model = read_requests(shard), load_model()
    rows: list[tuple[str, Clip, bytes | None]] = []
    refusals: list[Refusal] = []
    for request, clip in generate_clips(requests, model.generate, batch_size):
        try:
            to_int16(clip.waveform)
            rows.append((request.id, clip, pack_latents(clip.latents)))
        except AudioError as error:
            refusals.append(Refusal(stage=stage, id=request.id, reason=str(error)))
    if refusals:
        run.stage(f"refused/{stage}").write_records(shard, refusals, Refusal)
    ids, clips, latents = zip(*rows, strict=True) if rows else ((), (), ())
    run.stage(stage).write_table(shard, clip_table(ids, clips, latents))
    return len(requests)


def generate_scored_shard(
    run: Run,
    load_model: Callable[[], Model],
    load_scorers: Callable[[], Sequence[Scorer]],
    batch_size: int,
    score_batch_size: int,
    precision: str,
    device: Any,
    shard: str,
) -> int:
    """Generates one planned shard of clips without audio and scores their log-mel pictures; gives their number.

    Latents that are not finite are refused. The scores are written first, so the shard of latents is there only when
    all of it is.
    """
    run.check_visible()
    requests, model = run.stage("plan").read_records(Request, [shard]), load_model()
    finite: list[tuple[Request, Clip]] = []
    refusals: list[Refusal] = []
    for request, clip in generate_clips(requests, model.generate_mels, batch_size):  # type: ignore[attr-defined]
        if clip.mel is not None and np.isfinite(clip.mel).all():
            finite.append((request, clip))
        else:
            refusals.append(Refusal(stage="generate", id=request.id, reason="its mel picture is not finite"))
    if refusals:
        run.stage("refused/generate").write_records(shard, refusals, Refusal)
    clips = [clip for _, clip in finite]
    texts = [request.prompt for request, _ in finite]
    scores = score_clips(clips, texts, load_scorers(), score_batch_size, precision, device)
    candidates = [Candidate(request=request, scores=row) for (request, _), row in zip(finite, scores, strict=True)]
    run.stage("score").write_records(shard, candidates, Candidate)
    latents = [pack_latents(clip.latents) for clip in clips]
    run.stage("generate").write_table(shard, clip_table([request.id for request, _ in finite], clips, latents))
    return len(requests)


def score_clips(
    clips: Sequence[Clip],
    texts: Sequence[str],
    scorers: Sequence[Scorer],
    batch_size: int,
    precision: str = "fp32",
    device: Any = AUTO,
) -> list[dict[str, float]]:
    """For each of N clips its score against its text by each scorer's name (§4.1.2 of the paper).

    NaN is a value; a pair with it is refused later. "bf16" runs the scorers' networks, which are on `device`, under
    autocast.
    """
    rows, place = list[dict[str, float]]({} for _ in clips), device_of(device)
    for scorer in scorers:
        for first in range(0, len(clips), batch_size):
            part = slice(first, first + batch_size)
            with autocast(place, precision):
                values = np.asarray(scorer.score(clips[part], texts[part]))
            for row, value in zip(rows[part], values, strict=True):
                row[scorer.name] = float(value)
    return rows


def label_clips(
    ids: Sequence[str], prompts: Sequence[Prompt], clips: Sequence[Clip], tagger: Tagger, batch_size: int
) -> list[Label]:
    """A label for each of N clips whose prompt's scene is known: desirable where the tagger detects it in order.

    These labels stand in for people's (`milonga listen export --as labels`). BATON asked people whether all events are
    there and whether their order is right (arXiv 2402.00744); here one yes answers both.
    """
    labels = []
    for first in range(0, len(clips), batch_size):
        part = slice(first, first + batch_size)
        for clip, prompt, events in zip(ids[part], prompts[part], tagger.detect(clips[part]), strict=True):
            if prompt.scene:
                good = order_accuracy(prompt.scene, events)
                labels.append(
                    Label(
                        id=clip, prompt_id=prompt.id, prompt=prompt.text, system="", desirable=good,
                        opinion=float(good), raters=0,
                    )
                )  # fmt: skip
    return labels


@dataclass(frozen=True)
class RankedClip:
    """One of a prompt's N clips: its rank (1 is the best), each scorer's score, and the mean z-score that ranks.

    A clip that a scorer cannot score has the `score` NaN and comes last. `number` is the clip's place among the N: it
    is clip `number` of `milonga generate -n N` with the same seed.
    """

    clip: Clip
    number: int
    rank: int
    score: float
    scores: dict[str, float]


def rank_clips(clips: Sequence[Clip], scores: Sequence[dict[str, float]]) -> list[RankedClip]:
    """N clips of one prompt, best first, by their scores (`score_clips`); of equals the earlier clip comes first."""
    return [
        RankedClip(clips[number], number, rank, score, scores[number])
        for rank, (number, score) in enumerate(best_first(scores), 1)
    ]


def best_first(scores: Sequence[dict[str, float]]) -> list[tuple[int, float]]:
    """(place, mean z-score) of N clips of one prompt, best first, from their scores by the same scorers."""
    means = mean_z_scores(np.array([list(row.values()) for row in scores]))
    order = np.argsort(-np.where(np.isnan(means), -np.inf, means), kind="stable").tolist()
    return [(place, float(means[place])) for place in order]


def best_of(
    prompt: str,
    model: Any = "nano",
    *,
    n: int = 8,
    scorers: Sequence[Any] = (),
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    scheduler: str | None = None,
    batch_size: int = 16,
    device: Any = AUTO,
) -> list[RankedClip]:
    """`n` clips of a prompt, best first: each scorer's scores are z-scored within the prompt and averaged.

    `model` and `scorers` are names or objects, as in `build_pairs`. Without scorers nano's clips are ranked by its two
    CLAPs and its events; any other model needs them, because nano's know its 26 sounds only. `steps` and `guidance` are
    the model's own unless given. What is named is loaded on `device`. The result does not depend on `batch_size`.
    Raises DataError for an empty prompt, RecipeError for numbers that make no sense, an unknown name, or scorers or
    sampling that must be named.
    """
    from milonga.models.load import as_model, sampling
    from milonga.scorers.load import scorer as load_scorer

    words = " ".join(prompt.split())
    if not words:
        raise DataError("the prompt is empty: describe a sound, for example 'a dog barks'")
    if n < 1 or batch_size < 1:
        raise RecipeError(f"n and batch_size must be at least 1, not {n} and {batch_size}")
    model = str(model) if isinstance(model, Path) else model
    parts = search_scorers(model, scorers)
    generator = as_model(model, scheduler, device)
    if steps is None or guidance is None:
        own_steps, own_guidance = sampling(model)
        steps, guidance = own_steps if steps is None else steps, own_guidance if guidance is None else guidance
    given = Prompt.of(words, "best of")
    requests = [
        Request.of(seed, given, words, steps, guidance, number).model_copy(
            update={"seed": clip_seed(seed, words, number)}
        )
        for number in range(n)
    ]
    loaded = [load_scorer(part, device) if isinstance(part, str) else part for part in parts]
    by_id = {request.id: clip for request, clip in generate_clips(requests, generator.generate, batch_size)}
    clips = [by_id[request.id] for request in requests]
    return rank_clips(clips, score_clips(clips, [words] * n, loaded, batch_size))


def search_scorers(model: Any, scorers: Sequence[Any]) -> Sequence[Any]:
    """The scorers that choose among a model's clips: those named, else nano's for nano's names and its runs' systems.

    Raises RecipeError for another model without scorers: nano's are never used on foreign audio unless they are named.
    """
    from milonga.models.load import run_system

    if scorers:
        return scorers
    own = run_system(model) if isinstance(model, str) else None
    base = own.model if own else model
    if isinstance(base, str) and base in SHIPPED:
        return SELECTORS
    name = base if isinstance(base, str) else getattr(base, "name", type(base).__name__)
    raise RecipeError(
        f"name the scorers that choose among clips of {name} (--by or scorers=), such as laion-clap:FILE.pt: "
        "nano's own know 26 synthetic sounds only"
    )
