"""The passes of one optimizer step: its examples through policy and reference, and the gradient that they leave."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from milonga.core.config import Phase, Settings
from milonga.data.examples import Batch, Examples
from milonga.maths.losses import Errors, LossSpec, safe_scale, safe_share
from milonga.maths.noise import seeded
from milonga.models.denoiser import Denoiser, Network
from milonga.training.distributed import Ranks
from milonga.training.noising import NoisyBatch, add_noise, add_reference_errors, draw, split_errors
from milonga.training.phases import loss_spec
from milonga.training.reference import Key, Reference
from milonga.training.schedule import Step

# Of a row.
VECTORS = ("policy_winner", "policy_loser", "reference_winner", "reference_loser", "desirable", "safeguard")


@dataclass(frozen=True)
class Found:
    """What a step's passes say, over all ranks: errors without gradients, the mean loss, the anchors' mean error, and
    the mean squared distance of the policy's answers from the reference's (None: no reference's answer was at hand).
    """

    errors: Errors
    loss: float
    anchor: float | None
    distance: float | None


@dataclass(frozen=True)
class _Part:
    """One batch of a step on this rank: its phase, the places of its examples in the step, which of them count."""

    phase: Phase
    places: list[int]
    counts: Tensor


@dataclass(frozen=True)
class _Told:
    """One batch's errors, losses (B,) and distances (B,)."""

    errors: Errors
    losses: Tensor
    distances: Tensor | None


class Passes:
    """Turns a step's examples into gradients on `network`, which is the denoiser's module or what stands for it.

    `first` is the training's first phase, which all but one of `released_ranks` stay in.
    """

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
        self.denoiser, self.network, self.reference, self.ranks = denoiser, network, reference, ranks
        self._examples, self._settings, self._seed, self._first = examples, settings, seed, first

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.denoiser.module.parameters()).device

    def gradient(self, step: Step, beta: float, baseline: float) -> Found:
        """Adds up the gradient of a step's mean loss, batch by batch; ranks average it in the last pass."""
        if loss_spec(step.phase.loss).needs_safeguard and self._settings.guard_by == "weights":
            return self._guarded(step, beta, baseline)
        return self._added_up(step, beta, baseline)

    def _guarded(self, step: Step, beta: float, baseline: float) -> Found:
        """SDPO's gradient with one λ for the step, from the gradients by the weights: a step without losers' pull is
        taken first, and then the whole of it, whose difference is that pull.
        """
        parameters = [one for one in self.denoiser.module.parameters() if one.requires_grad]
        self._added_up(step, beta, baseline, 0.0)
        alone = [_gradient(one) for one in parameters]
        for one in parameters:
            one.grad = None
        found = self._added_up(step, beta, baseline, 1.0)
        own, kept = (self._dot(alone, other) for other in (alone, [_gradient(one) for one in parameters]))
        share = safe_share(own, own - kept, self._settings.winner_guard)
        for one, winner in zip(parameters, alone, strict=True):
            _gradient(one).sub_(winner).mul_(share.item()).add_(winner)
        return replace(found, errors=replace(found.errors, safeguard=share.reshape(1)))

    def _dot(self, some: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """The inner product of two gradients, a scalar."""
        products = [self.ranks.full_tensor((one * other).sum()) for one, other in zip(some, others, strict=True)]
        return torch.stack(products).sum()

    def _added_up(self, step: Step, beta: float, baseline: float, share: float | None = None) -> Found:
        """The gradient of all of a step's batches, SDPO's with this `share` of the losers' pull where it is given."""
        parts = self._parts(step)
        told: list[_Told] = []
        anchors: list[Tensor] = []
        for part in parts:
            last, anchored = part is parts[-1], self._settings.anchor > 0
            with self.ranks.no_sync(self.network, last and not anchored):
                told.append(self._pairs(step, part, beta, baseline, share))
            if anchored:
                with self.ranks.no_sync(self.network, last):
                    anchors.append(self._anchors(step, part))
        return self._found(step, parts, told, anchors)

    def noisy(self, number: int, rows: Sequence[int], losers: bool) -> NoisyBatch:
        """The noisy latents of a pass's rows, as a step sees them; `number` counts passes over the data from 0."""
        batch = self._examples.batch(rows, number).to(self.device)
        return self._noised(batch, [("pair", number, row) for row in rows], losers)

    def _parts(self, step: Step) -> list[_Part]:
        """A step's batches on this rank. The released trainer's other ranks never leave the first phase."""
        size, blocks = len(step.indices), self._settings.released_ranks
        found = []
        for block in range(blocks):
            places = range(size * block // blocks, size * (block + 1) // blocks)
            phase = step.phase if block == 0 else self._first
            for mine, counts in self.ranks.shard(places, self._settings.batch_size) if places else ():
                found.append(_Part(phase, mine, torch.tensor(counts, device=self.device)))
        return found

    def _pairs(self, step: Step, part: _Part, beta: float, baseline: float, share: float | None) -> _Told:
        """Errors, losses and distances of one batch, whose gradient is added."""
        spec, rows = loss_spec(part.phase.loss), [step.indices[place] for place in part.places]
        number = self._pass(step.epoch)
        batch = self._examples.batch(rows, number).to(self.device)
        keys = [("pair", number, row) for row in rows]
        losers = spec.needs_loser and not (spec.labels and batch.desirable is not None)
        noisy = self._noised(batch, keys, losers)
        answers = noisy.predict(self.network, self._settings.precision)
        errors = split_errors(noisy.mse(answers), losers)
        errors, distances = self._referred(errors, noisy, answers, keys, spec)
        safeguard = self._safeguard(noisy, answers, spec, share)
        losses = spec.function(self._completed(errors, batch, safeguard, spec, baseline), beta)
        self._backward((losses * part.counts).sum(), step)
        told = replace(errors, desirable=batch.desirable if not losers else None, safeguard=safeguard)
        return _Told(told, losses.detach(), distances)

    def _referred(
        self, errors: Errors, noisy: NoisyBatch, answers: Tensor, keys: list[Key], spec: LossSpec
    ) -> tuple[Errors, Tensor | None]:
        """Errors with the reference's, where the loss asks for them, and how far apart the answers are (B,)."""
        if not spec.needs_reference or self.reference is None:
            return errors, None
        found, theirs = self.reference.errors(noisy, keys)
        if theirs is None:
            return add_reference_errors(errors, found), None
        apart = (answers.detach() - theirs).pow(2).flatten(1).mean(1)
        return add_reference_errors(errors, found), apart.reshape(-1, len(keys)).mean(0)

    def _safeguard(self, noisy: NoisyBatch, answers: Tensor, spec: LossSpec, share: float | None) -> Tensor | None:
        """How much of each loser's pull is kept (B,): a given `share`, or what its answer allows."""
        if not spec.needs_safeguard:
            return None
        winner, loser = (answers.detach() - noisy.target).chunk(2)
        if share is not None:
            return winner.new_full((len(winner),), share)
        return safe_scale(winner, loser, self._settings.winner_guard)

    def _completed(
        self, errors: Errors, batch: Batch, safeguard: Tensor | None, spec: LossSpec, baseline: float
    ) -> Errors:
        """Errors with all that single losses ask for beside them."""
        weights = batch.weights if spec.needs_weights else None
        desirable = batch.desirable if spec.labels and errors.policy_loser is None else None
        return replace(errors, safeguard=safeguard, weights=weights, desirable=desirable, baseline=baseline)

    def _anchors(self, step: Step, part: _Part) -> Tensor:
        """Errors (B,) on real clips, whose weighted gradient is added: BATON's pre-training term."""
        chosen = torch.randint(
            self._examples.num_prior, (len(step.indices),), generator=seeded(self._seed, "anchors", step.number)
        )
        rows = [int(chosen[place]) for place in part.places]
        batch = self._examples.prior_batch(rows, self._pass(step.epoch)).to(self.device)
        keys = [("anchor", step.number, place) for place in part.places]
        errors = self._noised(batch, keys, losers=False).errors(self.network, self._settings.precision)
        self._backward(self._settings.anchor * (errors * part.counts).sum(), step)
        return errors.detach()

    def _backward(self, total: Tensor, step: Step) -> None:
        """Adds the gradient of a sum over examples, as its share of the step's mean; ranks' gradients are averaged."""
        (total * self.ranks.world / len(step.indices)).backward()

    def _noised(self, batch: Batch, keys: Sequence[Key], losers: bool) -> NoisyBatch:
        total, settings = len(self.denoiser.process), self._settings
        draws = draw(batch.winner.shape[1:], keys, self._seed, total, settings)
        return add_noise(self.denoiser, batch, draws, losers, settings.snr_gamma, settings.omega)

    def _pass(self, epoch: int) -> int:
        """Which draws an epoch sees: its own, or with `fixed_draws` those of an earlier one again."""
        return epoch % self._settings.fixed_draws if self._settings.fixed_draws else epoch

    def _found(self, step: Step, parts: list[_Part], told: list[_Told], anchors: list[Tensor]) -> Found:
        counts = self.ranks.all_gather(torch.cat([part.counts for part in parts]))
        losses = self._joined([one.losses for one in told], counts)
        anchor = self._joined(anchors, counts).mean().item() if anchors else None
        own = [place for place, part in enumerate(parts) if part.phase is step.phase]
        mine = self.ranks.all_gather(torch.cat([parts[place].counts for place in own]))
        found = [_fields(told[place]) for place in own]
        vectors: dict[str, Any] = {name: self._joined([one[name] for one in found], mine) for name in found[0]}
        distances = vectors.pop("distances", None)
        distance = None if distances is None else distances.mean().item()
        total = losses.mean().item() + self._settings.anchor * (anchor or 0.0)
        return Found(Errors(vectors.pop("policy_winner"), **vectors), total, anchor, distance)

    def _joined(self, vectors: Sequence[Tensor], counts: Tensor) -> Tensor:
        """Vectors of several batches and all ranks, end to end, without gradients and without what does not count."""
        return self.ranks.all_gather(torch.cat(list(vectors)).detach())[counts]


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    """A parameter's gradient; one that no pass has reached gets zeros, which count in no product."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _fields(told: _Told) -> dict[str, Any]:
    """The vectors (B,) of a batch that its step's row is made of, those that there are."""
    vectors = {name: getattr(told.errors, name) for name in VECTORS} | {"distances": told.distances}
    return {name: value for name, value in vectors.items() if value is not None}
