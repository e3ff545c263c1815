"""What is heard in a clip belongs to that clip, whatever the batches, and survives the run folder."""

from pathlib import Path

import numpy as np
import pytest
import small_networks

from milonga.core.records import Clip, Prompt
from milonga.core.store import Run
from milonga.evaluation.hear import Heard, hear

PROMPTS = [Prompt.of(text, "test") for text in small_networks.WORDS] + [Prompt.of("a dog barks twice", "test")]


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    rng = np.random.default_rng(0)
    waves = [0.02 * 2**n * rng.standard_normal(16384 + 4096 * (n % 2)) for n in range(len(PROMPTS))]
    return [Clip(wave.astype(np.float32), 16000) for wave in waves]


def heard_in(clips: list[Clip], prompts: list[Prompt], batch: int) -> list[Heard]:
    judge, tagger = small_networks.scorer(), small_networks.tagger()
    return hear([f"clip-{p.id}" for p in prompts], prompts, clips, judge, tagger, batch)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches_do_not_change_what_is_heard(clips: list[Clip], batch: int) -> None:
    whole, parts = heard_in(clips, PROMPTS, 100), heard_in(clips, PROMPTS, batch)
    for first, second in zip(whole, parts, strict=True):
        assert (first.id, first.prompt_id, first.events) == (second.id, second.prompt_id, second.events)
        assert first.clap == pytest.approx(second.clap, abs=1e-5)
        np.testing.assert_allclose(first.embedding, second.embedding, atol=1e-5)
        np.testing.assert_allclose(first.logits, second.logits, atol=1e-5)


def test_each_record_is_of_its_own_clip_and_prompt(clips: list[Clip]) -> None:
    judge, tagger = small_networks.scorer(), small_networks.tagger()
    for row, prompt, clip in zip(heard_in(clips, PROMPTS, 2), PROMPTS, clips, strict=True):
        assert (row.id, row.prompt_id) == (f"clip-{prompt.id}", prompt.id)
        assert row.clap == pytest.approx(float(judge.score([clip], [prompt.text])[0]), abs=1e-5)
        assert list(row.events) == tagger.detect([clip])[0]
        np.testing.assert_allclose(row.logits, tagger.features([clip])[1][0], atol=1e-5)
        np.testing.assert_allclose(row.embedding, tagger.features([clip])[0][0], atol=1e-5)


def test_nothing_heard_in_no_clips() -> None:
    assert heard_in([], [], 4) == []


def test_what_was_heard_comes_back_from_the_run_folder(clips: list[Clip], tmp_path: Path) -> None:
    rows = heard_in(clips, PROMPTS, 4)
    rows[0] = rows[0].model_copy(update={"clap": float("nan"), "events": ()})
    shards = Run(tmp_path).stage("heard/base")
    shards.write_records("a", rows, Heard)
    back = shards.read_records(Heard)
    assert back[1:] == rows[1:]
    assert np.isnan(back[0].clap)
    assert back[0].events == ()
