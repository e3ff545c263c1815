"""A sentence model by its name; the library itself is stood in for, because its models must be fetched."""

import sys
import types

import numpy as np
import pytest

from milonga.core.errors import CheckpointError, RecipeError
from milonga.core.records import Prompt
from milonga.experiment.registry import DEFAULT as registry
from milonga.preference.select import select


class SentenceTransformer:
    """The library's class, as far as it is used: a sentence's row is made of its letters."""

    def __init__(self, name: str, device: str) -> None:
        if name == "nobody/nothing":
            raise OSError(f"{name} is not a local folder\nand is not a valid model identifier")
        self.name = name

    def encode(self, texts, batch_size, normalize_embeddings, convert_to_numpy, show_progress_bar):
        assert normalize_embeddings
        assert convert_to_numpy
        rows = np.array([[text.count(letter) + 0.01 for letter in "abcdefgh"] for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def library(monkeypatch):
    fake = types.SimpleNamespace(SentenceTransformer=SentenceTransformer)
    monkeypatch.setitem(sys.modules, "sentence_transformers", fake)


def test_any_model_of_the_library_embeds_by_its_name(library):
    embedder = registry.text_embedder("sentence-transformers:thenlper/gte-large")
    assert embedder.name == "sentence-transformers:thenlper/gte-large"
    rows = embedder.embed(["a bad cab", "a deaf egg"])
    assert (rows.shape, rows.dtype) == ((2, 8), np.float32)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)
    prompts = [Prompt.of(text, "test") for text in ("aaa", "aab", "hhh", "hhg", "hhhh")]
    assert len(select(prompts, embedder, clusters=2, per_cluster=1, seed=0)) == 2


def test_no_model_and_no_library_are_told_in_one_line(library, monkeypatch):
    with pytest.raises(CheckpointError, match=r"no sentence model nobody/nothing: OSError") as error:
        registry.text_embedder("sentence-transformers:nobody/nothing")
    assert "\n" not in str(error.value)
    with pytest.raises(RecipeError, match="choose tfidf-svd or sentence-transformers:MODEL"):
        registry.text_embedder("sentence-transformers:")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(RecipeError, match=r"pip install 'milonga\[text\]'"):
        registry.text_embedder("sentence-transformers:thenlper/gte-large")
