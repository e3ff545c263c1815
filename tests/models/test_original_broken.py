"""Broken checkpoints of the original Tango: each is told in one line that names its file, and none is run."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import original_folder
import pytest
import torch
from original_folder import VAE_CONFIG, change, copied, with_value
from safetensors.torch import load_file, save_file

from milonga.core.errors import CheckpointError
from milonga.models.load import pipeline
from milonga.models.original.layout import MAIN, VAE
from milonga.models.original.load import TIED, load_original


def config(name: str, **values: Any) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))

    return rewrite


def edited(file: str, how: Callable[[dict[str, torch.Tensor]], dict[Any, Any]]) -> Callable[[Path], None]:
    return lambda folder: change(folder / file, how)


def shortened(file: str, share: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: int(len(data) * share)])

    return cut


class Hostile:
    """What a pickle may do to those who load it with pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def hostile(folder: Path) -> None:
    torch.save({"unet.conv_in.weight": Hostile(folder / "ran")}, folder / MAIN)


def plainly_hostile(folder: Path) -> None:
    (folder / VAE).write_bytes(pickle.dumps({"encoder": Hostile(folder / "ran")}, protocol=2))


def swapped(folder: Path) -> None:
    (folder / MAIN).rename(folder / "aside")
    (folder / VAE).rename(folder / MAIN)
    (folder / "aside").rename(folder / VAE)


def without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name: one for name, one in tensors.items() if name != key}


Q = "encoder.mid.attn_1.q.weight"
BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("no main weights", lambda at: (at / MAIN).unlink(), r"pytorch_model_main\.bin is missing"),
    ("no VAE weights", lambda at: (at / VAE).unlink(), r"pytorch_model_vae\.bin is missing"),
    ("renamed main weights", lambda at: (at / MAIN).rename(at / "main.bin"), r"_main\.bin is missing"),
    ("no main config", lambda at: (at / "main_config.json").unlink(), r"main_config\.json is missing"),
    ("no VAE config", lambda at: (at / "vae_config.json").unlink(), r"vae_config\.json is missing"),
    ("config no JSON", lambda at: (at / "main_config.json").write_text("{"), r"main_config\.json is no JSON"),
    ("config a list", lambda at: (at / "vae_config.json").write_text("[]"), r"vae_config\.json must hold a JSON"),
    ("other schedule", config("main_config.json", scheduler_name="x/y"), r"main_config\.json: scheduler_name 'x/y'"),
    ("picture U-Net", config("main_config.json", unet_model_name="x/y"), r"unet_model_name must be null"),
    ("unknown U-Net", config("main_config.json", unet_model_config_path="a.json"), r"unet_model_config_path 'a\.json'"),
    ("unknown encoder", config("main_config.json", text_encoder_name="bert"), r"text_encoder_name 'bert' is neither"),
    ("other width", config("tiny-t5/config.json", d_model=32), r"cross_attention_dim 16 is not the text encoder's 32"),
    ("no U-Net at all", config("configs/tiny_unet.json", norm_num_groups=3), r"its unet describes no network"),
    ("other front end", config("stft_config.json", hop_length=256), r"stft_config\.json: hop_length must be 160"),
    ("VAE without ddconfig", config("vae_config.json", ddconfig=None), r"vae_config\.json lacks ddconfig"),
    ("VAE channels", config("vae_config.json", embed_dim=4), r"vae_config\.json: z_channels"),
    ("VAE levels", config("vae_config.json", ddconfig=VAE_CONFIG["ddconfig"] | {"ch_mult": 4}), r"and ch_mult must be"),
    ("VAE attention", config("vae_config.json", ddconfig=VAE_CONFIG["ddconfig"] | {"attn_resolutions": [32]}),
     r"vae_config\.json: ddconfig\.attn_resolutions must be \[\], not \[32\]"),
    ("no vocabulary", config("tiny-t5/config.json", vocab_size=None), r"config\.json lacks vocab_size"),
    ("VAE scale", config("vae_config.json", scale_factor=0), r"scale_factor must be a number above 0, not 0"),
    ("empty file", shortened(MAIN, 0), r"pytorch_model_main\.bin is truncated or no file of weights"),
    ("half a file", shortened(MAIN, 0.5), r"pytorch_model_main\.bin is truncated or no file of weights"),
    ("nearly all of a file", shortened(VAE, 0.999), r"pytorch_model_vae\.bin is truncated or no file of weights"),
    ("text", lambda at: (at / VAE).write_text("<html>"), r"_vae\.bin is truncated or no file of weights"),
    ("pointer", lambda at: (at / VAE).write_text("version https://git-lfs.github.com/x"), r"git-lfs pointer"),
    ("code", hostile, r"_main\.bin asks to run \w+\.mkdir"),
    ("code in a plain pickle", plainly_hostile, r"_vae\.bin asks to run \w+\.mkdir"),
    ("two files swapped", swapped, r"_main\.bin lacks unet\.\S+ and \d+ more"),
    ("a missing key", edited(VAE, without(Q)), rf"_vae\.bin lacks {Q}: it is incomplete"),
    ("no embedding", edited(MAIN, lambda old: {k: v for k, v in old.items() if k not in TIED}), rf"lacks {TIED[0]}"),
    ("an extra key", edited(VAE, with_value("loss.logvar", torch.zeros(1))), r"_vae\.bin holds loss\.logvar, which"),
    ("a renamed key", edited(MAIN, lambda old: {k.replace("conv_in", "first"): v for k, v in old.items()}),
     r"_main\.bin lacks unet\.conv_in\.\w+ and 1 more"),
    ("a wrong shape", edited(VAE, with_value(Q, torch.zeros(64, 64))), rf"{Q} has shape \(64, 64\), not"),
    ("integers", edited(VAE, with_value("quant_conv.bias", torch.zeros(16).int())), r"conv\.bias is torch\.int"),
    ("not finite", edited(VAE, lambda old: old | {Q: old[Q] * float("nan")}), rf"_vae\.bin: {Q} has NaN or infinite"),
    ("no tensor", edited(MAIN, with_value("epoch", 3)), r"_main\.bin holds epoch, which is no tensor of this network"),
    ("no names", lambda at: torch.save([torch.zeros(1)], at / VAE), r"_vae\.bin must hold tensors .*it is a list"),
    ("torn embedding", edited(MAIN, lambda old: old | {TIED[1]: old[TIED[0]] + 1}), rf"{TIED[1]} is not the same as"),
    ("no tokenizer", lambda at: shutil.rmtree(at / "tokenizer"), r"tokenizer holds no tokenizer: put tokenizer\.json"),
    ("broken tokenizer", lambda at: (at / "tokenizer/tokenizer.json").write_text("{}"), r"no usable tokenizer"),
    ("another's tokenizer", config("tiny-t5/config.json", vocab_size=40), r"tokenizer has a token \d+, .* knows 40"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("how", "told"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_folder_is_told_in_one_line(
    source: Path, tmp_path: Path, how: Callable[[Path], object], told: str
) -> None:
    folder = copied(source, tmp_path)
    how(folder)
    with pytest.raises(CheckpointError, match=told) as caught:
        pipeline(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not (folder / "ran").exists()


def test_a_broken_training_folder_is_told_in_one_line(source: Path, tmp_path: Path) -> None:
    trained = original_folder.write_trained(tmp_path / "saved" / "best", source, safe=True)
    whole = load_file(trained / "model.safetensors")
    save_file(without(Q)(whole), trained / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"model\.safetensors lacks {Q}"):
        load_original(trained)
    (trained / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"pytorch_model_vae\.bin is missing, under any of its names: .*model\.saf"
    ):
        load_original(trained)
    shortened("model_2.safetensors", 0.7)(trained)
    shutil.copy(source / VAE, trained)
    with pytest.raises(CheckpointError, match=r"model_2\.safetensors is truncated or no file of weights"):
        load_original(trained)
