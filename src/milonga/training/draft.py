"""Reward gradients: a step samples clips itself, and differentiable scorers say which way the network has to move.

This is DRaFT (Clark et al. 2023, arXiv 2309.17400): the gradient of a clip's reward passes scorer, vocoder, VAE and the
last `draft_last` steps of the sampler, with guidance, into the network. It needs captions alone and learns from far
fewer clips than losses that compare clips. It also finds what a scorer does not see: `trust_region` bounds how far each
step's prediction moves from the reference's, and `prior_weight` holds on to real clips.

A reward is the weighted mean of the scorers' scores, each in standard deviations over clips of the network as given.
These scales are measured once, before the first step, and stored in `rewards.json`.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milonga.core.config import Phase, Settings
from milonga.core.errors import DataError, RecipeError
from milonga.core.progress import tracked
from milonga.core.protocols import DifferentiableScorer
from milonga.core.store import read_json, write_json
from milonga.data.examples import Batch
from milonga.maths.noise import seeded
from milonga.models.schedulers import check_scheduler, model_input, prepare_scheduler, scheduler_named, takes_generator
from milonga.training.noising import NoisyBatch, tell_guidance
from milonga.training.reference import AdapterDisabled, FrozenCopy, Key
from milonga.training.schedule import Step, loss_spec
from milonga.training.step import MicroBatch, StepOutput, TrainStep

MEASURED = 32  # clips that the scales of the rewards are measured on
SCALES = "rewards.json"


def check_scorers(scorers: Sequence[Any], phases: Sequence[Phase], settings: Settings) -> None:
    """Raises RecipeError where a loss samples clips and nothing can reward them with gradients."""
    if not any(loss_spec(phase.loss).samples for phase in phases):
        return
    if not scorers:
        raise RecipeError("draft needs scorers that reward its clips: name some, such as nano-events")
    for scorer in scorers:
        if not isinstance(scorer, DifferentiableScorer):
            raise RecipeError(
                f"scorer {scorer.name} has no gradient (wave_rewards), which draft trains by: name another"
            )
    if settings.draft_weights and (len(settings.draft_weights) != len(scorers) or not sum(settings.draft_weights)):
        raise RecipeError(f"draft_weights has {len(settings.draft_weights)} weights for {len(scorers)} scorers")
    check_scheduler(settings.draft_scheduler)


class DraftStep(TrainStep):
    """A `TrainStep` whose examples are captions: it samples their clips, and the loss is their reward negated."""

    def __init__(self, *parts: Any) -> None:
        """The arguments of `TrainStep`, the scorers, and the training's folder, which keeps the scales of rewards."""
        *known, self._scorers, folder = parts
        super().__init__(*known)
        process, name = self._denoiser.process, self._settings.draft_scheduler
        if process.scheduler is None:
            raise RecipeError("the model's process has no scheduler, so its clips cannot be sampled")
        self._scheduler = process.scheduler if name is None else scheduler_named(name, process.scheduler.config)
        self._scales = self._measured(Path(folder) / SCALES)

    def run(self, step: Step, beta: float, baseline: float, loser_scale: float | None = None) -> StepOutput:
        """As `TrainStep.run`, on clips that are sampled now."""
        micro_batches, priors = list[MicroBatch](), list[Tensor]()
        rows = list[tuple[Tensor, Tensor, Tensor | None]]()
        for micro in self._passes(step, priors):
            micro_batches.append(micro)
            rows.append(self._reward_backward(step, micro, beta))
        counts = self._ranks.all_gather(torch.cat([micro.counts for micro in micro_batches]))
        scores = self._gather([row[0].T for row in rows], counts).T
        losses = self._gather([row[1] for row in rows], counts)
        distances = [row[2] for row in rows if row[2] is not None]
        distance = self._gather(distances, counts).mean().item() if distances else None
        prior = self._gather(priors, counts).mean().item() if priors else None
        loss = losses.mean().item() + self._settings.prior_weight * (prior or 0.0)
        means = {one.name: scores[place].nanmean().item() for place, one in enumerate(self._scorers)}
        finite = {name: value for name, value in means.items() if math.isfinite(value)}
        return StepOutput(None, loss, prior, distance, self._rewards(scores).mean().item(), finite)

    def _reward_backward(self, step: Step, micro: MicroBatch, beta: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scores (S, B), losses (B,) and distances (B,) of a micro-batch's clips, whose gradient is added."""
        number, indices = self._pass(step.epoch), [step.indices[place] for place in micro.places]
        batch = self._examples.batch(indices, number).to(self._device)
        latents, distances = self._sampled(batch, [("draft", number, row) for row in indices])
        scores = self._scores(latents, batch)
        losses = loss_spec(micro.phase.loss).function(self._rewards(scores), beta)
        losses = losses + 0.0 * latents.flatten(1).sum(1)  # a gradient also where no scorer can read a caption
        if distances is not None:
            losses = losses + self._settings.trust_region * distances
        self._backward((losses * micro.counts).sum(), step)
        return scores.detach(), losses.detach(), None if distances is None else distances.detach()

    def _sampled(self, batch: Batch, keys: Sequence[Key], trained: bool = True) -> tuple[Tensor, Tensor | None]:
        """Latents (B, *latent shape) with the gradient of the last steps, and the distances (B,) from the reference."""
        settings, denoiser = self._settings, self._denoiser
        scheduler = prepare_scheduler(self._scheduler, settings.draft_steps, self._device)
        noise = [seeded(self._seed, "draft noise", *key) for key in keys]
        more = {"generator": noise} if takes_generator(scheduler) else {}
        latents = batch.winner * getattr(scheduler, "init_noise_sigma", 1.0)
        first = settings.draft_steps - (settings.draft_last or settings.draft_steps)
        words, guidance = tell_guidance(denoiser, batch.conditioning, settings.train_guidance)
        distances: Tensor | None = None
        for number, timestep in enumerate(scheduler.timesteps):
            inputs = model_input(scheduler, latents, timestep)
            noisy = NoisyBatch(
                denoiser, inputs, timestep.to(inputs.device).expand(len(inputs)), words, inputs, None, guidance
            )
            with torch.set_grad_enabled(trained and number >= first):
                prediction = noisy.predict(self._network, settings.precision)
                if trained and number >= first and settings.trust_region:
                    assert isinstance(self._reference, FrozenCopy | AdapterDisabled)  # the settings refuse a table
                    theirs = self._reference.predict(noisy)
                    moved = (prediction - theirs).pow(2).flatten(1).mean(1) / settings.draft_steps
                    distances = moved if distances is None else distances + moved
                latents = scheduler.step(prediction, timestep, latents, **more).prev_sample
        return latents, distances

    def _scores(self, latents: Tensor, batch: Batch) -> Tensor:
        """Every scorer's scores of the clips (S, B), with gradients where they are enabled."""
        waves, rate, texts = self._denoiser.decode(latents), self._denoiser.sampling_rate, batch.texts or ()
        waves = waves.mean(1) if waves.dim() == 3 else waves  # scorers hear the mean of the channels
        rows = [scorer.wave_rewards(waves, rate, texts).to(latents.device).float() for scorer in self._scorers]
        return torch.stack(rows)

    def _rewards(self, scores: Tensor) -> Tensor:
        """The weighted mean over scorers of scores (S, B) in their scales, (B,); one that gave none takes no part."""
        mean, deviation = self._scales.to(scores)
        known = torch.isfinite(scores)
        weights = scores.new_tensor(self._settings.draft_weights or [1.0] * len(scores))[:, None] * known
        scaled = torch.where(known, (scores - mean[:, None]) / deviation[:, None], 0.0)
        return (weights * scaled).sum(0) / weights.sum(0).clamp(min=1e-6)

    @torch.no_grad()
    def _measured(self, path: Path) -> Tensor:
        """Mean and standard deviation (2, S) of each scorer on clips of the network as it is given, stored in `path`.

        All ranks sample, because a network that is sharded over them computes on none alone. Raises DataError for a
        scorer that gives all of them one score, or none.
        """
        if not path.exists():  # all ranks agree on this: none can write before all have scores to gather
            count, scores, counts = min(MEASURED, len(self._examples)), list[Tensor](), list[bool]()
            shares = self._ranks.shard(range(count), self._settings.batch_size)
            total = sum(len(rows) for rows, _ in shares)
            with tracked("rewards", total) if self._ranks.is_main else nullcontext(lambda done: None) as advance:
                for rows, real in shares:
                    batch = self._examples.batch(rows, 0).to(self._device)
                    latents, _ = self._sampled(batch, [("measured", 0, row) for row in rows], trained=False)
                    scores.append(self._scores(latents, batch).T)
                    counts += real
                    advance(len(rows))
            gathered = self._gather(scores, self._ranks.all_gather(torch.tensor(counts, device=self._device)))
            scales = {}
            for scorer, row in zip(self._scorers, gathered.T.double(), strict=True):
                known = row[torch.isfinite(row)].sort().values  # in one order, whatever rank each is from
                if len(known) < 2 or not known.std() > 0:
                    raise DataError(f"{scorer.name} gives the clips of {count} captions no scores that differ")
                scales[scorer.name] = [known.mean().item(), known.std().item()]
            if self._ranks.is_main:
                write_json(path, scales)
        self._ranks.wait()
        scales = read_json(path)
        return torch.tensor([scales[scorer.name] for scorer in self._scorers]).T
