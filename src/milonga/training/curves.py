"""The training log: one JSON object a step, with what tells whether preference training goes well or goes wrong."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milonga.maths.losses import Errors, deltas, implicit_accuracy, preference_margin

log = logging.getLogger(__name__)


class Curves:
    """A JSON-lines file that a resumed training continues exactly where its checkpoint left it."""

    def __init__(self, path: Path, size: int) -> None:
        """Opens `path` for appending after its first `size` bytes; what a killed run wrote beyond them is cut off."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        held = path.stat().st_size
        if held < size:
            log.warning("%s is shorter than its checkpoint remembers: the curves have a gap", path)
        self._file.truncate(min(size, held))

    def write(self, row: dict[str, Any]) -> None:
        """Appends one row; it survives the death of this process at once."""
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def flush(self) -> int:
        """Puts all rows on disk; returns their bytes, which is what a checkpoint has to remember."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def preference_row(errors: Errors, beta: float) -> dict[str, float | None]:
    """What the errors of a step's pairs say, as means: fields that need losers or a reference are None without them.

    Δw and Δl apart, since both may rise while the margin grows; the margin's quantiles; how many winners got worse;
    and σ(−½βm), the factor that scales DPO's gradient: near 0 the pairs teach nothing more. SDPO's λ, below 1 where the
    winner had to be guarded.
    """
    row: dict[str, Any] = dict.fromkeys(PREFERENCE_FIELDS)
    row["winner_error"] = errors.policy_winner.mean().item()
    if errors.policy_loser is not None:
        row["loser_error"] = errors.policy_loser.mean().item()
    if errors.reference_loser is not None:
        row |= _against_reference(errors, beta)
    if errors.desirable is not None and errors.reference_winner is not None:
        row |= _by_label(errors.policy_winner - errors.reference_winner, errors.desirable.bool())
    if errors.safeguard is not None:
        row["safeguard"] = errors.safeguard.mean().item()
    return {name: finite(value) for name, value in row.items()}


PREFERENCE_FIELDS = (
    "winner_error",
    "loser_error",
    "delta_winner",
    "delta_loser",
    "margin",
    "margin_p10",
    "margin_p50",
    "margin_p90",
    "accuracy",
    "winner_worse",
    "saturation",
    "safeguard",
)


def _against_reference(errors: Errors, beta: float) -> dict[str, float]:
    winner, loser = deltas(errors)
    margin = preference_margin(errors)
    low, middle, high = torch.quantile(margin, margin.new_tensor([0.1, 0.5, 0.9])).tolist()
    return {
        "delta_winner": winner.mean().item(),
        "delta_loser": loser.mean().item(),
        "margin": margin.mean().item(),
        "margin_p10": low,
        "margin_p50": middle,
        "margin_p90": high,
        "accuracy": implicit_accuracy(errors).item(),
        "winner_worse": (winner > 0).float().mean().item(),
        "saturation": torch.sigmoid(-0.5 * beta * margin).mean().item(),
    }


def _by_label(delta: Tensor, liked: Tensor) -> dict[str, float | None]:
    """Δ of liked clips as winners', of disliked ones as losers'; there are no pairs to have margins."""
    means = {"delta_winner": delta[liked], "delta_loser": delta[~liked]}
    worse = (delta[liked] > 0).float().mean().item() if liked.any() else None
    return {name: some.mean().item() if len(some) else None for name, some in means.items()} | {"winner_worse": worse}


def finite(value: float | None) -> float | None:
    """The value, or None where it is not a number that JSON can hold."""
    return value if value is not None and abs(value) < float("inf") else None
