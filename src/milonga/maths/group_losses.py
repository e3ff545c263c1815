"""Group-wise losses: every clip of a caption trains, weighted by how much better or worse than its group it is.

An example is a group of K clips of one caption with rewards r. Their advantages A are r standardised within the group
(`advantages`). The errors e are *mean* squared denoising errors over a clip's latents, all clips of a group at one
timestep and one noise: e_θ by the policy, e_ref by the frozen reference, e_old by the policy that sampled the clips
(or its moving average). All of it is forward-process: no stored trajectory, any sampler.

For K = 2 and A = ±1 the gradient of `dpo` is that of `dgpo` times β, so β has the scale of `maths.losses` in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ADVANTAGE_LIMIT = 5.0  # advantages are clipped to ±this, as in DGPO, AWM and DiffusionNFT
FLAT = 1e-6  # groups whose rewards deviate less teach nothing: their advantages are zero


@dataclass(frozen=True)
class GroupErrors:
    """Mean denoising errors of G groups of K clips, each (G, K), and the clips' advantages (G, K).

    `old` are the errors of the sampling policy. `positive` and `negative` are those of DiffusionNFT's two implicit
    policies (`implicit_policies`). None where the loss at hand does not ask for them. `ratio_clip` bounds how far a
    clip's ratio exp(e_old − e_θ) may leave 1 (0: as far as it likes).
    """

    policy: Tensor
    advantages: Tensor
    reference: Tensor | None = None
    old: Tensor | None = None
    positive: Tensor | None = None
    negative: Tensor | None = None
    ratio_clip: float = 0.0


def advantages(rewards: Tensor) -> Tensor:
    """A = (r − mean) / std within each group, clipped to ±`ADVANTAGE_LIMIT`; rewards and result (G, K).

    The result does not change when a group's rewards are shifted or scaled. A group of equal rewards gets zeros, and a
    clip whose reward is NaN gets zero and does not enter its group's mean and deviation.
    """
    import torch

    known = torch.isfinite(rewards)
    count = known.sum(-1, keepdim=True).clamp(min=1)
    centred = torch.where(known, rewards, 0.0).double()
    centred = torch.where(known, centred - centred.sum(-1, keepdim=True) / count, 0.0)
    deviation = (centred.pow(2).sum(-1, keepdim=True) / count).sqrt()
    scaled = torch.where(deviation > FLAT, centred / deviation.clamp(min=FLAT), 0.0)
    return scaled.clamp(-ADVANTAGE_LIMIT, ADVANTAGE_LIMIT).to(rewards.dtype)


def dgpo(errors: GroupErrors, beta: float) -> Tensor:
    """Direct group preference optimisation, shape (G,) (arXiv 2510.08425): w · mean_i A_i e_θ(x_i).

    w = σ(Σ_i A_i β (e_θ − e_ref)_i / K) has no gradient: it falls as the group is ordered as its rewards are. With a
    `ratio_clip`, a clip whose ratio left 1 ± ratio_clip in the direction of its advantage has no gradient any more.
    Raises ValueError without a reference, with a ratio_clip without old errors, or if β is not above zero.
    """
    import torch

    _check_beta(beta)
    gap = errors.policy.detach() - _needed(errors.reference, "dgpo", "the reference's errors")
    weight = torch.sigmoid(beta * (errors.advantages * gap).mean(-1))
    policy, clip = errors.policy, errors.ratio_clip
    if clip > 0:
        old = _needed(errors.old, "dgpo with a ratio_clip", "the sampling policy's errors")
        ratio = (old - policy.detach()).exp()
        outside = torch.where(errors.advantages > 0, ratio > 1 + clip, ratio < 1 - clip)
        policy = torch.where(outside, policy.detach(), policy)
    return weight * (errors.advantages * policy).mean(-1)


def awm(errors: GroupErrors, beta: float = 0.0) -> Tensor:
    """Advantage weighted matching, shape (G,) (arXiv 2509.25050): mean_i max(−A ρ, −A clip(ρ, 1 ± c)).

    ρ = exp(e_old − e_θ) is 1 before the first update and c the `ratio_clip`. Without it this is the policy gradient
    on the ratio alone; β plays no part. Raises ValueError without old errors.
    """
    import torch

    ratio = (_needed(errors.old, "awm", "the sampling policy's errors") - errors.policy).exp()
    plain, clip = -errors.advantages * ratio, errors.ratio_clip
    if clip <= 0:
        return plain.mean(-1)
    return torch.maximum(plain, -errors.advantages * ratio.clamp(1 - clip, 1 + clip)).mean(-1)


def nft(errors: GroupErrors, beta: float) -> Tensor:
    """DiffusionNFT, shape (G,) (arXiv 2509.16117): mean_i [r e⁺ + (1 − r) e⁻] / β with r = A/10 + ½ in [0, 1].

    e⁺ and e⁻ are the errors of `implicit_policies`. Raises ValueError without them, or if β is not above zero.
    """
    _check_beta(beta)
    positive = _needed(errors.positive, "nft", "the errors of the implicit policies")
    negative = _needed(errors.negative, "nft", "the errors of the implicit policies")
    liking = (errors.advantages / (2 * ADVANTAGE_LIMIT) + 0.5).clamp(0, 1)
    return (liking * positive + (1 - liking) * negative).mean(-1) / beta


def crd(errors: GroupErrors, beta: float) -> Tensor:
    """Centred reward distillation, shape (G,) (arXiv 2603.14128): mean_i (β(ρ_i − mean ρ) − A_i)².

    ρ = e_old − e_θ is the policy's implicit reward of a clip. Raises ValueError without old errors, or if β is not
    above zero.
    """
    _check_beta(beta)
    implicit = _needed(errors.old, "crd", "the sampling policy's errors") - errors.policy
    centred = implicit - implicit.mean(-1, keepdim=True)
    wanted = errors.advantages - errors.advantages.mean(-1, keepdim=True)
    return (beta * centred - wanted).pow(2).mean(-1)


def implicit_policies(policy: Tensor, old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """DiffusionNFT's v⁺ = βv_θ + (1 − β)v_old and v⁻ = (1 + β)v_old − βv_θ, from two answers of one shape.

    `old` gets no gradient. Raises ValueError if β is not above zero.
    """
    _check_beta(beta)
    old = old.detach()
    return beta * policy + (1 - beta) * old, (1 + beta) * old - beta * policy


def _needed(values: Tensor | None, loss: str, what: str) -> Tensor:
    if values is None:
        raise ValueError(f"{loss} needs {what}")
    return values.detach() if what.startswith(("the reference", "the sampling")) else values


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be above zero, not {beta}: a group-wise loss learns nothing at 0")
