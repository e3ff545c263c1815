"""The reference of a preference loss: a frozen copy, the base under an adapter, or a table of errors.

The table holds the reference's errors for a fixed number of noise samples a pair. It is filled before the first step,
when the policy still is the reference, and from then on only one network is in memory.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from milonga.core.config import Settings
from milonga.core.store import Run
from milonga.models.denoiser import Precision
from milonga.models.lora import adapter_disabled
from milonga.training.noising import NoisyBatch

SHARD = 256  # pairs in a shard of the table: what is computed again after a stop
Key = tuple[str, int, int]  # the name of an example's draws: the kind of draw, the pass, the row
NoisyRows = Callable[[int, Sequence[int]], NoisyBatch]  # the noisy latents of a pass's rows, as a step will see them


class Reference(Protocol):
    """Gives the reference's errors on noisy latents, and its predictions where they are at hand."""

    def reference_errors(self, noisy: NoisyBatch, keys: Sequence[Key]) -> tuple[Tensor, Tensor | None]:
        """Errors (M,) and predictions (M, *latent shape) on B winners, then B losers if there are any; no gradient."""
        ...


class FrozenCopy:
    """A copy of the network as given, which never changes."""

    def __init__(self, module: nn.Module, precision: Precision = "fp32") -> None:
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._precision: Precision = precision

    @torch.no_grad()
    def reference_errors(self, noisy: NoisyBatch, keys: Sequence[Key] = ()) -> tuple[Tensor, Tensor | None]:
        """A pass through the copy."""
        predictions = noisy.predict(self._module, self._precision)
        return noisy.mse(predictions), predictions


class AdapterDisabled:
    """The policy itself with its adapter disabled: there is no second network in memory."""

    def __init__(self, module: nn.Module, precision: Precision = "fp32") -> None:
        self._module = module
        self._precision: Precision = precision

    @torch.no_grad()
    def reference_errors(self, noisy: NoisyBatch, keys: Sequence[Key] = ()) -> tuple[Tensor, Tensor | None]:
        """A pass through the base."""
        with adapter_disabled(self._module):
            predictions = noisy.predict(self._module, self._precision)
        return noisy.mse(predictions), predictions


class CachedReference:
    """A table of the reference's errors by pass and row, in shards that are written atomically."""

    def __init__(self, folder: Path, passes: int, rows: int) -> None:
        self._shards, self._passes, self._rows = Run(folder).stage("reference"), passes, rows
        self._table: Tensor | None = None

    @torch.no_grad()
    def fill(self, module: nn.Module, noisy_rows: NoisyRows, settings: Settings) -> None:
        """Computes what is missing of the table with the reference's network; without losers both columns agree."""
        for number in range(self._passes):
            for first in range(0, self._rows, SHARD):
                if self._shards.has(_name(number, first)):
                    continue
                parts, last = [], min(first + SHARD, self._rows)
                for start in range(first, last, settings.batch_size):
                    rows = range(start, min(start + settings.batch_size, last))
                    errors = noisy_rows(number, rows).errors(module, settings.precision).float().cpu()
                    parts.append(errors.reshape(-1, len(rows)).expand(2, -1))
                self._write(_name(number, first), torch.cat(parts, dim=1))

    def reference_errors(self, noisy: NoisyBatch, keys: Sequence[Key]) -> tuple[Tensor, Tensor | None]:
        """The stored errors of these draws; there are no predictions."""
        if self._table is None:
            self._table = torch.stack([self._read(number) for number in range(self._passes)])
        columns = [self._table[number, :, row] for _, number, row in keys]
        errors = torch.stack(columns, dim=1).flatten()
        return errors[: len(noisy.latents)].to(noisy.latents.device), None

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
