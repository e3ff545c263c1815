"""Captions in the space of a sentence model, such as the paper's gte-large (§4.1.1), through sentence-transformers."""

from collections.abc import Sequence

import numpy as np

from milonga.core.errors import CheckpointError, RecipeError, brief

PREFIX = "sentence-transformers:"


class SentenceEmbedder:
    """Any model that sentence-transformers loads, by its name on the Hub or its folder.

    No instruction is put before a caption: gte-large wants none, and one that does should be given with it by its
    own configuration. Raises RecipeError where the library is not installed, CheckpointError when it finds no model.
    """

    def __init__(self, model: str, batch: int = 64) -> None:
        try:
            from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]  (an extra)
        except ImportError as error:
            raise RecipeError(f"{PREFIX}{model} needs its library: pip install 'milonga[text]'") from error
        self.name, self.batch = f"{PREFIX}{model}", batch
        try:
            self._model = SentenceTransformer(model)
        except Exception as error:  # the library raises the Hub's, torch's and the system's errors
            raise CheckpointError(f"no sentence model {model}: {brief(error)}") from error

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """One unit-norm row per text, shape (N, D); the library shows its own progress on stderr."""
        rows = self._model.encode(
            list(texts), batch_size=self.batch, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=True
        )
        return np.asarray(rows, dtype=np.float32)
