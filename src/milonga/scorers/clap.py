"""CLAP: how well a clip matches a text, by `transformers.ClapModel` (Wu et al. 2023), deterministic for any clip.

Scores are cosines of unit-norm embeddings, without a temperature. A CLAP may ship a head that reads events from an
embedding of either kind; then a weighted term is added, how well what it reads from clip and text agrees. A clip longer
than the model's window is scored by its first window: the original crops at random, so its scores change from call to
call.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from milonga.core.deferred import deferred_imports
from milonga.core.errors import CheckpointError, brief
from milonga.core.records import Clip
from milonga.core.weights import HEAD
from milonga.maths.devices import AUTO, placed, where
from milonga.maths.mel import MelSettings, log_mel
from milonga.maths.resampling import resample_waves
from milonga.scorers.waveform import map_by_length, mel_waveforms

with deferred_imports():
    from transformers import AutoTokenizer, ClapModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ReadingHead:
    """A linear reading of an embedding (D,): K answers' logits by `matrix` (K, D) and `bias` (K,), float32.

    `weight` is that of the agreement of two readings beside the cosine.
    """

    matrix: np.ndarray
    bias: np.ndarray
    weight: float

    def agreement(self, audio: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The mean log-likelihood, at most 0, shape (N,), of what is read from texts (N, D) under that from clips."""
        matrix, bias = torch.from_numpy(self.matrix).to(audio), torch.from_numpy(self.bias).to(audio)
        read, wanted = audio @ matrix.T + bias, torch.sigmoid(text @ matrix.T + bias)
        return -torch.nn.functional.binary_cross_entropy_with_logits(read, wanted, reduction="none").mean(1)


class ClapScorer:
    """A `Scorer`: cosine similarity of clips and texts by one CLAP model, and the agreement of its head's readings."""

    def __init__(
        self,
        name: str,
        model: ClapModel,
        tokenizer: PreTrainedTokenizerBase,
        mel: MelSettings,
        frames: int,
        head: ReadingHead | None = None,
    ) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.mel = mel
        self.frames = frames
        self.head = head

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-norm rows, shape (N, D)."""
        return text_features(self.model, self.tokenizer, texts).cpu().numpy()

    @torch.no_grad()
    def embed_clips(self, clips: Sequence[Clip]) -> np.ndarray:
        """Unit-norm rows, shape (N, D)."""
        waves = mel_waveforms(clips, self.mel)
        rows = map_by_length(
            lambda mels: list(audio_features(self.model, window(mels, self.frames)).cpu()),
            waves,
            mel=self.mel,
            device=where(self.model),
        )
        return torch.stack(rows).numpy()

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """The score of each clip with its text, shape (N,); each different text is encoded once."""
        unique = list(dict.fromkeys(texts))
        rows = self.embed_texts(unique)[[unique.index(text) for text in texts]]
        return self.compare(self.embed_clips(clips), rows)

    def wave_rewards(self, waves: torch.Tensor, rate: int, texts: Sequence[str]) -> torch.Tensor:
        """The scores (B,) of waveforms (B, samples) at `rate` Hz, with gradients by them."""
        audio = self._embed_waves(resample_waves(waves.to(where(self.model)), rate, self.mel.rate))
        return self._similarities(audio, torch.from_numpy(self.embed_texts(texts)).to(audio))

    def _embed_waves(self, waves: torch.Tensor) -> torch.Tensor:
        """Unit-norm rows (B, D) of waveforms at the model's rate, with gradients (LAION has its own front end)."""
        return audio_features(self.model, window(log_mel(waves, self.mel), self.frames))

    def compare(self, audio: np.ndarray, text: np.ndarray) -> np.ndarray:
        """The scores, shape (N,), of embeddings of clips and texts, (N, D) each."""
        return self._similarities(torch.from_numpy(audio), torch.from_numpy(text)).numpy()

    def _similarities(self, audio: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        cosines = (audio * text).sum(1)
        return cosines if self.head is None else cosines + self.head.weight * self.head.agreement(audio, text)


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
    device = where(model)
    output: Any = model.get_text_features(tokens.input_ids.to(device), tokens.attention_mask.to(device))
    return unit_rows(output.pooler_output)


def audio_features(model: ClapModel, mels: torch.Tensor) -> torch.Tensor:
    """Unit-norm audio embeddings (N, D) of pictures (N, frames, bands), with gradients where they are enabled."""
    output: Any = model.get_audio_features(mels.unsqueeze(1))
    return unit_rows(output.pooler_output)


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """A model's unit-norm rows (N, D) as float32; those in bfloat16 are rounded, and brought to unit norm again."""
    return rows if rows.dtype == torch.float32 else torch.nn.functional.normalize(rows.float(), dim=-1)


def save_clap(
    folder: Path,
    model: ClapModel,
    tokenizer: PreTrainedTokenizerBase,
    mel: MelSettings,
    frames: int,
    head: ReadingHead | None = None,
) -> None:
    """Writes a ClapModel in transformers' layout (float16), its tokenizer, `front_end.json`, and its head's weights."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    front: dict[str, Any] = {"mel": mel.as_dict(), "frames": frames}
    if head is not None:
        front["agreement"] = head.weight
        save_file({"matrix": head.matrix.astype(np.float16), "bias": head.bias.astype(np.float16)}, folder / HEAD)
    (folder / "front_end.json").write_text(json.dumps(front, indent=1))


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


def load_clap(folder: Path, name: str, device: Any = AUTO) -> ClapScorer:
    """The scorer that `save_clap` wrote, on a device.

    Raises CheckpointError naming the folder and what is wrong with it.
    """
    try:
        front = json.loads((folder / "front_end.json").read_text())
        model, tokenizer = networks(folder)
        head = None
        if "agreement" in front:
            held = {key: value.astype(np.float32) for key, value in load_file(folder / HEAD).items()}
            head = ReadingHead(held["matrix"], held["bias"], float(front["agreement"]))
        return ClapScorer(name, placed(model, device), tokenizer, MelSettings(**front["mel"]), front["frames"], head)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no usable CLAP: {brief(error)}") from None
