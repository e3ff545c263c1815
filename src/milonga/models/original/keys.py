"""The original's names of tensors, and ours: one name of ours has one of theirs, and the other way round.

U-Net and text encoder differ by a prefix alone; the VAE has the names of the latent diffusion code, the vocoder
HiFi-GAN's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Size, nn

# Which networks each of the two files of weights holds, and the prefix of their names there.
PREFIXES = {"main": {"unet": "unet.", "text_encoder": "text_encoder."}, "vae": {"vae": "", "vocoder": "vocoder."}}
TIED = ("text_encoder.shared.weight", "text_encoder.encoder.embed_tokens.weight")
# Buffers that transformers' vocoder has and the original's does not: it normalises nothing.
UNUSED = ("mean", "scale")

_UP = re.compile(r"\.up_blocks\.(\d+)\.")
_MATRICES = re.compile(r"\.mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight$")
_VAE = [
    (re.compile(ours), theirs)
    for ours, theirs in (
        (r"\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r".down.\1.block.\2."),
        (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
        (r"\.up\.(\d+)\.resnets\.(\d+)\.", r".up.\1.block.\2."),
        (r"\.up\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
        (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
        (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
        (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
        (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
        (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.conv_norm_out\.", ".norm_out."),
    )
]


@dataclass(frozen=True)
class Place:
    """Where a tensor of the original's belongs: network and name there, its shape there and in the original's file."""

    network: str
    key: str
    shape: Size
    original_shape: Size


def places(networks: Mapping[str, nn.Module], file: str) -> dict[str, Place]:
    """Every tensor that a file of the original's holds ("main" or "vae"), by the original's name.

    The networks may be on the `meta` device.
    """
    mapped = {}
    for network, prefix in PREFIXES[file].items():
        values = networks[network].state_dict()
        levels = len({key.split(".")[2] for key in values if key.startswith("decoder.up_blocks.")})
        for key, value in values.items():
            if network == "vocoder" and key in UNUSED:
                continue
            matrix = network == "vae" and _MATRICES.search(key)
            shape = Size([*value.shape, 1, 1]) if matrix else value.shape
            mapped[prefix + _name(network, key, levels)] = Place(network, key, value.shape, shape)
    return mapped


def _name(network: str, key: str, levels: int) -> str:
    """The original's name, without its prefix, of a tensor of ours; its decoder counts levels from the other end."""
    if network == "vocoder":
        return re.sub(r"^upsampler\.", "ups.", key)
    if network == "vae":
        key = _UP.sub(lambda match: f".up.{levels - 1 - int(match[1])}.", key)
        for ours, theirs in _VAE:
            key = ours.sub(theirs, key)
    return key
