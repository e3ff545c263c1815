"""CLAP scores: cosines that of one clip and one text alone, windows without chance, and folders that are broken."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_networks
import torch
from safetensors.torch import load_file, save_file
from small_networks import MEL, WORDS

from milonga.core.errors import CheckpointError, RecipeError
from milonga.core.records import Clip
from milonga.maths.mel import log_mel
from milonga.scorers.clap import ClapScorer, ReadingHead, load_clap, save_clap, window


def noise(seed: int, samples: int = 16384, gain: float = 0.1) -> Clip:
    wave = gain * np.random.default_rng(seed).standard_normal(samples)
    return Clip(wave.astype(np.float32), MEL.rate)


@pytest.fixture(scope="module")
def scorer() -> ClapScorer:
    return small_networks.scorer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = small_networks.scorer()
    save_clap(tmp_path / "clap", made.model, made.tokenizer, made.mel, made.frames)
    return tmp_path / "clap"


def test_scores_are_cosines_of_unit_norm_rows(scorer: ClapScorer) -> None:
    clips = [noise(n, gain=0.02 * 4**n) for n in range(4)]
    sounds, texts = scorer.embed_clips(clips), scorer.embed_texts(WORDS)
    assert sounds.shape == texts.shape == (4, 16)
    np.testing.assert_allclose(np.linalg.norm(sounds, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1.0, atol=1e-5)
    scores = scorer.score(clips, WORDS)
    assert np.abs(scores).max() <= 1
    np.testing.assert_allclose(scores, (sounds * texts).sum(axis=1), atol=1e-6)
    assert np.ptp(scores) > 1e-3


def test_a_score_is_the_same_alone_and_beside_others_of_any_length(scorer: ClapScorer) -> None:
    lengths = (16384, 4000, 40000, 16384, 7000)
    clips = [noise(n, length, 0.02 * 3**n) for n, length in enumerate(lengths)]
    texts = [WORDS[n % 2] for n in range(5)]
    together = scorer.score(clips, texts)
    for place in range(5):
        alone = scorer.score([clips[place]], [texts[place]])
        np.testing.assert_allclose(alone, together[place : place + 1], atol=1e-5)
    np.testing.assert_allclose(scorer.score(clips[::-1], texts[::-1]), together[::-1], atol=1e-5)


def test_a_score_depends_on_the_clip_and_on_the_words(scorer: ClapScorer) -> None:
    quiet, loud = noise(0, gain=0.01), noise(0, gain=0.3)
    scores = scorer.score([quiet, loud, quiet], [WORDS[0], WORDS[0], WORDS[1]])
    assert np.abs(np.diff(scores)).min() > 1e-3


def test_a_window_repeats_short_clips_and_keeps_the_beginning_of_long_ones() -> None:
    short = torch.arange(5.0).reshape(1, 5, 1)
    assert window(short, 12).flatten().tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert window(short, 5).flatten().tolist() == [0, 1, 2, 3, 4]
    assert window(short, 3).flatten().tolist() == [0, 1, 2]


def test_a_long_clip_is_judged_by_its_first_window_every_time(scorer: ClapScorer) -> None:
    long = noise(0, 60000)
    head = scorer.frames * MEL.hop
    other = Clip(np.concatenate([long.waveform[: head + MEL.fft], noise(1, 30000, 0.4).waveform]), MEL.rate)
    first = scorer.score([long], [WORDS[0]])
    assert np.array_equal(scorer.score([long], [WORDS[0]]), first)
    np.testing.assert_allclose(scorer.score([other], [WORDS[0]]), first, atol=1e-6)


def test_the_shortest_clips_and_the_longest_texts_have_a_score(scorer: ClapScorer) -> None:
    clips, texts = [noise(0, 10), Clip(np.zeros(16000, dtype=np.float32), MEL.rate)], ["a dog barks " * 200, ""]
    assert np.isfinite(scorer.score(clips, texts)).all()
    assert np.isfinite(scorer.score(clips[:1], texts[:1])).all()


def test_saved_in_half_precision_and_loaded_it_scores_the_same(folder: Path, scorer: ClapScorer) -> None:
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16}
    loaded = load_clap(folder, "mine")
    assert (loaded.name, loaded.mel, loaded.frames) == ("mine", scorer.mel, scorer.frames)
    assert not loaded.model.training
    texts = [*WORDS, "A Dog Barks, twice... and RINGS", ""]
    assert loaded.tokenizer(texts).input_ids == scorer.tokenizer(texts).input_ids
    clips = [noise(n, gain=0.02 * 4**n) for n in range(4)]
    np.testing.assert_allclose(loaded.score(clips, WORDS), scorer.score(clips, WORDS), atol=5e-3)


def spoil_front_end(folder: Path, value: object) -> None:
    (folder / "front_end.json").write_text(json.dumps(value))


def rename_a_key(folder: Path) -> None:
    path = folder / "model.safetensors"
    stored = load_file(path)
    save_file({key.replace("text_projection", "projection"): value for key, value in stored.items()}, path)


def widen(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"projection_dim": 16', '"projection_dim": 24'))


def truncate(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def forget_the_words(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


BROKEN = {
    "no front end": lambda folder: (folder / "front_end.json").unlink(),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no tokenizer": forget_the_words,
    "cut weights": lambda folder: truncate(folder, 0.6),
    "empty weights": lambda folder: truncate(folder, 0.0),
    "cut JSON": lambda folder: (folder / "config.json").write_text('{"model_type": "cl'),
    "cut front end": lambda folder: (folder / "front_end.json").write_text('{"mel"'),
    "empty front end": lambda folder: spoil_front_end(folder, {}),
    "a list for a front end": lambda folder: spoil_front_end(folder, [1]),
    "unknown mel setting": lambda folder: spoil_front_end(folder, {"mel": {"hops": 1}, "frames": 64}),
    "no frames": lambda folder: spoil_front_end(folder, {"mel": MEL.as_dict()}),
    "other keys": rename_a_key,
    "other shapes": widen,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_folder_is_told_in_one_line_that_names_it(folder: Path, how: str) -> None:
    BROKEN[how](folder)
    with pytest.raises(CheckpointError) as error:
        load_clap(folder, "broken")
    told = str(error.value)
    assert str(folder) in told
    assert "\n" not in told


def test_a_folder_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere holds no usable CLAP"):
        load_clap(tmp_path / "nowhere", "none")


def test_a_mel_picture_scores_as_the_waveform_that_it_is_of() -> None:
    scorer = small_networks.scorer(0)
    waves = [np.random.default_rng(seed).uniform(-0.5, 0.5, 16000).astype(np.float32) for seed in range(3)]
    clips = [Clip(wave, scorer.mel.rate) for wave in waves]
    mels = [log_mel(torch.from_numpy(wave)[None], scorer.mel)[0].numpy() for wave in waves]
    pictures = [
        Clip(wave[:0], scorer.mel.rate, mel=mel, mel_config=scorer.mel) for wave, mel in zip(waves, mels, strict=True)
    ]
    mixed = [pictures[0], clips[1], pictures[2]]
    texts = ["a dog", "rain", "a bell"]
    assert scorer.score(mixed, texts) == pytest.approx(scorer.score(clips, texts), abs=1e-6)
    assert pictures[0].seconds == pytest.approx(len(mels[0]) * scorer.mel.hop / scorer.mel.rate)
    with pytest.raises(RecipeError, match="its own mel front end alone"):
        scorer.score([replace(pictures[0], mel_config=replace(scorer.mel, hop=scorer.mel.hop // 2))], texts[:1])


def test_the_agreement_of_two_readings_is_added_and_ships_with_the_weights(scorer: ClapScorer, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    head = ReadingHead(rng.standard_normal((6, 16)).astype(np.float16), np.zeros(6, dtype=np.float16), 0.5)
    save_clap(tmp_path / "clap", copy.deepcopy(scorer.model), scorer.tokenizer, scorer.mel, scorer.frames, head)
    loaded = load_clap(tmp_path / "clap", "clap")
    audio, text = np.eye(16, dtype=np.float32)[:3], np.eye(16, dtype=np.float32)[[0, 1, 5]]
    probabilities = [
        1 / (1 + np.exp(-rows.astype(np.float64) @ head.matrix.T.astype(np.float64))) for rows in (audio, text)
    ]
    clips, wanted = probabilities
    expected = (wanted * np.log(clips) + (1 - wanted) * np.log(1 - clips)).mean(axis=1)
    np.testing.assert_allclose(loaded.compare(audio, text), (audio * text).sum(axis=1) + 0.5 * expected, rtol=1e-4)
    assert scorer.head is None
    np.testing.assert_allclose(scorer.compare(audio, text), (audio * text).sum(axis=1))
