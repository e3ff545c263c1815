"""Draws that do not depend on the batch, captions dropped for both halves alike, and errors of one pass."""

import pytest
import tiny_training as tiny
import torch

from milonga.core.config import Settings
from milonga.core.errors import DataError
from milonga.maths.noise import min_snr_weight, signal_to_noise
from milonga.models.denoiser import Conditioning
from milonga.training.noising import Draws, add_noise, draw

KEYS = [("pair", 0, index) for index in range(5)]
PLAIN = Settings()


def some(settings: Settings = PLAIN, keys=KEYS) -> Draws:
    return draw(tiny.SHAPE, keys, 1, 100, settings)


def test_an_examples_draws_are_its_own_in_any_batch() -> None:
    whole, alone = some(Settings(caption_dropout=0.5)), some(Settings(caption_dropout=0.5), KEYS[3:4])
    for name in ("timesteps", "noise", "loser_noise", "dropped"):
        assert torch.equal(getattr(whole, name)[3:4], getattr(alone, name))
    assert len(set(whole.timesteps.tolist())) > 1
    assert not torch.equal(whole.noise[0], whole.noise[1])


def test_winner_and_loser_share_the_noise_unless_told_otherwise() -> None:
    assert torch.equal(some().noise, some().loser_noise)
    apart = some(Settings(shared_noise=False))
    assert not torch.equal(apart.noise, apart.loser_noise)
    assert torch.equal(apart.noise, some().noise)


def test_captions_are_dropped_at_the_asked_rate_and_never_at_zero() -> None:
    many = [("pair", 0, index) for index in range(2000)]
    assert abs(draw((1,), many, 1, 100, Settings(caption_dropout=0.2)).dropped.float().mean() - 0.2) < 0.03
    assert not draw((1,), many, 1, 100, PLAIN).dropped.any()


def test_a_dropped_caption_is_the_encoded_empty_one_for_winner_and_loser_alike() -> None:
    model, batch, draws = tiny.model(), tiny.pairs().batch([0, 1], 0), some(keys=KEYS[:2])
    dropped = Draws(draws.timesteps, draws.noise, draws.loser_noise, torch.tensor([False, True]))
    noisy = add_noise(model, batch, dropped, losers=True, gamma=None)
    assert torch.equal(noisy.conditioning["states"][0], batch.conditioning["states"][0])
    for row in (1, 3):
        assert torch.equal(noisy.conditioning["states"][row, :1], model.empty["states"][0])
        assert noisy.conditioning["mask"][row].tolist() == [True, False, False]
    assert torch.equal(noisy.conditioning["states"][:2], noisy.conditioning["states"][2:])


def test_a_longer_empty_caption_makes_room_without_changing_the_errors_of_others() -> None:
    model, batch, draws = tiny.model(), tiny.pairs().batch([0, 1], 0), some(keys=KEYS[:2])
    model.module.eval()
    states = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))  # some draws change too little to see
    model.empty = Conditioning(states=states, mask=torch.ones(1, 5, dtype=torch.bool))
    kept = add_noise(model, batch, draws, losers=False, gamma=None)
    one_dropped = Draws(draws.timesteps, draws.noise, draws.loser_noise, torch.tensor([False, True]))
    padded = add_noise(model, batch, one_dropped, losers=False, gamma=None)
    assert padded.conditioning["states"].shape == (2, 5, 8)
    with torch.no_grad():
        assert torch.allclose(kept.errors()[0], padded.errors()[0], atol=1e-6)
        assert not torch.allclose(kept.errors()[1], padded.errors()[1], atol=1e-4)


def test_one_pass_gives_the_errors_that_two_would() -> None:
    model, batch, draws = tiny.model(), tiny.pairs().batch([0, 1, 2], 0), some(keys=KEYS[:3])
    model.module.eval()
    both = add_noise(model, batch, draws, losers=True, gamma=None)
    winners = add_noise(model, batch, draws, losers=False, gamma=None)
    with torch.no_grad():
        together, apart = both.errors(), winners.errors()
    assert together.shape == (6,)
    torch.testing.assert_close(together[:3], apart)


def test_min_snr_weighs_each_error_by_its_own_timestep() -> None:
    model, batch, draws = tiny.model(), tiny.pairs().batch([0, 1, 2], 0), some(keys=KEYS[:3])
    model.module.eval()
    with torch.no_grad():
        plain = add_noise(model, batch, draws, losers=True, gamma=None).errors()
        weighed = add_noise(model, batch, draws, losers=True, gamma=5.0).errors()
    snr = signal_to_noise(model.process.alphas_cumprod[draws.timesteps]).repeat(2)
    torch.testing.assert_close(weighed, plain * min_snr_weight(snr, 5.0, "v_prediction"))


def test_losers_that_are_not_there_are_asked_for_in_one_line() -> None:
    batch = tiny.pairs().prior_batch([0, 1], 0)
    with pytest.raises(DataError, match="no losers"):
        add_noise(tiny.model(), batch, some(keys=KEYS[:2]), losers=True, gamma=None)
