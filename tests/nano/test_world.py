"""Scenes drawn by chance and rendered with the truth of what sounds when."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.core.records import Scene
from milonga.nano.sounds import COUNTABLE
from milonga.nano.synthesis import RATE
from milonga.nano.world import CLASSES, SAMPLES, SECONDS, SHAPES, draw_counts, draw_scene, level, render, slots

SEEDS = st.integers(0, 2**62)
SEQUENCE: Scene = (("Dog",), ("Bell", "Rain"))


def scene_of(seed: int) -> Scene:
    return draw_scene(np.random.default_rng(seed))


@given(SEEDS)
def test_a_scene_has_one_to_three_different_classes_in_a_known_shape(seed: int) -> None:
    scene = scene_of(seed)
    labels = [label for group in scene for label in group]
    assert tuple(map(len, scene)) in SHAPES
    assert len(set(labels)) == len(labels)
    assert set(labels) <= set(CLASSES)
    assert scene == scene_of(seed)


def test_shapes_and_classes_come_as_often_as_they_should() -> None:
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng) for _ in range(6000)]
    shapes = Counter(tuple(map(len, scene)) for scene in scenes)
    assert sum(SHAPES.values()) == pytest.approx(1.0)
    for shape, share in SHAPES.items():
        assert shapes[shape] / 6000 == pytest.approx(share, abs=0.02)
    labels = Counter(label for scene in scenes for group in scene for label in group)
    mean = sum(labels.values()) / len(CLASSES)
    assert all(0.8 * mean < labels[label] < 1.2 * mean for label in CLASSES)


@given(SEEDS)
def test_counts_are_one_to_three_for_countable_sounds_of_the_scene_only(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng)
    counts = draw_counts(scene, rng)
    assert set(counts) <= {label for group in scene for label in group} & set(COUNTABLE)
    assert set(counts.values()) <= {1, 2, 3}


def test_some_countable_sounds_are_counted_and_some_left_to_chance() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_counts((("Dog",),), rng) for _ in range(500)]
    assert 0.2 < np.mean([bool(counts) for counts in drawn]) < 0.4
    assert Counter(counts["Dog"] for counts in drawn if counts).keys() == {1, 2, 3}


@given(SEEDS)
def test_slots_follow_each_other_inside_the_clip_with_room_to_be_heard(seed: int) -> None:
    scene = scene_of(seed)
    found = slots(scene, np.random.default_rng(seed))
    assert len(found) == len(scene)
    assert found[0][0] >= 0
    assert found[-1][1] <= SECONDS
    assert all(end - begin > 0.6 for begin, end in found)
    assert all(first[1] < second[0] for first, second in pairwise(found))


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_events_lie_inside_the_clip_and_groups_follow_in_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng)
    sounding = render(scene, seed, draw_counts(scene, rng))
    wave, events = sounding.clip.waveform, iter(sounding.events)
    assert (wave.shape, wave.dtype, sounding.clip.rate) == ((SAMPLES,), np.float32, RATE)
    assert np.isfinite(wave).all()
    assert 0.01 < np.abs(wave).max() <= 1
    groups = [[next(events) for _ in group] for group in scene]
    assert next(events, None) is None
    for group, found in zip(scene, groups, strict=True):
        assert tuple(event.label for event in found) == group
        assert all(0 <= event.onset < event.offset <= SECONDS for event in found)
        assert max(event.onset for event in found) < min(event.offset for event in found), "a group overlaps"
    for first, second in pairwise(groups):
        assert max(event.offset for event in first) < min(event.onset for event in second)


def test_the_same_scene_seed_and_counts_give_the_same_samples() -> None:
    first = render(SEQUENCE, 1, {"Dog": 2})
    again = render(SEQUENCE, 1, {"Dog": 2})
    assert np.array_equal(first.clip.waveform, again.clip.waveform)
    assert first.events == again.events
    for other in (render(SEQUENCE, 2, {"Dog": 2}), render(SEQUENCE, 1, {"Dog": 3}), render(SEQUENCE[::-1], 1)):
        assert not np.allclose(first.clip.waveform, other.clip.waveform)


def test_a_sound_is_where_the_truth_says_and_the_gap_is_quiet() -> None:
    for seed in range(8):
        sounding = render((("Siren",), ("Car horn",)), seed)
        first, second = sounding.events
        power = sounding.clip.waveform**2

        def loudness(begin: float, end: float, power: np.ndarray = power) -> float:
            return float(power[int(begin * RATE) : int(end * RATE)].mean())

        quiet = loudness(first.offset, second.onset)
        assert loudness(first.onset, first.offset) > 50 * quiet
        assert loudness(second.onset, second.onset + 0.3) > 50 * quiet


def test_an_unknown_class_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="Unicorn"):
        render((("Unicorn",),), 0)


@pytest.mark.parametrize("gain", [1e-3, 1.0, 100.0])
def test_a_level_is_reached_whatever_the_gain_and_no_peak_towers(gain: float) -> None:
    wave = gain * np.random.default_rng(0).standard_normal(RATE)
    wave[100] = gain * 8
    levelled = level(wave, 0.1)
    assert np.abs(levelled).max() <= 0.8
    assert np.sqrt(np.mean(levelled[200:] ** 2)) == pytest.approx(0.1, rel=0.15)
