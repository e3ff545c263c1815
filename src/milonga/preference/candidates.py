"""Candidates: clips for requests (§4.1.1 of the paper), their scores against the prompt, and their labels.

Each function works on any number of items in batches; no result depends on the size of a batch or on the order.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np

from milonga.core.audio import clip_table, pack_latents, to_int16
from milonga.core.errors import AudioError
from milonga.core.protocols import Model, Scorer, Tagger
from milonga.core.records import Clip, Label, Prompt, Refusal, Request
from milonga.core.store import Run
from milonga.maths.metrics import order_accuracy


def request_batches(requests: Sequence[Request], batch_size: int) -> list[list[Request]]:
    """The requests in batches of at most `batch_size` that share their steps and guidance, sorted by both and by id."""
    ordered = sorted(requests, key=lambda request: (request.steps, request.guidance, request.id))
    batches = []
    for _, same in groupby(ordered, key=lambda request: (request.steps, request.guidance)):
        group = list(same)
        batches += [group[first : first + batch_size] for first in range(0, len(group), batch_size)]
    return batches


def generate_clips(
    requests: Sequence[Request], model: Model, batch_size: int
) -> Iterator[tuple[Request, Clip, bytes | None]]:
    """Each request with its clip and its latents as raw float16 bytes (None: the model has none), batch by batch."""
    for batch in request_batches(requests, batch_size):
        for request, clip in zip(batch, model.generate(batch), strict=True):
            yield request, clip, pack_latents(clip.latents)


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
    for batch in request_batches(requests, batch_size):
        for request, clip in zip(batch, model.generate(batch), strict=True):
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


def score_clips(
    clips: Sequence[Clip], texts: Sequence[str], scorers: Sequence[Scorer], batch_size: int
) -> list[dict[str, float]]:
    """For each of N clips its score against its text by each scorer's name (§4.1.2 of the paper).

    NaN is a value; a pair with it is refused later.
    """
    rows: list[dict[str, float]] = [{} for _ in clips]
    for scorer in scorers:
        for first in range(0, len(clips), batch_size):
            part = slice(first, first + batch_size)
            for row, value in zip(rows[part], np.asarray(scorer.score(clips[part], texts[part])), strict=True):
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
