"""The full-size part of `another_reference`: stock networks of the published sizes, filled by the original's names."""

import json
import re
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig, T5Config, T5EncoderModel

SCALE = 0.9227914214134216


def stock_sound(make: Any, salt: str) -> tuple[Any, Any]:
    """The published VAE and vocoder as stock networks, filled by the original's names (FACTS §1.1)."""
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, down_block_types=("DownEncoderBlock2D",) * 3, layers_per_block=2,
        up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(128, 256, 512), latent_channels=8,
    )  # fmt: skip
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=64, upsample_initial_channel=1024, upsample_rates=[5, 4, 2, 2, 2],
            upsample_kernel_sizes=[16, 16, 8, 4, 4], normalize_before=False,
        )
    )  # fmt: skip
    with torch.no_grad():
        for key, held in vae.state_dict().items():
            wanted = [*held.shape, 1, 1] if re.search(r"to_(q|k|v|out\.0)\.weight", key) else held.shape
            held.copy_(make.value(original_name(key), wanted, salt).reshape(held.shape))
        for key, held in vocoder.state_dict().items():
            if key not in ("mean", "scale"):
                held.copy_(make.value("vocoder." + key.replace("upsampler", "ups"), held.shape, salt))
    return vae.eval(), vocoder.eval()


def original_name(key: str) -> str:
    """The original's name of a stock VAE's tensor."""
    key = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{2 - int(found[1])}", key)
    swaps = (
        (r"down_blocks\.", "down."), (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"\.resnets\.", ".block."), (r"(down|up)samplers\.0", r"\1sample"), (r"conv_shortcut", "nin_shortcut"),
        (r"mid_block\.attentions\.0", "mid.attn_1"), (r"group_norm", "norm"), (r"conv_norm_out", "norm_out"),
        (r"to_out\.0", "proj_out"), (r"to_([qkv])", r"\1"),
    )  # fmt: skip
    for old, new in swaps:
        key = re.sub(old, new, key)
    return key


def sixteen(wave: Tensor) -> Tensor:
    return (wave.double() * 32768).trunc().clamp(-32768, 32767).short()


@torch.no_grad()
def sound(make: Any, facts: dict[str, Any], latents: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    vae, vocoder = stock_sound(make, facts["weights"]["A"])
    made: dict[str, Tensor] = {}
    for name, (rows, length) in zip(facts["vae_names"], ((2, 48), (1, 96)), strict=True):
        mel = -4.63 + 2.74 * make.draw(f"vae/mel/{name}", (rows, 1, length, 64))
        found = vae.encode(mel.clamp(min=float(np.log(1e-5)))).latent_dist
        drawn = found.mean + (found.logvar / 2).exp() * make.draw(f"vae/eps/{name}", found.mean.shape)
        made |= {f"encode.{name}.mean": found.mean, f"encode.{name}.logvar": found.logvar}
        made[f"encode.{name}.latent_scaled"] = SCALE * drawn
        mel = vae.decode(make.draw(f"vae/latent/{name}", (rows, 8, length // 4, 16)) / SCALE).sample
        wave = vocoder(mel.squeeze(1)).reshape(rows, -1)
        made |= {f"decode.{name}.mel": mel, f"decode.{name}.wave_float": wave}
        made[f"decode.{name}.wave_int16"] = sixteen(wave)
    mel = -4.63 + 2.74 * make.draw("voc/mel/tail", (1, 64, 37))
    wave = vocoder(mel.transpose(1, 2)).reshape(1, 1, -1)
    made |= {"vocoder.tail.wave_float": wave, "vocoder.tail.wave_int16": sixteen(wave[0])}
    mel = vae.decode(latents[:1] / SCALE).sample
    return made, {"mel": mel, "wave_int16": sixteen(vocoder(mel.squeeze(1)).reshape(1, -1))}


@torch.no_grad()
def full(make: Any, facts: dict[str, Any]) -> dict[str, Tensor]:
    layouts = make.folder / "layouts"
    config = T5Config(**json.loads((layouts / "flan_t5_large_config_facts.json").read_text()))
    ids, mask = torch.tensor([[9, 4000, 77, 31000, 1], [12, 5, 1, 0, 0]]), torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    encoder = make.filled(T5EncoderModel(config), "text_encoder.")
    made = {"flan_t5_large.input_ids": ids, "flan_t5_large.attention_mask": mask}
    made["flan_t5_large.hidden"] = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    del encoder
    told = json.loads((layouts / "configs" / "unet_config_facts.json").read_text())
    unet = make.filled(UNet2DConditionModel.from_config(told), "unet.")
    x, states = (
        make.draw("full/x", facts["full_unet_latent_shape"]),
        make.draw("full/ctx", facts["full_unet_text_shape"]),
    )
    made |= {"unet_full.timestep": torch.tensor([12]), "unet_full.ctx_mask": torch.arange(5)[None] < 3}
    answer = unet(x, 12, encoder_hidden_states=states, encoder_attention_mask=made["unet_full.ctx_mask"])
    return made | {"unet_full.out": answer.sample}
