"""Which captions to work with: a diverse subset τ1 (k-means, §4.1.1), the temporal ones τ2, and tags for evaluation.

Departures from the paper: it does not say how the 70 of a cluster are drawn; here they are those nearest to the centre
(or, with `nearest=False`, a seeded draw). A cluster with fewer members gives what it has.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from milonga.core.errors import CheckpointError, DataError, RecipeError, brief
from milonga.core.ids import derive_seed
from milonga.core.protocols import TextEmbedder
from milonga.core.records import Prompt
from milonga.maths.devices import AUTO, device_of

SENTENCES = "sentence-transformers:"
_SEQUENCE = re.compile(r"\b(before|after|then|followed)\b", re.IGNORECASE)  # τ2 of strategy 3, §4.1.1


@dataclass(frozen=True)
class Clusters:
    """N different prompts in K clusters: rows (N, D), labels (N,), distances from the cluster's centre (N,)."""

    prompts: list[Prompt]
    rows: np.ndarray
    labels: np.ndarray
    distances: np.ndarray
    count: int


def select(
    prompts: Sequence[Prompt], embedder: TextEmbedder, clusters: int, per_cluster: int, seed: int, nearest: bool = True
) -> list[Prompt]:
    """τ1: up to `per_cluster` prompts from each of `clusters` k-means clusters, in the order given (§4.1.1: 70 of 200).

    Prompts that come twice count once. Raises DataError when there are fewer prompts than clusters.
    """
    return sample_clusters(cluster(prompts, embedder, clusters, seed), per_cluster, seed, nearest)


def cluster(prompts: Sequence[Prompt], embedder: TextEmbedder, clusters: int, seed: int) -> Clusters:
    """The different ones of some prompts, embedded and clustered by k-means; DataError when they are too few."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    unique = list({prompt.id: prompt for prompt in prompts}.values())
    if not 1 <= clusters <= len(unique):
        raise DataError(f"cannot make {clusters} clusters of {len(unique)} different prompts; lower `clusters`")
    rows = embedder.embed([prompt.text for prompt in unique])
    means = KMeans(clusters, n_init="auto", random_state=derive_seed(seed, "k-means") % 2**32)
    with threadpool_limits(1), warnings.catch_warnings():  # one thread: sums in one order, so the same clusters
        warnings.simplefilter("ignore", ConvergenceWarning)  # captions alike leave clusters empty, and that is fine
        labels = means.fit_predict(rows)
    distances = np.linalg.norm(rows - means.cluster_centers_[labels], axis=1)
    return Clusters(unique, rows, labels, distances, clusters)


def sample_clusters(clusters: Clusters, per_cluster: int, seed: int, nearest: bool = True) -> list[Prompt]:
    """Up to `per_cluster` prompts of each cluster: the nearest to its centre, or drawn by the seed; in their order."""
    prompts, labels = clusters.prompts, clusters.labels
    if per_cluster < 1:
        raise DataError(f"cannot take {per_cluster} from each cluster of {len(prompts)} different prompts")
    chance = np.random.default_rng(derive_seed(seed, "select")).random(len(prompts))
    rank = clusters.distances if nearest else chance
    order = sorted(range(len(prompts)), key=lambda i: (labels[i], rank[i], prompts[i].id))
    chosen = {i for _, members in groupby(order, key=lambda i: labels[i]) for i in list(members)[:per_cluster]}
    return [prompt for i, prompt in enumerate(prompts) if i in chosen]


def temporal(prompts: Sequence[Prompt]) -> list[Prompt]:
    """τ2: the prompts that hold one of the whole words before, after, then, followed (§4.1.1, strategy 3)."""
    return [prompt for prompt in prompts if _SEQUENCE.search(prompt.text)]


class TfidfEmbedder:
    """TF-IDF of words and word pairs, reduced by SVD: a stand-in for gte-large that needs no weights.

    It learns its space from the very texts it is given, so rows of different calls cannot be compared. It knows words,
    not meanings: "a dog barks" and "canine yapping" are far apart.
    """

    name = "tfidf-svd"

    def __init__(self, dimensions: int = 128, seed: int = 0) -> None:
        self.dimensions = dimensions
        self.seed = seed

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """One unit-norm row per text, shape (N, D) with D at most `dimensions`; raises DataError without any word."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        try:
            table = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\b\w+\b").fit_transform(
                texts
            )
        except ValueError as error:
            raise DataError("the captions hold no words to tell them apart; check the column they come from") from error
        dimensions = min(self.dimensions, min(table.shape) - 1)
        if dimensions < 2:
            return _unit(table.toarray())
        from sklearn.decomposition import TruncatedSVD

        svd = TruncatedSVD(dimensions, random_state=derive_seed(self.seed, "svd") % 2**32)
        return _unit(svd.fit_transform(table))


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length one; a row of zeros (a text without words) becomes the even vector."""
    rows = np.where(np.linalg.norm(rows, axis=1, keepdims=True) > 1e-9, rows, 1.0)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def text_embedder(name: str, device: Any = AUTO) -> TextEmbedder:
    """A sentence embedder by name: `tfidf-svd`, which needs no download, or `sentence-transformers:MODEL` on a device.

    Raises RecipeError for another name, or where the latter's library is missing; CheckpointError for no such model.
    """
    if name == TfidfEmbedder.name:
        return TfidfEmbedder()
    if not name.removeprefix(SENTENCES) or not name.startswith(SENTENCES):
        raise RecipeError(f"unknown text embedder {name!r}: choose {TfidfEmbedder.name} or {SENTENCES}MODEL")
    return SentenceEmbedder(name.removeprefix(SENTENCES), device=device)


class SentenceEmbedder:
    """Captions in the space of a sentence model, such as the paper's gte-large (§4.1.1), by its Hub name or its folder.

    No instruction is put before a caption: gte-large wants none, and a model that does has it in its configuration.
    Raises RecipeError where sentence-transformers is not installed, CheckpointError when it finds no model.
    """

    def __init__(self, model: str, batch_size: int = 64, device: Any = AUTO) -> None:
        try:
            from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]  (an extra)
        except ImportError as error:
            raise RecipeError(f"{SENTENCES}{model} needs its library: pip install 'milonga[text]'") from error
        self.name, self.batch_size = f"{SENTENCES}{model}", batch_size
        try:
            self._model = SentenceTransformer(model, device=str(device_of(device)))
        except Exception as error:  # the library raises the Hub's, torch's and the system's errors
            raise CheckpointError(f"no sentence model {model}: {brief(error)}") from error

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """One unit-norm row per text, shape (N, D); the library shows its own progress on stderr."""
        rows = self._model.encode(
            list(texts),
            batch_size=self.batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=True,
        )
        return np.asarray(rows, dtype=np.float32)
