"""The report on clusters: every caption is counted once, the map is the data's own, and captions are text."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from milonga.core.records import Prompt
from milonga.preference.select import TfidfEmbedder, cluster, sample_clusters
from milonga.reports.clusters import cluster_rows, flat, page

HOSTILE = "</svg><script>document.title='owned'</script> a bell"
TEXTS = [f"a {what} {how}" for what in ("dog", "bell", "train") for how in ("nearby", "again", "loudly", "outside")]


@pytest.fixture(scope="module")
def found():
    return cluster([Prompt.of(text, "test") for text in [*TEXTS, HOSTILE]], TfidfEmbedder(), 3, seed=0)


def test_every_caption_is_in_one_cluster_and_every_taken_one_is_counted(found):
    kept = sample_clusters(found, 2, seed=0)
    rows = cluster_rows(found, kept)
    assert sum(row.size for row in rows) == 13
    assert sum(row.taken for row in rows) == len(kept)
    assert [row.size for row in rows] == sorted((row.size for row in rows), reverse=True)
    for row in rows:
        members = {found.prompts[i].text for i in np.flatnonzero(found.labels == row.number)}
        assert set(row.examples) <= members
        assert len(row.examples) == min(3, row.size)
        nearest = min(np.flatnonzero(found.labels == row.number), key=lambda i: found.distances[i])
        assert row.examples[0] == found.prompts[nearest].text


@settings(deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(2, 9), st.integers(1, 5)), elements=st.floats(-1, 1, width=16)))
def test_the_map_moves_nothing_apart_and_keeps_the_most_spread(rows):
    places = flat(rows)
    assert places.shape == (len(rows), 2)
    centred = rows - rows.mean(axis=0)
    for i in range(len(rows)):
        assert np.linalg.norm(places[i] - places[0]) <= np.linalg.norm(rows[i] - rows[0]) + 1e-9
    values = np.sort(np.linalg.eigvalsh(centred.T @ centred))[::-1]
    assert np.sum(places**2) == pytest.approx(values[:2].sum(), abs=1e-9)
    assert np.array_equal(places, flat(rows))


def test_the_page_shows_map_and_table_and_no_caption_is_markup(found):
    kept = sample_clusters(found, 2, seed=0)
    text = page(found, kept, "tfidf-svd")
    assert f"{len(kept)} of 13 captions, from 3 clusters" in text
    assert "<script" not in text
    assert text.count("<tr>") == 1 + 3
    assert len(re.findall(r"M[\d.]+ [\d.]+h0", text)) == 13
    assert text == page(found, kept, "tfidf-svd")
