"""Convolutional networks that only listen, on a CPU: norms folded into convolutions, tensors in oneDNN's own layout.

A plain PyTorch network turns every convolution's input into that layout and its output back again; here a picture is
turned once for the whole network. What it costs to hear a clip is in benchmarks/evaluation.md.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d
from torch.nn.utils.fusion import fuse_conv_bn_eval

from milonga.scorers.tagger import ConvBlock

Step = Callable[[Tensor], Tensor]


class Blocked:
    """Steps that stand for layers in evaluation: as the layers answer, up to rounding; no gradient."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self._steps = list(steps)

    @torch.no_grad()
    def __call__(self, picture: Tensor) -> Tensor:
        """(B, C, T, F) → what the layers make of it, float32."""
        found = picture.to_mkldnn()
        for step in self._steps:
            found = step(found)
        return found.to_dense()


def usable(network: nn.Module) -> bool:
    """Whether a network's convolutions can be done so: on a CPU with oneDNN, in float32."""
    return torch.backends.mkldnn.is_available() and all(
        one.device.type == "cpu" and one.dtype == torch.float32 for one in network.parameters()
    )


@torch.no_grad()
def of_blocks(blocks: Iterable[ConvBlock]) -> Blocked:
    """Blocks one after the other."""
    steps: list[Step] = []
    for block in blocks:
        for convolution, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
            steps.append(_convolution(fuse_conv_bn_eval(convolution.eval(), norm.eval())))
        if block.pool != (1, 1):
            steps.append(partial(avg_pool2d, kernel_size=block.pool))
    return Blocked(steps)


@torch.no_grad()
def of_layers(layers: nn.Sequential) -> Blocked:
    """Convolutions, each with a ReLU behind it, and max pools; TypeError for any other layer."""
    steps: list[Step] = []
    for layer, behind in pairwise([*layers, None]):
        if isinstance(layer, nn.Conv2d) and isinstance(behind, nn.ReLU):
            steps.append(_convolution(layer))
        elif isinstance(layer, nn.MaxPool2d):
            steps.append(partial(max_pool2d, kernel_size=layer.kernel_size))
        elif not isinstance(layer, nn.ReLU):
            raise TypeError(f"no step stands for {layer}")
    return Blocked(steps)


def _convolution(layer: nn.Conv2d) -> Step:
    """A convolution with its ReLU."""
    assert layer.bias is not None
    weight, bias = layer.weight.detach().to_mkldnn(), layer.bias.detach().to_mkldnn()
    return lambda picture: torch.relu_(conv2d(picture, weight, bias, padding=layer.padding))
