"""Audio comes back as it went out, to half a 16-bit step, and nothing is ever wrapped or silently repaired."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from milonga.core.audio import flac_bytes, from_flac, read_audio, read_tags, resample, to_int16, write_audio
from milonga.core.errors import AudioError
from milonga.core.records import Clip

RATE = 16000
WAVES = arrays(np.float32, st.integers(1, 300), elements=st.floats(-1.5, 1.5, width=32))


def tone(hertz: float = 440.0, rate: int = RATE, seconds: float = 1.0) -> Clip:
    time = np.arange(int(rate * seconds)) / rate
    return Clip((0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32), rate)


@settings(deadline=None)
@given(WAVES, st.sampled_from([16, 24]))
def test_flac_keeps_a_clip_to_half_a_step(wave, bits):
    once, full = from_flac(flac_bytes(Clip(wave, RATE), bits)), 2 ** (bits - 1)
    assert once.rate == RATE
    assert once.waveform.dtype == np.float32
    np.testing.assert_allclose(once.waveform, np.clip(wave, -1, (full - 1) / full), atol=0.5 / full + 1e-7)
    assert np.array_equal(from_flac(flac_bytes(once, bits)).waveform, once.waveform)


def test_samples_are_rounded_and_clipped_never_wrapped():
    wave = np.array([0.0, 0.9 / 32768, -0.9 / 32768, 1.0, 3.0, -1.0, -3.0])
    assert to_int16(wave).tolist() == [0, 1, -1, 32767, 32767, -32768, -32768]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_a_number_is_refused(bad, tmp_path):
    with pytest.raises(AudioError, match="NaN or infinite"):
        write_audio(tmp_path / "x.wav", Clip(np.array([0.0, bad], np.float32), RATE))
    assert not list(tmp_path.iterdir())


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([".wav", ".flac", ".WAV"]),
    st.dictionaries(st.sampled_from(["prompt", "seed", "model", "words"]), st.text(max_size=40)),
)
def test_tags_say_what_made_the_file(suffix, comment):
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"clip{suffix}"
        write_audio(path, tone(seconds=0.01), comment)
        assert read_tags(path) == comment
        assert np.array_equal(read_audio(path).waveform, from_flac(flac_bytes(tone(seconds=0.01))).waveform)


def test_the_prompt_is_the_title(tmp_path):
    write_audio(tmp_path / "x.flac", tone(), {"prompt": "a dog barks"})
    with soundfile.SoundFile(tmp_path / "x.flac") as file:
        assert file.title == "a dog barks"
        assert file.subtype == "PCM_16"


def test_long_tags_are_whole_where_the_format_allows_and_else_cut_at_a_character(tmp_path):
    for length in (1900, 100_000):
        write_audio(tmp_path / "x.flac", tone(), {"prompt": "e" * length})
        assert len(read_tags(tmp_path / "x.flac")["prompt"]) == length
    write_audio(tmp_path / "x.wav", tone(seconds=0.01), {"prompt": "e" * 1900})
    assert len(read_tags(tmp_path / "x.wav")["prompt"]) == 1900
    for text in ("e" * 2000, "狗叫，" * 150, "狗叫，" * 10_000, '"' * 5000, "\x01" * 5000, "🐕" * 2000):
        write_audio(tmp_path / "y.wav", tone(seconds=0.01), {"prompt": text, "seed": "7"})
        tags = read_tags(tmp_path / "y.wav")
        beginning = tags["prompt"].removesuffix(" […]")
        assert text.startswith(beginning)
        assert len(beginning.encode()) >= min(200, len(text.encode()))
        assert tags["seed"] == "7"
        assert (beginning == text) == (not tags["prompt"].endswith(" […]"))
    write_audio(tmp_path / "y.wav", tone(seconds=0.01), {"prompt": "a", "model": "m" * 9000})
    assert read_tags(tmp_path / "y.wav")["prompt"] == "a"
    assert read_tags(tmp_path / "y.wav")["model"].endswith("m […]")


def test_foreign_tags_are_not_ours(tmp_path):
    with soundfile.SoundFile(tmp_path / "x.wav", "w", RATE, 1) as file:
        file.comment = "made by hand"
        file.write(np.zeros(10))
    assert read_tags(tmp_path / "x.wav") == {}


def test_channels_become_their_mean_and_the_rate_what_is_asked(tmp_path):
    clip = tone(rate=44100)
    soundfile.write(tmp_path / "x.wav", np.stack([clip.waveform, 0 * clip.waveform], axis=1), 44100, subtype="FLOAT")
    read = read_audio(tmp_path / "x.wav", RATE)
    assert read.rate == RATE
    assert len(read.waveform) == RATE
    middle = slice(1000, -1000)
    np.testing.assert_allclose(read.waveform[middle], tone().waveform[middle] / 2, atol=1e-3)
    same = tone()
    assert resample(same, RATE) is same


def test_what_cannot_be_read_is_told_in_one_line(tmp_path):
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "nan.wav", np.array([np.nan, 0.0]), RATE, subtype="FLOAT")
    cases = {"missing.wav": "no such", "text.wav": "cannot be read", "empty.wav": "empty", "nan.wav": "NaN"}
    for name, reason in cases.items():
        with pytest.raises(AudioError, match=reason) as caught:
            read_audio(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(AudioError, match="cannot be read"):
        read_tags(tmp_path / "text.wav")


def test_a_truncated_flac_is_an_audio_error():
    with pytest.raises(AudioError, match="cannot be read"):
        from_flac(flac_bytes(tone())[:20])


def test_other_formats_shapes_and_nothing_are_refused(tmp_path):
    with pytest.raises(AudioError, match=r"\.wav or \.flac"):
        write_audio(tmp_path / "x.mp3", tone())
    with pytest.raises(AudioError, match="shape"):
        write_audio(tmp_path / "x.wav", Clip(np.zeros((2, 10), np.float32), RATE))
    with pytest.raises(AudioError, match="empty"):
        write_audio(tmp_path / "x.wav", Clip(np.zeros(0, np.float32), RATE))
