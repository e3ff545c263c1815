"""One optimizer step: its examples through policy and reference, the loss, and the gradient that they leave."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from milonga.core.config import Phase, Settings
from milonga.data.examples import Batch, Examples
from milonga.maths.devices import autocast
from milonga.maths.group_losses import GroupErrors, implicit_policies
from milonga.maths.losses import Errors, LossSpec, safe_scale, safe_share
from milonga.maths.noise import seeded
from milonga.models.denoiser import Denoiser, Network
from milonga.training.distributed import Ranks
from milonga.training.noising import NoisyBatch, add_noise, add_reference_errors, draw, split_errors
from milonga.training.reference import Key, Reference
from milonga.training.schedule import Step, loss_spec

# The vectors (B,) of a micro-batch's errors that the row of its step is made of.
LOGGED = ("policy_winner", "policy_loser", "reference_winner", "reference_loser", "desirable", "safeguard")


@dataclass(frozen=True)
class MicroBatch:
    """Examples of a step that pass the network at once on this rank: their places in the step, and which count.

    Only an example that fills a short rank up does not count.
    """

    phase: Phase
    places: list[int]
    counts: Tensor


@dataclass(frozen=True)
class StepOutput:
    """The results of a step over all ranks: errors without gradients, the mean loss, the mean error on the
    prior-preservation clips, and the mean squared distance between the predictions of policy and reference (None: the
    reference's predictions are not at hand). A step that samples clips has no errors; it has their mean reward and the
    mean score by each scorer.
    """

    errors: Errors | None
    loss: float
    prior: float | None
    distance: float | None
    reward: float | None = None
    scores: dict[str, float] | None = None


class TrainStep:
    """Turns a step's examples into gradients of `network`, which is the denoiser's module or stands in its place.

    `first` is the training's first phase, which all but one of `settings.released_ranks` stay in. Inside the context
    that `averaged_weights()` gives, the network has its EMA's weights; the trainer sets it.
    """

    averaged_weights: Callable[[], AbstractContextManager[None]] = nullcontext

    def __init__(
        self,
        denoiser: Denoiser,
        network: Network,
        reference: Reference | None,
        examples: Examples,
        settings: Settings,
        seed: int,
        ranks: Ranks,
        first: Phase,
    ) -> None:
        self._denoiser, self._network, self._reference, self._ranks = denoiser, network, reference, ranks
        self._examples, self._settings, self._seed, self._first = examples, settings, seed, first

    @property
    def _device(self) -> torch.device:
        return next(self._denoiser.module.parameters()).device

    def run(self, step: Step, beta: float, baseline: float, loser_scale: float | None = None) -> StepOutput:
        """Accumulates the gradient of a step's mean loss, which the ranks average in the last backward pass.

        `baseline` is KTO's, from the step before. `loser_scale` is a fixed λ of SDPO.
        """
        safeguarded = loss_spec(step.phase.loss).needs_safeguard and self._settings.safeguard == "parameters"
        if safeguarded and loser_scale is None:
            return self._run_safeguarded(step, beta, baseline)

        micro_batches, priors = list[MicroBatch](), list[Tensor]()
        rows = list[tuple[Errors, Tensor, Tensor | None]]()
        for micro in self._passes(step, priors):
            spec = loss_spec(micro.phase.loss)
            batch, noisy, keys = self._noisy_micro_batch(step, micro, spec)
            old = self._old_predictions(noisy, spec)
            with autocast(noisy.latents.device, self._settings.precision):
                predictions = self._denoiser.predict(noisy.latents, noisy.timesteps, noisy.conditioning, self._network)
            predictions = noisy.guided(predictions.float(), self._network, self._settings.precision)
            if batch.advantages is not None:
                errors, losses, distances = self._group_losses(spec, batch, noisy, predictions, old, keys, beta)
            else:
                errors, losses, distances = self._losses(
                    spec, batch, noisy, predictions, keys, beta, baseline, loser_scale
                )
            self._backward((losses * micro.counts).sum(), step)
            micro_batches.append(micro)
            rows.append((errors, losses.detach(), distances))
        return self._gather_output(micro_batches, rows, priors, step.phase)

    def _passes(self, step: Step, priors: list[Tensor]) -> Iterator[MicroBatch]:
        """This rank's micro-batches, for the caller's backward pass; only the last pass of all syncs the ranks.

        The prior-preservation term is trained after each of them, and its errors (B,) are added to `priors`.
        """
        micro_batches, with_prior = self._micro_batches(step), self._settings.prior_weight > 0
        for micro in micro_batches:
            last = micro is micro_batches[-1]
            with self._ranks.no_sync(self._network, sync=last and not with_prior):
                yield micro
            if with_prior:
                with self._ranks.no_sync(self._network, sync=last):
                    priors.append(self._prior_backward(step, micro))

    def _run_safeguarded(self, step: Step, beta: float, baseline: float) -> StepOutput:
        """SDPO with one λ for the step, taken from the gradients with respect to the parameters.

        The step is run without the losers' pull and then with all of it; the difference is that pull.
        """
        parameters = [value for value in self._denoiser.module.parameters() if value.requires_grad]
        self.run(step, beta, baseline, loser_scale=0.0)
        winner_gradients = [_gradient(value) for value in parameters]
        for value in parameters:
            value.grad = None
        output = self.run(step, beta, baseline, loser_scale=1.0)
        own = self._dot(winner_gradients, winner_gradients)
        full = self._dot(winner_gradients, [_gradient(value) for value in parameters])
        scale = safe_share(own, own - full, self._settings.sdpo_mu)
        for value, winner in zip(parameters, winner_gradients, strict=True):
            _gradient(value).sub_(winner).mul_(scale.item()).add_(winner)
        assert output.errors is not None
        return replace(output, errors=replace(output.errors, safeguard=scale.reshape(1)))

    def noisy_batch(self, number: int, rows: Sequence[int], losers: bool) -> NoisyBatch:
        """The noisy latents of some rows as a step sees them; `number` counts passes over the data from 0."""
        batch = self._examples.batch(rows, number).to(self._device)
        return self._noised(batch, [("pair", number, row) for row in rows], losers)

    def _micro_batches(self, step: Step) -> list[MicroBatch]:
        """This rank's share of a step. The released trainer's other ranks never leave the first phase."""
        size, blocks = len(step.indices), self._settings.released_ranks
        cuts = min(size, blocks)  # of a short last step the first ranks have one example each, the others none
        micro_batches = []
        for block in range(blocks):
            places = range(min(size, size * block // cuts), min(size, size * (block + 1) // cuts))
            phase = step.phase if block == 0 else self._first
            for mine, counts in self._ranks.shard(places, self._settings.batch_size) if places else ():
                micro_batches.append(MicroBatch(phase, mine, torch.tensor(counts, device=self._device)))
        return micro_batches

    def _noisy_micro_batch(self, step: Step, micro: MicroBatch, spec: LossSpec) -> tuple[Batch, NoisyBatch, list[Key]]:
        """A micro-batch's examples, their noisy latents with losers where the loss needs them, and the draws' names."""
        rows, number = [step.indices[place] for place in micro.places], self._pass(step.epoch)
        batch = self._examples.batch(rows, number).to(self._device)
        keys = [("group" if spec.groups else "pair", number, row) for row in rows]
        losers = spec.needs_loser and not (spec.labels and batch.desirable is not None)
        return batch, self._noised(batch, keys, losers, spec), keys

    def _old_predictions(self, noisy: NoisyBatch, spec: LossSpec) -> Tensor | None:
        """The averaged weights' predictions, before the policy's own: its weights take their place in memory again."""
        if not (spec.groups and self._settings.old_policy == "ema"):
            return None
        with torch.no_grad(), self.averaged_weights():
            return noisy.predict(self._network, self._settings.precision)

    def _losses(
        self,
        spec: LossSpec,
        batch: Batch,
        noisy: NoisyBatch,
        predictions: Tensor,
        keys: list[Key],
        beta: float,
        baseline: float,
        loser_scale: float | None,
    ) -> tuple[Errors, Tensor, Tensor | None]:
        """Errors, losses (B,), and distances from the reference (B,), of a micro-batch."""
        losers = len(predictions) > len(keys)
        errors, distances = split_errors(noisy.mse(predictions), losers), None
        if spec.needs_reference and self._reference is not None:
            reference_errors, theirs = self._reference.reference_errors(noisy, keys)
            errors = add_reference_errors(errors, reference_errors)
            if theirs is not None:
                answers = predictions if self._settings.trust_region else predictions.detach()
                squares = (answers - theirs).pow(2).flatten(1).mean(1)
                distances = squares.reshape(-1, len(keys)).mean(0)
        safeguard = self._safeguard(noisy, predictions, spec, loser_scale)
        desirable = batch.desirable if not losers else None
        complete = replace(
            errors,
            safeguard=safeguard,
            weights=batch.weights if spec.needs_weights else None,
            desirable=desirable if spec.labels else None,
            baseline=baseline,
            crpo_weight=self._settings.crpo_weight,
        )
        losses = spec.function(complete, beta)
        if losers and batch.gaps is not None and self._settings.pair_weights == "gap":
            losses = losses * batch.gaps
        if self._settings.trust_region and distances is not None:
            losses = losses + self._settings.trust_region * distances
        return replace(errors, desirable=desirable, safeguard=safeguard), losses, distances

    def _group_losses(
        self,
        spec: LossSpec,
        batch: Batch,
        noisy: NoisyBatch,
        predictions: Tensor,
        old: Tensor | None,
        keys: list[Key],
        beta: float,
    ) -> tuple[Errors, Tensor, Tensor | None]:
        """Errors, losses (B,) and distances (B,) of a micro-batch of groups.

        Without an `old` policy the reference is it. The errors that are logged are those of each group's best clip, as
        winner, and of its worst, as loser.
        """
        advantages = batch.advantages
        assert advantages is not None
        assert self._reference is not None
        reference_errors, reference = self._reference.reference_errors(noisy, keys)
        known = reference_errors.reshape(advantages.shape)
        errors = GroupErrors(
            noisy.mse(predictions).reshape(advantages.shape), advantages, known,
            known if old is None else noisy.mse(old).reshape(advantages.shape), ratio_clip=self._settings.ratio_clip,
        )  # fmt: skip
        sampler = reference if old is None else old
        if spec.needs_implicit and sampler is not None:
            positive, negative = implicit_policies(predictions, sampler, beta)
            both = noisy.mse(positive).reshape(advantages.shape), noisy.mse(negative).reshape(advantages.shape)
            errors = replace(errors, positive=both[0], negative=both[1])
        losses, distances = spec.function(errors, beta), None
        if reference is not None:
            distances = (predictions - reference).pow(2).flatten(1).mean(1).reshape(advantages.shape).mean(1)
            losses = losses + self._settings.trust_region * distances
        rows = torch.arange(len(advantages), device=advantages.device)
        best, worst = advantages.argmax(1), advantages.argmin(1)
        policy = errors.policy.detach()
        logged = Errors(policy[rows, best], policy[rows, worst], known[rows, best], known[rows, worst])
        return logged, losses, distances

    def _safeguard(
        self, noisy: NoisyBatch, predictions: Tensor, spec: LossSpec, loser_scale: float | None
    ) -> Tensor | None:
        """The scale of each loser's gradient (B,): `loser_scale`, or what its prediction allows."""
        if not spec.needs_safeguard:
            return None
        winner, loser = noisy.residuals(predictions.detach()).chunk(2)
        if loser_scale is not None:
            return winner.new_full((len(winner),), loser_scale)
        return safe_scale(winner, loser, self._settings.sdpo_mu)

    def _prior_backward(self, step: Step, micro: MicroBatch) -> Tensor:
        """Errors (B,) on real clips, whose weighted gradient is added (BATON's pre-training term)."""
        # The words "anchors" and "anchor" name the streams of draws: others would be other numbers.
        stream = seeded(self._seed, "anchors", step.number)
        chosen = torch.randint(self._examples.num_prior, (len(step.indices),), generator=stream)
        rows = [int(chosen[place]) for place in micro.places]
        batch = self._examples.prior_batch(rows, self._pass(step.epoch)).to(self._device)
        keys = [("anchor", step.number, place) for place in micro.places]
        errors = self._noised(batch, keys, losers=False).errors(self._network, self._settings.precision)
        self._backward(self._settings.prior_weight * (errors * micro.counts).sum(), step)
        return errors.detach()

    def _backward(self, total: Tensor, step: Step) -> None:
        """Adds the gradient of a sum over examples as its share of the step's mean; ranks' gradients are averaged."""
        (total * self._ranks.world / len(step.indices)).backward()

    def _noised(self, batch: Batch, keys: Sequence[Key], losers: bool, spec: LossSpec | None = None) -> NoisyBatch:
        """A batch with its draws' noise; a loss that compares with a reference or an old policy may train guided."""
        settings, shape = self._settings, batch.winner.shape[1 if batch.advantages is None else 2 :]
        draws = draw(shape, keys, self._seed, len(self._denoiser.process), settings)
        guided = spec is not None and (spec.needs_reference or spec.needs_old)
        guidance = settings.train_guidance if guided else 1.0
        return add_noise(self._denoiser, batch, draws, losers, settings.snr_gamma, settings.loss_weighting, guidance)

    def _pass(self, epoch: int) -> int:
        """Whose draws an epoch sees: its own, or with `noise_samples_per_pair` those of an earlier one again."""
        samples = self._settings.noise_samples_per_pair
        return epoch % samples if samples else epoch

    def _gather_output(
        self,
        micro_batches: list[MicroBatch],
        results: list[tuple[Errors, Tensor, Tensor | None]],
        prior_errors: list[Tensor],
        phase: Phase,
    ) -> StepOutput:
        """What the step gives over all ranks; errors are those of the step's own `phase`."""
        counts = self._ranks.all_gather(torch.cat([micro.counts for micro in micro_batches]))
        losses = self._gather([losses for _, losses, _ in results], counts)
        prior = self._gather(prior_errors, counts).mean().item() if prior_errors else None
        own = [place for place, micro in enumerate(micro_batches) if micro.phase is phase]
        own_counts = self._ranks.all_gather(torch.cat([micro_batches[place].counts for place in own]))
        vectors = {name: [getattr(results[place][0], name) for place in own] for name in LOGGED}
        errors: dict[str, Any] = {
            k: self._gather(parts, own_counts) for k, parts in vectors.items() if parts[0] is not None
        }
        distances = [results[place][2] for place in own]
        distance = None
        if distances[0] is not None:
            distance = self._gather(distances, own_counts).mean().item()  # pyright: ignore[reportArgumentType]
        loss = losses.mean().item() + self._settings.prior_weight * (prior or 0.0)
        return StepOutput(Errors(**errors), loss, prior, distance)

    def _gather(self, vectors: Sequence[Tensor], counts: Tensor) -> Tensor:
        """Vectors of several micro-batches and all ranks, end to end, without those examples that do not count."""
        return self._ranks.all_gather(torch.cat(list(vectors)).detach())[counts]

    def _dot(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """The inner product of two gradients, a scalar."""
        products = [self._ranks.full_tensor((one * other).sum()) for one, other in zip(left, right, strict=True)]
        return torch.stack(products).sum()


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    """A parameter's gradient; one that no backward pass has reached gets zeros, which count in no product."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
