"""Deep features kept between denoising steps (Ma et al. 2023, DeepCache): they change little from one to the next."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel


@contextmanager
def deep_features_kept(unet: UNet2DConditionModel, every: int = 2) -> Iterator[None]:
    """Within the block, all but the outermost level of a U-Net is computed in every `every`-th call alone.

    The other calls take what the last one found there. It is a trade: faster, and not the same clip. A generation ends
    where the noise does not fall: the next one, or a batch of another size, computes anew. For one thread. Raises
    ValueError for `every` < 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    place = _Place()
    deep = [*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]]
    hook = unet.register_forward_pre_hook(place.called, with_kwargs=True)
    for block in deep:
        block.forward = _kept(block.forward, place, every)
    try:
        yield
    finally:
        hook.remove()
        for block in deep:
            del block.forward  # the instance's own, before which stood the class's


class _Place:
    """How many calls of its generation a U-Net has answered before the present one."""

    def __init__(self) -> None:
        self.before, self.step = -1, float("-inf")

    def called(self, unet: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        step = float(torch.as_tensor(named["timestep"] if "timestep" in named else args[1]).max())
        self.before = self.before + 1 if step < self.step else 0
        self.step = step


def _kept(forward: Callable[..., Any], place: _Place, every: int) -> Callable[..., Any]:
    found: dict[int, Any] = {}  # the one last answer, by the size of the batch

    def answer(*args: Any, **kwargs: Any) -> Any:
        rows = len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
        if place.before % every == 0 or rows not in found:
            found.clear()
            found[rows] = forward(*args, **kwargs)
        return found[rows]

    return answer
