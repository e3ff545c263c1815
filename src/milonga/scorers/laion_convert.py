"""LAION's own CLAP checkpoints (630k-best, 630k-audioset-best and the fused ones) as `transformers.ClapModel`.

Names and shapes are mapped both ways. What similarity does not need (classifier heads, transforms, constants) is stored
beside the model, so that the original's file can be written again, tensor by tensor. Departures from the original's
loading: sizes are read off the tensors, nothing is downloaded, no pickle is run.
"""

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from milonga.core.deferred import deferred_imports
from milonga.core.errors import CheckpointError
from milonga.core.weights import fill

CONTAINER = "state_dict"
# What a file holds beside what similarity needs: constants, heads of other tasks, indices.
UNUSED = re.compile(
    r"audio_branch\.(spectrogram_extractor|logmel_extractor|tscam_conv|head)\.|(audio|text)_transform\."
    r"|.*\.(relative_position_index|attn_mask|position_ids|token_type_ids)$"
)

with deferred_imports():
    from accelerate import init_empty_weights
    from transformers import ClapConfig, ClapModel
THIRDS = ("query", "key", "value")
_NAMES = [
    (re.compile(ours), theirs)
    for ours, theirs in (
        (r"^text_model\.", "text_branch."),
        (r"^audio_model\.audio_encoder\.", "audio_branch."),
        (r"^audio_branch\.batch_norm\.", "audio_branch.bn0."),
        (r"^(audio_branch\.layers\..*)\.attention\.output\.dense\.", r"\1.attn.proj."),
        (r"^(audio_branch\.layers\..*)\.attention\.self\.(query|key|value)\.", r"\1.attn.qkv."),
        (r"^(audio_branch\.layers\..*)\.attention\.self\.", r"\1.attn."),
        (r"^(audio_branch\.layers\..*)\.intermediate\.dense\.", r"\1.mlp.fc1."),
        (r"^(audio_branch\.layers\..*)\.output\.dense\.", r"\1.mlp.fc2."),
        (r"^(audio_branch\.layers\..*)\.layernorm_before\.", r"\1.norm1."),
        (r"^(audio_branch\.layers\..*)\.layernorm_after\.", r"\1.norm2."),
        (r"^(audio|text)_projection\.linear1\.", r"\1_projection.0."),
        (r"^(audio|text)_projection\.linear2\.", r"\1_projection.2."),
    )
]


def their_name(ours: str) -> tuple[str, int | None]:
    """The original's name of a tensor of `ClapModel`, and which third of it (query, key, value), where it is one."""
    name = ours
    for pattern, theirs in _NAMES:
        name = pattern.sub(theirs, name)
    third = THIRDS.index(ours.split(".")[-2]) if ".attn.qkv." in name else None
    return name, third


def from_original(state: Mapping[str, Any], path: Path) -> tuple[ClapModel, dict[str, Tensor]]:
    """The model of an original file's tensors, and the tensors that it has no use for.

    Raises CheckpointError naming the file and the key that is missing, unknown, of a wrong shape or not finite.
    """
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {key!r} is no tensor with a name")
    model = _blank(state, path)
    names = {ours: their_name(ours) for ours in model.state_dict() if not UNUSED.match(their_name(ours)[0])}
    wanted = {theirs for theirs, _ in names.values()}
    strangers = [key for key in state if key not in wanted and not UNUSED.match(key)]
    lacking = sorted(wanted - state.keys())
    if lacking or strangers:
        problem = f"lacks {lacking[0]}" if lacking else f"holds {strangers[0]}, which is no key of such a CLAP"
        raise CheckpointError(f"{path} {problem}: it is another model's file, or incomplete")
    given = {ours: _part(state[theirs], third) for ours, (theirs, third) in names.items()}
    fill(model, given, path)
    return model.eval(), {key: value for key, value in state.items() if key not in wanted}


def to_original(model: ClapModel, unused: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an original file, by its names without `module.`: the model's and those that it does not use."""
    tensors: dict[str, Any] = {}
    for ours, value in model.state_dict().items():
        theirs, third = their_name(ours)
        if third is not None:
            tensors.setdefault(theirs, [None] * len(THIRDS))[third] = value
        elif not UNUSED.match(theirs):
            tensors[theirs] = value
    joined = {key: torch.cat(value) if isinstance(value, list) else value for key, value in tensors.items()}
    return joined | dict(unused)


def _part(value: Tensor, third: int | None) -> Tensor:
    return value if third is None else value.tensor_split(len(THIRDS))[third]


def _blank(state: Mapping[str, Tensor], path: Path) -> ClapModel:
    """The model without values; what it computes for itself (indices) has them."""
    try:
        config = ClapConfig(text_config=_text(state), audio_config=_audio(state), projection_dim=_width(state))
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} holds no CLAP by LAION: its {error} does not tell the model's size") from None
    with init_empty_weights(include_buffers=False):
        model = ClapModel(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to("meta"))
    return model


def _width(state: Mapping[str, Tensor], tower: str = "text") -> int:
    """The width of the embeddings."""
    return state[f"{tower}_projection.2.weight"].shape[0]


def _text(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """RoBERTa's config, whose ε is 1e-5: `ClapTextConfig`'s own 1e-12 is not what LAION trained with."""
    words = state["text_branch.embeddings.word_embeddings.weight"]
    return {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_attention_heads": max(1, words.shape[1] // 64),
        "num_hidden_layers": _count(state, r"text_branch\.encoder\.layer\.(\d+)\."),
        "intermediate_size": state["text_branch.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": state["text_branch.embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": state["text_branch.embeddings.token_type_embeddings.weight"].shape[0],
        "projection_dim": _width(state),
        "layer_norm_eps": 1e-5,
    }


def _audio(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """HTSAT's config: widths and depths by its tensors, the picture's size by the shifted windows' mask."""
    patches = state["audio_branch.patch_embed.proj.weight"]
    fused = "audio_branch.patch_embed.mel_conv2d.weight" in state
    stages = _count(state, r"audio_branch\.layers\.(\d+)\.")
    tables = [state[f"audio_branch.layers.{n}.blocks.0.attn.relative_position_bias_table"] for n in range(stages)]
    window = (isqrt(tables[0].shape[0]) + 1) // 2
    windows = isqrt(state["audio_branch.layers.0.blocks.1.attn_mask"].shape[0])
    fusion: dict[str, Any] = {"enable_fusion": fused, "fusion_type": "aff_2d" if fused else None}
    if fused:
        narrow, wide = state["audio_branch.patch_embed.fusion_model.local_att.0.weight"].shape[:2]
        fusion["aff_block_r"] = wide // narrow
    return fusion | {
        "patch_embeds_hidden_size": patches.shape[0],
        "patch_size": patches.shape[2],
        "patch_stride": [patches.shape[2]] * 2,
        "hidden_size": patches.shape[0] * 2 ** (stages - 1),
        "num_mel_bins": state["audio_branch.bn0.weight"].shape[0],
        "window_size": window,
        "spec_size": windows * window * patches.shape[2],
        "num_hidden_layers": stages,
        "depths": [_count(state, rf"audio_branch\.layers\.{n}\.blocks\.(\d+)\.") for n in range(stages)],
        "num_attention_heads": [table.shape[1] for table in tables],
        "mlp_ratio": state["audio_branch.layers.0.blocks.0.mlp.fc1.weight"].shape[0] / patches.shape[0],
        "projection_dim": _width(state, "audio"),
    }


def _count(state: Mapping[str, Any], pattern: str) -> int:
    """How many different numbers a pattern finds among the keys."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})
