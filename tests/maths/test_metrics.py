"""Metrics over sets against closed forms and a second form; metrics of one clip against the rules they state."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.core.errors import DataError
from milonga.core.records import Event, Scene
from milonga.maths.metrics import (
    event_recall,
    exact_match,
    extra_events,
    frechet_distance,
    full_recall,
    inception_score,
    kl_softmax,
    order_accuracy,
    order_accuracy_detected,
)

CLASSES = ["Dog", "Cat", "Bell", "Rain", "Siren"]
scenes = st.lists(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4).map(
    tuple
)
heard = st.lists(
    st.builds(lambda label, onset: Event(label=label, onset=onset, offset=onset + 0.5), st.sampled_from(CLASSES),
              st.floats(0, 10, width=16)), max_size=8,
)  # fmt: skip
seeds = st.integers(0, 10_000)


def rows(seed: int, count: int, width: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, width)) @ generator.normal(size=(width, width)) + generator.normal(size=width)


def played(*sounds: tuple[str, float]) -> list[Event]:
    return [Event(label=label, onset=onset, offset=onset + 0.4) for label, onset in sounds]


def in_turn(scene: Scene) -> list[Event]:
    """The events of a scene, group after group, one second apart; repeated mentions sound again."""
    return played(*((label, float(at)) for at, group in enumerate(scene) for label in group))


# -- Fréchet distance


def by_eigenvalues(a: np.ndarray, b: np.ndarray) -> float:
    """A second form: tr (ΣaΣb)^½ from the eigenvalues of Σa^½ Σb Σa^½."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    gap = a.mean(axis=0) - b.mean(axis=0)
    return float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * overlap)


@pytest.mark.parametrize(("more", "fewer"), [(60, 40), (60, 5), (6, 5), (8, 9)])
def test_frechet_distance_equals_a_second_form_whichever_side_is_short(more: int, fewer: int) -> None:
    a, b = rows(1, more, 8), rows(2, fewer, 8)
    assert frechet_distance(a, b) == pytest.approx(by_eigenvalues(a, b), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_frechet_distance_in_one_dimension_is_a_closed_form() -> None:
    a, b = rows(3, 30, 1), rows(4, 50, 1)
    gap, spread = a.mean() - b.mean(), a.std(ddof=1) - b.std(ddof=1)
    assert frechet_distance(a, b) == pytest.approx(gap**2 + spread**2)


@settings(deadline=None)
@given(seeds, st.integers(2, 20), st.integers(1, 12), st.floats(-5, 5))
def test_moving_a_set_by_a_constant_costs_the_squared_length(seed: int, count: int, width: int, step: float) -> None:
    a = rows(seed, count, width)
    scale = 1 + np.square(a).sum()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * scale)
    assert frechet_distance(a, a + step) == pytest.approx(width * step**2, rel=1e-6, abs=1e-9 * scale)


@settings(deadline=None)
@given(seeds, st.integers(2, 20), st.integers(2, 20), st.integers(1, 12))
def test_frechet_distance_is_not_changed_by_turning_the_space(seed: int, n: int, m: int, width: int) -> None:
    a, b = rows(seed, n, width), rows(seed + 1, m, width)
    turn = np.linalg.qr(rows(seed + 2, width, width))[0]
    distance = frechet_distance(a, b)
    assert distance >= 0
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(distance, rel=1e-7, abs=1e-7)


def test_rows_that_cannot_be_compared_are_refused() -> None:
    good = rows(0, 5, 3)
    bad = good.copy()
    bad[[1, 3], 0] = np.nan
    with pytest.raises(DataError, match="2 of 5 rows"):
        frechet_distance(bad, good)
    for other in (good[:, :2], good[:1]):
        with pytest.raises(DataError, match="two or more rows"):
            frechet_distance(good, other)
    with pytest.raises(DataError, match="matrix"):
        frechet_distance(good[0], good)


# -- KL and inception score


def test_kl_is_zero_for_equal_clips_up_to_the_floor_and_the_closed_form_for_two_classes() -> None:
    logits = rows(5, 20, 6)
    assert (kl_softmax(logits, logits) == 0).all()
    p, q = np.array([0.9, 0.1]), np.array([0.5, 0.5])
    expected = (p * (np.log(p) - np.log(q + 1e-6))).sum()
    assert kl_softmax(np.log(p)[None], np.log(q)[None])[0] == pytest.approx(expected)


def test_kl_runs_from_the_reference_and_is_bounded_by_the_floor() -> None:
    sure, unsure = np.array([[200.0, 0.0]]), np.array([[0.0, 0.0]])
    assert kl_softmax(sure, unsure)[0] == pytest.approx(np.log(2), abs=1e-5)
    assert kl_softmax(unsure, sure)[0] == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.5 / 1e-6), abs=1e-5)


@pytest.mark.slow
@settings(deadline=None)
@given(seeds, st.integers(1, 12), st.integers(2, 8), st.floats(-30, 30))
def test_kl_is_per_clip_and_ignores_a_constant_added_to_logits(seed: int, n: int, classes: int, shift: float) -> None:
    reference, generated = rows(seed, n, classes), rows(seed + 1, n, classes)
    divergences = kl_softmax(reference, generated)
    assert divergences.shape == (n,)
    # The floor adds at most K·1e-6 to the mass of q, so KL cannot fall further than that below zero.
    assert (divergences >= -classes * 1e-6).all()
    np.testing.assert_allclose(kl_softmax(reference + shift, generated - shift), divergences, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(kl_softmax(reference[:1], generated[:1]), divergences[:1], rtol=1e-12)


def test_kl_of_sets_that_do_not_match_is_refused() -> None:
    with pytest.raises(DataError, match="differ in shape"):
        kl_softmax(rows(0, 4, 3), rows(0, 5, 3))


def test_inception_score_runs_from_one_to_the_number_of_classes_evenly_met() -> None:
    assert inception_score(np.zeros((30, 5)))[0] == pytest.approx(1.0)
    certain = 1000.0 * np.eye(5)[np.arange(30) % 5]
    assert inception_score(certain, splits=1) == (pytest.approx(5.0), 0.0)
    assert inception_score(certain, splits=10)[0] <= 3.0 + 1e-9


@settings(deadline=None)
@given(seeds, st.integers(2, 30), st.integers(2, 8))
def test_inception_score_stays_within_its_bounds(seed: int, n: int, classes: int) -> None:
    score, deviation = inception_score(10 * rows(seed, n, classes), splits=2)
    assert 1 - 1e-9 <= score <= min((n + 1) // 2, classes) + 1e-9
    assert deviation >= 0


def test_inception_score_refuses_more_splits_than_clips() -> None:
    with pytest.raises(DataError, match="7 clips cannot have 10 splits"):
        inception_score(rows(0, 7, 4))


# -- what was heard in one clip

DOG_THEN_BELL: Scene = (("Dog",), ("Bell",))


@pytest.mark.parametrize(
    ("events", "share", "order", "others"),
    [
        (played(("Dog", 0.5), ("Bell", 2.0)), 1.0, True, 0),
        (played(("Bell", 0.5), ("Dog", 2.0)), 1.0, False, 0),
        (played(("Dog", 1.0), ("Bell", 1.0)), 1.0, False, 0),  # at the same moment is not one after the other
        (played(("Dog", 0.5), ("Bell", 2.0), ("Dog", 3.0)), 1.0, True, 0),  # placed by its earliest onset
        (played(("Bell", 3.0), ("Bell", 0.2), ("Dog", 1.0)), 1.0, False, 0),
        (played(("Dog", 0.5)), 0.5, None, 0),
        (played(("Dog", 0.5), ("Cat", 1.0), ("Cat", 2.0), ("Bell", 3.0)), 1.0, True, 1),
        ([], 0.0, None, 0),
    ],
)
def test_two_sounds_in_turn(events: list[Event], share: float, order: bool | None, others: int) -> None:
    assert event_recall(DOG_THEN_BELL, events) == share
    assert order_accuracy_detected(DOG_THEN_BELL, events) is order
    assert order_accuracy(DOG_THEN_BELL, events) is (order is True)
    assert extra_events(DOG_THEN_BELL, events) == others
    assert exact_match(DOG_THEN_BELL, events) is (order is True and others == 0)


def test_sounds_of_one_group_may_begin_in_any_order_but_all_before_the_next_group() -> None:
    scene: Scene = (("Rain", "Dog"), ("Bell",))
    assert order_accuracy(scene, played(("Dog", 0.0), ("Rain", 1.0), ("Bell", 2.0)))
    assert order_accuracy(scene, played(("Rain", 0.0), ("Dog", 1.0), ("Bell", 2.0)))
    assert not order_accuracy(scene, played(("Dog", 0.0), ("Bell", 1.0), ("Rain", 2.0)))


def test_a_class_that_is_asked_for_again_must_be_heard_again() -> None:
    scene: Scene = (("Dog",), ("Bell",), ("Dog",))
    once = played(("Dog", 0.0), ("Bell", 1.0))
    assert event_recall(scene, once) == pytest.approx(2 / 3)
    assert order_accuracy_detected(scene, once) is None
    assert exact_match(scene, [*once, *played(("Dog", 2.0))])
    assert order_accuracy_detected(scene, played(("Dog", 0.0), ("Dog", 0.5), ("Bell", 1.0))) is False


@given(scenes)
def test_a_scene_played_as_asked_is_correct(scene: Scene) -> None:
    assert exact_match(scene, in_turn(scene))
    assert full_recall(scene, in_turn(scene))


@given(st.permutations(CLASSES), st.integers(1, 4))
def test_a_scene_played_backwards_is_all_there_and_out_of_order(labels: list[str], cut: int) -> None:
    scene: Scene = (tuple(labels[:cut]), tuple(labels[cut:]))
    backwards = in_turn(scene[::-1])
    assert full_recall(scene, backwards)
    assert order_accuracy_detected(scene, backwards) is False


@pytest.mark.slow
@given(scenes, st.data())
def test_leaving_out_one_event_costs_its_share_and_the_order(scene: Scene, data: st.DataObject) -> None:
    events = in_turn(scene)
    left = list(events)
    left.remove(data.draw(st.sampled_from(events)))
    assert event_recall(scene, left) == pytest.approx(1 - 1 / len(events))
    assert order_accuracy_detected(scene, left) is None
    assert not order_accuracy(scene, left)


@pytest.mark.slow
@given(scenes, heard, st.randoms(use_true_random=False), st.floats(0, 5, width=16))
def test_metrics_do_not_depend_on_list_order_or_on_when_the_clip_starts(scene, heard, random, later) -> None:
    shuffled = [event.model_copy(update={"onset": event.onset + later}) for event in heard]
    random.shuffle(shuffled)
    for metric in (event_recall, full_recall, extra_events, order_accuracy_detected, order_accuracy, exact_match):
        assert metric(scene, shuffled) == metric(scene, heard), metric.__name__


@pytest.mark.slow
@given(scenes, heard)
def test_metrics_agree_with_one_another(scene: Scene, heard: list[Event]) -> None:
    assert (order_accuracy_detected(scene, heard) is None) == (not full_recall(scene, heard))
    assert exact_match(scene, heard) <= order_accuracy(scene, heard) <= full_recall(scene, heard)
    assert 0 <= event_recall(scene, heard) <= 1
    assert 0 <= extra_events(scene, heard) <= len(heard)


@pytest.mark.parametrize("scene", [(), ((),), (("Dog",), ())])
def test_a_scene_without_events_is_refused(scene: Scene) -> None:
    with pytest.raises(DataError, match="at least one event"):
        event_recall(scene, [])
