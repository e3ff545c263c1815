"""The forward process and its draws: laws that must hold for any input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.maths.noise import (
    add_noise,
    min_snr_weight,
    omega,
    rates,
    seeded,
    signal_to_noise,
    target,
    timesteps,
    velocity,
)

alphas = st.floats(0.0, 1.0)


def latents(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 2, 8, 3, 4, generator=generator).double().unbind(0)  # type: ignore[return-value]


@settings(deadline=None)
@given(alphas, alphas)
def test_clean_latents_and_noise_come_back_from_noisy_latents_and_velocity(a: float, b: float) -> None:
    x, noise = latents()
    alpha = torch.tensor([a, b], dtype=torch.float64)
    noisy, v = add_noise(x, noise, alpha), velocity(x, noise, alpha)
    signal, spread = (r.sqrt().reshape(-1, 1, 1, 1) for r in (alpha, 1 - alpha))
    torch.testing.assert_close(signal * noisy - spread * v, x)
    torch.testing.assert_close(spread * noisy + signal * v, noise)


def test_no_noise_at_alpha_one_and_only_noise_at_alpha_zero() -> None:
    x, noise = latents()
    noisy = add_noise(x, noise, torch.tensor([1.0, 0.0]))
    assert torch.equal(noisy[0], x[0])
    assert torch.equal(noisy[1], noise[1])


@settings(deadline=None)
@given(st.floats(0.01, 0.99))
def test_a_weight_means_the_same_on_a_flow_as_on_noise_and_velocity(alpha: float) -> None:
    """One wrong idea of the clean latents, told in each prediction: its weighted errors are equal."""
    x, noise = latents()
    wrong, bar = torch.randn_like(x), torch.full((2,), alpha, dtype=torch.float64)
    found = []
    for kind in ("epsilon", "v_prediction", "flow_prediction"):
        signal, spread = (float(one[0]) for one in rates(bar, kind))
        noisy = add_noise(x, noise, bar, kind)
        misled = target(wrong, (noisy - signal * wrong) / spread, bar, kind)
        errors = (misled - target(x, noise, bar, kind)).pow(2).flatten(1).mean(1)
        snr = signal_to_noise(bar)
        weights = [min_snr_weight(snr, 5.0, kind), omega("epsilon", bar, kind, None), omega("sigmoid", bar, kind, None)]
        found.append(torch.stack([errors * weight for weight in weights]))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_target_is_the_noise_or_the_velocity() -> None:
    x, noise = latents()
    alpha = torch.tensor([0.3, 0.9])
    assert target(x, noise, alpha, "epsilon") is noise
    assert torch.equal(target(x, noise, alpha, "v_prediction"), velocity(x, noise, alpha))
    with pytest.raises(ValueError, match="sample"):
        target(x, noise, alpha, "sample")  # type: ignore[arg-type]


def test_uniform_timesteps_reach_both_ends_and_have_the_mean_of_a_uniform() -> None:
    drawn = timesteps("uniform", 20_000, 1000, seeded(1))
    assert drawn.min() < 5
    assert drawn.max() > 994
    assert drawn.max() < 1000
    assert abs(drawn.double().mean() - 499.5) < 8


def test_high_noise_timesteps_lie_in_the_upper_three_quarters_with_mean_three_quarters() -> None:
    drawn = timesteps("high-noise", 20_000, 1000, seeded(1))
    assert 250 <= drawn.min() < 260
    assert drawn.max() == 999
    assert abs(drawn.double().mean() - 749.5) < 6  # E[1 - 3/4 u^2] = 3/4


def test_an_unknown_way_to_draw_timesteps_is_refused() -> None:
    with pytest.raises(ValueError, match="high-noise"):
        timesteps("sometimes", 1, 10, seeded(1))  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.floats(0.0, 1.0, exclude_max=True), st.floats(0.5, 20.0))
def test_min_snr_weights_are_the_papers_in_both_forms(alpha: float, gamma: float) -> None:
    snr = signal_to_noise(torch.tensor(alpha, dtype=torch.float64))
    low = min(float(snr), gamma)
    assert float(min_snr_weight(snr, gamma, "v_prediction")) == pytest.approx(low / (float(snr) + 1))
    expected = low / float(snr) if snr > 0 else 1.0
    assert float(min_snr_weight(snr, gamma, "epsilon")) == pytest.approx(expected)


def test_min_snr_weights_are_finite_at_infinite_snr() -> None:
    snr = signal_to_noise(torch.tensor([1.0]))
    assert float(min_snr_weight(snr, 5.0, "epsilon")) == 0.0
    assert float(min_snr_weight(snr, 5.0, "v_prediction")) == 0.0


def test_draws_leave_the_global_stream_alone() -> None:
    before = torch.random.get_rng_state()
    seeded(3, "clip", 0)
    timesteps("high-noise", 4, 10, seeded(5, "t"))
    assert torch.equal(before, torch.random.get_rng_state())


@given(st.floats(1e-4, 0.9999), st.sampled_from([None, 1.0, 5.0]))
def test_min_snr_is_one_weight_of_the_clip_whatever_is_predicted(alpha_bar: float, gamma: float | None) -> None:
    alpha = torch.tensor([alpha_bar], dtype=torch.float64)
    snr = alpha_bar / (1 - alpha_bar)
    for name in ("epsilon", "sigmoid", "prediction"):
        by_noise, by_velocity = (omega(name, alpha, kind, gamma) for kind in ("epsilon", "v_prediction"))
        if name == "prediction" and gamma is None:
            assert by_noise is by_velocity is None
            continue
        assert by_noise is not None
        assert by_velocity is not None
        # ‖v − v̂‖² = ‖ε − ε̂‖²·(SNR + 1)/SNR, so the same ω(λ) is SNR/(SNR + 1) times as much for v
        assert by_velocity.item() == pytest.approx(by_noise.item() * snr / (snr + 1), rel=1e-9)


def test_omega_by_name_has_its_closed_forms() -> None:
    alpha = torch.tensor([0.5, 0.9, 0.0], dtype=torch.float64)
    one_and_nine = [1.0, 1.0, 1.0]
    assert omega("epsilon", alpha, "epsilon", None).tolist() == one_and_nine
    assert omega("epsilon", alpha, "v_prediction", None).tolist() == [0.5, 0.9, 0.0]
    shifted = omega("sigmoid", alpha, "epsilon", None).tolist()
    assert shifted == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + 9 * math.exp(-2)), 1.0])
    assert omega("released", alpha, "v_prediction", 5.0).tolist() == pytest.approx([1.0, 5 / 9, 1.0])
    assert omega("prediction", alpha, "v_prediction", 5.0).tolist() == pytest.approx([0.5, 0.5, 0.0])
    with pytest.raises(ValueError, match="needs snr_gamma"):
        omega("released", alpha, "v_prediction", None)
    with pytest.raises(ValueError, match="omega must be"):
        omega("one", alpha, "epsilon", None)
