"""Scorers learnt from people: a linear head on the frozen features of embedders, in a folder that `listen fit` wrote.

A clip's features are, for each embedder, the cosine of clip and text, the product of the two embeddings dimension by
dimension, and the clip's own embedding: what fits the text, and what is liked whatever the text.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.errors import CheckpointError, brief
from milonga.core.protocols import Embedder
from milonga.core.records import Clip
from milonga.maths.preference_head import LinearHead

CONFIG, HEAD = "fit.json", "head.safetensors"


class FittedScorer:
    """A `Scorer`: a head's number of each clip with its text, in standard deviations of people's ratings."""

    def __init__(self, name: str, embedders: Sequence[Embedder], head: LinearHead) -> None:
        self.name, self.embedders, self.head = name, list(embedders), head

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """The score of each clip with its text, shape (N,); each different text is encoded once."""
        if not len(clips):
            return np.empty(0)
        unique = list(dict.fromkeys(texts))
        places = [unique.index(text) for text in texts]
        audio = [one.embed_clips(clips) for one in self.embedders]
        words = [one.embed_texts(unique)[places] for one in self.embedders]
        return self.head.predict(feature_rows(audio, words))


def feature_rows(audio: Sequence[np.ndarray], words: Sequence[np.ndarray]) -> np.ndarray:
    """The features (N, F) of N clips and their texts, from each embedder's rows (N, D) of either; float64."""
    parts = []
    for clips, texts in zip(audio, words, strict=True):
        a, t = clips.astype(np.float64), texts.astype(np.float64)
        parts += [(a * t).sum(axis=1, keepdims=True), a * t, a]
    return np.concatenate(parts, axis=1)


def cosine_features(words: Sequence[np.ndarray]) -> np.ndarray:
    """Which features of `feature_rows` are cosines, (F,) booleans, from each embedder's rows of texts (N, D)."""
    return np.concatenate([np.arange(1 + 2 * texts.shape[1]) == 0 for texts in words])


def save_fitted(folder: Path, head: LinearHead, facts: dict[str, Any]) -> None:
    """Writes a head's weights, and `facts` with the names and hashes of its `embedders`, into a folder."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    tensors = {name: getattr(head, name) for name in ("weights", "mean", "spread")}
    save_file(tensors | {"bias": np.array([head.bias])}, folder / HEAD)


def read_facts(folder: Path) -> dict[str, Any]:
    """What `save_fitted` wrote about a head. Raises CheckpointError where there is none."""
    try:
        facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return {**facts, "embedders": dict(facts["embedders"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no fitted scorer ({brief(error)}): make one by listen fit") from None


def load_head(folder: Path) -> LinearHead:
    """The head in a folder. Raises CheckpointError where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(folder / HEAD)
        return LinearHead(tensors["weights"], float(tensors["bias"][0]), tensors["mean"], tensors["spread"])
    except (OSError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder / HEAD} cannot be used ({brief(error)}): fit the scorer again") from None
