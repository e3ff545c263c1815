"""Denoising errors: the one place where latents are noised, shown to a U-Net, and its answer compared (Eqs 3, 4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from milonga.core.config import Settings
from milonga.core.errors import DataError
from milonga.data.examples import Batch
from milonga.maths.losses import Errors
from milonga.maths.noise import (
    Omega,
    Prediction,
    add_noise,
    omega,
    seeded,
    shown_timesteps,
    target,
    timesteps,
)

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Network = Callable[..., Any]  # a U-Net, or what stands for it: compiled, or one of many ranks
Precision = Literal["fp32", "bf16"]
SMALL = 512  # places of a latent up to which plain attention is the faster one in bfloat16 on a CPU


@dataclass
class Trainable:
    """A U-Net to train, its schedule's ᾱ (N,), what it predicts, and the encoded empty caption (1, L, D) and (1, L).

    A flow's ᾱ are those with its signal-to-noise ratios, as `models.schedules.forward_process` gives them.
    The empty caption is what guidance uses at inference, so it is also what caption dropout must put in.
    """

    unet: "UNet2DConditionModel"
    alphas_cumprod: Tensor
    prediction: Prediction
    empty_states: Tensor
    empty_mask: Tensor


@dataclass(frozen=True)
class Draws:
    """What chance decides for B examples: timesteps (B,), the winners' and the losers' noise (B, C, H, W), whose
    caption is dropped (B,) bool, and the losers' timesteps where they are others.
    """

    timesteps: Tensor
    noise: Tensor
    loser_noise: Tensor
    dropped: Tensor
    loser_timesteps: Tensor | None = None


def draw(shape: Sequence[int], keys: Sequence[tuple], seed: int, total: int, settings: Settings) -> Draws:
    """The draws of examples with latents (C, H, W) = `shape`, each from its own stream, named by its key.

    So an example's draws do not depend on the batch it is in. Winner and loser share timestep and noise (as in the
    released code) unless `settings.shared_timestep` or `settings.shared_noise` (Eq. 17) is off.
    """
    streams = [seeded(seed, *key) for key in keys]
    steps = torch.cat([timesteps(settings.timesteps, 1, total, stream) for stream in streams])
    chances = torch.cat([torch.rand(1, generator=stream) for stream in streams])
    noise = torch.stack([torch.randn(tuple(shape), generator=stream) for stream in streams])
    other = noise
    if not settings.shared_noise:
        other = torch.stack([torch.randn(tuple(shape), generator=stream) for stream in streams])
    apart = None
    if not settings.shared_timestep:
        apart = torch.cat([timesteps(settings.timesteps, 1, total, stream) for stream in streams])
    return Draws(steps, noise, other, chances < settings.caption_dropout, apart)


@dataclass(frozen=True)
class Noisy:
    """M noised latents with all that a U-Net is shown, what it should answer, and the weights of its errors (M,)."""

    latents: Tensor
    timesteps: Tensor
    states: Tensor
    mask: Tensor
    target: Tensor
    weights: Tensor | None

    def answers(self, unet: "Network", precision: Precision = "fp32") -> Tensor:
        """What a U-Net answers, (M, C, H, W), float32; "bf16" runs it under autocast, weights staying as they are."""
        half = torch.autocast(self.latents.device.type, torch.bfloat16, enabled=precision == "bf16")
        with half:
            answer = unet(
                self.latents, self.timesteps, encoder_hidden_states=self.states, encoder_attention_mask=self.mask
            ).sample
        return answer.float()

    def errors_of(self, answers: Tensor) -> Tensor:
        """The mean squared error of each answer (Eq. 4), weighted, float32, shape (M,)."""
        errors = (answers - self.target.float()).pow(2).flatten(1).mean(1)
        return errors if self.weights is None else errors * self.weights

    def errors(self, unet: "Network", precision: Precision = "fp32") -> Tensor:
        """A U-Net's errors on each: `errors_of` its `answers`."""
        return self.errors_of(self.answers(unet, precision))


def attend_plainly(unet: "UNet2DConditionModel", shape: Sequence[int], precision: Precision) -> None:
    """Takes torch's fused attention out of a U-Net where it is the slower one: bfloat16 on a CPU, small latents.

    Its backward pass there costs some 12 ms a call however little there is to attend to, which was two fifths of nano's
    step (torch 2.13); latents (C, H, W) = `shape` of Tango's size are better served by it. The same numbers but for
    rounding.
    """
    if precision == "bf16" and unet.device.type == "cpu" and shape[1] * shape[2] <= SMALL:
        from diffusers.models.attention_processor import AttnProcessor

        unet.set_attn_processor(AttnProcessor())


def noised(
    model: Trainable, batch: Batch, draws: Draws, losers: bool, gamma: float | None, weighting: Omega = "prediction"
) -> Noisy:
    """A batch as the U-Net sees it: winners, followed by losers when they are asked for, so that one pass does both.

    A dropped caption is dropped for winner and loser alike. `weighting` and `gamma` give ω(λ), see `omega`. Raises
    DataError when losers are asked for and the batch has none.
    """
    states, mask = _drop_captions(model, batch, draws.dropped)
    x, noise, steps = batch.winner, draws.noise, draws.timesteps
    if losers:
        if batch.loser is None:
            raise DataError("this loss compares winners with losers, but the examples have no losers: train on pairs")
        x, noise = torch.cat([x, batch.loser]), torch.cat([noise, draws.loser_noise])
        other = steps if draws.loser_timesteps is None else draws.loser_timesteps
        states, mask, steps = states.repeat(2, 1, 1), mask.repeat(2, 1), torch.cat([steps, other])
    noise, alpha_bar, kind = noise.to(x.device), model.alphas_cumprod[steps], model.prediction
    weights = omega(weighting, alpha_bar, kind, gamma)
    shown = shown_timesteps(steps, alpha_bar, len(model.alphas_cumprod), kind).to(x.device)
    inputs, wanted = add_noise(x, noise, alpha_bar, kind), target(x, noise, alpha_bar, kind)
    return Noisy(inputs, shown, states, mask, wanted, None if weights is None else weights.float().to(x.device))


def with_reference(errors: Errors, found: Tensor) -> Errors:
    """The policy's errors, completed by the reference's (M,) on the same noisy latents."""
    known = as_errors(found, errors.policy_loser is not None)
    return replace(errors, reference_winner=known.policy_winner, reference_loser=known.policy_loser)


def as_errors(errors: Tensor, losers: bool) -> Errors:
    """The error vector of `Noisy.errors`, told apart into the policy's winners and losers."""
    if not losers:
        return Errors(errors)
    winner, loser = errors.chunk(2)
    return Errors(winner, loser)


def _drop_captions(model: Trainable, batch: Batch, dropped: Tensor) -> tuple[Tensor, Tensor]:
    """States and mask with the empty caption where it is dropped; both are padded to the longer of the two."""
    if not dropped.any():
        return batch.states, batch.mask
    device = batch.states.device
    length = max(batch.states.shape[1], model.empty_states.shape[1])
    where = dropped.to(device)
    states = torch.where(
        where[:, None, None], _pad(model.empty_states.to(batch.states), length), _pad(batch.states, length)
    )
    mask = torch.where(where[:, None], _pad(model.empty_mask.to(device).bool(), length), _pad(batch.mask, length))
    return states, mask


def _pad(values: Tensor, length: int) -> Tensor:
    """Zeros (or False) after the tokens (dimension 1), up to `length`."""
    missing = length - values.shape[1]
    if missing == 0:
        return values
    return torch.cat([values, values.new_zeros(values.shape[0], missing, *values.shape[2:])], dim=1)
