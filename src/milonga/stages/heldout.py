"""Whether the policy's implicit reward agrees with preferences it was not trained on (Eqs 11, 12)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milonga.core.settings import Settings
from milonga.maths.losses import Errors, deltas, implicit_accuracy, preference_margin
from milonga.stages.curves import finite
from milonga.stages.denoise import Noisy, Trainable, as_errors, draw, noised
from milonga.stages.latents import Examples

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

FIELDS = ("heldout_accuracy", "heldout_margin", "heldout_delta_winner", "heldout_delta_loser")
DRAWS = 4  # noises a pair: one alone says more about its timestep than about the pair


class HeldOut:
    """Held-out pairs, seen at timesteps and noises that never change, so that epochs differ by the policy alone."""

    def __init__(
        self, model: Trainable, reference: "UNet2DConditionModel", examples: Examples, settings: Settings, seed: int
    ) -> None:
        self._model, self._reference, self._examples, self._seed = model, reference, examples, seed
        self._settings = settings.model_copy(update={"caption_dropout": 0.0})
        self._known: list[Tensor] = []

    def judge(self) -> dict[str, float | None]:
        """Accuracy, margin, Δw and Δl of the policy as it is now, over all held-out pairs (no gradient)."""
        with torch.no_grad():
            if not self._known:
                self._known = self._all_errors(self._reference)
            policy = as_errors(_join(self._all_errors(self._model.unet)), losers=True)
        known = as_errors(_join(self._known), losers=True)
        errors = Errors(policy.policy_winner, policy.policy_loser, known.policy_winner, known.policy_loser)
        winner, loser = deltas(errors)
        values = implicit_accuracy(errors), preference_margin(errors).mean(), winner.mean(), loser.mean()
        return {name: finite(value.item()) for name, value in zip(FIELDS, values, strict=True)}

    def _all_errors(self, unet: "UNet2DConditionModel") -> list[Tensor]:
        """Errors of winners then losers, one vector a batch, each the mean over `DRAWS` noises."""
        size, count = self._settings.batch_size, len(self._examples)
        batches = [list(range(first, min(first + size, count))) for first in range(0, count, size)]
        return [
            torch.stack([self._noisy(rows, number).errors(unet) for number in range(DRAWS)]).mean(0) for rows in batches
        ]

    def _noisy(self, rows: list[int], number: int) -> Noisy:
        batch = self._examples.batch(rows, 0).to(self._model.unet.device)
        keys = [("heldout", number, row) for row in rows]
        total = len(self._model.alphas_cumprod)
        draws = draw(batch.winner.shape[1:], keys, self._seed, total, self._settings)
        return noised(self._model, batch, draws, losers=True, gamma=self._settings.snr_gamma)


def _join(vectors: list[Tensor]) -> Tensor:
    """All winners, then all losers, from batches of winners then losers."""
    halves = [vector.chunk(2) for vector in vectors]
    return torch.cat([half[0] for half in halves] + [half[1] for half in halves])
