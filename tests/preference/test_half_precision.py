"""Half precision of the scorers that rank candidates: close to float32, and never of a mel picture."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from milonga.core.records import Clip
from milonga.data.captions import reference, world_prompts
from milonga.maths.devices import autocast, full_precision
from milonga.maths.mel import MelSettings, log_mel
from milonga.preference.candidates import score_clips
from milonga.scorers.load import scorer, tagger

PROMPTS = world_prompts("train", 8)
CPU = torch.device("cpu")


@pytest.mark.slow
def test_scores_in_bf16_are_those_in_float32_but_for_rounding() -> None:
    """Of real clips with their own words and with the next clip's."""
    clips = [reference(prompt) for prompt in PROMPTS] * 2
    texts = [prompt.text for prompt in PROMPTS]
    texts += texts[1:] + texts[:1]
    scorers = [scorer("nano-clap-a"), scorer("nano-events")]
    exact, half = (score_clips(clips, texts, scorers, 16, precision) for precision in ("fp32", "bf16"))
    for one in scorers:
        before, after = (np.array([row[one.name] for row in rows]) for rows in (exact, half))
        assert not np.array_equal(before, after)  # it ran in bf16
        assert np.corrcoef(before, after)[0, 1] > 0.999
        assert np.abs(after - before).max() < 0.05 * np.ptp(before)


@pytest.mark.slow
def test_rows_and_posteriors_leave_an_autocast_as_float32() -> None:
    clips = [reference(prompt) for prompt in PROMPTS[:2]]
    clap, hearing = scorer("nano-clap-a"), tagger("nano-tagger")
    with autocast(CPU, "bf16"):
        sounds, words = clap.embed_clips(clips), clap.embed_texts(["a dog barks"])
        posteriors, (embeddings, logits) = hearing.posteriors(clips), hearing.features(clips)
    for rows in (sounds, words, embeddings, logits, *posteriors):
        assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([sounds, words]), axis=1), 1.0, atol=1e-6)


def test_a_mel_picture_is_the_same_within_an_autocast() -> None:
    wave = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    alone = log_mel(wave, MelSettings())
    with autocast(CPU, "bf16"):
        assert torch.equal(log_mel(wave, MelSettings()), alone)
        with full_precision(CPU):
            assert (wave @ wave.T).dtype == torch.float32
        assert (wave @ wave.T).dtype == torch.bfloat16


def test_silence_has_a_score_in_bf16() -> None:
    silence = Clip(np.zeros(64000, np.float32), 16000)
    assert np.isfinite(score_clips([silence], ["rain falls"], [scorer("nano-clap-a")], 1, "bf16")[0]["nano-clap-a"])


def test_half_precision_is_where_the_scorers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with `workers.device = "cpu"` on a machine with a GPU."""

    class Watching:
        name, half = "watching", False

        def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
            self.half = torch.is_autocast_enabled("cpu")
            return np.zeros(len(clips))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    watching = Watching()
    score_clips([Clip(np.zeros(16, np.float32), 16000)], ["rain"], [watching], 1, "bf16", "cpu")
    assert watching.half
