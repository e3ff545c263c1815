"""The mel front end against numbers recorded from the original Tango's."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from milonga.core.audio import read_audio
from milonga.maths.mel import MelSettings, fit, log_mel, mel_matrix, normalise

SHARED = Path(__file__).parents[3] / "shared" / "reference"
FOLDER = Path(os.environ.get("MILONGA_REFERENCE", SHARED)) / "tango"
SETTINGS = MelSettings()

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no recorded numbers at {FOLDER} (set MILONGA_REFERENCE to the folder that holds them)"
)


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "audio.safetensors")


@pytest.fixture(scope="module")
def frames() -> dict[str, int]:
    """Each wav's name and its target frames."""
    return json.loads((FOLDER / "manifest.json").read_text())["wavs"]


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


def test_normalised_files_and_their_pictures_are_the_recorded_ones(
    recorded: dict[str, torch.Tensor], frames: dict[str, int]
) -> None:
    compared = 0
    for name, target in frames.items():
        clip = read_audio(FOLDER / "wavs" / f"{name}.wav")
        if clip.rate != SETTINGS.rate or f"pipe.{name}.waveform" not in recorded:
            continue
        wave = again(fit(normalise(clip.waveform), target * SETTINGS.hop))
        expected = recorded[f"pipe.{name}.waveform"][0].numpy()
        np.testing.assert_allclose(wave[: len(expected)], expected, atol=1e-6, rtol=0.0)
        picture = log_mel(torch.from_numpy(wave)[None], SETTINGS)
        torch.testing.assert_close(picture, recorded[f"pipe.{name}.mel"], atol=2e-4, rtol=0.0)
        compared += 1
    assert compared >= 1


def test_silence_is_on_the_floor_as_recorded_where_the_original_divides_by_zero(
    recorded: dict[str, torch.Tensor], frames: dict[str, int]
) -> None:
    for name in frames:
        if f"pipe.{name}.waveform_is_nan" in recorded:
            wave = normalise(read_audio(FOLDER / "wavs" / f"{name}.wav").waveform)
            assert np.isfinite(wave).all()
            picture = log_mel(torch.from_numpy(fit(wave, 2 * SETTINGS.fft))[None], SETTINGS)
            expected = recorded[f"pipe.{name}.mel_frames_0_2"].unique()
            torch.testing.assert_close(picture.unique(), expected, atol=1e-6, rtol=0.0)


def again(wave: np.ndarray) -> np.ndarray:
    """The original brings the peak to a half once more after cropping (FACTS §2, step 4)."""
    return wave / np.abs(wave).max() * 0.5
