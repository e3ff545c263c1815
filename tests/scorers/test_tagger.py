"""The tagger: shapes, what counts as an event, answers that do not depend on the batch, and folders that are broken."""

import json
from pathlib import Path

import numpy as np
import pytest
import small_networks
import torch
from safetensors.torch import load_file, save_file
from small_networks import CLASSES, MEL

from milonga.core.errors import CheckpointError
from milonga.core.records import Clip
from milonga.scorers.tagger import EventTagger, events_of, load_tagger, save_tagger


def noise(seed: int, samples: int = 16384, gain: float = 0.1) -> Clip:
    wave = gain * np.random.default_rng(seed).standard_normal(samples)
    return Clip(wave.astype(np.float32), MEL.rate)


@pytest.fixture(scope="module")
def tagger() -> EventTagger:
    return small_networks.tagger()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tagger(tmp_path / "tagger", small_networks.network(), small_networks.tagger_config())
    return tmp_path / "tagger"


def test_shapes_frames_are_a_quarter_of_the_mels(tagger: EventTagger) -> None:
    network, mels = tagger.network, torch.randn(2, 64, MEL.bands)
    with torch.no_grad():
        assert network(mels).shape == (2, 16, 3)
        assert network.hidden(mels).shape == (2, 16, 6)
        embeddings, logits = network.embed(mels)
        assert (embeddings.shape, logits.shape) == ((2, 6), (2, 3))
        frames = network.hidden(mels)
        torch.testing.assert_close(embeddings, frames.mean(1) + frames.amax(1))
        torch.testing.assert_close(logits, network(mels).amax(1))


def test_posteriors_are_probabilities_and_features_their_logits(tagger: EventTagger) -> None:
    clips = [noise(0), noise(1)]
    posteriors, (embeddings, logits) = np.array(tagger.posteriors(clips)), tagger.features(clips)
    assert posteriors.shape == (2, 16, 3)
    assert embeddings.shape == (2, 6)
    assert posteriors.min() >= 0
    assert posteriors.max() <= 1
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), posteriors.max(axis=1), atol=1e-6)


def posterior(**columns: list[float]) -> np.ndarray:
    length = len(next(iter(columns.values())))
    return np.array([columns.get(label, [0.0] * length) for label in CLASSES]).T


def test_an_event_lasts_from_the_first_to_the_last_frame_at_half_of_its_maximum() -> None:
    (event,) = events_of(posterior(Bell=[0.1, 0.39, 0.4, 0.8, 0.1, 0.4, 0.3, 0.0]), CLASSES, 4.0, 0.5)
    assert (event.label, event.onset, event.offset) == ("Bell", 1.0, 3.0)


def test_only_what_reaches_the_threshold_is_an_event() -> None:
    frames = posterior(Dog=[0.49, 0.0], Bell=[0.0, 0.5], Rain=[0.9, 0.9])
    assert [event.label for event in events_of(frames, CLASSES, 1.0, 0.5)] == ["Rain", "Bell"]
    assert events_of(frames, CLASSES, 1.0, 0.95) == []


def test_events_come_in_order_of_onset_then_of_name() -> None:
    frames = posterior(Dog=[0.0, 0.9, 0.9], Bell=[0.0, 0.6, 0.0], Rain=[0.9, 0.0, 0.0])
    assert [event.label for event in events_of(frames, CLASSES, 3.0, 0.5)] == ["Rain", "Bell", "Dog"]


def test_an_event_of_every_frame_fills_the_clip() -> None:
    (event,) = events_of(posterior(Dog=[0.9] * 7), CLASSES, 4.096, 0.5)
    assert event.onset == 0.0
    assert event.offset == pytest.approx(4.096)


def test_a_clip_is_heard_the_same_alone_and_beside_others_of_any_length(tagger: EventTagger) -> None:
    clips = [noise(0), noise(1, 32768), noise(2, 16384, 0.5), noise(3, 20000), noise(4, 32768)]
    embeddings, logits = tagger.features(clips)
    heard = tagger.detect(clips)
    assert np.ptp(embeddings, axis=0).max() > 1e-3
    for place, clip in enumerate(clips):
        alone = tagger.features([clip])
        np.testing.assert_allclose(embeddings[place], alone[0][0], atol=1e-5)
        np.testing.assert_allclose(logits[place], alone[1][0], atol=1e-5)
        assert tagger.detect([clip]) == [heard[place]]


def test_the_shortest_clip_is_heard(tagger: EventTagger) -> None:
    assert len(tagger.detect([noise(0, 10)])) == 1
    assert np.isfinite(tagger.features([noise(0, 10)])[0]).all()


def test_a_clip_at_another_rate_is_resampled(tagger: EventTagger) -> None:
    wave = 0.3 * np.sin(2 * np.pi * 600 * np.arange(2 * 16384) / (2 * MEL.rate)).astype(np.float32)
    twice, once = Clip(wave, 2 * MEL.rate), Clip(wave[::2].copy(), MEL.rate)
    np.testing.assert_allclose(tagger.features([twice])[1], tagger.features([once])[1], atol=0.02)


def test_saved_in_half_precision_and_loaded_it_hears_the_same(folder: Path, tagger: EventTagger) -> None:
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    loaded, clips = load_tagger(folder, "mine"), [noise(0), noise(1)]
    assert (loaded.name, loaded.classes, loaded.mel, loaded.threshold) == ("mine", CLASSES, MEL, 0.5)
    assert not loaded.network.training
    assert {value.dtype for value in loaded.network.parameters()} == {torch.float32}
    np.testing.assert_allclose(loaded.posteriors(clips), tagger.posteriors(clips), atol=2e-3)


def spoil_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(folder: Path, key: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))


def rename_a_key(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({key.replace("answer", "reply"): value for key, value in load_file(path).items()}, path)


def truncate(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


BROKEN = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "cut weights": lambda folder: truncate(folder, 0.6),
    "empty weights": lambda folder: truncate(folder, 0.0),
    "cut JSON": lambda folder: (folder / "config.json").write_text('{"network": {'),
    "no object": lambda folder: (folder / "config.json").write_text("[1, 2]"),
    "no UTF-8": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{}"),
    "other keys": rename_a_key,
    "other shapes": lambda folder: spoil_config(folder, network=small_networks.tagger_config(("A",))["network"]),
    "unknown argument": lambda folder: spoil_config(folder, network={"layers": 3}),
    "unknown mel setting": lambda folder: spoil_config(folder, mel={"hops": 3}),
    "no mel": lambda folder: without(folder, "mel"),
    "no classes": lambda folder: without(folder, "classes"),
    "no threshold": lambda folder: without(folder, "threshold"),
    "too few classes": lambda folder: spoil_config(folder, classes=["Dog"]),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_folder_is_told_in_one_line_that_names_it(folder: Path, how: str) -> None:
    BROKEN[how](folder)
    with pytest.raises(CheckpointError) as error:
        load_tagger(folder, "broken")
    told = str(error.value)
    assert str(folder) in told
    assert "\n" not in told
    if how in ("no config", "no weights"):
        assert "is missing" in told


def test_a_folder_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.*is missing"):
        load_tagger(tmp_path / "nowhere", "none")
