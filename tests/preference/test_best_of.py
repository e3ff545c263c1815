"""The best of N in Python: ranks by the mean z-score, names and objects alike."""

import numpy as np
import pytest
from fake_parts import LoudScorer, NoiseModel

import milonga
from milonga.core.errors import DataError, RecipeError
from milonga.core.records import Clip
from milonga.core.weights import SELECTORS
from milonga.preference.candidates import rank_clips, search_scorers


def test_clips_come_back_best_first_and_are_those_of_the_seed():
    scorers = [LoudScorer("one"), LoudScorer("two")]
    ranked = milonga.best_of("rain  falls", NoiseModel(), n=6, scorers=scorers, steps=4, guidance=1.0, batch_size=4)
    assert [row.rank for row in ranked] == [1, 2, 3, 4, 5, 6]
    assert (np.diff([row.score for row in ranked]) <= 0).all()
    again = milonga.best_of("rain falls", NoiseModel(), n=6, scorers=scorers, steps=4, guidance=1.0, batch_size=1)
    assert [(row.number, row.scores) for row in again] == [(row.number, row.scores) for row in ranked]
    np.testing.assert_array_equal(again[0].clip.waveform, ranked[0].clip.waveform)
    fewer = milonga.best_of("rain falls", NoiseModel(), n=2, scorers=scorers, steps=4, guidance=1.0)
    own = {row.number: row.clip.waveform for row in ranked}
    for row in fewer:
        np.testing.assert_array_equal(row.clip.waveform, own[row.number])


@pytest.mark.slow
def test_nano_needs_no_names_and_a_pipeline_brings_its_sampling():
    pipe = milonga.load("nano")
    by_name = milonga.best_of("a dog barks", n=2, steps=1, guidance=1.0)
    by_object = milonga.best_of("a dog barks", pipe, n=2, scorers=list(SELECTORS), steps=1, guidance=1.0)
    assert [row.number for row in by_name] == [row.number for row in by_object]
    again = pipe("a dog barks", seeds=0, num_waveforms_per_prompt=2, num_inference_steps=1, guidance_scale=1.0).audios
    for row in by_name:
        np.testing.assert_allclose(row.clip.waveform, again[row.number], atol=1e-4)
    with pytest.raises(RecipeError, match="has no steps and guidance of its own: give both"):
        milonga.best_of("rain", NoiseModel(), scorers=[LoudScorer("one")])


def test_nano_scorers_are_for_nano_alone(tmp_path):
    assert search_scorers("nano", ()) == ("nano-clap-a", "nano-clap-b", "nano-events")
    for model in ("someone/foreign", "my.module:Class@folder", NoiseModel()):
        with pytest.raises(RecipeError, match="name the scorers that choose among clips of"):
            search_scorers(model, ())
        assert search_scorers(model, ["nano-clap-a"]) == ["nano-clap-a"]
    with pytest.raises(DataError, match="the prompt is empty"):
        milonga.best_of(" ")
    with pytest.raises(RecipeError, match="n and batch_size must be at least 1"):
        milonga.best_of("rain", n=0)


def test_equal_clips_keep_their_order_and_an_unscored_one_comes_last():
    clips = [Clip(np.zeros(2, np.float32), 8000)] * 4
    ranked = rank_clips(clips, [{"a": value} for value in (float("nan"), 1.0, 2.0, 2.0)])
    assert [row.number for row in ranked] == [2, 3, 1, 0]
    assert np.isnan(ranked[-1].score)
