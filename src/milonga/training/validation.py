"""Whether the policy's implicit reward agrees with preferences it was not trained on (Eqs 11, 12)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from milonga.core.config import Settings
from milonga.data.examples import Examples
from milonga.maths.losses import Errors, deltas, implicit_accuracy, preference_margin
from milonga.models.denoiser import Denoiser, Network
from milonga.training.curves import finite
from milonga.training.noising import Draws, NoisyBatch, add_noise, draw
from milonga.training.reference import Reference

FIELDS = (
    "heldout_accuracy",
    "heldout_margin",
    "heldout_delta_winner",
    "heldout_delta_loser",
    "heldout_by_group",
    "heldout_by_timestep",
)
BINS = 4  # of timesteps, from the least to the most noisy
DRAWS = 4  # noises a pair: one alone says more about its timestep than about the pair


class HeldOut:
    """Held-out pairs, seen at timesteps and noises that never change, so that epochs differ by the policy alone."""

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
        self._known: list[Tensor] = []

    def look_up(self) -> None:
        """Keeps the errors of the policy as the reference's: it still is the reference, and there is no other."""
        with torch.no_grad():
            self._known = self._all_errors(lambda noisy: noisy.errors(None, self._settings.precision))

    def judge(self) -> dict[str, Any]:
        """Accuracy, margin, Δw and Δl of the policy as it is now, over all held-out pairs (no gradient); and accuracy
        by group and by range of timesteps, where each noise of a pair counts as one comparison."""
        with torch.no_grad():
            if not self._known:
                self._known = self._all_errors(lambda noisy: self._reference.errors(noisy, ())[0])
            policy = self._all_errors(lambda noisy: noisy.errors(self._network, self._settings.precision))
        whole = _compared([part.mean(0) for part in policy], [part.mean(0) for part in self._known])
        winner, loser = deltas(whole)
        values = implicit_accuracy(whole), preference_margin(whole).mean(), winner.mean(), loser.mean()
        found: dict[str, Any] = {name: finite(value.item()) for name, value in zip(FIELDS, values, strict=False)}
        return found | self._told_apart(policy)

    def _told_apart(self, policy: list[Tensor]) -> dict[str, Any]:
        """Accuracy by group (None: pairs have none) and by timestep."""
        margins = torch.stack(
            [
                preference_margin(_compared([one[number] for one in policy], [one[number] for one in self._known]))
                for number in range(DRAWS)
            ]
        )
        right = (margins > 0).float() + 0.5 * (margins == 0).float()
        groups, steps = self._groups(), self._timesteps()
        total = len(self._denoiser.process)
        edges = [total * part // BINS for part in range(BINS + 1)]
        bins = {f"{low}-{high - 1}": (steps >= low) & (steps < high) for low, high in pairwise(edges)}
        by_step = {name: right.cpu()[chosen].mean().item() for name, chosen in bins.items() if chosen.any()}
        places = {name: [place for place, one in enumerate(groups) if one == name] for name in sorted(set(groups))}
        by_group = {name: right[:, chosen].mean().item() for name, chosen in places.items()}
        return {"heldout_by_group": by_group or None, "heldout_by_timestep": by_step}

    def _groups(self) -> list[str]:
        found = (self._examples.batch(rows, 0).groups or () for rows in self._batches())
        return [name for part in found for name in part]

    def _timesteps(self) -> Tensor:
        """The winners' timestep in each draw, (DRAWS, N)."""
        rows = range(len(self._examples))
        return torch.stack([self._draws(rows, number, (1,)).timesteps for number in range(DRAWS)])

    def _all_errors(self, errors: Callable[[NoisyBatch], Tensor]) -> list[Tensor]:
        """Errors of winners then losers at each of `DRAWS` noises, one (DRAWS, 2B) a batch."""
        return [torch.stack([errors(self._noisy(rows, number)) for number in range(DRAWS)]) for rows in self._batches()]

    def _batches(self) -> list[list[int]]:
        size, count = self._settings.batch_size, len(self._examples)
        return [list(range(first, min(first + size, count))) for first in range(0, count, size)]

    def _noisy(self, rows: list[int], number: int) -> NoisyBatch:
        batch = self._examples.batch(rows, 0).to(next(self._denoiser.module.parameters()).device)
        draws, settings = self._draws(rows, number, batch.winner.shape[1:]), self._settings
        return add_noise(self._denoiser, batch, draws, True, settings.snr_gamma, settings.omega)

    def _draws(self, rows: Sequence[int], number: int, shape: Sequence[int]) -> Draws:
        keys = [("heldout", number, row) for row in rows]
        return draw(shape, keys, self._seed, len(self._denoiser.process), self._settings)


def _compared(policy: list[Tensor], known: list[Tensor]) -> Errors:
    """The four error vectors of all pairs, from batches of winners then losers."""
    mine, theirs = _join(policy).chunk(2), _join(known).chunk(2)
    return Errors(mine[0], mine[1], theirs[0], theirs[1])


def _join(vectors: list[Tensor]) -> Tensor:
    """All winners, then all losers, from batches of winners then losers."""
    halves = [vector.chunk(2) for vector in vectors]
    return torch.cat([half[0] for half in halves] + [half[1] for half in halves])
