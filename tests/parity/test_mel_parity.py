"""The mel front end against numbers recorded from the original Tango's."""

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import reference
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from milonga.core.audio import read_audio, resample, to_int16
from milonga.maths.mel import MelSettings, log_mel, magnitudes, mel_matrix, training_wave
from milonga.maths.mixing import a_weighting, joined, levels, mix, mixes, share
from milonga.maths.resampling import windowed_sinc

FOLDER = reference.TANGO
SETTINGS = MelSettings()

pytestmark = reference.needed(FOLDER)


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "audio.safetensors")


@pytest.fixture(scope="module")
def frames() -> dict[str, int]:
    """Each wav's name and its target frames."""
    return reference.manifest()["wavs"]


def test_the_mel_bands_are_the_recorded_ones(recorded: dict[str, torch.Tensor]) -> None:
    basis = recorded["stft.mel_basis"]
    assert tuple(basis.shape) == (SETTINGS.bands, SETTINGS.fft // 2 + 1)
    torch.testing.assert_close(mel_matrix(SETTINGS), basis, atol=1e-7, rtol=1e-5)


def test_pictures_are_the_recorded_ones_but_for_the_surplus_frame(recorded: dict[str, torch.Tensor]) -> None:
    wave, mel = recorded["raw.wave"], recorded["raw.mel"].transpose(1, 2)
    assert wave.isnan().any()
    assert (wave.abs() > 1).any()
    found = log_mel(wave, SETTINGS)
    assert found.shape[1] == mel.shape[1] - 1 == wave.shape[1] // SETTINGS.hop
    torch.testing.assert_close(found, mel[:, :-1], atol=2e-4, rtol=0.0)


def test_magnitudes_and_their_energies_are_the_recorded_ones(recorded: dict[str, torch.Tensor]) -> None:
    found = magnitudes(recorded["raw.wave"], SETTINGS)
    torch.testing.assert_close(found.norm(dim=1), recorded["raw.energy"], rtol=1e-5, atol=0)
    logarithms = found[..., 5].clamp(min=1e-5).log()
    torch.testing.assert_close(logarithms, recorded["raw.log_magnitude_frame5"], atol=1e-3, rtol=0)


def prepared(name: str, target: int, compat: bool = True) -> np.ndarray:
    """A recorded file as it goes into training, by the original's rules or by our own."""
    clip = read_audio(FOLDER / "wavs" / f"{name}.wav", mono="first" if compat else "mean")
    wave = windowed_sinc(clip.waveform, clip.rate, SETTINGS.rate) if compat else resample(clip, SETTINGS.rate).waveform
    return training_wave(wave, target * SETTINGS.hop, compat)


def test_files_through_the_whole_path_are_the_recorded_ones(
    recorded: dict[str, torch.Tensor], frames: dict[str, int]
) -> None:
    compared = 0
    for name, target in frames.items():
        if f"pipe.{name}.waveform" in recorded:
            wave = prepared(name, target)
            expected = recorded[f"pipe.{name}.waveform"][0].numpy()
            same_rate = soundfile.info(FOLDER / "wavs" / f"{name}.wav").samplerate == SETTINGS.rate
            tolerance = 1e-6 if same_rate else 1e-4
            np.testing.assert_allclose(wave[: len(expected)], expected, atol=tolerance, rtol=0, err_msg=name)
            picture = log_mel(torch.from_numpy(wave)[None], SETTINGS)
            torch.testing.assert_close(picture, recorded[f"pipe.{name}.mel"], atol=2e-4, rtol=0.0)
            compared += 1
    assert compared >= 1


def test_our_own_rules_give_the_recorded_pictures_where_files_are_mono_and_at_the_models_rate(
    recorded: dict[str, torch.Tensor], frames: dict[str, int]
) -> None:
    compared = 0
    for name, target in frames.items():
        told = soundfile.info(FOLDER / "wavs" / f"{name}.wav")
        if (told.samplerate, told.channels) == (SETTINGS.rate, 1) and f"pipe.{name}.mel" in recorded:
            picture = log_mel(torch.from_numpy(prepared(name, target, compat=False))[None], SETTINGS)
            torch.testing.assert_close(picture, recorded[f"pipe.{name}.mel"], atol=2e-4, rtol=0.0)
            compared += 1
    assert compared >= 1


def test_silence_is_on_the_floor_as_recorded_where_the_original_divides_by_zero(
    recorded: dict[str, torch.Tensor], frames: dict[str, int]
) -> None:
    for name, target in frames.items():
        if f"pipe.{name}.waveform_is_nan" in recorded:
            assert np.isnan(prepared(name, target)).all() == bool(recorded[f"pipe.{name}.waveform_is_nan"].all())
            expected = recorded[f"pipe.{name}.mel_frames_0_2"].unique()
            for compat in (False, True):
                wave = prepared(name, target, compat)
                assert compat or not wave.any()
                picture = log_mel(torch.from_numpy(wave)[None], SETTINGS)
                torch.testing.assert_close(picture.unique(), expected, atol=1e-6, rtol=0.0)


def first_two(recorded: dict[str, torch.Tensor], frames: dict[str, int]) -> list[np.ndarray]:
    """What was mixed, at the length of the longest picture: the two files whose levels are the recorded ones."""
    waves = [np.nan_to_num(prepared(name, max(frames.values()))) for name in frames]
    loudest = np.array([levels(wave, SETTINGS.rate).max() for wave in waves])
    return [waves[int(np.abs(loudest - float(level)).argmin())] for level in recorded["mix.gain_db"]]


def test_levels_and_mixes_are_the_recorded_ones(recorded: dict[str, torch.Tensor], frames: dict[str, int]) -> None:
    rate = SETTINGS.rate
    np.testing.assert_allclose(a_weighting(rate)[::64], recorded[f"mix.a_weight_{rate}_2048_every64"], atol=1e-9)
    waves = first_two(recorded, frames)
    for place, wave in enumerate(waves):
        expected = recorded[f"mix.gain_frames_{place + 1}"]
        assert levels(wave, rate).shape == tuple(expected.shape)
        np.testing.assert_allclose(levels(wave, rate), expected, atol=2e-4)
        assert levels(wave, rate).max() == pytest.approx(float(recorded["mix.gain_db"][place]), abs=1e-5)
    for ratio in reference.manifest()["mix_ratios"]:
        assert share(*waves, rate, ratio) == pytest.approx(float(recorded[f"mix.p_r{ratio}"]), abs=1e-6)
        np.testing.assert_allclose(mix(*waves, rate, ratio), recorded[f"mix.r{ratio}.out"], atol=1e-5)


def test_augmented_batches_are_the_recorded_ones(recorded: dict[str, torch.Tensor], frames: dict[str, int]) -> None:
    with safe_open(FOLDER / "audio.safetensors", "pt") as file:
        told = {key: json.loads(value) for key, value in file.metadata().items()}
    waves = [prepared(Path(path).stem, max(frames.values())) for path in told["augment_paths"]]
    pairs = list(combinations(range(len(waves)), 2))[:4]
    texts = told["augment_texts"]
    assert [joined(texts[one], texts[other]) for one, other in pairs] == told["augment_captions"]
    made = np.stack(mixes(waves, pairs, SETTINGS.rate, compat=True))
    np.testing.assert_allclose(np.abs(made).max(1), recorded["augment.waveform_absmax_per_item"].flatten(), atol=1e-5)
    np.testing.assert_allclose(made[:, ::16], recorded["augment.waveform_every16"], atol=1e-5)
    picture = log_mel(torch.from_numpy(made), SETTINGS)
    torch.testing.assert_close(picture, recorded["augment.mel"], atol=2e-4, rtol=0.0)
    for own, theirs in zip(mixes(waves, pairs, SETTINGS.rate), made, strict=True):
        assert np.abs(own).max() == pytest.approx(0.5)
        np.testing.assert_allclose(own * np.abs(theirs).max() * 2, theirs, atol=1e-5)


def test_with_compat_a_silent_file_silences_every_mix_as_recorded(
    recorded: dict[str, torch.Tensor], frames: dict[str, int]
) -> None:
    samples = max(frames.values()) * SETTINGS.hop
    waves = [*first_two(recorded, frames), training_wave(np.zeros(samples, dtype=np.float32), samples, compat=True)]
    made = np.stack(mixes(waves, list(combinations(range(3), 2)), SETTINGS.rate, compat=True))
    values = log_mel(torch.from_numpy(made), SETTINGS).unique()
    torch.testing.assert_close(values, recorded["augment_with_silence.mel_unique_values"], atol=1e-6, rtol=0)


def test_sixteen_bits_are_the_recorded_ones_but_rounded_and_never_wrapped(recorded: dict[str, torch.Tensor]) -> None:
    given, theirs = recorded["int16.in"].numpy(), recorded["int16.out"].numpy().astype(int)
    ours, whole = to_int16(given).astype(int), np.abs(given) < 1
    assert np.abs(ours - theirs)[whole].max() <= 1
    assert np.array_equal(ours[~whole], np.where(given[~whole] > 0, 32767, -32768))


def test_no_recorded_array_is_left_out(recorded: dict[str, torch.Tensor]) -> None:
    files = re.compile(r"pipe\.(.+)\.(waveform|mel|waveform_is_nan|mel_frames_0_2)|stft\.(mel_basis|forward_basis\S+)")
    raws = r"raw\.(wave|mel|energy|log_magnitude_frame5)|int16\.(in|out)|augment_with_silence\.mel_unique_values"
    mixed = r"mix\.(gain_db|gain_frames_[12]|a_weight_\S+|p_r[\d.]+|r[\d.]+\.out)|augment\.(mel|waveform_\S+)"
    known = re.compile(f"{files.pattern}|{raws}|{mixed}")
    assert [name for name in recorded if not known.fullmatch(name)] == []
