"""Selecting prompts: diverse, nearest first, the same each time; and the tags that split an evaluation."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from milonga.core.errors import DataError
from milonga.core.records import Prompt
from milonga.data.captions import sounds_in, tags_of
from milonga.preference.select import TfidfEmbedder, select, temporal

CAPTIONS = Path(os.environ.get("MILONGA_AUDIOCAPS", Path(__file__).parents[3] / "shared" / "data" / "audiocaps"))
AUDIOCAPS = CAPTIONS / "test_subset_886.csv"

TEXTS = [f"{subject} {verb} {where}" for subject, verb in [("a dog", "barks"), ("rain", "falls"), ("a bell", "rings")]
         for where in ("nearby", "loudly", "in the distance", "again and again", "outside", "twice")]  # fmt: skip


def prompts(texts) -> list[Prompt]:
    return [Prompt.of(text, "test") for text in texts]


class Points:
    """An embedder that looks places up, so that distances are known."""

    name = "points"

    def __init__(self, places: dict[str, tuple[float, ...]]) -> None:
        self.places = places

    def embed(self, texts):
        return np.array([self.places[text] for text in texts])


@pytest.mark.slow
def test_the_nearest_of_each_cluster_are_taken_in_the_order_given():
    places = {"far": (0.3, 1), "dead centre": (0.0, 1), "near": (0.05, 1), "opposite": (-0.3, 1), "b": (0, -9)}
    chosen = select(prompts(places), Points(places), clusters=2, per_cluster=2, seed=0)
    assert [prompt.text for prompt in chosen] == ["dead centre", "near", "b"]


def test_each_subject_is_represented():
    chosen = select(prompts(TEXTS), TfidfEmbedder(), clusters=3, per_cluster=2, seed=1)
    subjects = [next(word for word in ("dog", "rain", "bell") if word in prompt.text) for prompt in chosen]
    assert sorted(subjects) == ["bell", "bell", "dog", "dog", "rain", "rain"]


@pytest.mark.parametrize("nearest", [True, False])
def test_the_same_seed_selects_the_same(nearest):
    first, again = (select(prompts(TEXTS), TfidfEmbedder(), 4, 2, seed=3, nearest=nearest) for _ in range(2))
    assert first == again


def test_a_draw_depends_on_the_seed_and_nearest_does_not_draw():
    def chosen(seed, nearest):
        found = select(prompts(TEXTS), TfidfEmbedder(), 1, 5, seed=seed, nearest=nearest)
        return tuple(prompt.text for prompt in found)

    assert len({chosen(seed, nearest=False) for seed in range(6)}) > 3
    assert len({chosen(seed, nearest=True) for seed in range(6)}) == 1


def test_repeated_prompts_count_once_and_small_clusters_give_what_they_have():
    chosen = select(prompts(TEXTS + TEXTS), TfidfEmbedder(), clusters=3, per_cluster=99, seed=0)
    assert [prompt.text for prompt in chosen] == TEXTS


@pytest.mark.parametrize(("clusters", "per_cluster"), [(19, 1), (0, 1), (2, 0)])
def test_what_cannot_be_selected_is_told(clusters, per_cluster):
    with pytest.raises(DataError, match="18 different prompts"):
        select(prompts(TEXTS), TfidfEmbedder(), clusters, per_cluster, seed=0)


def test_the_embedder_gives_unit_rows_and_places_like_near_like():
    rows = TfidfEmbedder(dimensions=8).embed([*TEXTS, "!"])
    assert rows.shape == (19, 8)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)
    dogs = rows[:6] @ rows[:6].T
    assert dogs.mean() > (rows[:6] @ rows[6:18].T).mean() + 0.2
    assert np.array_equal(rows, TfidfEmbedder(dimensions=8).embed([*TEXTS, "!"]))
    assert TfidfEmbedder().embed(["dog"]).shape == (1, 1)
    with pytest.raises(DataError, match="no words"):
        TfidfEmbedder().embed(["!"])


def test_tau_2_asks_for_whole_words():
    texts = ["a then b", "After a, b", "a FOLLOWED by b", "a before b", "thenceforth a", "a while b", "beforehand a"]
    assert [prompt.text for prompt in temporal(prompts(texts))] == texts[:4]


@pytest.mark.parametrize(
    ("text", "scene", "tags"),
    [
        ("A dog barks", None, ()),
        ("A dog barks", (("Dog",),), ()),
        ("A dog barks as rain falls", (("Dog", "Rain"),), ("temporal", "multi-concept")),
        ("A dog barks and rain falls", (("Dog", "Rain"),), ("multi-concept",)),
        ("A dog barks and yaps", (("Dog",),), ()),
        ("Hums, buzzes", None, ("multi-concept",)),
        ("Hums then stops", None, ("temporal", "multi-concept")),
        ("Wash of basins", None, ()),
    ],
)
def test_tags(text, scene, tags):
    assert tags_of(text, scene) == tags


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("A dog barks", 1),
        ("A dog barks, far away", 1),
        ("A dog barks loudly, then rain falls in the distance", 2),
        ("An engine being turned over", 1),
        ("Rain and wind while a man speaks, followed by thunder", 4),
        ("Clicking and hissing.", 2),
        ("", 0),
    ],
)
def test_sounds_are_counted_between_the_words_that_join(text, count):
    assert sounds_in(text) == count


@pytest.mark.skipif(not AUDIOCAPS.is_file(), reason=f"no {AUDIOCAPS} (set MILONGA_AUDIOCAPS to AudioCaps' folder)")
def test_the_papers_test_captions_are_split_as_in_the_paper_and_near_to_their_labels():
    with AUDIOCAPS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 886
    assert sum("temporal" in tags_of(row["caption"]) for row in rows) == 479
    several = np.array([sounds_in(row["caption"]) > 1 for row in rows])
    labelled = np.array([row["audioset_labels"].count(",") > 0 for row in rows])
    assert (several == labelled).mean() == pytest.approx(0.744, abs=0.001)
