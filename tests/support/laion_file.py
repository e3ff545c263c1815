"""A file in LAION's layout that is as small as it goes: weights by chance, names and shapes as the published ones."""

from pathlib import Path
from typing import Any

import torch
from small_networks import tokenizer
from torch import Tensor
from transformers import ClapConfig, ClapModel

from milonga.scorers.laion_convert import to_original


def model(fused: bool = False, seed: int = 0) -> ClapModel:
    """HTSAT and RoBERTa of a few thousand weights, at the published front end (ten seconds at 48 kHz)."""
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer("<s>")), "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
        "intermediate_size": 32, "max_position_embeddings": 82, "layer_norm_eps": 1e-5, "projection_dim": 16,
        "initializer_range": 0.3,
    }  # fmt: skip
    audio: dict[str, Any] = {
        "patch_size": 8, "patch_stride": [8, 8], "patch_embeds_hidden_size": 8, "hidden_size": 16, "depths": [2, 2],
        "num_hidden_layers": 2, "num_attention_heads": [2, 2], "projection_dim": 16, "mlp_ratio": 2.0,
        "enable_fusion": fused, "fusion_type": "aff_2d" if fused else None, "initializer_range": 0.3,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16))
        norm = made.audio_model.audio_encoder.batch_norm
        norm.running_mean.fill_(-30.0)
        norm.running_var.fill_(400.0)
    return made.eval()


def unused() -> dict[str, Tensor]:
    """What similarity does not need; the shifted windows' mask tells the picture's size."""
    return {
        "audio_branch.logmel_extractor.melW": torch.rand(513, 64),
        "audio_branch.layers.0.blocks.1.attn_mask": torch.zeros(16, 64, 64),
        "audio_branch.tscam_conv.bias": torch.rand(527),
        "audio_transform.sequential.0.weight": torch.rand(16, 16),
        "text_branch.embeddings.position_ids": torch.arange(82)[None],
    }


def write(folder: Path, name: str = "630k-best.pt", fused: bool = False, seed: int = 0) -> Path:
    """A training checkpoint as LAION's, with RoBERTa's stand-in for a tokenizer beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    state = to_original(model(fused, seed), unused())
    held = {"epoch": 3, "name": "x", "state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save(held, folder / name)
    tokenizer("<s>").save_pretrained(folder / "tokenizer")
    return folder / name
