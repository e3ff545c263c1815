"""Distillation of guidance and of consistency: a student that needs a few passes, and no second one for guidance.

*Guidance* (Meng et al. 2023, arXiv 2210.03142): at any timestep the student predicts what its teacher predicts with
guidance, at a scale that is drawn. So each step of any sampler costs one pass, and a solver of higher order needs few.

*Consistency*, for one or two passes: a consistency model maps noisy latents of any timestep to the clean latents at the
end of their path (Song et al. 2023, arXiv 2303.01469). The student learns that from a *guided* teacher (ConsistencyTTA,
arXiv 2309.10740; latent consistency, arXiv 2310.04378): of `POINTS` timesteps one is drawn, the teacher takes one DDIM
step from it to the one before, at a guidance scale that is drawn too, and the student's clean latents from the noisier
point are compared with those from the cleaner one, by its own averaged weights. Before the first point they are the
clip itself. A student that has guidance already begins where its teacher is.

The student predicts what the teacher does (ε, v, a flow's direction), from which clean latents follow, so the boundary
condition holds by itself, the network keeps its format, and Min-SNR (`snr_gamma`) weighs the error in clean latents as
for any other loss. The scale is an input that begins at zero: the student starts as the teacher without guidance. An
aligned model is a teacher like any other, so what alignment has won can be kept.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from milonga.core.errors import RecipeError
from milonga.data.examples import Batch
from milonga.maths.losses import LossSpec
from milonga.maths.noise import seeded
from milonga.models.denoiser import Conditioning
from milonga.models.schedulers import POINTS
from milonga.training.noising import NoisyBatch, draw
from milonga.training.reference import FrozenCopy, Key
from milonga.training.step import TrainStep


class DistilStep(TrainStep):
    """A `TrainStep` whose targets come from a guided teacher, the reference, and from the student's averaged weights.

    Raises RecipeError for a range of guidance scales where the student cannot be told its scale.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        low, high = self._settings.distil_guidance
        self._informed = bool(getattr(self._denoiser, "guidance_input", False))
        if low < high and not self._informed:
            raise RecipeError(
                f"{type(self._denoiser).__name__} has no input for the guidance scale: set distil_guidance to one "
                "scale twice, such as [3.0, 3.0]"
            )

    def _noised(self, batch: Batch, keys: Sequence[Key], losers: bool, spec: LossSpec | None = None) -> NoisyBatch:
        """Noisy latents (B, *latent shape), with the teacher's guided prediction as target, or the prediction that is
        consistent with the point before.

        Every draw is named by the example's key. Losers take no part.
        """
        if spec is None or not spec.distils:
            return super()._noised(batch, keys, losers, spec)
        denoiser, settings, process = self._denoiser, self._settings, self._denoiser.process
        low, high = settings.distil_guidance
        consistent = spec.distils == "consistency"
        total = POINTS if consistent else len(process)
        draws = draw(batch.winner.shape[1:], keys, self._seed, total, settings)
        scales = torch.cat([torch.rand(1, generator=seeded(self._seed, "guidance", *key)) for key in keys])
        scales = low + (high - low) * scales
        clip, shaped = batch.winner, (-1, *[1] * (batch.winner.dim() - 1))
        steps = _step_at(draws.timesteps, len(process)) if consistent else draws.timesteps
        noisy = process.add_noise(clip, draws.noise.to(clip.device), steps)
        words = batch.conditioning
        if draws.dropped.any():
            words = words.replace(draws.dropped, denoiser.empty)
        informed = words.with_guidance(scales) if self._informed else words
        gamma, weighting = settings.snr_gamma, settings.loss_weighting
        weights = process.weights(steps, weighting, gamma)
        student = NoisyBatch(
            denoiser, noisy, process.shown(steps).to(clip.device), informed, clip,
            None if weights is None else weights.to(clip.device),
        )  # fmt: skip

        # The teacher's prediction, unguided and conditional half in one pass: u + g·(c − u).
        nothing = words.replace(torch.ones(len(clip), dtype=torch.bool), denoiser.empty)
        twice = replace(
            student,
            latents=torch.cat([noisy] * 2),
            timesteps=torch.cat([student.timesteps] * 2),
            conditioning=Conditioning.concat([nothing, words]),
        )
        assert isinstance(self._reference, FrozenCopy)  # tables and adapters are refused before
        unguided, conditioned = self._reference.predict(twice).chunk(2)
        guided = unguided + scales.to(clip).reshape(shaped) * (conditioned - unguided)
        if not consistent:
            return replace(student, target=guided)

        # Its step to the point before; before the first point lies the clip itself.
        ends, before = draws.timesteps == 0, _step_at((draws.timesteps - 1).clamp(min=0), len(process))
        earlier = process.add_noise(*process.clean_and_noise(noisy, guided, steps), before)

        # Where the student comes out from there.
        cleaner = replace(student, latents=earlier, timesteps=process.shown(before).to(clip.device))
        with torch.no_grad(), self.averaged_weights():
            prediction = cleaner.predict(self._network, settings.precision)
        clean, _ = process.clean_and_noise(earlier, prediction, before)
        clean = torch.where(ends.to(clip.device).reshape(shaped), clip, clean)
        return replace(student, target=process.target_between(noisy, clean, steps))


def _step_at(places: torch.Tensor, total: int) -> torch.Tensor:
    """The timesteps (B,) of points 0 … POINTS − 1, the last of which is full noise."""
    return (places + 1) * total // POINTS - 1
