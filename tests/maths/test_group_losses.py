"""Group-wise losses: exactly diffusion-DPO for two clips, laws of advantages, and a toy whose optimum is known."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.maths.group_losses import GroupErrors, advantages, awm, crd, dgpo, implicit_policies, nft
from milonga.maths.losses import LOSSES, Errors, dpo

GROUPED = [name for name, spec in LOSSES.items() if spec.groups]

values = st.floats(0.01, 3.0)
rewards = st.lists(st.floats(-10, 10), min_size=2, max_size=8)


def tensors(*columns: list[float]) -> list[torch.Tensor]:
    return [torch.tensor(column, dtype=torch.float64) for column in columns]


@settings(deadline=None)
@given(st.lists(st.tuples(values, values, values, values), min_size=1, max_size=5), st.floats(0.5, 500.0))
def test_two_clips_with_advantages_of_one_have_the_gradient_of_dpo_over_beta(rows, beta: float) -> None:
    winner, loser, reference_winner, reference_loser = tensors(*map(list, zip(*rows, strict=True)))
    pair = [winner.clone().requires_grad_(), loser.clone().requires_grad_()]
    dpo(Errors(*pair, reference_winner, reference_loser), beta).sum().backward()
    group = torch.stack([winner, loser], dim=1).requires_grad_()
    signs = torch.tensor([[1.0, -1.0]], dtype=torch.float64).expand(len(rows), 2)
    dgpo(GroupErrors(group, signs, torch.stack([reference_winner, reference_loser], dim=1)), beta).sum().backward()
    expected = torch.stack([pair[0].grad, pair[1].grad], dim=1) / beta
    torch.testing.assert_close(group.grad, expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(rewards, st.floats(-100, 100), st.floats(0.1, 100))
def test_advantages_do_not_change_with_shift_and_scale(row: list[float], shift: float, scale: float) -> None:
    given_rewards = torch.tensor([row], dtype=torch.float64)
    if given_rewards.std(unbiased=False) < 1e-3:
        return
    moved = advantages(given_rewards * scale + shift)
    torch.testing.assert_close(moved, advantages(given_rewards), rtol=1e-6, atol=1e-6)


def test_advantages_have_mean_zero_and_deviation_one() -> None:
    found = advantages(torch.tensor([[0.1, 0.4, 0.4, 0.9]], dtype=torch.float64))
    assert abs(found.mean().item()) < 1e-12
    assert found.std(unbiased=False).item() == pytest.approx(1.0)


def test_a_group_of_equal_rewards_teaches_nothing() -> None:
    assert advantages(torch.full((2, 4), 0.7)).eq(0).all()


def test_a_clip_that_no_scorer_could_rate_counts_for_nothing() -> None:
    found = advantages(torch.tensor([[0.0, 1.0, math.nan]]))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0, 0.0]]))


def test_an_outlier_is_clipped() -> None:
    row = torch.zeros(1, 100)
    row[0, 0] = 1.0
    assert advantages(row).max().item() == 5.0


def test_dgpo_by_hand() -> None:
    policy, reference = torch.tensor([[0.5, 0.2, 0.9]]), torch.tensor([[0.4, 0.3, 0.9]])
    signs = torch.tensor([[1.0, -0.5, -0.5]])
    weight = 1 / (1 + math.exp(-10 * (1.0 * 0.1 + -0.5 * -0.1) / 3))
    expected = weight * (0.5 - 0.1 - 0.45) / 3
    assert dgpo(GroupErrors(policy, signs, reference), 10.0).item() == pytest.approx(expected, abs=1e-6)


def test_dgpo_stops_where_a_clip_has_moved_as_far_as_the_ratio_allows() -> None:
    policy = torch.tensor([[0.1, 0.5, 0.9]], requires_grad=True)
    old = torch.tensor([[0.5, 0.5, 0.5]])
    errors = GroupErrors(policy, torch.tensor([[1.0, 0.5, -1.0]]), old, old, ratio_clip=0.05)
    dgpo(errors, 1.0).sum().backward()
    assert policy.grad is not None
    assert (policy.grad != 0).tolist() == [[False, True, False]]


def test_awm_is_the_policy_gradient_before_the_first_update() -> None:
    policy = torch.tensor([[0.3, 0.6]], requires_grad=True)
    loss = awm(GroupErrors(policy, torch.tensor([[1.0, -1.0]]), old=policy.detach(), ratio_clip=0.2))
    assert loss.item() == pytest.approx(0.0)
    loss.sum().backward()
    torch.testing.assert_close(policy.grad, torch.tensor([[0.5, -0.5]]))


def test_awm_takes_the_worse_of_ratio_and_clipped_ratio() -> None:
    policy = torch.tensor([[0.1, 0.9]], requires_grad=True)
    awm(GroupErrors(policy, torch.tensor([[1.0, -1.0]]), old=torch.full((1, 2), 0.5), ratio_clip=0.1)).sum().backward()
    assert policy.grad is not None
    assert policy.grad.eq(0).all()


def test_nft_moves_towards_liked_and_away_from_disliked_answers() -> None:
    clean = torch.tensor([[1.0, 1.0]])
    answer = torch.zeros(1, 2, requires_grad=True)
    positive, negative = implicit_policies(answer, torch.zeros(1, 2), beta=1.0)
    errors = GroupErrors(
        (answer - clean) ** 2,
        torch.tensor([[5.0, -5.0]]),
        positive=(positive - clean) ** 2,
        negative=(negative - clean) ** 2,
    )
    nft(errors, 1.0).sum().backward()
    assert answer.grad is not None
    assert answer.grad[0, 0] < 0 < answer.grad[0, 1]


def test_crd_is_zero_where_the_implicit_reward_is_the_advantage() -> None:
    wanted = torch.tensor([[1.0, 0.0, -1.0]])
    old = torch.full((1, 3), 2.0)
    assert crd(GroupErrors(old - wanted / 4, wanted, old=old), 4.0).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", GROUPED)
def test_groups_do_not_see_each_other(name: str) -> None:
    chance = torch.Generator().manual_seed(3)
    five = [torch.rand(6, 4, generator=chance, dtype=torch.float64) for _ in range(5)]
    errors = GroupErrors(five[0], advantages(five[1]), five[2], five[3], five[4], five[1])
    whole = LOSSES[name].function(replace(errors, ratio_clip=0.1), 2.0)
    parts = [
        LOSSES[name].function(GroupErrors(*(column[part] for column in list(vars(errors).values())[:6]), 0.1), 2.0)
        for part in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("name", GROUPED)
def test_what_a_loss_needs_it_asks_for(name: str) -> None:
    spec = LOSSES[name]
    with pytest.raises(ValueError, match="needs"):
        spec.function(GroupErrors(torch.rand(1, 2), torch.tensor([[1.0, -1.0]])), 1.0)
    if spec.needs_beta:
        full = GroupErrors(*(torch.rand(1, 2) for _ in range(6)))
        with pytest.raises(ValueError, match="beta must be above zero"):
            spec.function(full, 0.0)


@pytest.mark.parametrize(("name", "beta"), [("dgpo", 20.0), ("awm", 0.0), ("crd", 1.0), ("nft", 1.0)])
def test_a_toy_policy_finds_the_rewarded_clips(name: str, beta: float) -> None:
    """Clips are numbers, a policy is its mean, a clip's error its squared distance from it, the reward is highest at 2:
    the mean must come to lie near 2 from 0, whatever the loss, when clips are drawn from the policy itself."""
    chance = torch.Generator().manual_seed(0)
    mean = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    reference = mean.detach().clone()
    optimizer = torch.optim.Adam([mean], lr=0.05)
    for _ in range(200):
        clips = mean.detach() + torch.randn(16, 8, generator=chance, dtype=torch.float64)
        signs = advantages(-((clips - 2.0) ** 2))
        two = implicit_policies(mean.expand(16, 8), reference.expand(16, 8), beta or 1.0)
        implicit = [(clips - answer) ** 2 for answer in two]
        errors = GroupErrors(
            (clips - mean) ** 2, signs, (clips - reference) ** 2, ((clips - mean) ** 2).detach(), *implicit
        )
        optimizer.zero_grad()
        LOSSES[name].function(errors, beta).mean().backward()
        optimizer.step()
        reference = mean.detach().clone()
    assert mean.item() == pytest.approx(2.0, abs=0.35)
