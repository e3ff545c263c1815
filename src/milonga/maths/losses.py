"""Preference losses: each a function of four error vectors and β, one loss per pair (§4.2, Eq. 17).

An error is a clip's *mean* squared denoising error over its latents: e_θ by the policy, e_ref by the frozen reference.
With Δw = e_θ(w) − e_ref(w), Δl likewise for the loser and the margin m = Δl − Δw, every β here is the released code's,
which multiplies means: the logit of a pair is z = ½·β·m. Three other writings of the same number:

- on sums of squares over E elements, still with the ½: β/E (`beta_on_sums`); 2000 on 8·256·16 is 0.061;
- the factor β·N·ω(λ) that Eq. 17 puts before sums, without a ½: β/(2E), which is 0.031 there;
- diffusers' DPO script has the ½ and means as well: the same β.

Torch is imported only when a loss is computed, so that a recipe can be checked against `LOSSES` at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Errors:
    """Mean denoising errors of B pairs, each of shape (B,); None where the loss at hand does not ask for them."""

    policy_winner: Tensor
    policy_loser: Tensor | None = None
    reference_winner: Tensor | None = None
    reference_loser: Tensor | None = None


def sft(errors: Errors, beta: float = 0.0) -> Tensor:
    """Supervised fine-tuning on winners: e_θ(w), shape (B,) (Eq. 4 on x^w, §5.1); β plays no part."""
    return _precise(errors.policy_winner)


def dpo(errors: Errors, beta: float) -> Tensor:
    """Diffusion-DPO: −log σ(½βm), shape (B,) (Eq. 17; arXiv 2311.12908 as released).

    ln 2 where policy and reference agree. Raises ValueError without losers or reference, or if β is not above zero.
    """
    from torch.nn.functional import logsigmoid

    return -logsigmoid(_logit(errors, beta))


def ipo(errors: Errors, beta: float) -> Tensor:
    """Identity preference optimisation: (½βm − ½)², shape (B,) (arXiv 2310.12036, times β² to fit the other scales).

    Unlike DPO it wants a margin of 1/β and no more, so it does not push pairs that are already apart. Raises as `dpo`.
    """
    return (_logit(errors, beta) - 0.5) ** 2


def hinge(errors: Errors, beta: float) -> Tensor:
    """Hinge loss: max(0, 1 − ½βm), shape (B,) (SLiC, arXiv 2305.10425): no gradient beyond m = 2/β. Raises as `dpo`."""
    return (1 - _logit(errors, beta)).clamp(min=0)


def crpo(errors: Errors, beta: float) -> Tensor:
    """TangoFlux's loss: diffusion-DPO plus the winner's own error, shape (B,) (arXiv 2412.21037). Raises as `dpo`.

    The second term is what keeps the winner's error from rising while the margin grows.
    """
    return dpo(errors, beta) + sft(errors)


@dataclass(frozen=True)
class LossSpec:
    """A loss, and what it asks for: the trainer skips the passes that are not needed."""

    function: Callable[[Errors, float], Tensor]
    needs_loser: bool
    needs_reference: bool
    needs_beta: bool


LOSSES: dict[str, LossSpec] = {
    "sft": LossSpec(sft, needs_loser=False, needs_reference=False, needs_beta=False),
    "dpo": LossSpec(dpo, needs_loser=True, needs_reference=True, needs_beta=True),
    "ipo": LossSpec(ipo, needs_loser=True, needs_reference=True, needs_beta=True),
    "hinge": LossSpec(hinge, needs_loser=True, needs_reference=True, needs_beta=True),
    "crpo": LossSpec(crpo, needs_loser=True, needs_reference=True, needs_beta=True),
}


def beta_on_sums(beta: float, elements: int) -> float:
    """The β that gives the same logit when errors are sums over `elements` and not means, the ½ kept: β/elements."""
    if elements < 1:
        raise ValueError(f"elements must be at least 1, not {elements}")
    return beta / elements


def preference_margin(errors: Errors) -> Tensor:
    """m = Δl − Δw, shape (B,): how much more the policy has improved on the winner than on the loser (inside Eq. 17).

    Each Δ is taken first, between errors that are nearly equal, which loses the fewest digits; half-precision errors
    are widened to float32, where β = 2000 leaves about 1e-3 of rounding. Raises ValueError if an error is missing.
    """
    winner, loser = deltas(errors)
    return loser - winner


def deltas(errors: Errors) -> tuple[Tensor, Tensor]:
    """Δw and Δl, each (B,): the policy's errors less the reference's. Both rising while m grows is a warning sign."""
    policy = errors.policy_winner, errors.policy_loser
    reference = errors.reference_winner, errors.reference_loser
    winner, loser = (_less(mine, theirs) for mine, theirs in zip(policy, reference, strict=True))
    if winner.shape != loser.shape:
        raise ValueError(f"winners {tuple(winner.shape)} and losers {tuple(loser.shape)} differ in shape")
    return winner, loser


def implicit_accuracy(errors: Errors) -> Tensor:
    """The share of pairs with m > 0, a scalar: the policy's implicit reward agrees with the preference (Eqs 11, 12).

    A margin of exactly zero counts one half, so an untrained policy scores 0.5 and not 0.
    """
    margin = preference_margin(errors)
    return ((margin > 0).float() + 0.5 * (margin == 0).float()).mean()


def _logit(errors: Errors, beta: float) -> Tensor:
    """z = ½βm, shape (B,)."""
    if not beta > 0:
        raise ValueError(
            f"beta must be above zero (the paper has 2000), not {beta}: a preference loss learns nothing at 0"
        )
    return 0.5 * beta * preference_margin(errors)


def _less(policy: Tensor | None, reference: Tensor | None) -> Tensor:
    """policy − reference in at least float32; a missing or misshapen vector is an error."""
    if policy is None or reference is None:
        raise ValueError("this loss needs the errors of policy and reference on winners and on losers")
    if policy.shape != reference.shape:
        raise ValueError(f"policy {tuple(policy.shape)} and reference {tuple(reference.shape)} errors differ in shape")
    return _precise(policy) - _precise(reference)


def _precise(errors: Tensor) -> Tensor:
    """Errors in float32 or better."""
    return errors.float() if errors.element_size() < 4 else errors
