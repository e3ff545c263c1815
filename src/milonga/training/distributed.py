"""This process among those that train together, over Accelerate; alone, it is no more than itself.

`torchrun` and `accelerate launch` tell a process of its peers by the environment. A step's examples are dealt out over
all ranks and its gradient is averaged, so the effective batch, the number of steps and the learning rate are the same
whatever the number of ranks; phase and epoch are functions of the step's number, on which ranks cannot disagree.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import ceil
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from milonga.training.denoise import Network

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

T = TypeVar("T")


class Ranks:
    """All processes of a training; `lead` is the one that writes."""

    def __init__(self) -> None:
        self.accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.world = 1 if self.accelerator is None else self.accelerator.num_processes
        self.rank = 0 if self.accelerator is None else self.accelerator.process_index
        self.lead = self.rank == 0

    def place(self, unet: "UNet2DConditionModel") -> torch.device:
        """Moves a U-Net to this rank's device, or where there is one rank to the GPU if there is one."""
        device = torch.device("cuda") if torch.cuda.is_available() else unet.device
        # diffusers wraps `to` in a way that type checkers cannot follow.
        nn.Module.to(unet, device=device if self.accelerator is None else self.accelerator.device)
        return unet.device

    def spread(self, unet: "UNet2DConditionModel", sharded: bool) -> Network:
        """What to call in the U-Net's place: itself, or it wrapped in DDP, or with `sharded` it cut up by FSDP."""
        if self.accelerator is None:
            return unet
        if not sharded:
            return self.accelerator.prepare_model(unet)
        from torch.distributed.fsdp import fully_shard

        for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks]:
            fully_shard(block)
        fully_shard(unet)
        return unet

    def syncing(self, network: Network, last: bool) -> Any:
        """The context of one backward pass: ranks exchange gradients in the `last` one of a step only."""
        if last or self.accelerator is None or not isinstance(network, nn.Module):
            return nullcontext()
        if hasattr(network, "set_requires_gradient_sync"):
            return _unsynced(network)
        return self.accelerator.no_sync(network)

    def deal(self, rows: Sequence[int], size: int) -> list[tuple[list[int], list[bool]]]:
        """This rank's share of a step's examples, in batches of `size`, and which of them count.

        All ranks get as many batches of the same sizes, as collective passes need; who falls short by one is given
        an example that does not count.
        """
        mine = list(rows[self.rank :: self.world])
        short = ceil(len(rows) / self.world) - len(mine)
        counts = [True] * len(mine) + [False] * short
        mine += [rows[0]] * short
        return [(mine[at : at + size], counts[at : at + size]) for at in range(0, len(mine), size)]

    def together(self, values: Tensor) -> Tensor:
        """All ranks' vectors, one after the other; they have the same length."""
        if self.accelerator is None:
            return values
        plain = values.to(torch.uint8) if values.dtype is torch.bool else values  # what every backend carries
        return self.accelerator.gather(plain.contiguous()).to(values.dtype)

    def cut_up(self, unet: nn.Module) -> bool:
        """Whether a network's parameters lie in pieces over the ranks."""
        return any(hasattr(one, "full_tensor") for one in unet.parameters())

    def whole(self, value: Tensor) -> Tensor:
        """A tensor that may lie in pieces over the ranks, in one piece; all ranks call this alike."""
        return value.full_tensor() if hasattr(value, "full_tensor") else value  # pyright: ignore[reportAttributeAccessIssue]

    def in_turn(self, work: Callable[[], T]) -> T:
        """What `work` gives on this rank; one rank after the other does it, so the first one's files serve the rest."""
        for _ in range(self.rank):
            self.wait()
        found = work()
        for _ in range(self.rank, self.world):
            self.wait()
        return found

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, cut up as a parameter is, where that is."""
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, places = parameter.device_mesh, parameter.placements  # pyright: ignore[reportAttributeAccessIssue]
    return distribute_tensor(value, mesh, places)


@contextmanager
def _unsynced(network: Any) -> Iterator[None]:
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)
