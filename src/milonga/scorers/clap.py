"""CLAP: how well a clip matches a text, by `transformers.ClapModel` (Wu et al. 2023), deterministic for any clip.

Scores are cosines of unit-norm embeddings, without a temperature. A clip longer than the model's window is scored by
its first window: the original crops at random, so its scores change from call to call.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, ClapModel, PreTrainedTokenizerBase

from milonga.core.errors import CheckpointError, brief
from milonga.core.records import Clip
from milonga.maths.mel import MelSettings
from milonga.scorers.waveform import map_by_length, mel_waveforms


class ClapScorer:
    """A `Scorer`: cosine similarity of clips and texts by one CLAP model."""

    def __init__(
        self, name: str, model: ClapModel, tokenizer: PreTrainedTokenizerBase, mel: MelSettings, frames: int
    ) -> None:
        self.name = name
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.mel = mel
        self.frames = frames

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-norm rows, shape (N, D)."""
        return text_features(self.model, self.tokenizer, texts).numpy()

    @torch.no_grad()
    def embed_clips(self, clips: Sequence[Clip]) -> np.ndarray:
        """Unit-norm rows, shape (N, D)."""
        waves = mel_waveforms(clips, self.mel)
        rows = map_by_length(
            lambda mels: list(audio_features(self.model, window(mels, self.frames))), waves, mel=self.mel
        )
        return torch.stack(rows).numpy()

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """Cosine similarity of each clip with its text, shape (N,); each different text is encoded once."""
        unique = list(dict.fromkeys(texts))
        rows = self.embed_texts(unique)[[unique.index(text) for text in texts]]
        return (self.embed_clips(clips) * rows).sum(axis=1)


def window(mels: torch.Tensor, frames: int) -> torch.Tensor:
    """The first `frames` frames of mel pictures (N, T, bands); shorter ones are repeated until they fill it."""
    if mels.shape[1] < frames:
        mels = mels.repeat(1, -(-frames // mels.shape[1]), 1)
    return mels[:, :frames]


def text_features(
    model: ClapModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int | None = None
) -> torch.Tensor:
    """Unit-norm text embeddings (N, D), with gradients where they are enabled.

    Texts are cut to `limit` tokens, and to what the model has places for.
    """
    settings: Any = model.config.text_config
    places = settings.max_position_embeddings - settings.pad_token_id - 1
    limit = places if limit is None else min(limit, places)
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
    output: Any = model.get_text_features(tokens.input_ids, tokens.attention_mask)
    return output.pooler_output


def audio_features(model: ClapModel, mels: torch.Tensor) -> torch.Tensor:
    """Unit-norm audio embeddings (N, D) of pictures (N, frames, bands), with gradients where they are enabled."""
    output: Any = model.get_audio_features(mels.unsqueeze(1))
    return output.pooler_output


def save_clap(
    folder: Path, model: ClapModel, tokenizer: PreTrainedTokenizerBase, mel: MelSettings, frames: int
) -> None:
    """Writes a ClapModel in transformers' layout (float16), its tokenizer, and `front_end.json`."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "front_end.json").write_text(json.dumps({"mel": mel.as_dict(), "frames": frames}, indent=1))


def networks(folder: Path) -> tuple[ClapModel, PreTrainedTokenizerBase]:
    """The ClapModel in float32 and the tokenizer of a folder in transformers' layout.

    Raises ValueError for incomplete weights and a tokenizer without words, or as transformers does.
    """
    loaded: Any = ClapModel.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    model, info = loaded
    if info["missing_keys"]:
        raise ValueError(f"its weights lack {min(info['missing_keys'])}, which would be left random")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError("its tokenizer is missing or knows no words")
    return model, tokenizer


def load_clap(folder: Path, name: str) -> ClapScorer:
    """The scorer that `save_clap` wrote.

    Raises CheckpointError naming the folder and what is wrong with it.
    """
    try:
        front = json.loads((folder / "front_end.json").read_text())
        model, tokenizer = networks(folder)
        return ClapScorer(name, model, tokenizer, MelSettings(**front["mel"]), front["frames"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no usable CLAP: {brief(error)}") from None
