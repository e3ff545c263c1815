"""Odd sound files: cut off, of absurd rates, too loud, too long. Each is read right or refused by name."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.core.audio import RATES, beginning, from_flac, read_audio, read_channels, resample
from milonga.core.errors import AudioError
from milonga.core.records import Clip

RATE = 16000
NOISE = (0.3 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)


def written(path: Path, samples: np.ndarray = NOISE, rate: int = RATE, **how) -> Path:
    soundfile.write(path, samples, rate, **how)
    return path


def with_length(path: Path, length: int) -> Path:
    """The file with another length in the header of its audio."""
    data = bytearray(written(path, subtype="PCM_16").read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = length.to_bytes(4, "little")
    path.write_bytes(data)
    return path


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 31_998), st.sampled_from(["x.wav", "x.aiff", "x.flac"]))
def test_a_file_that_is_cut_off_is_refused(tmp_path_factory, missing, name):
    path = written(tmp_path_factory.mktemp("cut") / name, subtype="PCM_16")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - missing - 2])
    with pytest.raises(AudioError, match=r"is cut off: it holds|cannot be read as audio|the audio is empty") as error:
        read_audio(path)
    assert str(path) in str(error.value)
    with pytest.raises(AudioError):
        from_flac(path.read_bytes())


ENCODED = [("x.flac", {}), ("x.ogg", {}), ("x.opus", {"format": "OGG", "subtype": "OPUS"}), ("x.mp3", {})]
ENCODED += [("x.wav", {"format": kind}) for kind in ("RF64", "W64", "AU")]


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.sampled_from(ENCODED), st.sampled_from([8000, 16000, 48000]), st.floats(0.02, 0.999))
def test_any_share_of_an_encoded_file_is_refused(tmp_path_factory, kind, rate, share):
    name, how = kind
    path = written(tmp_path_factory.mktemp("cut") / name, rate=rate, **how)
    data = path.read_bytes()
    assert len(read_audio(path).waveform) == len(from_flac(data).waveform) == RATE
    path.write_bytes(data[: round(share * len(data))])
    for read in (lambda: read_audio(path), lambda: from_flac(path.read_bytes()), lambda: read_channels(path, "x")):
        with pytest.raises(AudioError, match=r"is cut off|cannot be read as audio|is empty"):
            read()


def test_an_ogg_that_ends_with_a_page_is_cut_off_too(tmp_path):
    data = written(tmp_path / "x.ogg", np.tile(NOISE, 8)).read_bytes()
    (tmp_path / "y.ogg").write_bytes(data[: data.rindex(b"OggS")])
    with pytest.raises(AudioError, match=r"y\.ogg: the audio is cut off: its last Ogg page does not end the stream"):
        read_audio(tmp_path / "y.ogg")


def test_an_mp3_is_read_whole_whatever_stands_around_it(tmp_path):
    data = written(tmp_path / "x.mp3").read_bytes()
    for other in (data + b"TAG" + b" " * 125, data + bytes(300), b"ID3\3\0\0\0\0\0\x0a" + bytes(10) + data):
        (tmp_path / "y").write_bytes(other)  # libsndfile knows an MP3 without a tag by its suffix alone
        assert len(read_audio(tmp_path / "y").waveform) == len(from_flac(other).waveform) == RATE


def test_an_mp3_of_variable_bitrate_without_an_index_is_not_read_short(tmp_path):
    """libsndfile guesses its length from the first frames, and leaves out the rest."""
    path = tmp_path / "x.mp3"
    soundfile.write(path, np.concatenate([NOISE, np.zeros(4 * RATE), NOISE]), RATE, bitrate_mode="VARIABLE")
    data = path.read_bytes()
    path.write_bytes(data[data.index(data[:2], 2) :])
    with pytest.raises(
        AudioError, match=r"holds \d+ of \d+ samples; fetch it again; it may be an MP3 without an index"
    ):
        read_audio(path)


@pytest.mark.parametrize("seconds", [1, 100])
def test_an_mp3_of_one_bitrate_without_an_index_is_read_whole(seconds, tmp_path):
    """Frames of silence, 128 kbit/s at 44.1 kHz: 417.96 bytes each on average."""
    frames, size = seconds * 44100 // 1152, 417 + 47 / 49
    pads = [int((n + 1) * size) - int(n * size) - 417 for n in range(frames)]
    data = b"".join(bytes([0xFF, 0xFB, 0x90 | pad << 1, 0x64]) + bytes(413 + pad) for pad in pads)
    (tmp_path / "x.mp3").write_bytes(data)
    assert len(read_audio(tmp_path / "x.mp3").waveform) == len(from_flac(data).waveform) == frames * 1152
    with pytest.raises(AudioError, match="it ends before its last MP3 frame does"):
        from_flac(data[: len(data) // 2 - 100])


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(st.integers(0, 2**31), st.sampled_from([{}, {"subtype": "OPUS"}]))
def test_a_damaged_ogg_is_refused_wherever_the_damage_is(tmp_path_factory, place, how):
    """The decoder passes over a page with a wrong checksum, and the clip would be shorter by it without a word."""
    path = written(tmp_path_factory.mktemp("ogg") / "x.ogg", np.tile(NOISE, 8), **how)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"x\.ogg: (the audio is (damaged|cut off)|cannot be read)"):
        read_audio(path)


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.ogg", "x.mp3"])
def test_what_is_not_used_of_a_long_file_is_not_decoded(name, tmp_path, monkeypatch):
    path, blocks, plain = written(tmp_path / name, np.tile(NOISE, 3)), [], soundfile.SoundFile.read
    every = read_channels(path, "x")[0]

    def counted(file, *arguments, **options):
        blocks.append(file.tell())
        return plain(file, *arguments, **options)

    monkeypatch.setattr("milonga.core.audio.BLOCK", 1000)
    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    assert np.array_equal(read_channels(path, "x", 1.5)[0], every[: 3 * RATE // 2])
    assert len(blocks) == 24
    assert np.array_equal(read_channels(path, "x", 9)[0], every)


def test_a_wav_of_half_of_what_its_header_promises_says_so(tmp_path):
    with pytest.raises(AudioError, match="is cut off: it holds 32000 of 64000 bytes of audio; fetch it again"):
        read_audio(with_length(tmp_path / "x.wav", 64000))


def test_a_header_that_an_interrupted_recording_left_is_told(tmp_path):
    with pytest.raises(
        AudioError, match="says that the audio is empty, but 32000 bytes follow: the recording was inter"
    ):
        read_audio(with_length(tmp_path / "x.wav", 0))


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_length_that_a_pipe_wrote_is_no_promise(length, tmp_path):
    assert len(read_audio(with_length(tmp_path / "x.wav", length)).waveform) == RATE


def test_chunks_before_and_after_the_audio_change_nothing(tmp_path):
    data = written(tmp_path / "x.wav", subtype="PCM_16").read_bytes()
    place, odd = data.index(b"data"), b"LIST\x03\x00\x00\x00abc\x00"
    (tmp_path / "y.wav").write_bytes(data[:place] + odd + data[place:] + odd)
    assert np.array_equal(read_audio(tmp_path / "y.wav").waveform, read_audio(tmp_path / "x.wav").waveform)


@pytest.mark.parametrize("kind", ["RIFX", "AIFF", "FLAC", "OGG", "RF64", "W64", "CAF", "AU"])
def test_other_containers_are_read_whole(kind, tmp_path):
    how = {"endian": "BIG"} if kind == "RIFX" else {}
    written(tmp_path / "x", format="WAV" if kind == "RIFX" else kind, **how)
    assert len(read_audio(tmp_path / "x").waveform) == RATE


@pytest.mark.parametrize("rate", [1, 10, 999, 1_000_001, 2_000_000_000])
def test_a_rate_of_no_audio_is_refused(rate, tmp_path):
    path = tmp_path / "x.wav"
    data = bytearray(written(path, np.zeros(2000), 16000, subtype="PCM_16").read_bytes())
    place = data.index(b"fmt ") + 12
    data[place : place + 4] = rate.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(AudioError, match=rf"x\.wav: a sampling rate of {rate} Hz is no audio's"):
        read_audio(path, 16000)
    with pytest.raises(AudioError, match="no audio's"):
        read_channels(path.read_bytes(), "clip")


@pytest.mark.parametrize("rate", [*RATES, 5000, 384_000])
def test_unusual_rates_are_read(rate, tmp_path):
    assert read_audio(written(tmp_path / "x.wav", NOISE, rate)).rate == rate


@pytest.mark.parametrize("value", [3e38, -3e38, 1e11])
def test_samples_that_would_overflow_a_network_are_refused(value, tmp_path):
    samples = NOISE.copy()
    samples[::100] = value
    with pytest.raises(AudioError, match=r"x\.wav: the audio has samples beyond 1e\+10: the file is damaged"):
        read_audio(written(tmp_path / "x.wav", samples, subtype="FLOAT"))
    with pytest.raises(AudioError, match="samples beyond"):
        read_channels(tmp_path / "x.wav", "x")


def test_a_float_file_in_the_scale_of_integers_is_read(tmp_path):
    clip = read_audio(written(tmp_path / "x.wav", NOISE * 32768, subtype="FLOAT"))
    np.testing.assert_array_equal(clip.waveform, NOISE * np.float32(32768))


@pytest.mark.parametrize("name", ["x" * 300 + ".wav", "a\0b.wav", "gone.wav"])
def test_a_name_that_no_file_can_have_is_no_such_file(name, tmp_path):
    with pytest.raises(AudioError, match="no such audio file"):
        read_audio(tmp_path / name)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(["mean", "first"]), st.floats(0.05, 2.0), st.sampled_from(["x.wav", "x.flac", "x.ogg"]))
def test_the_beginning_of_a_file_is_that_of_the_whole_with_its_mean(tmp_path_factory, mono, seconds, name):
    folder = tmp_path_factory.mktemp("cut")
    path = written(folder / name, np.stack([NOISE + 0.2, -NOISE / 2], axis=1).clip(-1, 1))
    whole, head = read_audio(path, mono=mono), read_audio(path, mono=mono, seconds=seconds)
    assert np.array_equal(head.waveform, whole.waveform[: round(seconds * RATE)])
    cut = beginning(whole, seconds)
    assert np.array_equal(cut.waveform, head.waveform)
    if len(head.waveform) < len(whole.waveform):
        assert head.mean == pytest.approx(whole.waveform.mean(dtype=np.float64), abs=1e-6)
        assert cut.mean == pytest.approx(head.mean, abs=1e-6)
    else:
        assert head.mean is cut.mean is None
    assert resample(head, 8000).mean == head.mean


def test_a_long_recording_is_prepared_as_if_it_had_been_resampled_whole():
    from milonga.maths.mel import training_wave

    rng = np.random.default_rng(1)
    long = Clip((0.1 + 0.2 * rng.standard_normal(44100 * 30)).astype(np.float32), 44100)
    samples = 4 * RATE
    whole = training_wave(resample(long, RATE).waveform, samples)
    head = beginning(long, 5.0)
    cut = training_wave(resample(head, RATE).waveform, samples, mean=head.mean)
    np.testing.assert_allclose(cut, whole, atol=2e-6)


MEMORY = """
import resource, sys
from milonga.core.audio import read_audio, beginning, resample
from milonga.maths.mel import training_wave
read_audio(sys.argv[1]), resample(read_audio(sys.argv[1]), 16000)
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
clip = beginning(read_audio(sys.argv[2], seconds=300.0), 11.24)
wave = training_wave(resample(clip, 16000).waveform, 163840, mean=clip.mean)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024, len(wave), float(abs(wave).max()))
"""


@pytest.mark.slow  # half a minute and more
def test_ten_hours_cost_what_is_used_of_them(tmp_path):
    """Read whole, the file and its 16 kHz would take 3.5 GB."""
    short, path = written(tmp_path / "short.wav", NOISE, 44100), tmp_path / "long.wav"
    length = 10 * 3600 * 8000 * 2
    header = BytesIO()
    soundfile.write(header, NOISE, 8000, "PCM_16", format="WAV")
    data = bytearray(header.getvalue())
    data[4:8] = (length + 36).to_bytes(4, "little")
    data[40:44] = length.to_bytes(4, "little")
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(44 + length)  # sparse: zeros that take no disk
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(short), str(path)], capture_output=True, text=True, check=True
    )
    megabytes, samples, peak = map(float, done.stdout.split())
    assert megabytes < 300
    assert samples == 163840
    assert peak == 0.5
