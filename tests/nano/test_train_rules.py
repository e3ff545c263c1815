"""What the networks are trained with: targets and negatives of scenes, and captions as wrong as they say."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from milonga.core.records import Scene
from milonga.nano.build import unet as train_unet
from milonga.nano.build.corpus import Corpus
from milonga.nano.build.text import (
    fit_tokenizer,
    hard_negatives,
    near_misses,
    replaced,
    scene_target,
    sentences,
    swapped,
    without_one,
)
from milonga.nano.build.unet import LEFT_OUT, WRONG_ORDER, WRONG_SOUND, noisy_caption
from milonga.nano.captions import caption
from milonga.nano.world import CLASSES, draw_scene

SEEDS = st.integers(0, 2**62)


def labels(scene: Scene) -> list[str]:
    return [label for group in scene for label in group]


def drawn(seed: int) -> tuple[Scene, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return draw_scene(rng), rng


@given(SEEDS)
def test_swapped_is_the_groups_in_reverse_and_needs_two(seed: int) -> None:
    scene, _ = drawn(seed)
    found = swapped(scene)
    if len(scene) == 1:
        assert found is None
    else:
        assert found is not None
        assert found != scene
        assert found[::-1] == scene


@given(SEEDS)
def test_replaced_changes_one_sound_to_one_the_scene_lacks(seed: int) -> None:
    scene, rng = drawn(seed)
    found = replaced(scene, rng)
    assert list(map(len, found)) == list(map(len, scene))
    changed = [(old, new) for old, new in zip(labels(scene), labels(found), strict=True) if old != new]
    assert len(changed) == 1
    assert changed[0][1] in CLASSES
    assert changed[0][1] not in labels(scene)
    assert all(type(label) is str for label in labels(found))


def test_any_sound_may_be_replaced_by_any_other() -> None:
    rng = np.random.default_rng(0)
    found = [replaced((("Dog",), ("Cat",)), rng) for _ in range(2000)]
    new = Counter((set(labels(scene)) - {"Dog", "Cat"}).pop() for scene in found)
    assert new.keys() == set(CLASSES) - {"Dog", "Cat"}
    assert 0.4 < np.mean([scene[0] != ("Dog",) for scene in found]) < 0.6


@given(SEEDS)
def test_hard_negatives_are_two_wrong_scenes_one_of_them_of_the_order_where_there_is_one(seed: int) -> None:
    scene, rng = drawn(seed)
    found = hard_negatives(scene, rng)
    assert len(found) == 2
    assert scene not in found
    assert (found[0] == swapped(scene)) == (len(scene) > 1)
    assert set(labels(found[1])) != set(labels(scene))


@given(SEEDS)
def test_near_misses_differ_by_one_fault_and_have_captions(seed: int) -> None:
    scene, rng = drawn(seed)
    found = near_misses(scene, rng)
    assert 2 <= len(found) <= 3
    assert scene not in found
    assert (found[0] == swapped(scene)) == (len(scene) > 1)
    for wrong in found:
        assert abs(len(labels(wrong)) - len(labels(scene))) <= 1
        assert caption(wrong, None, rng)


def test_near_misses_leave_out_add_replace_and_double() -> None:
    rng, scene = np.random.default_rng(0), (("Dog",), ("Bell",))
    found = [wrong for _ in range(60) for wrong in near_misses(scene, rng)[1:]]
    counts = Counter((len(labels(wrong)), len(set(labels(wrong)))) for wrong in found)
    assert counts.keys() == {(1, 1), (2, 2), (3, 2), (3, 3)}
    assert {wrong.index(("Dog",)) for wrong in found if len(wrong) == 3} == {0, 1}


@given(SEEDS)
def test_a_target_tells_what_is_asked_for_what_comes_first_and_what_last(seed: int) -> None:
    scene, _ = drawn(seed)
    target = scene_target(scene)
    assert target.shape == (3 * len(CLASSES),)

    def named(part: torch.Tensor) -> set[str]:
        return {CLASSES[place] for place in torch.nonzero(part).flatten().tolist()}

    asked, first, last = (named(part) for part in target.reshape(3, len(CLASSES)))
    assert asked == set(labels(scene))
    assert first == (set(scene[0]) if len(scene) > 1 else set())
    assert last == (set(scene[-1]) if len(scene) > 1 else set())
    other = swapped(scene)
    assert other is None or not torch.equal(scene_target(other), target)


@given(SEEDS, st.integers(0, 2))
def test_without_one_leaves_out_just_that_sound_and_no_empty_group(seed: int, place: int) -> None:
    scene, _ = drawn(seed)
    place = min(place, len(labels(scene)) - 1)
    found = without_one(scene, place)
    expected = labels(scene)
    del expected[place]
    assert labels(found) == expected
    assert all(found)


def corpus_of(scene: Scene, clips: int = 1500) -> Corpus:
    empty = torch.zeros(clips, 0)
    return Corpus(empty, empty, [scene] * clips, [{"Dog": 2}] * clips)


def told(monkeypatch: pytest.MonkeyPatch, scene: Scene, epoch: int = 0) -> list[tuple[Scene, dict[str, int]]]:
    """The scenes and counts that `noisy_caption` puts into words."""
    corpus, found = corpus_of(scene), []
    monkeypatch.setattr(train_unet, "caption_in", lambda split, *said: found.append((split, *said[:2])) or "")
    for index in range(len(corpus)):
        noisy_caption(corpus, 1, index, epoch)
    assert {split for split, *_ in found} == {"train"}
    return [(said, counts) for _, said, counts in found]


def test_a_sequence_is_noisy_caption_wrong_as_often_as_the_shares_say(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = (("Dog",), ("Bell",))
    found = told(monkeypatch, scene)
    kinds = Counter(
        "right" if said == scene
        else "order" if said == scene[::-1]
        else "less" if said in ((("Dog",),), (("Bell",),))
        else "other"
        for said, _ in found
    )  # fmt: skip
    for kind, share in (("order", WRONG_ORDER), ("less", LEFT_OUT), ("other", WRONG_SOUND)):
        assert kinds[kind] / len(found) == pytest.approx(share, abs=3.5 * (share / len(found)) ** 0.5), kind
    assert all(counts == ({"Dog": 2} if set(labels(said)) <= {"Dog", "Bell"} else {}) for said, counts in found)
    assert {said for said, _ in found} >= {(("Dog",),), (("Bell",),)}


@pytest.mark.parametrize("scene", [(("Dog",),), (("Dog", "Bell"),)])
def test_without_a_sequence_no_order_is_wrong_and_a_single_sound_is_never_left_out(
    monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    found = told(monkeypatch, scene)
    assert all(len(said) == 1 and said[0] for said, _ in found)
    wrong = np.mean([said != scene for said, _ in found])
    expected = WRONG_SOUND + (LEFT_OUT if len(labels(scene)) > 1 else 0.0)
    assert wrong == pytest.approx(expected, abs=3.5 * (expected / len(found)) ** 0.5)


def test_a_caption_is_noisy_caption_the_same_in_one_epoch_and_otherwise_in_the_next() -> None:
    corpus = corpus_of((("Dog",), ("Bell",)), 40)
    first, again, later = ([noisy_caption(corpus, 1, n, epoch) for n in range(40)] for epoch in (0, 0, 1))
    assert first == again
    assert sum(one == other for one, other in zip(first, later, strict=True)) < 10
    assert len(set(first)) > 20


def test_sentences_are_the_training_splits_and_always_the_same() -> None:
    from milonga.nano.captions import split_of

    found = list(sentences(1, 50))
    assert found == list(sentences(1, 50))
    assert found != list(sentences(2, 50))
    assert {split_of(text) for text in found} == {"train"}


@pytest.mark.parametrize("start", ["", "<s>"])
def test_a_tokenizer_knows_every_caption_ends_each_and_gives_the_words_back(start: str) -> None:
    tokenizer = fit_tokenizer(sentences(1, 400), "<pad>", "<unk>", start, "</s>")
    for text in [*sentences(2, 100), "Żółw & 犬 bark"]:
        ids = tokenizer(text).input_ids
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in ids
        assert (ids[0] == tokenizer.bos_token_id) == bool(start)
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.lower()
    again = fit_tokenizer(sentences(1, 400), "<pad>", "<unk>", start, "</s>")
    assert again.get_vocab() == tokenizer.get_vocab()
    batch = tokenizer(["a dog", "a dog barks and barks"], padding=True, return_tensors="pt")
    assert batch.attention_mask.sum(1).tolist() == [
        len(tokenizer(t).input_ids) for t in ("a dog", "a dog barks and barks")
    ]
