"""Features belong to their clip, whatever the batches, and survive the run folder."""

from pathlib import Path

import numpy as np
import pytest
import small_networks

from milonga.core.records import Clip, Prompt
from milonga.core.store import Run
from milonga.evaluation.features import ClipFeatures, extract_features, is_clipped, is_silent, load_features

PROMPTS = [Prompt.of(text, "test") for text in small_networks.WORDS] + [Prompt.of("a dog barks twice", "test")]


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    rng = np.random.default_rng(0)
    waves = [0.02 * 2**n * rng.standard_normal(16384 + 4096 * (n % 2)) for n in range(len(PROMPTS))]
    return [Clip(wave.astype(np.float32), 16000) for wave in waves]


def features_of(clips: list[Clip], prompts: list[Prompt], batch: int) -> list[ClipFeatures]:
    judge, tagger = small_networks.scorer(), small_networks.tagger()
    return extract_features([f"clip-{p.id}" for p in prompts], prompts, clips, judge, tagger, batch)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches_do_not_change_features(clips: list[Clip], batch: int) -> None:
    whole, parts = features_of(clips, PROMPTS, 100), features_of(clips, PROMPTS, batch)
    for first, second in zip(whole, parts, strict=True):
        assert (first.id, first.prompt_id, first.events) == (second.id, second.prompt_id, second.events)
        assert first.clap == pytest.approx(second.clap, abs=1e-5)
        np.testing.assert_allclose(first.embedding, second.embedding, atol=1e-5)
        np.testing.assert_allclose(first.logits, second.logits, atol=1e-5)


def test_each_record_is_of_its_own_clip_and_prompt(clips: list[Clip]) -> None:
    judge, tagger = small_networks.scorer(), small_networks.tagger()
    for row, prompt, clip in zip(features_of(clips, PROMPTS, 2), PROMPTS, clips, strict=True):
        assert (row.id, row.prompt_id) == (f"clip-{prompt.id}", prompt.id)
        assert row.clap == pytest.approx(float(judge.score([clip], [prompt.text])[0]), abs=1e-5)
        assert list(row.events) == tagger.detect([clip])[0]
        np.testing.assert_allclose(row.logits, tagger.features([clip])[1][0], atol=1e-5)
        np.testing.assert_allclose(row.embedding, tagger.features([clip])[0][0], atol=1e-5)


def test_no_clips_have_no_features() -> None:
    assert features_of([], [], 4) == []


def test_features_come_back_from_the_run_folder(clips: list[Clip], tmp_path: Path) -> None:
    rows = features_of(clips, PROMPTS, 4)
    rows[0] = rows[0].model_copy(update={"clap": float("nan"), "events": ()})
    shards = Run(tmp_path).stage("features/base")
    shards.write_records("a", rows, ClipFeatures)
    back = shards.read_records(ClipFeatures)
    assert back[1:] == rows[1:]
    assert np.isnan(back[0].clap)
    assert back[0].events == ()
    columns = load_features(Run(tmp_path), "base").columns
    assert columns["clap"][rows[1].prompt_id] == rows[1].clap
    np.testing.assert_array_equal(columns["logits"][rows[1].prompt_id], rows[1].logits)


def test_silence_and_clipping_are_of_the_samples() -> None:
    wave = np.zeros((100, 2), np.float32)
    assert is_silent(wave)
    wave[10:12, 1] = 1
    assert not is_silent(wave)
    assert not is_clipped(wave)
    wave[12, 0] = 1  # another channel is no longer run
    assert not is_clipped(wave)
    wave[12, 1] = -1
    assert is_clipped(wave)
    assert not is_clipped(wave[10:12])
