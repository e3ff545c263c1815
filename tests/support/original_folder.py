"""A tiny checkpoint in the original Tango's layouts, written from its own names, for the tests that load one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_networks import WORDS, tokenizer
from torch import Tensor

from milonga.models.original import layout as original_layout
from milonga.models.original.layout import MAIN, UNET, VAE, VOCODER, Layout, read_layout
from milonga.models.original.load import TIED, blank, places
from milonga.models.tango import TangoPipeline

SECONDS = 0.16  # 16 mel frames, 4 rows of latents
WIDTH = 16

UNET_CONFIG: dict[str, Any] = UNET | {
    "_class_name": "UNet2DConditionModel",
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": [2, 2],
    "cross_attention_dim": WIDTH,
}
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 400, "d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
    "feed_forward_proj": "gated-gelu", "model_type": "t5",
}  # fmt: skip
MAIN_CONFIG: dict[str, Any] = {
    "text_encoder_name": "tiny-t5",
    "scheduler_name": "stabilityai/stable-diffusion-2-1",
    "unet_model_name": None,
    "unet_model_config_path": "configs/tiny_unet.json",
    "snr_gamma": 5.0,
}
VAE_CONFIG: dict[str, Any] = {
    "image_key": "fbank",
    "subband": 1,
    "embed_dim": 8,
    "time_shuffle": 1,
    "ddconfig": {
        "double_z": True, "z_channels": 8, "resolution": 256, "downsample_time": False, "in_channels": 1, "out_ch": 1,
        "ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    },
    "scale_factor": 0.9,
}  # fmt: skip
STFT_CONFIG = {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "n_mel_channels": 64,
               "sampling_rate": 16000, "mel_fmin": 0, "mel_fmax": 8000}  # fmt: skip
SMALL_VOCODER = {"upsample_initial_channel": 64, "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]]}


def shrink_vocoder(patch: pytest.MonkeyPatch) -> None:
    """The original's vocoder has one size; a test's is a fraction of it."""
    patch.setattr(original_layout, "VOCODER", VOCODER | SMALL_VOCODER)


def write(folder: Path) -> Path:
    """The seven-file layout, its config files and random weights, with a tokenizer in `tokenizer`."""
    texts = {"main_config.json": MAIN_CONFIG, "config.json": MAIN_CONFIG, "vae_config.json": VAE_CONFIG,
             "stft_config.json": STFT_CONFIG, "configs/tiny_unet.json": UNET_CONFIG,
             "tiny-t5/config.json": TEXT_CONFIG}  # fmt: skip
    for name, value in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    made = weights(folder)
    torch.save(made["main"], folder / MAIN)
    torch.save(made["vae"], folder / VAE)
    torch.save({"mel_basis": torch.zeros(64, 513)}, folder / "pytorch_model_stft.bin")
    tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def write_trained(folder: Path, source: Path, safe: bool) -> Path:
    """The same weights as accelerate saves them: numbered files, the safe ones without the second tied name."""
    for number, file in ((0, VAE), (2, MAIN)):
        tensors = torch.load(source / file)
        tail = f"_{number}" if number else ""
        folder.mkdir(parents=True, exist_ok=True)
        if safe:
            kept = {key: one for key, one in tensors.items() if key != TIED[1]}
            save_file(kept, folder / f"model{tail}.safetensors")
        else:
            torch.save({f"module.{key}": one for key, one in tensors.items()}, folder / f"pytorch_model{tail}.bin")
    for name in ("tokenizer", "configs", "tiny-t5", "vae_config.json"):
        (folder / name).symlink_to(source / name)
    arguments = {key: value for key, value in MAIN_CONFIG.items() if key != "unet_model_config_path"}
    arguments |= {"unet_model_config": MAIN_CONFIG["unet_model_config_path"], "learning_rate": 3e-5}
    (folder.parent / "summary.jsonl").write_text(json.dumps(arguments) + "\n\n" + json.dumps({"epoch": 1}) + "\n")
    return folder


def weights(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Random tensors by the original's names, loud enough that clips of different seeds differ."""
    networks, chance = blank(described(folder)), torch.Generator().manual_seed(5)
    made: dict[str, dict[str, Tensor]] = {}
    for file in ("main", "vae"):
        made[file] = {key: value(key, tuple(at.original_shape), chance) for key, at in places(networks, file).items()}
    made["main"][TIED[1]] = made["main"][TIED[0]]
    return made


def described(folder: Path) -> Layout:
    """What the config files of a folder say whose weights are still to be made."""
    (folder / MAIN).touch()
    (folder / VAE).touch()
    return read_layout(folder)


def write_published(folder: Path, configs: Path) -> Path:
    """The published config files, with empty files for weights."""
    for name in ("main_config.json", "vae_config.json", "stft_config.json"):
        shutil.copy(configs / name, folder)
    described(folder)
    return folder


def write_reference(
    folder: Path, assets: Path, rule: Callable[[dict[str, Any], str], dict[str, Tensor]], configs: Path | None = None
) -> Path:
    """The recorded tiny networks in the original's layout; VAE and vocoder are the published ones with `configs`."""
    for name, values in (("vae_config.json", VAE_CONFIG), ("stft_config.json", STFT_CONFIG)):
        (folder / name).write_text(json.dumps(values) if configs is None else (configs / name).read_text())
    shutil.copytree(assets / "tiny-t5", folder / "tiny-t5")
    (folder / "configs").mkdir()
    shutil.copy(assets / "unet_tiny.json", folder / "configs" / "tiny_unet.json")
    (folder / "main_config.json").write_text(json.dumps(MAIN_CONFIG))
    networks = blank(described(folder))
    torch.save(rule(networks, "main"), folder / MAIN)
    torch.save(rule(networks, "vae"), folder / VAE)
    return folder


def value(key: str, shape: tuple[int, ...], chance: torch.Generator) -> Tensor:
    """Noise of a size that keeps signals alive: matrices by their fan-in, gains around 1, biases around 0."""
    noise = torch.randn(shape, generator=chance)
    if len(shape) > 1:
        return noise / (noise[0].numel() ** 0.5) * (1.5 if key.startswith("vocoder") else 1.0)
    return 0.05 * noise if key.endswith("bias") else 1 + 0.1 * noise


def clips(pipeline: TangoPipeline, seeds: tuple[int, ...] = (1, 2)) -> np.ndarray:
    """Two short clips of a pipeline of such a folder, by whose samples it is known again."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(list(WORDS[: len(seeds)]), seeds=seeds, num_inference_steps=2, audio_length_in_s=SECONDS).audios  # type: ignore[return-value]


def copied(source: Path, target: Path) -> Path:
    """A folder of one's own, to spoil."""
    return Path(shutil.copytree(source, target / "tango"))


def change(path: Path, how: Callable[[dict[str, torch.Tensor]], dict[Any, Any]]) -> None:
    torch.save(how(torch.load(path)), path)


def with_value(key: str, value: Any) -> Callable[[dict[str, Any]], dict[Any, Any]]:
    return lambda tensors: {**tensors, key: value}
