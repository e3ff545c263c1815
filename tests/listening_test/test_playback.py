"""Loudness by the standard's own test signal, matched playback, the torn clip, and the headphone check's sounds."""

from io import BytesIO

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from small_test import PLAN, SYSTEMS, material

from milonga.core.audio import read_audio
from milonga.core.records import Clip
from milonga.listening_test import screening
from milonga.listening_test.material import (
    PEAK,
    TARGET,
    Source,
    amplified,
    anchor,
    broken,
    clip_file,
    make_test,
    playback_gain,
    played_loudness,
)
from milonga.maths.clip_view import loudness


def tone(level: float, rate: int = 48000, seconds: float = 3.0, hertz: float = 997.0) -> Clip:
    time = np.arange(round(seconds * rate)) / rate
    return Clip((10 ** (level / 20) * np.sin(2 * np.pi * hertz * time)).astype(np.float32), rate)


def test_a_full_scale_sine_in_one_channel_is_three_below_zero():
    """By ITU-R BS.1770-4 it reads −3.01 LKFS at 0 dBFS and 997 Hz; meters may differ by 0.1 (EBU Tech 3341)."""
    assert loudness(tone(0)) == pytest.approx(-3.01, abs=0.1)
    assert loudness(tone(-20)) == pytest.approx(-23.01, abs=0.1)


@settings(deadline=None, max_examples=15)
@given(st.floats(-50, 0), st.sampled_from([16000, 32000, 44100]), st.floats(0.1, 1.5))
def test_whatever_the_level_all_are_played_alike(level, rate, seconds):
    clip = tone(level, rate, seconds)
    played = amplified(clip, playback_gain(clip, loudness(clip)))
    assert loudness(played) == pytest.approx(TARGET, abs=0.05)


def test_a_clip_as_short_as_its_block_has_a_loudness():
    clip = tone(0, 44100, 14470 / 44100)  # a length whose seconds, times the rate, come out above it
    assert loudness(clip) == pytest.approx(-3.0, abs=0.2)


def test_clicks_are_not_made_to_clip():
    wave = np.zeros(32000, dtype=np.float32)
    wave[::8000] = 0.2
    clip = Clip(wave, 16000)
    gain = playback_gain(clip, loudness(clip))
    assert np.abs(amplified(clip, gain).waveform).max() == pytest.approx(10 ** (PEAK / 20), rel=1e-5)


def test_silence_stays_silence():
    clip = Clip(np.zeros(16000, dtype=np.float32), 16000)
    assert loudness(clip) is None
    assert playback_gain(clip, None) == 0
    assert np.abs(broken(clip, 1).waveform).max() < 2e-3


def test_a_torn_clip_is_as_long_repeats_with_its_seed_and_is_not_the_clip():
    clip = tone(-10, 16000, 1.0, 440)
    torn = broken(clip, 3)
    assert torn.waveform.shape == clip.waveform.shape
    assert np.array_equal(torn.waveform, broken(clip, 3).waveform)
    assert not np.array_equal(torn.waveform, broken(clip, 4).waveform)
    assert abs(np.corrcoef(torn.waveform, clip.waveform)[0, 1]) < 0.5
    assert (np.abs(torn.waveform) < 2e-3).mean() > 0.3
    assert (torn.waveform == 0).mean() == 0  # a program could count exact zeros


def test_the_quiet_tone_is_six_decibels_down_and_one_is_opposite_in_the_ears():
    for item in range(screening.TONE_ITEMS):
        samples, rate = soundfile.read(BytesIO(screening.tones(1, 2, item)))
        starts = [round(place * (screening.SECONDS + screening.PAUSE) * rate) for place in range(3)]
        parts = [samples[start : start + round(screening.SECONDS * rate)] for start in starts]
        levels = [20 * np.log10(np.sqrt(np.square(part[:, 0]).mean())) for part in parts]
        right = screening.tone_answer(1, 2, item) - 1
        others = [place for place in range(3) if place != right]
        assert levels[others[0]] == pytest.approx(levels[others[1]], abs=0.05)
        assert levels[right] - levels[others[0]] == pytest.approx(-6, abs=0.05)
        summed = [np.abs(part.sum(1)).max() for part in parts]
        assert min(summed) < 1e-3  # what cancels between loudspeakers
        assert summed[right] > 0.1


def test_answers_differ_between_raters_and_items_and_are_all_used():
    answers = [[screening.tone_answer(1, rater, item) for item in range(6)] for rater in range(30)]
    assert len(set(map(tuple, answers))) > 25
    assert {one for row in answers for one in row} == {1, 2, 3}


def test_the_clips_of_a_prompt_are_equally_loud_whatever_their_peaks(tmp_path):
    """One system's clips are clicks that stay quiet: the whole prompt follows, and no system is louder."""
    rng, (prompts, sources) = np.random.default_rng(0), material(8, seconds=1.0)
    for place, prompt in enumerate(prompts):
        if place % 2:
            wave = 0.001 * rng.normal(size=16000)
            wave[::4000] = 0.9
            sources["zebra-sft"][prompt.id] = Source(Clip(wave.astype(np.float32), 16000))
    test = make_test(tmp_path / "test", PLAN, prompts, sources)
    played = {clip.id: loudness(read_audio(clip_file(tmp_path / "test", clip))) for clip in test.clips}
    by_prompt = [[played[test.clip(prompt.id, system).id] or 0.0 for system in SYSTEMS] for prompt in test.prompts]
    assert max(max(levels) - min(levels) for levels in by_prompt) <= 0.1
    assert min(min(levels) for levels in by_prompt) < TARGET - 3  # of clicks
    assert np.ptp(np.mean(by_prompt, axis=0)) <= 0.1
    for system, level, distance in played_loudness(test):
        own = [played[clip.id] for clip in test.clips if clip.system == system]
        assert level == pytest.approx(np.mean(own), abs=0.05)
        assert distance <= 0.01


def test_an_anchor_has_no_treble_and_the_rest_of_the_sound():
    low, high = tone(-10, hertz=1000.0), tone(-10, hertz=8000.0)
    assert np.square(anchor(low).waveform).mean() == pytest.approx(np.square(low.waveform).mean(), rel=0.01)
    assert np.square(anchor(high).waveform).mean() < 1e-5 * np.square(high.waveform).mean()
