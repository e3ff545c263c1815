"""The caption grammar: every class in every form, every order, many words, and the same words for the same seed."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milonga.nano.captions import caption, split_of
from milonga.nano.lexicon import CLASSES, VOICES, participle, third_person

SHAPES = [(1,), (2,), (3,), (1, 1), (1, 2), (2, 1), (1, 1, 1)]


def scene_of(labels: tuple[str, ...], shape: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    left = iter(labels)
    return tuple(tuple(next(left) for _ in range(size)) for size in shape)


@st.composite
def scenes(draw):
    shape = draw(st.sampled_from(SHAPES))
    labels = draw(st.permutations(CLASSES))[: sum(shape)]
    return scene_of(tuple(labels), shape)


def many(scene, counts=None, n=200, seed=0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [caption(scene, counts, rng) for _ in range(n)]


def test_there_are_26_classes_and_each_has_a_voice():
    assert len(CLASSES) == len(set(CLASSES)) == 26
    assert set(VOICES) == set(CLASSES)


@pytest.mark.parametrize("label", CLASSES)
def test_every_class_is_said_in_many_ways(label):
    assert len({text.rstrip(".").lower() for text in many(((label,),))}) >= 12
    assert len(VOICES[label].nouns) >= 5


@pytest.mark.parametrize("label", CLASSES)
def test_articles_fit_their_subjects(label):
    for voice_form in VOICES[label].forms:
        plural = voice_form.plural
        for subject in voice_form.subjects:
            article = subject.split()[0] in ("a", "an")
            assert not (plural and article), subject
            if article:
                assert (subject.split()[0] == "an") == (subject.split()[1][0] in "aeiou"), subject


@given(scenes(), st.integers(0, 2**32))
def test_a_caption_is_one_clean_sentence(scene, seed):
    text = caption(scene, None, np.random.default_rng(seed))
    assert text[0].isupper()
    assert re.fullmatch(r"[A-Z][a-z',\- ]*[a-z]\.?", text), text
    assert "  " not in text
    assert " ," not in text
    assert not re.search(r"\b(\w+) \1\b", text), text


@given(scenes(), st.integers(0, 2**32))
def test_the_same_seed_says_the_same_words(scene, seed):
    assert caption(scene, None, np.random.default_rng(seed)) == caption(scene, None, np.random.default_rng(seed))


def test_order_is_said_both_ways_round():
    texts = many((("Dog",), ("Bell",)), n=600)
    dog = re.compile(r"dog|pupp|canine")
    bell = re.compile(r"bell")
    inverted = [t for t in texts if bell.search(t.lower()).start() < dog.search(t.lower()).start()]
    assert 0.25 < len(inverted) / len(texts) < 0.5
    assert all(re.search(r"\b(after|before)\b", t.lower()) for t in inverted)
    for word in ("then", "followed by", "before", "after", "first"):
        assert any(word in t.lower() for t in texts), word
    assert len(set(texts)) > 550


def test_overlap_is_said_without_words_of_sequence():
    texts = many((("Dog", "Rain"),), n=400)
    assert not any(re.search(r"\b(then|followed|before|after)\b", t.lower()) for t in texts)
    for word in ("while", "as", "with", "and", "in the background", "over"):
        assert any(re.search(rf"\b{word}\b", t.lower()) for t in texts), word
    assert len(set(texts)) > 350


@pytest.mark.parametrize(("count", "words"), [(1, "once|single"), (2, "twice|two"), (3, "three")])
def test_counts_are_said_for_countable_sounds(count, words):
    assert all(re.search(words, t.lower()) for t in many((("Gunshot",),), {"Gunshot": count}))


def test_counts_are_not_said_for_sounds_that_go_on():
    assert not any(re.search("twice|two", t.lower()) for t in many((("Wind",),), {"Wind": 2}))


@pytest.mark.parametrize("scene", [(), ((),), (("Dog",), ()), (("Dog", "Cat"), ("Bell", "Rain"))])
def test_a_scene_that_cannot_be_said_is_refused(scene):
    with pytest.raises(ValueError, match="one to three sounds"):
        caption(scene, None, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("verb", "third", "ing"),
    [
        ("bark", "barks", "barking"),
        ("crash on the shore", "crashes on the shore", "crashing on the shore"),
        ("idle", "idles", "idling"),
        ("fly overhead", "flies overhead", "flying overhead"),
        ("run", "runs", "running"),
        ("go off", "goes off", "going off"),
        ("hit the ground", "hits the ground", "hitting the ground"),
    ],
)
def test_verbs_are_inflected(verb, third, ing):
    assert (third_person(verb), participle(verb)) == (third, ing)


def test_splits_are_80_10_10_and_do_not_depend_on_case_or_full_stop():
    texts = sorted({t for seed in range(8) for t in many((("Cat",), ("Siren",)), n=300, seed=seed)})
    shares = {name: sum(split_of(t) == name for t in texts) / len(texts) for name in ("train", "tune", "test")}
    assert abs(shares["train"] - 0.8) < 0.04
    assert abs(shares["tune"] - 0.1) < 0.03
    assert abs(shares["test"] - 0.1) < 0.03
    assert all(split_of(t) == split_of(t.rstrip(".").lower() + ".") for t in texts[:200])
