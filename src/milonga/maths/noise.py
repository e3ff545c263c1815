"""The forward process (Eq. 3), the denoiser's target, and every draw of noise and timestep.

A flow (Lipman et al. 2023, Liu et al. 2023) is the same process at another scale, so it is described by ᾱ too: latents
and noise are weighted by 1 − σ and σ, which sum to 1, where diffusion takes √ᾱ and √(1−ᾱ), whose squares do.

All draws come from CPU generators named by what they are for, never from the global stream: a run that resumes, or a
clip that is made in another batch, sees exactly the same numbers.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from milonga.core.ids import derive_seed

Prediction = Literal["v_prediction", "epsilon", "flow_prediction"]
Timesteps = Literal["uniform", "biased", "high-noise"]
Omega = Literal["prediction", "released", "epsilon", "sigmoid"]


def seeded(seed: int, *parts: object) -> torch.Generator:
    """A CPU generator whose stream depends on `seed` and on every one of `parts`."""
    return torch.Generator().manual_seed(derive_seed(seed, *parts))


def add_noise(x: Tensor, noise: Tensor, alpha_bar: Tensor, prediction: Prediction = "v_prediction") -> Tensor:
    """The noisy latents √ᾱ·x + √(1−ᾱ)·noise (Eq. 3, whose printed (1−ᾱ) lacks the root); a flow's (1−σ)·x + σ·noise.

    x, noise: (B, ...); alpha_bar: (B,), each item's ᾱ at its own timestep.
    """
    signal, spread = (_shaped(rate, x) for rate in rates(alpha_bar, prediction))
    return signal * x + spread * noise


def velocity(x: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """The v-prediction target √ᾱ·noise − √(1−ᾱ)·x (Salimans & Ho 2022); shapes as in `add_noise`."""
    signal, spread = (_shaped(rate, x) for rate in rates(alpha_bar, "v_prediction"))
    return signal * noise - spread * x


def target(x: Tensor, noise: Tensor, alpha_bar: Tensor, prediction: Prediction) -> Tensor:
    """The denoiser's target: the noise itself (Eq. 4), the velocity (what Tango's checkpoints predict), or a flow's
    noise − x, the direction from latents to noise.

    Raises ValueError for any other `prediction`.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "v_prediction":
        return velocity(x, noise, alpha_bar)
    if prediction == "flow_prediction":
        return noise - x
    raise ValueError(f"prediction must be 'v_prediction', 'epsilon' or 'flow_prediction', not {prediction!r}")


def clean_and_noise(
    noisy: Tensor, predicted: Tensor, alpha_bar: Tensor, prediction: Prediction
) -> tuple[Tensor, Tensor]:
    """The latents and the noise that a prediction says noisy latents are made of: the inverse of `add_noise` and
    `target`; shapes as in `add_noise`. A prediction of noise needs ᾱ above 0.
    """
    signal, spread = (_shaped(rate, noisy) for rate in rates(alpha_bar, prediction))
    if prediction == "epsilon":
        return (noisy - spread * predicted) / signal, predicted
    if prediction == "v_prediction":
        return signal * noisy - spread * predicted, spread * noisy + signal * predicted
    return noisy - spread * predicted, noisy + signal * predicted


def noise_between(noisy: Tensor, x: Tensor, alpha_bar: Tensor, prediction: Prediction) -> Tensor:
    """The noise that makes noisy latents of `x`; shapes as in `add_noise`, ᾱ below 1."""
    signal, spread = (_shaped(rate, x) for rate in rates(alpha_bar, prediction))
    return (noisy - signal * x) / spread


def rates(alpha_bar: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """How much of the latents and of the noise there is at each ᾱ, in its shape and type: √ᾱ and √(1−ᾱ), or for a flow
    1 − σ and σ, which stand in the same ratio.
    """
    signal, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction == "flow_prediction":
        return signal / (signal + spread), spread / (signal + spread)
    return signal, spread


def shown_timesteps(steps: Tensor, alpha_bar: Tensor, total: int, prediction: Prediction) -> Tensor:
    """The timestep that the denoiser is given (B,): the step's own number, of `total`; for a flow total·σ, float32."""
    if prediction != "flow_prediction":
        return steps
    return (total * rates(alpha_bar, prediction)[1]).float()


def timesteps(kind: Timesteps, count: int, total: int, generator: torch.Generator) -> Tensor:
    """`count` timesteps in 0 … total−1, int64, shape (count,).

    With u uniform: "uniform", every step alike (Eq. 4, n ~ U); "biased", ⌊total·(1 − u²)⌋, all steps but the noisier
    ones more often; "high-noise", ⌊total·(1 − ¾u²)⌋, never below a quarter of the way. The layout of sounds in time is
    decided at high noise. Raises ValueError for another `kind`.
    """
    if kind == "uniform":
        return torch.randint(total, (count,), generator=generator)
    reach = {"biased": 1.0, "high-noise": 0.75}
    if kind not in reach:
        raise ValueError(f"timesteps must be 'uniform', 'biased' or 'high-noise', not {kind!r}")
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    return (total * (1 - reach[kind] * u * u)).long().clamp(0, total - 1)


def signal_to_noise(alpha_bar: Tensor) -> Tensor:
    """SNR = ᾱ / (1 − ᾱ), any shape; 0 where ᾱ is 0 (zero terminal SNR), infinite where it is 1."""
    return alpha_bar / (1 - alpha_bar)


def min_snr_weight(snr: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """The Min-SNR weight of an error (Hang et al. 2023), which is min(SNR, γ) on the error in the latents: min(SNR,
    γ)/SNR for ε, min(SNR, γ)/(SNR + 1) for v, min(SNR, γ)·σ² for a flow, where σ = 1/(1 + √SNR).

    The released Tango code uses the ε form on its v errors. Finite at SNR 0 and ∞.
    """
    if prediction == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    if prediction == "flow_prediction":
        return snr.clamp(max=gamma) / (1 + snr.sqrt()) ** 2
    return snr.clamp(max=gamma) / (snr + 1)


SIGMOID_SHIFT = 2.0  # k of σ(k − λ), as in arXiv 2303.00848


def omega(name: Omega, alpha_bar: Tensor, prediction: Prediction, gamma: float | None) -> Tensor | None:
    """ω(λ) by name, as the factor (B,) of an error in the prediction; None is 1 everywhere. λ = log SNR.

    "prediction": 1, as released; with γ, Min-SNR in the form that fits the prediction. "released": Min-SNR in its ε
    form whatever is predicted, as the released Tango code has it. "epsilon": 1 on the error in ε, as Eqs 4 and 17 are
    printed. "sigmoid": σ(2 − λ) on the error in ε (arXiv 2303.00848). An error in ε is ᾱ times that in v, and (1 − σ)²
    times a flow's, so the last two have that factor there. Raises ValueError for another name, or where γ is missing.
    """
    snr = signal_to_noise(alpha_bar)
    if name == "prediction":
        return None if gamma is None else min_snr_weight(snr, gamma, prediction)
    if name == "released":
        if gamma is None:
            raise ValueError("omega 'released' is a Min-SNR weight: it needs snr_gamma (5 in the released code)")
        return min_snr_weight(snr, gamma, "epsilon")
    if name not in ("epsilon", "sigmoid"):
        raise ValueError(f"omega must be 'prediction', 'released', 'epsilon' or 'sigmoid', not {name!r}")
    weight = torch.ones_like(snr) if name == "epsilon" else 1 / (1 + snr * math.exp(-SIGMOID_SHIFT))
    if prediction == "flow_prediction":
        return weight * rates(alpha_bar, prediction)[0] ** 2
    return weight if prediction == "epsilon" else weight * alpha_bar


def _shaped(rate: Tensor, like: Tensor) -> Tensor:
    """A rate (B,), shaped to multiply `like` item by item, in its type and on its device."""
    return rate.to(like).reshape(-1, *[1] * (like.dim() - 1))
