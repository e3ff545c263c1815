"""Real clips through a model's front end and VAE: each as it is alone, at the model's rate, level and length."""

import numpy as np
import pytest
import small_networks
import torch

from milonga.core.records import Clip
from milonga.data.codec import moments, round_trip, samples_of, wave_for
from milonga.models.tango import TangoPipeline


@pytest.fixture(scope="module")
def whole() -> TangoPipeline:
    return small_networks.pipeline()


def noise(seed: int, samples: int, rate: int = 16000, gain: float = 0.3) -> Clip:
    return Clip((gain * np.random.default_rng(seed).standard_normal(samples)).clip(-1, 1).astype(np.float32), rate)


def test_clips_have_the_models_rate_level_and_length(whole: TangoPipeline) -> None:
    for clip in (noise(0, 3000), noise(1, 90000, 44100), noise(2, 20000, gain=0.01)):
        for compat in (False, True):
            wave = wave_for(whole, clip, compat)
            assert wave.shape == (samples_of(whole),) == (8192,)
            assert float(wave.abs().max()) == pytest.approx(0.5)


def test_silence_has_a_posterior_by_both_rules(whole: TangoPipeline) -> None:
    silent = Clip(np.zeros(4000, np.float32), 16000)
    own, theirs = (moments(whole, [wave_for(whole, silent, compat)]) for compat in (False, True))
    assert all(torch.isfinite(one).all() for one in own)
    assert all(torch.equal(one, other) for one, other in zip(own, theirs, strict=True))


def test_a_posterior_does_not_depend_on_the_batch(whole: TangoPipeline) -> None:
    waves = [wave_for(whole, noise(seed, 8192)) for seed in range(10)]
    mean, logvar = moments(whole, waves)
    assert mean.shape == logvar.shape == (10, *whole.latent_shape(whole.config["seconds"]))
    torch.testing.assert_close(moments(whole, waves[9:])[0], mean[9:], atol=1e-5, rtol=0)
    assert not torch.allclose(mean[0], mean[1])


def test_a_round_trip_gives_clips_of_the_models_rate_and_duration(whole: TangoPipeline) -> None:
    made = round_trip(whole, [noise(0, 44100, 44100), noise(1, 1000)])
    assert [(len(clip.waveform), clip.rate) for clip in made] == [(8192, 16000)] * 2
    assert np.abs(made[0].waveform - made[1].waveform).max() > 0.01
