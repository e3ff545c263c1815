"""The reference of a preference loss, as dear as one chooses: a frozen copy, the base under an adapter, or a table.

The table holds the reference's errors for a fixed number of draws of timestep and noise a pair. It is made before the
first step, when the policy still is the reference, and from then on one network alone is in memory.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from milonga.core.store import Run
from milonga.models.denoiser import Precision
from milonga.models.lora import adapter_disabled
from milonga.training.noising import NoisyBatch

SHARD = 256  # pairs in a shard of the table, which is what a stop may cost
Key = tuple[str, int, int]  # what an example's draws are named by: the kind of draw, the pass, the row
Make = Callable[[int, Sequence[int]], NoisyBatch]  # the noisy latents of a pass's rows, as a step will see them


class Reference(Protocol):
    """Gives the reference's errors on noisy latents, and where it is at hand its predictions."""

    def errors(self, noisy: NoisyBatch, keys: Sequence[Key]) -> tuple[Tensor, Tensor | None]:
        """Errors (M,) and predictions (M, C, H, W) on B winners, then B losers where there are any; no gradient."""
        ...


class Copy:
    """A copy of the network as given, which never changes."""

    def __init__(self, module: nn.Module, precision: Precision = "fp32") -> None:
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._precision: Precision = precision

    @torch.no_grad()
    def errors(self, noisy: NoisyBatch, keys: Sequence[Key] = ()) -> tuple[Tensor, Tensor | None]:
        """A pass through the copy."""
        predictions = noisy.predict(self._module, self._precision)
        return noisy.mse(predictions), predictions


class Unadapted:
    """The policy itself with its adapter switched off: no second network is held."""

    def __init__(self, module: nn.Module, precision: Precision = "fp32") -> None:
        self._module = module
        self._precision: Precision = precision

    @torch.no_grad()
    def errors(self, noisy: NoisyBatch, keys: Sequence[Key] = ()) -> tuple[Tensor, Tensor | None]:
        """A pass through the base."""
        with adapter_disabled(self._module):
            predictions = noisy.predict(self._module, self._precision)
        return noisy.mse(predictions), predictions


class Cached:
    """A table of the reference's errors by pass and row, in shards that are whole or absent."""

    def __init__(self, folder: Path, passes: int, rows: int) -> None:
        self._shards, self._passes, self._rows = Run(folder).stage("reference"), passes, rows
        self._table: Tensor | None = None

    def fill(self, module: nn.Module, make: Make, size: int, precision: Precision) -> None:
        """Makes what is missing of the table, `size` rows at once, by a U-Net that is the reference still."""
        for number in range(self._passes):
            for first in range(0, self._rows, SHARD):
                if not self._shards.has(_name(number, first)):
                    rows = range(first, min(first + SHARD, self._rows))
                    self._write(_name(number, first), _errors(module, make, number, rows, size, precision))

    def errors(self, noisy: NoisyBatch, keys: Sequence[Key]) -> tuple[Tensor, Tensor | None]:
        """The errors that were kept for these draws; there are no predictions."""
        if self._table is None:
            self._table = torch.stack([self._read(number) for number in range(self._passes)])
        halves = [self._table[number, :, row] for _, number, row in keys]
        both = torch.stack(halves, dim=1).flatten()
        return both[: len(noisy.latents)].to(noisy.latents.device), None

    def _write(self, name: str, errors: Tensor) -> None:
        import pyarrow as pa

        winner, loser = errors
        self._shards.write_table(name, pa.table({"winner": winner.numpy(), "loser": loser.numpy()}))

    def _read(self, number: int) -> Tensor:
        """Errors (2, N) of one pass: winners', then losers'."""
        tables = [self._shards.read_table(_name(number, first)) for first in range(0, self._rows, SHARD)]
        columns = [[row for table in tables for row in table[name].to_pylist()] for name in ("winner", "loser")]
        return torch.tensor(columns, dtype=torch.float32)


def _name(number: int, first: int) -> str:
    return f"{number:04d}-{first:08d}"


@torch.no_grad()
def _errors(module: nn.Module, make: Make, number: int, rows: Sequence[int], size: int, precision: Precision) -> Tensor:
    """Errors (2, B) on winners and losers; without losers the second half repeats the first."""
    parts = []
    for at in range(0, len(rows), size):
        batch = rows[at : at + size]
        errors = make(number, batch).errors(module, precision).float().cpu()
        parts.append(errors.reshape(-1, len(batch)).expand(2, -1))
    return torch.cat(parts, dim=1)
