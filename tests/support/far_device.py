"""A second device where there is none: tensors "far" away, with a CPU's numbers, that no tensor on the CPU may meet.

`torch.device("meta")` stands for it, since every torch has that name. A far tensor is a wrapper around a CPU tensor;
each operation is counted by where it ran, and one on near and far tensors together raises, as CUDA does.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

FAR = "meta"
# The work of networks: what may not happen on the CPU while they are far away.
WORK = (
    "convolution",
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "linear",
    "scaled_dot_product",
    "fft",
    "layer_norm",
    "batch_norm",
)


class Far(torch.Tensor):
    """A tensor that is far away."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> "Far":
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=torch.device(FAR),
        )

    def __init__(self, near: torch.Tensor) -> None:
        self.near = near

    @property
    def is_meta(self) -> bool:
        """It has numbers."""
        return False

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.near})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.near_work: Counter[str] = Counter()
        self.far_work: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().removeprefix("aten::")
        far = any(isinstance(value, Far) for value in tree_flatten((args, kwargs))[0])
        if any(name.strip("_").startswith(work) for work in WORK):
            (self.far_work if far else self.near_work)[name] += 1
        return _call(function, args, kwargs or {})


def _call(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU tensors inside; its result is far where it was asked for there, or its inputs are."""
    values = tree_flatten((args, kwargs))[0]
    far = [value for value in values if isinstance(value, Far)]
    wanted = kwargs.get("device")
    moves = function.name().startswith(("aten::_to_copy", "aten::copy_"))
    near = [value for value in values if isinstance(value, torch.Tensor) and not isinstance(value, Far) and value.dim()]
    if far and near and not moves:
        raise RuntimeError(f"{function.name()}: tensors on the CPU and on another device")
    inside = {**kwargs, "device": "cpu"} if wanted is not None else kwargs
    result = function(*tree_map(_unwrapped, args), **tree_map(_unwrapped, inside))
    if wanted is None:
        is_far = isinstance(values[0], Far) if moves else bool(far)
    else:
        is_far = torch.device(wanted).type == FAR
    if not is_far:
        return result
    wrapped = tree_map(lambda value: Far(value) if isinstance(value, torch.Tensor) else value, result)
    return return_and_correct_aliasing(function, args, kwargs, wrapped)


def _unwrapped(value: Any) -> Any:
    return value.near if isinstance(value, Far) else value


class _Literals(TorchFunctionMode):
    """`torch.tensor(…, device=FAR)`, which no dispatch sees."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        wanted = kwargs.get("device")
        if function is torch.tensor and wanted is not None and torch.device(wanted).type == FAR:
            return function(*args, **{**kwargs, "device": "cpu"}).to(FAR)
        return function(*args, **kwargs)


@contextmanager
def far_device() -> Iterator[_Mode]:
    """Makes `torch.device("meta")` a device that computes; gives the counts of `near_work` and `far_work` by name."""
    with _Literals(), _Mode() as mode:
        yield mode
