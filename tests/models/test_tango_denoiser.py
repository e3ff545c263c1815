"""Real clips through a model's front end and VAE: each as it is alone, at the model's rate, level and length."""

from pathlib import Path

import numpy as np
import pytest
import small_networks
import torch

from milonga.core.records import Clip
from milonga.models.denoiser import Denoiser
from milonga.models.tango_denoiser import TangoDenoiser


@pytest.fixture(scope="module")
def denoiser() -> TangoDenoiser:
    return TangoDenoiser.of(small_networks.pipeline())


def noise(seed: int, samples: int, rate: int = 16000, gain: float = 0.3) -> Clip:
    return Clip((gain * np.random.default_rng(seed).standard_normal(samples)).clip(-1, 1).astype(np.float32), rate)


def test_clips_have_the_models_rate_level_and_length(denoiser: TangoDenoiser) -> None:
    for clip in (noise(0, 3000), noise(1, 90000, 44100), noise(2, 20000, gain=0.01)):
        for legacy in (False, True):
            wave = denoiser.prepare_waveform(clip, legacy)
            assert wave.shape == (denoiser.num_samples,) == (8192,)
            assert float(wave.abs().max()) == pytest.approx(0.5)


def test_silence_has_a_posterior_by_both_rules(denoiser: TangoDenoiser) -> None:
    silent = Clip(np.zeros(4000, np.float32), 16000)
    own, theirs = (denoiser.encode_audio([denoiser.prepare_waveform(silent, legacy)]) for legacy in (False, True))
    assert torch.isfinite(own.mean).all()
    assert torch.isfinite(own.logvar).all()
    assert torch.equal(own.mean, theirs.mean)
    assert torch.equal(own.logvar, theirs.logvar)


def test_a_posterior_does_not_depend_on_the_batch(denoiser: TangoDenoiser) -> None:
    waves = [denoiser.prepare_waveform(noise(seed, 8192)) for seed in range(10)]
    posterior = denoiser.encode_audio(waves)
    mean = posterior.mean
    assert mean.shape == posterior.logvar.shape == (10, *denoiser.latent_shape)
    torch.testing.assert_close(denoiser.encode_audio(waves[9:]).mean, mean[9:], atol=1e-5, rtol=0)
    assert not torch.allclose(mean[0], mean[1])


def test_a_round_trip_gives_clips_of_the_models_rate_and_duration(denoiser: TangoDenoiser) -> None:
    waves = [denoiser.prepare_waveform(clip) for clip in (noise(0, 44100, 44100), noise(1, 1000))]
    posterior = denoiser.encode_audio(waves)
    decoded = denoiser.decode(posterior.mean * posterior.scale)
    assert decoded.shape == (2, 8192)
    assert denoiser.sampling_rate == 16000
    assert float((decoded[0] - decoded[1]).detach().abs().max()) > 0.01


def test_a_tango_is_a_denoiser_and_its_network_is_saved_and_loaded(denoiser: TangoDenoiser, tmp_path: Path) -> None:
    assert isinstance(denoiser, Denoiser)
    other = TangoDenoiser.of(small_networks.pipeline(seed=1))
    key = next(iter(other.module.state_dict()))
    assert other.fingerprint != denoiser.fingerprint
    denoiser.save(tmp_path / "own")
    denoiser.save(tmp_path / "given", other.module.state_dict())
    other.load(tmp_path / "own")
    assert torch.equal(other.module.state_dict()[key], denoiser.module.state_dict()[key])
    other.load(tmp_path / "given")
    assert not torch.equal(other.module.state_dict()[key], denoiser.module.state_dict()[key])
