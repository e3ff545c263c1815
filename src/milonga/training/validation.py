"""Whether the policy's implicit reward agrees with preferences that it was not trained on (Eqs 11, 12)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from milonga.core.config import Settings
from milonga.data.examples import Examples
from milonga.maths.losses import Errors, deltas, implicit_accuracy, preference_margin
from milonga.models.denoiser import Denoiser, Network
from milonga.training.monitor import finite
from milonga.training.noising import Draws, NoisyBatch, add_noise, draw
from milonga.training.reference import Reference

FIELDS = (
    "val_accuracy", "val_margin", "val_delta_winner", "val_delta_loser", "val_by_strategy", "val_by_timestep"
)  # fmt: skip
BINS = 4  # of timesteps, from the least to the most noisy
DRAWS = 4  # noises a pair: one alone says more about its timestep than about the pair


class Validation:
    """Validation pairs at timesteps and noises that never change, so that epochs differ by the policy alone."""

    def __init__(
        self,
        denoiser: Denoiser,
        network: Network,
        reference: Reference,
        examples: Examples,
        settings: Settings,
        seed: int,
    ) -> None:
        self._denoiser, self._network, self._reference = denoiser, network, reference
        self._examples, self._seed = examples, seed
        self._settings = settings.model_copy(update={"caption_dropout": 0.0})
        size, count = settings.batch_size, len(examples)
        self._batches = [range(first, min(first + size, count)) for first in range(0, count, size)]
        self._reference_errors: list[Tensor] = []

    def cache_reference(self, module: nn.Module) -> None:
        """Keeps the reference's errors, which `module` still is, for all evaluations."""
        with torch.no_grad():
            self._reference_errors = self._errors(lambda noisy: noisy.errors(module, self._settings.precision))

    def evaluate(self) -> dict[str, Any]:
        """Accuracy, margin, Δw and Δl of the policy as it is now, over all validation pairs (no gradient).

        Also accuracy by strategy (None: the pairs have none) and by range of timesteps, where each noise of a pair
        counts as one comparison.
        """
        with torch.no_grad():
            if not self._reference_errors:
                self._reference_errors = self._errors(lambda noisy: self._reference.reference_errors(noisy, ())[0])
            policy = self._errors(lambda noisy: noisy.errors(self._network, self._settings.precision))
        known = self._reference_errors
        mean = _pair_errors([part.mean(0) for part in policy], [part.mean(0) for part in known])
        winner, loser = deltas(mean)
        values = implicit_accuracy(mean), preference_margin(mean).mean(), winner.mean(), loser.mean()
        row: dict[str, Any] = {name: finite(value.item()) for name, value in zip(FIELDS, values, strict=False)}

        margins = torch.stack(
            [
                preference_margin(_pair_errors([part[number] for part in policy], [part[number] for part in known]))
                for number in range(DRAWS)
            ]
        )
        right = ((margins > 0).float() + 0.5 * (margins == 0).float()).cpu()
        strategies = [name for rows in self._batches for name in self._examples.batch(rows, 0).groups or ()]
        by_strategy = {}
        for name in sorted(set(strategies)):
            chosen = [place for place, other in enumerate(strategies) if other == name]
            by_strategy[name] = right[:, chosen].mean().item()
        everything, total = range(len(self._examples)), len(self._denoiser.process)
        steps = torch.stack([self._draws(everything, number, (1,)).timesteps for number in range(DRAWS)])
        by_timestep = {}
        for low, high in pairwise([total * part // BINS for part in range(BINS + 1)]):
            inside = (steps >= low) & (steps < high)
            if inside.any():
                by_timestep[f"{low}-{high - 1}"] = right[inside].mean().item()
        return row | {"val_by_strategy": by_strategy or None, "val_by_timestep": by_timestep}

    def _errors(self, errors_of: Callable[[NoisyBatch], Tensor]) -> list[Tensor]:
        """Errors of winners then losers at each of `DRAWS` noises, one (DRAWS, 2B) a batch."""
        settings, parts = self._settings, []
        for rows in self._batches:
            batch = self._examples.batch(rows, 0).to(next(self._denoiser.module.parameters()).device)
            draws = [self._draws(rows, number, batch.winner.shape[1:]) for number in range(DRAWS)]
            gamma, weighting = settings.snr_gamma, settings.loss_weighting
            noisy = (add_noise(self._denoiser, batch, one, True, gamma, weighting) for one in draws)
            parts.append(torch.stack([errors_of(one) for one in noisy]))
        return parts

    def _draws(self, rows: Sequence[int], number: int, shape: Sequence[int]) -> Draws:
        keys = [("heldout", number, row) for row in rows]  # the stream's name: another would be other noise
        return draw(shape, keys, self._seed, len(self._denoiser.process), self._settings)


def _pair_errors(policy: list[Tensor], reference: list[Tensor]) -> Errors:
    """The four error vectors of all pairs, from batches of winners then losers."""
    winner, loser = _halves(policy)
    return Errors(winner, loser, *_halves(reference))


def _halves(vectors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All winners, and all losers."""
    halves = [vector.chunk(2) for vector in vectors]
    return torch.cat([half[0] for half in halves]), torch.cat([half[1] for half in halves])
