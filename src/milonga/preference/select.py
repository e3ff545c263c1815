"""Which captions to work with: a diverse subset τ1 (k-means, §4.1.1), the temporal ones τ2, and tags for evaluation.

Departures from the paper: it does not say how the 70 of a cluster are drawn; here they are those nearest to the centre
(or, with `nearest=False`, a seeded draw). A cluster with fewer members gives what it has.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from milonga.core.errors import DataError
from milonga.core.ids import derive_seed
from milonga.core.protocols import TextEmbedder
from milonga.core.records import Prompt

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
    prompts: Sequence[Prompt],
    embedder: TextEmbedder,
    clusters: int,
    per_cluster: int,
    seed: int,
    nearest: bool = True,
) -> list[Prompt]:
    """τ1: up to `per_cluster` prompts from each of `clusters` k-means clusters, in the order given (§4.1.1: 70 of 200).

    Prompts that come twice count once. Raises DataError when there are fewer prompts than clusters.
    """
    return taken(cluster(prompts, embedder, clusters, seed), per_cluster, seed, nearest)


def cluster(prompts: Sequence[Prompt], embedder: TextEmbedder, clusters: int, seed: int) -> Clusters:
    """The different ones of some prompts, embedded and clustered by k-means; DataError when they are too few."""
    unique = list({prompt.id: prompt for prompt in prompts}.values())
    if not 1 <= clusters <= len(unique):
        raise DataError(f"cannot make {clusters} clusters of {len(unique)} different prompts; lower `clusters`")
    rows = embedder.embed([prompt.text for prompt in unique])
    labels, distances = _clustered(rows, clusters, seed)
    return Clusters(unique, rows, labels, distances, clusters)


def taken(found: Clusters, per_cluster: int, seed: int, nearest: bool = True) -> list[Prompt]:
    """Up to `per_cluster` prompts of each cluster: the nearest to its centre, or drawn by the seed; in their order."""
    if per_cluster < 1:
        raise DataError(f"cannot take {per_cluster} from each cluster of {len(found.prompts)} different prompts")
    chance = np.random.default_rng(derive_seed(seed, "select")).random(len(found.prompts))
    rank = found.distances if nearest else chance
    order = sorted(range(len(found.prompts)), key=lambda i: (found.labels[i], rank[i], found.prompts[i].id))
    kept = {i for _, members in groupby(order, key=lambda i: found.labels[i]) for i in list(members)[:per_cluster]}
    return [prompt for i, prompt in enumerate(found.prompts) if i in kept]


def _clustered(vectors: np.ndarray, clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row's cluster and its distance to that cluster's centre: vectors (N, D) -> (N,), (N,)."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    means = KMeans(clusters, n_init="auto", random_state=derive_seed(seed, "k-means") % 2**32)
    with threadpool_limits(1), warnings.catch_warnings():  # one thread: sums in one order, so the same clusters
        warnings.simplefilter("ignore", ConvergenceWarning)  # captions alike leave clusters empty, and that is fine
        labels = means.fit_predict(vectors)
    return labels, np.linalg.norm(vectors - means.cluster_centers_[labels], axis=1)


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
        return _unit(self._reduced(table))

    def _reduced(self, table) -> np.ndarray:
        from sklearn.decomposition import TruncatedSVD

        dimensions = min(self.dimensions, min(table.shape) - 1)
        if dimensions < 2:
            return table.toarray()
        svd = TruncatedSVD(dimensions, random_state=derive_seed(self.seed, "svd") % 2**32)
        return svd.fit_transform(table)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length one; a row of zeros (a text without words) becomes the even vector."""
    rows = np.where(np.linalg.norm(rows, axis=1, keepdims=True) > 1e-9, rows, 1.0)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
