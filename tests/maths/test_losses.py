"""Preference losses: closed forms, gradients against a plain second implementation, and laws for any errors."""

import math
import subprocess
import sys
from dataclasses import replace

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
    format_beta,
    hinge,
    implicit_accuracy,
    kto,
    mapo,
    preference_margin,
    safe_scale,
    sft,
    weighted_sft,
)

# Losses of groups, of sampled clips and of distillation have tests of their own.
SINGLE = {name: spec for name, spec in LOSSES.items() if not (spec.groups or spec.samples or spec.distils)}
PAIRED = [name for name, spec in LOSSES.items() if spec.needs_loser and spec.needs_reference]
errors_of_a_pair = st.lists(st.floats(0.01, 3.0), min_size=4, max_size=4)
betas = st.floats(0.1, 20.0)


def errors(rows: np.ndarray | list[list[float]], grad: bool = False) -> Errors:
    """Errors from B rows of (policy winner, policy loser, reference winner, reference loser), with all extras."""
    vectors = [torch.tensor(column, dtype=torch.float64, requires_grad=grad) for column in np.transpose(rows)]
    extras = torch.linspace(0.2, 0.9, len(vectors[0]), dtype=torch.float64)
    return Errors(*vectors, safeguard=extras, weights=extras, baseline=0.05)


def plain(name: str, row: list[float] | np.ndarray, beta: float, extra: float = 1.0) -> tuple[float, float, float]:
    """A second implementation: loss, and its derivatives by the policy's winner and loser errors, for one pair.

    `extra` is the pair's safeguard or its weight."""
    winner, loser, reference_winner, reference_loser = (float(value) for value in row)
    z = -0.5 * beta * ((winner - loser) - (reference_winner - reference_loser))
    sigmoid = 1 / (1 + math.exp(-z))
    if name in ("kto", "mapo", "weighted-sft"):
        return plain_others(name, (winner, loser, reference_winner, reference_loser), beta, extra)
    slopes = {
        "sft": (winner, 0.0),
        "sdpo": (math.log1p(math.exp(-z)), sigmoid - 1),
        "dpo": (math.log1p(math.exp(-z)), sigmoid - 1),
        "ipo": ((z - 0.5) ** 2, 2 * (z - 0.5)),
        "hinge": (max(0.0, 1 - z), -1.0 if z < 1 else 0.0),
        "crpo": (math.log1p(math.exp(-z)) + winner, sigmoid - 1),
    }
    loss, by_z = slopes[name]
    own, scale = 1.0 if name in ("sft", "crpo") else 0.0, extra if name == "sdpo" else 1.0
    return loss, own - 0.5 * beta * by_z, scale * 0.5 * beta * by_z


def plain_others(name: str, row: tuple[float, ...], beta: float, extra: float) -> tuple[float, float, float]:
    """The losses that are no function of the margin alone."""
    winner, loser, reference_winner, reference_loser = row
    if name == "weighted-sft":
        return extra * winner, extra, 0.0
    if name == "kto":
        zero = 0.5 * beta * 0.05
        good = 1 / (1 + math.exp(-(0.5 * beta * (reference_winner - winner) - zero)))
        bad = 1 / (1 + math.exp(-(zero - 0.5 * beta * (reference_loser - loser))))
        slope = 0.25 * beta
        return (2 - good - bad) / 2, slope * good * (1 - good), -slope * bad * (1 - bad)
    x, y = winner / 2, loser / 2
    inner = 1000 * (x / (math.exp(x) - 1) - y / (math.exp(y) - 1))
    soft = -inner if inner < -30 else math.log1p(math.exp(-inner))
    outer = -1 / (1 + math.exp(min(inner, 700)))
    by_winner, by_loser = (((math.exp(v) - 1) - v * math.exp(v)) / (math.exp(v) - 1) ** 2 * 1000 * 0.5 for v in (x, y))
    return winner + beta * soft, 1 + beta * outer * by_winner, -beta * outer * by_loser


@pytest.mark.parametrize("name", list(SINGLE))
def test_value_and_gradient_equal_a_plain_second_implementation(name: str) -> None:
    rows = np.random.default_rng(7).uniform(0.05, 2.0, (40, 4))
    given_errors = errors(rows, grad=True)
    losses = LOSSES[name].function(given_errors, 3.0)
    losses.sum().backward()
    assert given_errors.weights is not None
    pairs = zip(rows, given_errors.weights.tolist(), strict=True)
    expected = np.array([plain(name, row, 3.0, extra) for row, extra in pairs])
    np.testing.assert_allclose(losses.detach().numpy(), expected[:, 0], rtol=1e-12)
    np.testing.assert_allclose(given_errors.policy_winner.grad, expected[:, 1], rtol=1e-10, atol=1e-12)
    if LOSSES[name].needs_loser:
        assert given_errors.policy_loser is not None
        np.testing.assert_allclose(given_errors.policy_loser.grad, expected[:, 2], rtol=1e-10, atol=1e-12)


@settings(deadline=None)
@given(errors_of_a_pair, betas)
def test_identical_policy_and_reference_give_the_losses_of_a_zero_margin(row: list[float], beta: float) -> None:
    same = errors([[row[0], row[1], row[0], row[1]]])
    values = {name: LOSSES[name].function(same, beta).item() for name in SINGLE}
    assert values["dpo"] == pytest.approx(math.log(2), abs=1e-15)
    assert values["ipo"] == 0.25
    assert values["hinge"] == 1.0
    assert values["crpo"] == pytest.approx(math.log(2) + row[0], abs=1e-12)
    assert values["sft"] == row[0]
    assert values["sdpo"] == values["dpo"]
    assert values["weighted-sft"] == pytest.approx(0.2 * row[0])
    assert kto(replace(same, baseline=0.0), beta).item() == pytest.approx(0.5, abs=1e-12)


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
    for name in ("dpo", "ipo", "hinge", "sdpo"):
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
    losses = LOSSES[name].function(Errors(half, half, half, half, safeguard=half), 2000.0)
    assert losses.dtype == torch.float32
    assert sft(Errors(half)).dtype == torch.float32


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("missing", ["policy_loser", "reference_winner", "reference_loser"])
def test_a_missing_vector_is_refused(name: str, missing: str) -> None:
    one = torch.ones(2)
    vectors = dict.fromkeys(("policy_winner", "policy_loser", "reference_winner", "reference_loser", "safeguard"), one)
    with pytest.raises(ValueError, match=r"needs (the errors|losers)"):
        LOSSES[name].function(Errors(**(vectors | {missing: None})), 1.0)


def test_shapes_that_would_broadcast_are_refused() -> None:
    two, column = torch.ones(2), torch.ones(2, 1)
    with pytest.raises(ValueError, match="shape"):
        dpo(Errors(two, two, column, two), 1.0)
    with pytest.raises(ValueError, match="shape"):
        dpo(Errors(two, column, two, column), 1.0)


@pytest.mark.parametrize("name", [*PAIRED, "mapo"])
@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_beta_that_teaches_nothing_is_refused(name: str, beta: float) -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match="beta must be above zero"):
        LOSSES[name].function(Errors(one, one, one, one, safeguard=one), beta)


@pytest.mark.parametrize(("name", "spec"), SINGLE.items())
def test_a_loss_runs_on_no_more_than_it_says_it_needs(name: str, spec: LossSpec) -> None:
    one = torch.ones(3)
    loser = one if spec.needs_loser else None
    reference = one if spec.needs_reference else None
    reference_loser = one if spec.needs_reference and spec.needs_loser else None
    extras = {"safeguard": one if spec.needs_safeguard else None, "weights": one if spec.needs_weights else None}
    losses = spec.function(Errors(one, loser, reference, reference_loser, **extras), 1.0 if spec.needs_beta else 0.0)
    assert losses.shape == (3,), name


def test_the_names_of_the_losses_are_known_without_importing_torch() -> None:
    code = "import sys; from milonga.maths.losses import LOSSES; assert LOSSES and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.9]), st.floats(-1, 1))
def test_the_guarded_step_never_raises_the_winners_error_to_first_order(seed: int, guard: float, mix: float) -> None:
    # One shared output: then the errors' gradients by the answers are those by what is trained.
    stream = torch.Generator().manual_seed(seed)
    winner = torch.randn(3, 7, generator=stream)
    loser = 4 * mix * winner + torch.randn(3, 7, generator=stream)
    scale = safe_scale(winner, loser, guard)
    assert ((scale > 0) & (scale <= 1)).all()
    by_step = (winner * (scale[:, None] * loser - winner)).sum(1)  # the winner's slope along −g_w + λ·g_l
    kept = guard * winner.pow(2).sum(1)
    assert (by_step <= torch.where(scale < 1, -kept, by_step.abs()) + 1e-4).all()
    assert (by_step <= 1e-4).all()


def test_the_safeguard_is_its_closed_form_and_leaves_opposed_gradients_alone() -> None:
    winner = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    loser = torch.tensor([[4.0, 3.0], [-4.0, 3.0], [0.5, 9.0]])
    assert safe_scale(winner, loser).tolist() == [0.25, 1.0, 1.0]
    assert safe_scale(winner, loser, 0.2).tolist() == pytest.approx([0.2, 1.0, 1.0])


@settings(deadline=None)
@given(errors_of_a_pair, betas, st.floats(-0.5, 0.5))
def test_kto_of_a_pair_is_the_mean_of_its_two_labelled_clips(row: list[float], beta: float, base: float) -> None:
    pair = replace(errors([row]), baseline=base)
    clips = torch.tensor([row[0], row[1]]), torch.tensor([row[2], row[3]])
    alone = Errors(clips[0], reference_winner=clips[1], desirable=torch.tensor([True, False]), baseline=base)
    assert kto(pair, beta).item() == pytest.approx(kto(alone, beta).mean().item(), abs=1e-5)


def test_kto_wants_liked_clips_nearer_and_disliked_ones_farther() -> None:
    policy = torch.tensor([0.5, 0.5], requires_grad=True)
    labelled = Errors(policy, reference_winner=torch.tensor([0.5, 0.5]), desirable=torch.tensor([True, False]))
    kto(labelled, 4.0).sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([0.5, -0.5])  # ±½β·σ(0)·σ(0)


def test_mapo_is_its_closed_form_where_the_errors_agree_and_stays_finite_at_zero() -> None:
    equal = Errors(torch.tensor([0.3, 0.0]), torch.tensor([0.3, 0.0]))
    assert mapo(equal, 0.1).tolist() == pytest.approx([0.3 + 0.1 * math.log(2), 0.1 * math.log(2)])
    far = Errors(torch.tensor([2.0], requires_grad=True), torch.tensor([0.1]))
    mapo(far, 0.1).sum().backward()
    assert far.policy_winner.grad is not None
    assert torch.isfinite(far.policy_winner.grad).all()


def test_what_single_losses_take_is_asked_for_by_name() -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match="safeguard"):
        LOSSES["sdpo"].function(Errors(one, one, one, one), 1.0)
    with pytest.raises(ValueError, match="weight"):
        weighted_sft(Errors(one))
    with pytest.raises(ValueError, match="losers"):
        mapo(Errors(one), 1.0)
    with pytest.raises(ValueError, match="shape"):
        mapo(Errors(one, one[:, None]), 1.0)


def test_both_conventions_of_beta_are_told() -> None:
    told = format_beta(2000, 8 * 256 * 16)
    assert told == "β 2000 on means = 0.06104 on sums of 32,768 elements = 0.03052 as Eq. (17)'s βNω(λ)"
