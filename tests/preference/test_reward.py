"""A reward model learns what its labels say, is measured on captions it never saw, and is the same every time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from milonga.core.config import RewardModel
from milonga.core.errors import DataError
from milonga.core.records import Clip, Event, Label, Prompt
from milonga.preference.candidates import label_clips
from milonga.preference.reward import _auc, fit_reward, is_held_out, predict_rewards, reward_features, reward_report

SETTINGS = RewardModel(val_fraction=0.3)


def some(count: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[Label]]:
    """Clips that are good where they lie near their text, four to a caption."""
    rng = np.random.default_rng(seed)
    texts = np.repeat(rng.normal(size=(count // 4, 16)), 4, axis=0)
    clips = texts * (np.arange(count) % 2)[:, None] + rng.normal(size=(count, 16))
    clips, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (clips, texts))
    labels = [
        Label(
            id=str(n), prompt_id=str(n // 4), prompt="x", system="", desirable=bool(n % 2), opinion=n % 2, raters=0
        )
        for n in range(count)
    ]  # fmt: skip
    return clips.astype(np.float32), texts.astype(np.float32), labels


def test_it_learns_what_makes_a_clip_good_and_says_how_well() -> None:
    clips, texts, labels = some()
    network = fit_reward(reward_features(clips, texts), labels, SETTINGS, seed=1)
    found = predict_rewards(network, reward_features(clips, texts))
    report = reward_report(found, (clips * texts).sum(axis=1), labels, SETTINGS, "tiny")
    assert report.taught + report.held_out == len(labels)
    assert 0.15 < report.held_out / len(labels) < 0.45
    assert report.low > report.majority == 0.5
    assert report.auc > 0.9
    assert report.cosine_auc > 0.9


def test_held_out_labels_teach_nothing() -> None:
    clips, texts, labels = some()
    turned = [
        one.model_copy(update={"desirable": not one.desirable}) if is_held_out(one.prompt_id, 0.3) else one
        for one in labels
    ]
    features = reward_features(clips, texts)
    both = [
        predict_rewards(fit_reward(features, some_labels, SETTINGS, seed=1), features)
        for some_labels in (labels, turned)
    ]
    np.testing.assert_array_equal(*both)
    assert reward_report(both[0], both[0], turned, SETTINGS, "tiny").accuracy < 0.5


def test_the_seed_alone_decides_and_not_the_global_stream() -> None:
    clips, texts, labels = some(80)
    features = reward_features(clips, texts)
    torch.manual_seed(1)
    first = predict_rewards(fit_reward(features, labels, SETTINGS, seed=1), features)
    torch.manual_seed(2)
    np.testing.assert_array_equal(predict_rewards(fit_reward(features, labels, SETTINGS, seed=1), features), first)
    assert not np.array_equal(predict_rewards(fit_reward(features, labels, SETTINGS, seed=2), features), first)


def test_labels_of_one_kind_teach_nothing_and_say_so() -> None:
    clips, texts, labels = some(80)
    bad = [one.model_copy(update={"desirable": False}) for one in labels]
    with pytest.raises(DataError, match=r"of \d+ labels to learn from, 0 call their clip good"):
        fit_reward(reward_features(clips, texts), bad, SETTINGS, seed=1)
    alike = [one.model_copy(update={"desirable": True}) if is_held_out(one.prompt_id, 0.3) else one for one in labels]
    with pytest.raises(DataError, match="labels held out"):
        fit_reward(reward_features(clips, texts), alike, SETTINGS, seed=1)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_the_area_is_the_share_of_couples_in_order(rows: list[tuple[int, bool]]) -> None:
    values, truth = np.array([v for v, _ in rows], float), np.array([t for _, t in rows])
    if 0 < truth.sum() < len(truth):
        couples = [(g > b) + 0.5 * (g == b) for g in values[truth] for b in values[~truth]]
        assert _auc(values, truth) == pytest.approx(np.mean(couples))


class Ears:
    """A tagger that hears a bell at the second that a clip's first sample says, and a dog at one second."""

    name, classes = "ears", ("Bell", "Dog")

    def detect(self, clips):
        return [
            [Event(label="Bell", onset=float(c.waveform[0]), offset=9.0), Event(label="Dog", onset=1.0, offset=9.0)]
            for c in clips
        ]


def test_a_clip_is_good_where_everything_is_heard_in_its_order() -> None:
    order = Prompt.of("a bell, then a dog", "x", scene=(("Bell",), ("Dog",)))
    cat, unknown = Prompt.of("a cat", "x", scene=(("Cat",),)), Prompt.of("something", "x")
    clips = [Clip(np.full(4, onset, np.float32), 8000) for onset in (0.5, 2.0, 0.5, 0.5)]
    found = label_clips(["a", "b", "c", "d"], [order, order, cat, unknown], clips, Ears(), batch_size=3)  # type: ignore[arg-type]
    assert [(one.id, one.desirable) for one in found] == [("a", True), ("b", False), ("c", False)]
