"""What was heard in a clip: its fit to the prompt by the judge, its events, the tagger's features, as one record."""

from collections.abc import Sequence

import numpy as np

from milonga.core.protocols import Scorer, Tagger
from milonga.core.records import Clip, Event, Prompt, Record


class Heard(Record):
    """One clip as the judge and the tagger heard it."""

    id: str
    prompt_id: str
    clap: float
    events: tuple[Event, ...]
    embedding: tuple[float, ...]
    logits: tuple[float, ...]


def hear(
    ids: Sequence[str], prompts: Sequence[Prompt], clips: Sequence[Clip], judge: Scorer, tagger: Tagger, batch: int
) -> list[Heard]:
    """Each clip heard by the judge against its prompt's words, and by the tagger; all sequences have one length."""
    heard: list[Heard] = []
    for first in range(0, len(clips), batch):
        part = slice(first, first + batch)
        scores = judge.score(clips[part], [prompt.text for prompt in prompts[part]])
        embeddings, logits = tagger.features(clips[part])
        columns = zip(ids[part], prompts[part], scores, tagger.detect(clips[part]), embeddings, logits, strict=True)
        heard += [_heard(*column) for column in columns]
    return heard


def _heard(
    name: str, prompt: Prompt, clap: float, events: list[Event], embedding: np.ndarray, logits: np.ndarray
) -> Heard:
    numbers = tuple(map(float, embedding)), tuple(map(float, logits))
    return Heard(
        id=name, prompt_id=prompt.id, clap=float(clap), events=tuple(events), embedding=numbers[0], logits=numbers[1]
    )
