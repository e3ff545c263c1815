"""The processes that train together, over Accelerate; a single process is a group of one.

`torchrun` and `accelerate launch` describe the group in the environment. A step's examples are sharded over all ranks
and its gradient is averaged, so the effective batch, the number of steps and the learning rate are the same whatever
the number of ranks; phase and epoch are functions of the step's number, on which ranks cannot disagree.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import ceil
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from milonga.maths.devices import AUTO, placed
from milonga.models.denoiser import Denoiser, Network

T = TypeVar("T")


class Ranks:
    """All processes of a training; the main one writes. A single one trains on `device`, several on one each."""

    def __init__(self, device: Any = AUTO) -> None:
        self._device = device
        self.accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.world = 1 if self.accelerator is None else self.accelerator.num_processes
        self.rank = 0 if self.accelerator is None else self.accelerator.process_index
        self.is_main = self.rank == 0

    def to_device(self, module: nn.Module) -> None:
        """Moves a network to this rank's device."""
        placed(module, self._device if self.accelerator is None else self.accelerator.device)

    def wrap(self, denoiser: Denoiser, fsdp: bool) -> Network:
        """What to call in the network's place: itself, or it wrapped in DDP, or with `fsdp` sharded over the ranks."""
        if self.accelerator is None:
            return denoiser.module
        if not fsdp:
            return self.accelerator.prepare_model(denoiser.module)
        from torch.distributed.fsdp import fully_shard

        for block in denoiser.fsdp_blocks:
            fully_shard(block)
        # A pass before the first step would else leave the outermost parameters full, and the optimizer would get them.
        fully_shard(denoiser.module, reshard_after_forward=True)
        return denoiser.module

    def no_sync(self, network: Network, sync: bool = False) -> Any:
        """The context of one backward pass: ranks do not exchange gradients, unless it is to `sync`."""
        if sync or self.accelerator is None or not isinstance(network, nn.Module):
            return nullcontext()
        if hasattr(network, "set_requires_gradient_sync"):
            return _fsdp_no_sync(network)
        return self.accelerator.no_sync(network)

    def shard(self, rows: Sequence[int], size: int) -> list[tuple[list[int], list[bool]]]:
        """This rank's share of a step's examples, in batches of `size`, and which of them count.

        All ranks get as many batches of the same sizes, as collective passes need; a rank that has one example fewer
        gets one that does not count.
        """
        mine = list(rows[self.rank :: self.world])
        short = ceil(len(rows) / self.world) - len(mine)
        counts = [True] * len(mine) + [False] * short
        mine += [rows[0]] * short
        return [(mine[at : at + size], counts[at : at + size]) for at in range(0, len(mine), size)]

    def all_gather(self, values: Tensor) -> Tensor:
        """All ranks' vectors, one after the other; they have the same length."""
        if self.accelerator is None:
            return values
        plain = values.to(torch.uint8) if values.dtype is torch.bool else values  # what every backend carries
        return self.accelerator.gather(plain.contiguous()).to(values.dtype)

    def is_sharded(self, module: nn.Module) -> bool:
        """Whether a network's parameters are sharded over the ranks."""
        return any(map(is_sharded, module.parameters()))

    def full_tensor(self, value: Tensor) -> Tensor:
        """A tensor that may be sharded, gathered into one; all ranks call this alike."""
        return value.full_tensor() if is_sharded(value) else value  # pyright: ignore[reportAttributeAccessIssue]

    def from_main(self, value: T) -> T:
        """The main process's value, on all ranks."""
        if self.accelerator is None:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def main_process_first(self, work: Callable[[], T]) -> T:
        """The result of `work` on this rank; one rank after the other runs it, so the main one's files serve all."""
        for _ in range(self.rank):
            self.wait()
        result = work()
        for _ in range(self.rank, self.world):
            self.wait()
        return result

    def wait(self) -> None:
        """Blocks until all ranks are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def is_sharded(value: Tensor) -> bool:
    """Whether a tensor is this rank's part of one that all ranks have together."""
    return hasattr(value, "full_tensor")


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A full tensor, sharded as a parameter is if that is; one that is sharded already stays as it is."""
    if is_sharded(value) or not is_sharded(parameter):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, places = parameter.device_mesh, parameter.placements  # pyright: ignore[reportAttributeAccessIssue]
    return distribute_tensor(value, mesh, places)


@contextmanager
def _fsdp_no_sync(network: Any) -> Iterator[None]:
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)
