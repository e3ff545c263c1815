"""The reference of a preference loss: a frozen copy, the base under an adapter, or a table of errors.

The table holds the reference's errors for a fixed number of noise samples a pair. It is filled before the first step,
when the policy still is the reference, and from then on only one network is in memory.

Under LoRA (arXiv 2106.09685) only small matrices beside chosen linear layers are trained, and without them the network
is the base: its reference costs no second network, it is the same one with its adapter switched off.
"""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from milonga.core.config import Settings
from milonga.core.errors import RecipeError
from milonga.core.ids import derive_seed
from milonga.core.store import Run
from milonga.core.weights import ADAPTER_WEIGHTS
from milonga.models.adapter import METADATA, PREFIX
from milonga.models.denoiser import Precision
from milonga.training.noising import NoisyBatch

ADAPTER = "default"
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
    def predict(self, noisy: NoisyBatch) -> Tensor:
        """The copy's predictions (M, *latent shape)."""
        return noisy.predict(self._module, self._precision)

    def reference_errors(self, noisy: NoisyBatch, keys: Sequence[Key] = ()) -> tuple[Tensor, Tensor | None]:
        """A pass through the copy."""
        predictions = self.predict(noisy)
        return noisy.mse(predictions), predictions


class AdapterDisabled:
    """The policy itself with its adapter disabled: there is no second network in memory."""

    def __init__(self, module: nn.Module, precision: Precision = "fp32") -> None:
        self._module = module
        self._precision: Precision = precision

    @torch.no_grad()
    def predict(self, noisy: NoisyBatch) -> Tensor:
        """The base's predictions (M, *latent shape)."""
        with adapter_disabled(self._module):
            return noisy.predict(self._module, self._precision)

    def reference_errors(self, noisy: NoisyBatch, keys: Sequence[Key] = ()) -> tuple[Tensor, Tensor | None]:
        """A pass through the base."""
        predictions = self.predict(noisy)
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


def add_adapter(module: nn.Module, targets: Sequence[str], rank: int, alpha: int | None, seed: int) -> None:
    """Freezes a network and puts a fresh adapter beside the linear layers whose names end in `targets`.

    `alpha` is the rank by default. What the network computes is unchanged: one of each adapter's two matrices begins at
    zero. Raises RecipeError without peft, or where no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RecipeError("lora_rank needs peft: pip install 'milonga[lora]', or set lora_rank = 0") from error
    module.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(targets))
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "adapter"))
        try:
            inject_adapter_in_model(config, module, ADAPTER)
        except ValueError as error:
            raise RecipeError(f"lora_rank: the network has no layer named {', '.join(targets)}: {error}") from error


@contextmanager
def adapter_disabled(module: nn.Module) -> Iterator[None]:
    """The network as it was before its adapter."""
    for layer in _adapted(module).values():
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in _adapted(module).values():
            layer.enable_adapters(enabled=True)


def save_and_merge(module: nn.Module, folder: Path) -> None:
    """Writes the adapter in diffusers' layout, then adds it to the weights, so that the plain network is left.

    Names have the prefix that diffusers' `load_lora_adapter` expects by default.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config: Any = module.peft_config
    settings = {k: list(v) if isinstance(v, set) else v for k, v in config[ADAPTER].to_dict().items()}
    settings = {f"{PREFIX}{key}": value for key, value in settings.items()}
    metadata = {"format": "pt", METADATA: json.dumps(settings, indent=2, sort_keys=True)}
    tensors = get_peft_model_state_dict(module, adapter_name=ADAPTER)
    save_file({f"{PREFIX}{name}": value for name, value in tensors.items()}, folder / ADAPTER_WEIGHTS, metadata)
    for name, layer in _adapted(module).items():
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, layer.get_base_layer())
    del module.peft_config


def _adapted(module: nn.Module) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
