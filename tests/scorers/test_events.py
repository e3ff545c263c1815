"""Events as a score: presence, other sounds and order, each smooth; captions read into AudioSet's sounds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import small_networks
import torch
from safetensors.torch import save_file

from milonga.core.errors import CheckpointError, RecipeError
from milonga.core.records import Clip, Scene
from milonga.experiment.recipe import parse_recipe
from milonga.scorers import audioset, load
from milonga.scorers.events import NAMED, EventScorer, begins_first
from milonga.scorers.panns import FRONT_ENDS, Cnn14, PannsEmbedder
from milonga.scorers.tagger import save_tagger

CLIP = Clip(np.zeros(4096, dtype=np.float32), 16000)
FRAMES = 16


class Ear:
    """A tagger that gives the posteriors it was made with, to any clip."""

    name, classes = "ear", ("Dog", "Bell", "Rain")

    def __init__(self, **columns: np.ndarray) -> None:
        self.rows = np.stack([columns.get(label, np.full(FRAMES, 0.02)) for label in self.classes], axis=1)

    def posteriors(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        return [self.rows] * len(clips)

    def wave_logits(self, waves: torch.Tensor, rate: int) -> torch.Tensor:
        return torch.logit(torch.from_numpy(self.rows)).expand(len(waves), -1, -1)


def lasting(first: int, last: int, height: float = 0.9) -> np.ndarray:
    frames = np.arange(FRAMES)
    return np.where((frames >= first) & (frames < last), height, 0.02)


def score(scene: Scene | None, ear: Ear, **more: dict[str, str]) -> float:
    return float(EventScorer("events", ear, lambda text: scene, **more).score([CLIP], ["a caption"])[0])


def reward(scene: Scene | None, ear: Ear) -> float:
    return float(
        EventScorer("events", ear, lambda text: scene).wave_rewards(torch.zeros(1, 9), 16000, ["a caption"])[0]
    )


def first_of(a: np.ndarray, b: np.ndarray) -> float:
    return float(begins_first(torch.from_numpy(a), torch.from_numpy(b)))


DOG_BELL = (("Dog",), ("Bell",))


def test_the_score_rises_with_what_is_asked_for_and_falls_with_what_is_not() -> None:
    weak, strong = (Ear(Dog=lasting(0, 8, height), Bell=lasting(8, 16)) for height in (0.3, 0.8))
    extra = Ear(Dog=lasting(0, 8, 0.8), Bell=lasting(8, 16), Rain=lasting(0, 16, 0.6))
    assert 0 < score(DOG_BELL, weak) < score(DOG_BELL, strong) < 1
    assert score(DOG_BELL, extra) < score(DOG_BELL, strong)
    assert score((("Dog", "Rain"), ("Bell",)), extra) > score(DOG_BELL, extra)


def test_order_counts_between_groups_and_not_within_one() -> None:
    ear = Ear(Dog=lasting(0, 8), Bell=lasting(8, 16))
    assert score(DOG_BELL, ear) > 2 * score(DOG_BELL[::-1], ear)
    assert score((("Dog", "Bell"),), ear) == pytest.approx(score((("Bell", "Dog"),), ear))


def test_a_beginning_moves_the_order_smoothly() -> None:
    chances = [first_of(lasting(first, 16), lasting(8, 16)) for first in range(4, 13)]
    assert chances[0] > 0.9
    assert chances[4] == pytest.approx(0.5, abs=0.01)
    assert chances[-1] < 0.1
    blurred = np.convolve(lasting(7, 16), [0.25, 0.5, 0.25], "same")
    assert 0.5 < first_of(blurred, np.convolve(lasting(8, 16), [0.25, 0.5, 0.25], "same")) < chances[0]


def test_the_geometric_mean_of_the_answers_by_hand() -> None:
    ear = Ear(Dog=lasting(0, 16, 0.5))
    others = (1 - 0.02) ** 2
    assert score((("Dog",),), ear) == pytest.approx((0.5 * others) ** 0.5)


def test_a_certain_error_has_a_reward_though_the_score_bounds_it() -> None:
    weak, weaker = (Ear(Dog=np.full(FRAMES, height)) for height in (1e-3, 1e-5))
    assert score((("Dog",),), weak) == pytest.approx(score((("Dog",),), weaker))
    assert reward((("Dog",),), weak) == pytest.approx(reward((("Dog",),), weaker) + np.log(100) * NAMED / (NAMED + 1))


def test_a_reward_weighs_what_is_named_what_is_not_and_the_order() -> None:
    ear = Ear(Dog=lasting(0, 8, 0.5), Bell=lasting(8, 16, 0.5), Rain=lasting(0, 16, 0.3))
    order = np.log(first_of(lasting(0, 8, 0.5), lasting(8, 16, 0.5)))
    by_hand = (np.log(0.7) + NAMED * (2 * np.log(0.5) + order)) / (1 + 3 * NAMED)
    assert reward(DOG_BELL, ear) == pytest.approx(by_hand)
    again = (("Dog",), ("Bell",), ("Dog",))  # a sound that is named twice is asked for once, and its orders are two
    assert np.isfinite(reward(again, ear))
    assert np.isnan(reward(None, ear))


def test_a_sound_is_no_extra_beside_its_kin() -> None:
    ear = Ear(Dog=lasting(0, 16, 0.5), Rain=lasting(0, 16, 0.9))
    kin = {"Dog": "pets", "Rain": "pets", "Bell": "bells"}
    assert score((("Dog",),), ear, kin=kin) == pytest.approx((0.5 * 0.98) ** 0.5)


def test_a_caption_without_a_known_sound_has_no_score() -> None:
    assert np.isnan(score(None, Ear()))


def test_scores_are_those_of_each_clip_alone_and_the_name_is_kept(tmp_path: Path) -> None:
    classes = ("Dog", "Bell", "Rain")
    save_tagger(tmp_path / "tagger", small_networks.network(classes=classes), small_networks.tagger_config(classes))
    name = f"events:{tmp_path / 'tagger'}"
    scorer, rng = load.scorer(name), np.random.default_rng(0)
    clips = [Clip(rng.standard_normal(size).astype(np.float32) / 9, 16000) for size in (9000, 16000, 9000)]
    texts = ["a dog barks", "a bell rings then rain falls", "a cat meows"]
    with pytest.raises(KeyError, match="Cat"):
        scorer.score(clips, texts)
    scores = scorer.score(clips[:2], texts[:2])
    assert scorer.name == name
    for place in (0, 1):
        assert scorer.score([clips[place]], [texts[place]])[0] == pytest.approx(scores[place], rel=1e-5)
    assert load.fingerprint(name) != load.fingerprint(str(tmp_path / "tagger"))
    assert load.tagger_of("nano-events") == "nano-tagger-b"
    assert load.tagger_of("nano-clap-a") == ""


@pytest.mark.parametrize("scorer", ["nano-judge", "events:nano-tagger"])
def test_what_measures_may_not_reward(scorer: str) -> None:
    text = 'name = "x"\ntrain.pairs = ["pairs"]\n[models]\nscorers = ["nano-clap-a", "{}"]\n'
    with pytest.raises(RecipeError) as error:
        parse_recipe(text.format(scorer), "x.toml")
    assert f'models.scorers: "{scorer}"' in str(error.value)
    assert "\n" not in str(error.value)
    assert parse_recipe(text.format("nano-events"), "x.toml").models.scorers[1] == "nano-events"


@pytest.mark.parametrize(
    ("caption", "scene"),
    [
        ("A dog barks and a man speaks", (("Dog", "Man speaking"),)),
        ("A woman sneezes, then laughs", (("Sneeze",), ("Laughter",))),
        ("A kid and a man talking as a clock is ticking followed by a kid laughing",
         (("Child speaking", "Man speaking", "Clock"), ("Laughter",))),
        ("A car honks several times after a child talks", (("Child speaking",), ("Vehicle horn",))),
        ("Pigs squeal while water splashes", (("Pig", "Water"),)),
        ("A train horn blows as a train passes", (("Train horn", "Train"),)),
        ("A man speaks, then a dog barks, then a man speaks", (("Man speaking", "Dog"),)),
        ("Someone chants something", None),
    ],
)  # fmt: skip
def test_captions_are_read_into_audiosets_sounds(caption: str, scene: Scene | None) -> None:
    assert audioset.read_sounds(caption) == scene


def test_every_sound_has_places_of_its_own_kin_and_words() -> None:
    assert len(set(audioset.SOUNDS)) == len(audioset.SOUNDS) == len(audioset.PLACES) == len(audioset.KIN)
    for places in audioset.PLACES:
        assert places
        assert 0 <= min(places) <= max(places) < 527


def test_windows_cover_a_clip_and_its_end() -> None:
    clip = Clip(np.arange(16000 * 45 // 10, dtype=np.float32), 16000)
    parts = audioset.windows(clip)
    assert [int(part.waveform[0]) for part in parts] == [0, 16000, 32000, 40000]
    assert {len(part.waveform) for part in parts} == {32000}
    assert [len(part.waveform) for part in audioset.windows(Clip(clip.waveform[:9000], 16000))] == [9000]


def test_cnn14_is_a_tagger_of_audiosets_sounds_over_time(tmp_path: Path) -> None:
    network = Cnn14(FRONT_ENDS[16000], width=1)
    rng = np.random.default_rng(0)
    clips = [Clip(rng.standard_normal(size).astype(np.float32) / 9, 16000) for size in (48000, 8000)]
    tagger = audioset.AudioSetTagger(PannsEmbedder("small", network))
    rows = tagger.posteriors(clips)
    assert [row.shape for row in rows] == [(2, len(audioset.SOUNDS)), (1, len(audioset.SOUNDS))]
    _, logits = tagger.embedder.features(audioset.windows(clips[0]))
    dog = audioset.SOUNDS.index("Dog")
    np.testing.assert_allclose(rows[0][:, dog], 1 / (1 + np.exp(-logits[:, 74:81].max(axis=1))), rtol=1e-5)
    path = tmp_path / "cnn14.safetensors"
    save_file(network.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"cnn14\.safetensors"):  # of another width than the published
        load.scorer(f"events:{path}")
