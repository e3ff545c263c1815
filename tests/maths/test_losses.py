"""Preference losses: closed forms, gradients against a plain second implementation, and laws for any errors."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.maths.losses import (
    LOSSES,
    Errors,
    LossSpec,
    beta_on_sums,
    deltas,
    dpo,
    hinge,
    implicit_accuracy,
    preference_margin,
    sft,
)

PAIRED = [name for name, spec in LOSSES.items() if spec.needs_loser]
errors_of_a_pair = st.lists(st.floats(0.01, 3.0), min_size=4, max_size=4)
betas = st.floats(0.1, 20.0)


def errors(rows: np.ndarray | list[list[float]], grad: bool = False) -> Errors:
    """Errors from B rows of (policy winner, policy loser, reference winner, reference loser)."""
    return Errors(*(torch.tensor(column, dtype=torch.float64, requires_grad=grad) for column in np.transpose(rows)))


def plain(name: str, row: list[float] | np.ndarray, beta: float) -> tuple[float, float, float]:
    """A second implementation: loss, and its derivatives by the policy's winner and loser errors, for one pair."""
    winner, loser, reference_winner, reference_loser = (float(value) for value in row)
    z = -0.5 * beta * ((winner - loser) - (reference_winner - reference_loser))
    sigmoid = 1 / (1 + math.exp(-z))
    slopes = {
        "sft": (winner, 0.0),
        "dpo": (math.log1p(math.exp(-z)), sigmoid - 1),
        "ipo": ((z - 0.5) ** 2, 2 * (z - 0.5)),
        "hinge": (max(0.0, 1 - z), -1.0 if z < 1 else 0.0),
        "crpo": (math.log1p(math.exp(-z)) + winner, sigmoid - 1),
    }
    loss, by_z = slopes[name]
    own = 1.0 if name in ("sft", "crpo") else 0.0
    return loss, own - 0.5 * beta * by_z, 0.5 * beta * by_z


@pytest.mark.parametrize("name", list(LOSSES))
def test_value_and_gradient_equal_a_plain_second_implementation(name: str) -> None:
    rows = np.random.default_rng(7).uniform(0.05, 2.0, (40, 4))
    given_errors = errors(rows, grad=True)
    losses = LOSSES[name].function(given_errors, 3.0)
    losses.sum().backward()
    expected = np.array([plain(name, row, 3.0) for row in rows])
    np.testing.assert_allclose(losses.detach().numpy(), expected[:, 0], rtol=1e-12)
    np.testing.assert_allclose(given_errors.policy_winner.grad, expected[:, 1], rtol=1e-10, atol=1e-12)
    if LOSSES[name].needs_loser:
        assert given_errors.policy_loser is not None
        np.testing.assert_allclose(given_errors.policy_loser.grad, expected[:, 2], rtol=1e-10, atol=1e-12)


@settings(deadline=None)
@given(errors_of_a_pair, betas)
def test_identical_policy_and_reference_give_the_losses_of_a_zero_margin(row: list[float], beta: float) -> None:
    same = errors([[row[0], row[1], row[0], row[1]]])
    values = {name: LOSSES[name].function(same, beta).item() for name in LOSSES}
    assert values["dpo"] == pytest.approx(math.log(2), abs=1e-15)
    assert values["ipo"] == 0.25
    assert values["hinge"] == 1.0
    assert values["crpo"] == pytest.approx(math.log(2) + row[0], abs=1e-12)
    assert values["sft"] == row[0]


@settings(deadline=None)
@given(st.floats(-4, 4), st.floats(0.01, 2), betas)
def test_dpo_falls_and_hinge_never_rises_as_the_margin_grows(margin: float, more: float, beta: float) -> None:
    both = errors([[1.0, 1.0 + margin, 1.0, 1.0], [1.0, 1.0 + margin + more, 1.0, 1.0]])
    first, second = dpo(both, beta)
    assert second < first
    first, second = hinge(both, beta)
    assert second <= first


@settings(deadline=None)
@given(errors_of_a_pair, st.floats(0.0, 5.0), betas)
def test_only_the_difference_from_the_reference_matters(row: list[float], shift: float, beta: float) -> None:
    moved = [row[0] + shift, row[1], row[2] + shift, row[3]]
    for name in ("dpo", "ipo", "hinge"):
        values = LOSSES[name].function(errors([row, moved]), beta)
        assert values[0].item() == pytest.approx(values[1].item(), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(errors_of_a_pair, betas)
def test_swapping_winner_and_loser_turns_the_logit_round(row: list[float], beta: float) -> None:
    both = errors([row, [row[1], row[0], row[3], row[2]]])
    losses = dpo(both, beta)
    torch.testing.assert_close(preference_margin(both)[0], -preference_margin(both)[1])
    # σ(z) + σ(−z) = 1
    assert (-losses).exp().sum().item() == pytest.approx(1.0)


def test_a_very_wrong_pair_has_a_finite_loss_and_gradient() -> None:
    wrong = errors([[2.0, 1.0, 1.0, 2.0]], grad=True)
    loss = dpo(wrong, 2000.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(2000.0)
    assert wrong.policy_winner.grad is not None
    assert wrong.policy_winner.grad.item() == pytest.approx(1000.0)


def test_no_gradient_reaches_the_pair_once_hinge_is_satisfied() -> None:
    apart = errors([[0.5, 1.5, 1.0, 1.0]], grad=True)
    hinge(apart, 4.0).sum().backward()
    assert apart.policy_winner.grad is not None
    assert apart.policy_winner.grad.item() == 0.0


def test_ipo_is_smallest_at_a_margin_of_one_over_beta() -> None:
    margins = np.linspace(-1, 1, 401)
    values = LOSSES["ipo"].function(errors([[1.0, 1.0 + m, 1.0, 1.0] for m in margins]), 4.0)
    assert margins[int(values.argmin())] == pytest.approx(0.25)


@settings(deadline=None)
@given(betas, st.integers(1, 32_768), st.floats(-1, 1))
def test_beta_on_sums_keeps_the_logit(beta: float, elements: int, margin: float) -> None:
    assert beta_on_sums(beta, elements) * (elements * margin) == pytest.approx(beta * margin, abs=1e-12)


def test_beta_of_the_paper_on_sums_is_the_documented_number() -> None:
    assert beta_on_sums(2000, 8 * 256 * 16) == pytest.approx(0.061, abs=5e-4)
    with pytest.raises(ValueError, match="elements"):
        beta_on_sums(2000, 0)


def test_accuracy_counts_positive_margins_and_half_of_the_ties() -> None:
    rows = [[0.5, 1.0, 1.0, 1.0], [1.0, 0.5, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 1.0, 1.0]]
    assert implicit_accuracy(errors(rows)).item() == pytest.approx(2.5 / 4)


def test_deltas_are_apart_because_both_may_rise_while_the_margin_grows() -> None:
    winner, loser = deltas(errors([[1.1, 1.5, 1.0, 1.0]]))
    assert (winner.item(), loser.item()) == (pytest.approx(0.1), pytest.approx(0.5))


@pytest.mark.parametrize("name", PAIRED)
def test_half_precision_errors_are_computed_in_float32(name: str) -> None:
    half = torch.tensor([1.25, 1.0], dtype=torch.bfloat16)
    losses = LOSSES[name].function(Errors(half, half, half, half), 2000.0)
    assert losses.dtype == torch.float32
    assert sft(Errors(half)).dtype == torch.float32


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("missing", ["policy_loser", "reference_winner", "reference_loser"])
def test_a_missing_vector_is_refused(name: str, missing: str) -> None:
    one = torch.ones(2)
    vectors = dict.fromkeys(("policy_winner", "policy_loser", "reference_winner", "reference_loser"), one)
    with pytest.raises(ValueError, match="needs the errors"):
        LOSSES[name].function(Errors(**(vectors | {missing: None})), 1.0)


def test_shapes_that_would_broadcast_are_refused() -> None:
    two, column = torch.ones(2), torch.ones(2, 1)
    with pytest.raises(ValueError, match="shape"):
        dpo(Errors(two, two, column, two), 1.0)
    with pytest.raises(ValueError, match="shape"):
        dpo(Errors(two, column, two, column), 1.0)


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_beta_that_teaches_nothing_is_refused(name: str, beta: float) -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match="beta must be above zero"):
        LOSSES[name].function(Errors(one, one, one, one), beta)


@pytest.mark.parametrize(("name", "spec"), LOSSES.items())
def test_a_loss_runs_on_no_more_than_it_says_it_needs(name: str, spec: LossSpec) -> None:
    one = torch.ones(3)
    loser = one if spec.needs_loser else None
    reference = one if spec.needs_reference else None
    reference_loser = one if spec.needs_reference and spec.needs_loser else None
    losses = spec.function(Errors(one, loser, reference, reference_loser), 1.0 if spec.needs_beta else 0.0)
    assert losses.shape == (3,), name


def test_the_names_of_the_losses_are_known_without_importing_torch() -> None:
    code = "import sys; from milonga.maths.losses import LOSSES; assert LOSSES and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
