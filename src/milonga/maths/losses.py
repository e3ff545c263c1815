"""Preference losses: each a function of four error vectors and β, one loss per pair (§4.2, Eq. 17).

An error is a clip's *mean* squared denoising error over its latents: e_θ by the policy, e_ref by the frozen reference.
With Δw = e_θ(w) − e_ref(w), Δl likewise for the loser and the margin m = Δl − Δw, every β here is the released code's,
which multiplies means: the logit of a pair is z = ½·β·m. Three other writings of the same number:

- on sums of squares over E elements, still with the ½: β/E (`beta_on_sums`); 2000 on 8·256·16 is 0.061;
- the factor β·N·ω(λ) that Eq. 17 puts before sums, without a ½: β/(2E), which is 0.031 there;
- diffusers' DPO script has the ½ and means as well: the same β.

`format_beta` says all of them. ω(λ) is in the errors already (`maths.noise.omega`): a loss sees weighted means.

Torch is imported only when a loss is computed, so that a recipe can be checked against `LOSSES` at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from milonga.maths.group_losses import awm, crd, dgpo, nft

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Errors:
    """Mean denoising errors of B pairs, each of shape (B,); None where the loss at hand does not ask for them.

    Beside them, what single losses take: `safeguard` is SDPO's scale of the loser's gradient (`safe_scale`), `weights`
    are rewards, `desirable` tells which of B single clips are liked (then there are no losers), all (B,); `baseline` is
    the mean of −Δ over the clips of the step before, the point that KTO measures gains and losses from, `crpo_weight`
    the weight of CRPO's second term.
    """

    policy_winner: Tensor
    policy_loser: Tensor | None = None
    reference_winner: Tensor | None = None
    reference_loser: Tensor | None = None
    safeguard: Tensor | None = None
    weights: Tensor | None = None
    desirable: Tensor | None = None
    baseline: float = 0.0
    crpo_weight: float = 1.0


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
    """TangoFlux's loss: diffusion-DPO plus `errors.crpo_weight` (there 1) times the winner's own error, shape (B,)
    (arXiv 2412.21037). Raises as `dpo`.

    The second term is what keeps the winner's error from rising while the margin grows.
    """
    return dpo(errors, beta) + errors.crpo_weight * sft(errors)


def sdpo(errors: Errors, beta: float) -> Tensor:
    """Diffusion-DPO with the winner guarded, shape (B,) (arXiv 2511.03317): the value of `dpo`, but the loser's
    gradient times `errors.safeguard`. What that holds back depends on which gradients the safeguard is taken from, see
    `safe_scale`. Raises as `dpo`, and ValueError without a safeguard.
    """
    if errors.safeguard is None or errors.policy_loser is None:
        raise ValueError("sdpo needs losers and the safeguard of each pair")
    loser, scale = _precise(errors.policy_loser), errors.safeguard.detach()
    return dpo(replace(errors, policy_loser=loser.detach() + scale * (loser - loser.detach())), beta)


def kto(errors: Errors, beta: float) -> Tensor:
    """Diffusion-KTO's loss of clips that are liked or disliked one by one, shape (B,) (arXiv 2404.04465).

    With the implicit reward r = −½βΔ and z₀ = max(0, ½β·baseline): 1 − σ(r − z₀) for a liked clip and 1 − σ(z₀ − r)
    for a disliked one. Without labels a pair is a liked winner and a disliked loser, and its loss their mean. z₀ is of
    the step before, and not of the batch, so that results do not depend on how a step is cut into batches. Raises as
    `dpo`.
    """
    _check_beta(beta)
    if errors.desirable is None:
        winner, loser = deltas(errors)
        return (_regret(winner, True, errors.baseline, beta) + _regret(loser, False, errors.baseline, beta)) / 2
    delta = _less(errors.policy_winner, errors.reference_winner)
    liked = errors.desirable.bool()
    return liked * _regret(delta, True, errors.baseline, beta) + ~liked * _regret(delta, False, errors.baseline, beta)


MAPO_SCALE, MAPO_STEPS = 0.5, 1000  # as released: what an error is times, and T


def mapo(errors: Errors, beta: float) -> Tensor:
    """MaPO: e_θ(w) − β·log σ(T·(o(w) − o(l))) with o = x/(eˣ − 1), x = e_θ/2, T = 1000, shape (B,) (arXiv 2406.06424).

    There is no reference; β weighs the margin against the winner's own error (0.1 as released). Raises ValueError
    without losers or if β is not above zero.
    """
    from torch.nn.functional import logsigmoid

    _check_beta(beta)
    if errors.policy_loser is None:
        raise ValueError("mapo needs the errors of the policy on losers")
    winner, loser = _precise(errors.policy_winner), _precise(errors.policy_loser)
    if winner.shape != loser.shape:
        raise ValueError(f"winners {tuple(winner.shape)} and losers {tuple(loser.shape)} differ in shape")
    return winner - beta * logsigmoid(MAPO_STEPS * (_odds(winner) - _odds(loser)))


def weighted_sft(errors: Errors, beta: float = 0.0) -> Tensor:
    """BATON's fine-tuning: e_θ times the clip's reward, shape (B,) (arXiv 2402.00744); β plays no part.

    Its pre-training term is the trainer's `prior_weight`. Raises ValueError without weights.
    """
    if errors.weights is None:
        raise ValueError("weighted-sft needs a weight (a reward) for each example")
    return errors.weights.to(_precise(errors.policy_winner)) * _precise(errors.policy_winner)


HUBER = 0.00054  # c of the pseudo-Huber loss, as a root mean square (arXiv 2310.14189: c = 0.00054·√d)


def pseudo_huber(errors: Errors, beta: float = 0.0) -> Tensor:
    """√(e_θ + c²) − c, shape (B,) (arXiv 2310.14189): large errors weigh less than squared; β plays no part."""
    return (_precise(errors.policy_winner) + HUBER**2).sqrt() - HUBER


def draft(rewards: Tensor, beta: float = 0.0) -> Tensor:
    """DRaFT: −r of clips that were sampled with gradients, shape (B,) (arXiv 2309.17400); β plays no part."""
    return -_precise(rewards)


@dataclass(frozen=True)
class LossSpec:
    """A loss, and what it asks for: the trainer skips the passes that are not needed.

    A loss with `labels` also takes single clips that are labelled, in place of winners and losers. A loss of `groups`
    is a function of `group_losses.GroupErrors`; some need the errors of the policy that sampled the clips (`needs_old`)
    or of the implicit policies (`needs_implicit`). One that `samples` is a function of the rewards of clips that the
    step samples itself, with gradients; its examples are captions. One that `distils` takes its targets from a teacher:
    its "guidance", or its "consistency" (`training.distil`).
    """

    function: Callable[[Any, float], Tensor]
    needs_loser: bool
    needs_reference: bool
    needs_beta: bool
    needs_safeguard: bool = False
    needs_weights: bool = False
    labels: bool = False
    groups: bool = False
    needs_old: bool = False
    needs_implicit: bool = False
    samples: bool = False
    distils: Literal["", "guidance", "consistency"] = ""


LOSSES: dict[str, LossSpec] = {
    "sft": LossSpec(sft, needs_loser=False, needs_reference=False, needs_beta=False),
    "dpo": LossSpec(dpo, needs_loser=True, needs_reference=True, needs_beta=True),
    "ipo": LossSpec(ipo, needs_loser=True, needs_reference=True, needs_beta=True),
    "hinge": LossSpec(hinge, needs_loser=True, needs_reference=True, needs_beta=True),
    "crpo": LossSpec(crpo, needs_loser=True, needs_reference=True, needs_beta=True),
    "sdpo": LossSpec(sdpo, needs_loser=True, needs_reference=True, needs_beta=True, needs_safeguard=True),
    "kto": LossSpec(kto, needs_loser=True, needs_reference=True, needs_beta=True, labels=True),
    "mapo": LossSpec(mapo, needs_loser=True, needs_reference=False, needs_beta=True),
    "weighted-sft": LossSpec(
        weighted_sft, needs_loser=False, needs_reference=False, needs_beta=False, needs_weights=True
    ),
    "dgpo": LossSpec(dgpo, needs_loser=False, needs_reference=True, needs_beta=True, groups=True),
    "awm": LossSpec(awm, needs_loser=False, needs_reference=False, needs_beta=False, groups=True, needs_old=True),
    "crd": LossSpec(crd, needs_loser=False, needs_reference=False, needs_beta=True, groups=True, needs_old=True),
    "nft": LossSpec(
        nft, needs_loser=False, needs_reference=False, needs_beta=True, groups=True, needs_old=True, needs_implicit=True
    ),
    "distil-guidance": LossSpec(sft, needs_loser=False, needs_reference=False, needs_beta=False, distils="guidance"),
    "distil": LossSpec(sft, needs_loser=False, needs_reference=False, needs_beta=False, distils="consistency"),
    "distil-huber": LossSpec(
        pseudo_huber, needs_loser=False, needs_reference=False, needs_beta=False, distils="consistency"
    ),
    "draft": LossSpec(draft, needs_loser=False, needs_reference=False, needs_beta=False, samples=True),
}


def safe_scale(winner: Tensor, loser: Tensor, mu: float = 0.0) -> Tensor:
    """SDPO's λ (`safe_share`) pair by pair, from gradients by the network's outputs; shape (B,), no gradient.

    winner, loser (B, ...): the residuals (output − target), to which the errors' gradients by the outputs are
    proportional. This is the authors' approximation: it treats the two outputs as if one step moved both alike, while
    they depend on each other only through the weights. The winner's error cannot rise along such a step; along one in
    weights it can, which λ from gradients by the weights prevents (`safeguard = "parameters"`).
    """
    mine, other = winner.detach().float().flatten(1), loser.detach().float().flatten(1)
    return safe_share(mine.pow(2).sum(1), (mine * other).sum(1), mu)


def safe_share(own: Tensor, aligned: Tensor, mu: float = 0.0) -> Tensor:
    """SDPO's λ = min(1, (1 − μ)·‖g_w‖² / ⟨g_w, g_l⟩) where the gradients align, else 1 (arXiv 2511.03317).

    own = ‖g_w‖² and aligned = ⟨g_w, g_l⟩ of one shape; μ in [0, 1) is the share of the winner's own descent that is
    preserved: along g_w − λ·g_l it is ‖g_w‖² − λ⟨g_w, g_l⟩ ≥ μ‖g_w‖², so to first order its error does not rise.
    """
    bound = (1 - mu) * own / aligned.clamp(min=1e-30)
    return bound.clamp(max=1.0).where(aligned > 0, own.new_ones(()))


def beta_on_sums(beta: float, elements: int) -> float:
    """The β that gives the same logit when errors are sums over `elements` and not means, the ½ kept: β/elements."""
    if elements < 1:
        raise ValueError(f"elements must be at least 1, not {elements}")
    return beta / elements


def format_beta(beta: float, elements: int) -> str:
    """Every writing of one β, for people: on means (as released), on sums, and as Eq. 17's factor before sums."""
    sums = beta_on_sums(beta, elements)
    return f"β {beta:g} on means = {sums:.4g} on sums of {elements:,} elements = {sums / 2:.4g} as Eq. (17)'s βNω(λ)"


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
    _check_beta(beta)
    return 0.5 * beta * preference_margin(errors)


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(
            f"beta must be above zero (the paper has 2000), not {beta}: a preference loss learns nothing at 0"
        )


def _regret(delta: Tensor, liked: bool, baseline: float, beta: float) -> Tensor:
    """KTO's 1 − σ(±(r − z₀)) of clips with these Δ, all liked or all disliked."""
    gain = -0.5 * beta * delta - max(0.0, 0.5 * beta * baseline)
    return (-gain if liked else gain).sigmoid()


def _odds(errors: Tensor) -> Tensor:
    """x/(eˣ − 1) at x = `MAPO_SCALE`·e: 1 at no error, and falling."""
    scaled = (MAPO_SCALE * errors).clamp(min=1e-12)
    return scaled / scaled.expm1()


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
