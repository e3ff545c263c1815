"""Networks that only listen, in oneDNN's layout: they answer as the plain ones, whatever the batch."""

import pytest
import torch
from torch import nn

from milonga.scorers.mkldnn import of_blocks, of_layers, usable
from milonga.scorers.tagger import ConvBlock
from milonga.scorers.vggish import Vggish

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def blocks() -> nn.Sequential:
    """Three blocks with norms that have seen something."""
    torch.manual_seed(0)
    made = nn.Sequential(ConvBlock(1, 4, (2, 2)), ConvBlock(4, 6, (2, 1)), ConvBlock(6, 8, (1, 1)))
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias, -1, 1)
            nn.init.uniform_(part.running_mean, -1, 1)
            nn.init.uniform_(part.running_var, 0.2, 3)
    return made.eval()


@needs_onednn
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_blocks_answer_as_the_plain_ones(batch: int) -> None:
    plain, picture = blocks(), torch.randn(3, 1, 37, 16)
    expected = plain(picture)
    found = of_blocks(plain)(picture[:batch])
    torch.testing.assert_close(found, expected[:batch], atol=1e-5, rtol=1e-5)
    assert torch.equal(plain(picture), expected)  # and these are left as they were


@needs_onednn
@torch.no_grad()
def test_layers_answer_as_the_plain_ones() -> None:
    torch.manual_seed(0)
    plain, picture = Vggish(width=3).eval().features, torch.randn(2, 1, 96, 64)
    torch.testing.assert_close(of_layers(plain)(picture), plain(picture), atol=1e-6, rtol=1e-5)


def test_a_layer_that_no_step_stands_for_is_named() -> None:
    with pytest.raises(TypeError, match="no step replaces Conv2d"):
        of_layers(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Sigmoid()))


def test_only_float32_on_a_cpu_is_blocked() -> None:
    network = nn.Linear(2, 2)
    assert usable(network) == torch.backends.mkldnn.is_available()
    assert not usable(network.half())
    assert not usable(nn.Linear(2, 2, device="meta"))
