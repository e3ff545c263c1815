"""Checkpoints of the original Tango and Tango 2 as a `TangoPipeline`, and back to the original's names.

How it departs from the original's loading: of the hub only the tokenizer is asked for, no pickle is run, no network is
filled with random numbers first, and the weights stay mapped to their file instead of being copied.

A tensor has one name here and one in the original: U-Net and text encoder differ by a prefix alone, the VAE has the
names of the latent diffusion code, the vocoder HiFi-GAN's.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor, nn

from milonga.core.deferred import deferred_imports
from milonga.core.errors import CheckpointError, RecipeError, brief
from milonga.core.hub import as_repository
from milonga.core.store import atomic_dir
from milonga.core.weights import check_tensors, fetch_tokenizer, read_weights
from milonga.models.original.layout import SCHEDULE, TEXT_ENCODERS, Layout, is_original, read_layout, tokenizer_folder
from milonga.models.schedulers import scheduler_named
from milonga.models.tango import TangoPipeline

with deferred_imports():
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import AutoTokenizer, SpeechT5HifiGan, SpeechT5HifiGanConfig, T5Config, T5EncoderModel

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


# The pipeline's own defaults apply to all of these models: 10.24 s, the paper's 200 steps and guidance 3 (§5.3).


def load_original(folder: Path, tokenizer: Path | str | None = None) -> TangoPipeline:
    """The pipeline of a folder in the original's seven-file layout, or as original training saved it, in float32.

    `tokenizer` is the folder or the hub's name of the text encoder's tokenizer, which those layouts leave out; without
    it the folder's own `tokenizer` is looked for, then FLAN-T5's on the hub. The scheduler is `ddpm`; the original's
    timesteps are `compat`'s. Raises CheckpointError naming the file and key that is wrong, and what to do.
    """
    layout = read_layout(folder)
    words = load_tokenizer(layout, tokenizer)
    networks = blank(layout)
    for file, path in (("main", layout.main), ("vae", layout.vae)):
        tensors = with_tied_embedding(path, read_weights(path))
        shapes = {key: place.original_shape for key, place in places(networks, file).items()}
        check_tensors(path, tensors, {key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
        fill(networks, file, tensors)
    return TangoPipeline(words, scheduler=scheduler_named("ddpm", SCHEDULE), **networks)


def convert(source: Path, destination: Path, tokenizer: Path | str | None = None) -> Path:
    """Writes a folder of the original's as a diffusers pipeline (safetensors), atomically.

    Raises CheckpointError when `source` cannot be used, RecipeError when `destination` exists already.
    """
    if not is_original(source):
        hint = "is a diffusers pipeline already" if (source / "model_index.json").exists() else "holds no checkpoint"
        raise CheckpointError(f"{source} {hint}: main_config.json and pytorch_model_main.bin are looked for")
    if destination.exists():
        raise RecipeError(f"{destination} exists already: name a new folder")
    with atomic_dir(destination) as part:
        load_original(source, tokenizer).save_pretrained(part, safe_serialization=True)
    return destination


def load_tokenizer(layout: Layout, given: Path | str | None = None) -> Any:
    """The text encoder's tokenizer, from a folder or a repository on the hub.

    Raises CheckpointError when it is missing, unusable, or not this text encoder's.
    """
    folder = _tokenizer_place(layout, given)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        longest, closed = max(tokenizer.get_vocab().values()), tokenizer("").input_ids
    except Exception as error:  # the Rust tokenizers raise bare Exceptions, and what is raised here is told
        raise CheckpointError(f"{folder} holds no usable tokenizer: {brief(error)}") from None
    if longest >= layout.text_encoder["vocab_size"]:
        known = layout.text_encoder["vocab_size"]
        raise CheckpointError(f"{folder}: its tokenizer has a token {longest}, but the text encoder knows {known}")
    if not closed:
        raise CheckpointError(f"{folder}: its tokenizer ends no text with </s>, so it is not the text encoder's")
    return tokenizer


def _tokenizer_place(layout: Layout, given: Path | str | None) -> Path:
    """Where the tokenizer lies: as given, in the folder, or fetched where the text encoder is one of the hub's."""
    if isinstance(given, str) and not Path(given).is_dir() and as_repository(given):
        return fetch_tokenizer(given)
    try:
        return tokenizer_folder(layout, None if given is None else Path(given))
    except CheckpointError as missing:
        if given is not None or layout.text_encoder_name not in TEXT_ENCODERS:
            raise
        try:
            return fetch_tokenizer(layout.text_encoder_name)
        except CheckpointError as error:
            raise CheckpointError(f"{missing}; {error}") from None


def blank(layout: Layout) -> dict[str, Any]:
    """U-Net, text encoder, VAE and vocoder as the configs say, on the `meta` device: shapes without memory.

    Raises CheckpointError naming the folder when a config describes no network.
    """
    makers: dict[str, Callable[[], nn.Module]] = {
        "unet": lambda: UNet2DConditionModel.from_config(layout.unet),  # type: ignore[return-value]
        "text_encoder": lambda: T5EncoderModel(T5Config.from_dict(dict(layout.text_encoder))),
        "vae": lambda: AutoencoderKL(**layout.autoencoder),
        "vocoder": lambda: SpeechT5HifiGan(SpeechT5HifiGanConfig(**layout.vocoder)),
    }
    networks = {}
    for name, maker in makers.items():
        try:
            with torch.device("meta"):
                networks[name] = maker().eval()
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as e:
            raise CheckpointError(
                f"{layout.folder}: the config of its {name} describes no network: {brief(e)}"
            ) from None
    return networks


def with_tied_embedding(path: Path, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tensors of a file with T5's embedding under both of its names, of which safetensors keeps only one.

    Raises CheckpointError when the two names have different tensors.
    """
    present = [key for key in TIED if isinstance(tensors.get(key), Tensor)]
    values = [tensors[key] for key in present]
    if len({value.data_ptr() for value in values}) == 2 and not torch.equal(*values):
        raise CheckpointError(f"{path}: {TIED[1]} is not the same as {TIED[0]}, to which it must be tied")
    return {**tensors, **dict.fromkeys(TIED, tensors[present[0]])} if present else tensors


def fill(networks: Mapping[str, nn.Module], file: str, tensors: Mapping[str, Tensor]) -> None:
    """Puts a file's checked tensors ("main" or "vae", by the original's names) into blank networks, without a copy.

    Only what is not float32 is converted. Raises RuntimeError when a tensor is missing.
    """
    given: dict[str, dict[str, Tensor]] = {name: {} for name in PREFIXES[file]}
    for key, place in places(networks, file).items():
        given[place.network][place.key] = tensors[key].reshape(place.shape).float()
    if "vocoder" in given:
        values = networks["vocoder"].state_dict()
        given["vocoder"] |= {name: torch.full(values[name].shape, float(name == "scale")) for name in UNUSED}
    for name, state in given.items():
        networks[name].load_state_dict(state, assign=True)
    if "text_encoder" in given:
        encoder: Any = networks["text_encoder"]
        encoder.set_input_embeddings(encoder.shared)


def to_original(networks: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """The tensors of a pipeline's networks by the original's names: those of its files "main" and "vae".

    A pipeline's `components` will do for networks.
    """
    states = {name: networks[name].state_dict() for prefixes in PREFIXES.values() for name in prefixes}
    return {
        file: {
            key: states[place.network][place.key].reshape(place.original_shape)
            for key, place in places(networks, file).items()
        }
        for file in PREFIXES
    }
