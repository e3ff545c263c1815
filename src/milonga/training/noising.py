"""Denoising errors: the one place where latents are noised, given to the network, and its prediction compared."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milonga.core.config import Settings
from milonga.core.errors import DataError
from milonga.data.examples import Batch
from milonga.maths.devices import autocast
from milonga.maths.losses import Errors
from milonga.maths.noise import Omega, seeded, timesteps
from milonga.models.denoiser import Conditioning, Denoiser, Network, Precision


@dataclass(frozen=True)
class Draws:
    """The random draws of B examples: timesteps (B,), the noise of winners and losers (B, *latent shape), whose caption
    is dropped (B,) bool, and the losers' timesteps where they differ.
    """

    timesteps: Tensor
    noise: Tensor
    loser_noise: Tensor
    dropped: Tensor
    loser_timesteps: Tensor | None = None


def draw(shape: Sequence[int], keys: Sequence[tuple], seed: int, total: int, settings: Settings) -> Draws:
    """The draws of examples whose latents have `shape`, each from its own stream, named by its key.

    So an example's draws do not depend on its batch. Winner and loser share timestep and noise (as in the released
    code) unless `settings.shared_timestep` or `settings.shared_noise` (Eq. 17) is off.
    """
    streams = [seeded(seed, *key) for key in keys]
    steps = torch.cat([timesteps(settings.timesteps, 1, total, stream) for stream in streams])
    chances = torch.cat([torch.rand(1, generator=stream) for stream in streams])
    noise = torch.stack([torch.randn(tuple(shape), generator=stream) for stream in streams])
    loser_noise, loser_steps = noise, None
    if not settings.shared_noise:
        loser_noise = torch.stack([torch.randn(tuple(shape), generator=stream) for stream in streams])
    if not settings.shared_timestep:
        loser_steps = torch.cat([timesteps(settings.timesteps, 1, total, stream) for stream in streams])
    return Draws(steps, noise, loser_noise, chances < settings.caption_dropout, loser_steps)


@dataclass(frozen=True)
class NoisyBatch:
    """M noised latents with all that the network is given, the target of its prediction, and error weights (M,).

    With a `guidance` above 1 the prediction is the guided one, u + guidance·(c − u), as it is sampled. Of localised
    pairs errors count in the rows of `regions` (M, rows of latents) bool alone.
    """

    denoiser: Denoiser
    latents: Tensor
    timesteps: Tensor
    conditioning: Conditioning
    target: Tensor
    weights: Tensor | None
    guidance: float = 1.0
    regions: Tensor | None = None

    def predict(self, network: Network | None = None, precision: Precision = "fp32") -> Tensor:
        """The prediction of the denoiser's module, or of `network` in its place, (M, *latent shape), float32.

        "bf16" runs it under autocast; the weights keep their type.
        """
        with autocast(self.latents.device, precision):
            prediction = self.denoiser.predict(self.latents, self.timesteps, self.conditioning, network)
        return self.guided(prediction.float(), network, precision)

    def guided(self, prediction: Tensor, network: Network | None = None, precision: Precision = "fp32") -> Tensor:
        """The guided prediction (M, *latent shape) of a conditional one, by one more pass; itself without guidance."""
        if self.guidance <= 1:
            return prediction
        empty = self.conditioning.replace(torch.ones(len(self.latents), dtype=torch.bool), self.denoiser.empty)
        with autocast(self.latents.device, precision):
            unguided = self.denoiser.predict(self.latents, self.timesteps, empty, network).float()
        return unguided + self.guidance * (prediction - unguided)

    def mse(self, prediction: Tensor) -> Tensor:
        """The weighted mean squared error of each prediction (Eq. 4) over its region, float32, shape (M,)."""
        errors = self.residuals(prediction).pow(2).flatten(1).mean(1)
        if self.regions is not None:
            errors = errors / self.regions.float().mean(1)
        return errors if self.weights is None else errors * self.weights

    def residuals(self, prediction: Tensor) -> Tensor:
        """Prediction − target (M, *latent shape), float32; zero outside the regions."""
        residuals = prediction - self.target.float()
        if self.regions is None:
            return residuals
        shape = [len(residuals)] + [1] * (residuals.dim() - 1)
        shape[self.denoiser.time_axis + 1] = self.regions.shape[1]
        return residuals * self.regions.reshape(shape)

    def errors(self, network: Network | None = None, precision: Precision = "fp32") -> Tensor:
        """The network's error on each, (M,): `mse` of `predict`."""
        return self.mse(self.predict(network, precision))


def tell_guidance(denoiser: Denoiser, conditioning: Conditioning, guidance: float) -> tuple[Conditioning, float]:
    """What the network is given, and the guidance that is left to a second pass: 1 for one that is told its scale."""
    if guidance > 1 and getattr(denoiser, "guidance_input", False):
        return conditioning.with_guidance(guidance), 1.0
    return conditioning, guidance


def add_noise(
    denoiser: Denoiser,
    batch: Batch,
    draws: Draws,
    losers: bool,
    gamma: float | None = None,
    weighting: Omega = "prediction",
    guidance: float = 1.0,
) -> NoisyBatch:
    """A batch as the network sees it (Eq. 3): winners, followed by losers where these are wanted, for a single pass.

    Of a batch of groups these are B·K rows, group by group: all clips of a group have one timestep and one noise. A
    dropped caption is dropped for winner and loser alike. `weighting` and `gamma` give ω(λ), see `maths.noise.omega`.
    A distilled network is told `guidance` instead of being guided. Raises DataError when losers are wanted and the
    batch has none.
    """
    process, conditioning = denoiser.process, batch.conditioning
    if draws.dropped.any():
        conditioning = conditioning.replace(draws.dropped, denoiser.empty)
    latents, noise, steps = batch.winner, draws.noise, draws.timesteps
    if batch.advantages is not None:
        size = batch.advantages.shape[1]
        latents, noise, steps = latents.flatten(0, 1), noise.repeat_interleave(size, 0), steps.repeat_interleave(size)
        conditioning = conditioning.take([row for row in range(len(batch.advantages)) for _ in range(size)])
    if losers:
        if batch.loser is None:
            raise DataError("this loss compares winners with losers, but the examples have no losers: train on pairs")
        latents, noise = torch.cat([latents, batch.loser]), torch.cat([noise, draws.loser_noise])
        steps = torch.cat([steps, steps if draws.loser_timesteps is None else draws.loser_timesteps])
        conditioning = conditioning.repeat(2)
    conditioning, guidance = tell_guidance(denoiser, conditioning, guidance)
    regions = batch.regions
    if losers and regions is not None:
        regions = regions.repeat(2, 1)
    noise, weights = noise.to(latents.device), process.weights(steps, weighting, gamma)
    return NoisyBatch(
        denoiser,
        process.add_noise(latents, noise, steps),
        process.shown(steps).to(latents.device),
        conditioning,
        process.target(latents, noise, steps),
        None if weights is None else weights.to(latents.device),
        guidance,
        regions,
    )


def split_errors(errors: Tensor, losers: bool) -> Errors:
    """The error vector of `NoisyBatch.errors`, split into the policy's winners and losers."""
    if not losers:
        return Errors(errors)
    winner, loser = errors.chunk(2)
    return Errors(winner, loser)


def add_reference_errors(errors: Errors, reference: Tensor) -> Errors:
    """The policy's errors, completed by the reference's (M,) on the same noisy latents."""
    split = split_errors(reference, errors.policy_loser is not None)
    return replace(errors, reference_winner=split.policy_winner, reference_loser=split.policy_loser)
