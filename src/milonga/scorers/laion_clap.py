"""LAION-CLAP as a scorer: the audio path of the published CLAP scores, made deterministic.

Departures: a clip longer than ten seconds is scored by its first ten, or by the mean over its windows, where the
original crops at random; that crop is available as `random:SEED`, drawn from the seed and the clip. A fused model that
is given only short clips does not pass a randomly picked one of them through its fusion.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

from milonga.core.audio import resample
from milonga.core.cache import ArrayCache
from milonga.core.deferred import deferred_imports
from milonga.core.errors import AudioError, CheckpointError, RecipeError, brief
from milonga.core.ids import derive_seed
from milonga.core.records import Clip
from milonga.core.weights import read_weights
from milonga.maths.devices import AUTO, batch_size, exact, in_half, placed, where
from milonga.maths.mel import MelSettings, fit, log_mel
from milonga.scorers.clap import ClapScorer, networks, text_features, unit_rows
from milonga.scorers.laion_convert import CONTAINER, from_original

with deferred_imports():
    from transformers import ClapFeatureExtractor, ClapModel, PreTrainedTokenizerBase

BATCH = 8  # windows at once
WORDS = 77  # tokens of a text, to which the original cuts
UNUSED = "unused.safetensors"  # the original's tensors that similarity does not use, kept by a conversion
# The ε of ClapTextConfig's default, which the published conversions kept; LAION trained with RoBERTa's.
STRAY_EPSILON, EPSILON = 1e-12, 1e-5


@dataclass(frozen=True)
class Windows:
    """Which windows score a clip longer than the model's: the `first`, the `mean` over all, or a `random` one."""

    kind: str = "first"
    seed: int = 0

    @classmethod
    def of(cls, text: str) -> "Windows":
        """`first`, `mean` or `random:SEED`; RecipeError for anything else."""
        kind, _, seed = text.partition(":")
        if text in ("first", "mean"):
            return cls(text)
        if kind == "random" and seed.isdecimal():
            return cls(kind, int(seed))
        raise RecipeError(f"{text!r} are no windows of a CLAP: write first, mean or random:SEED")

    def starts(self, samples: int, window: int, clip: str) -> list[int]:
        """Where the windows of a clip with that hash begin; the last of several ends where the clip ends."""
        over = max(0, samples - window)
        if self.kind == "mean":
            return [*range(0, over, window), over]
        return [int(self.rng(clip).integers(over + 1))] if self.kind == "random" else [0]

    def rng(self, clip: str) -> np.random.Generator:
        """The generator of the clip with that hash, independent of the clips before it."""
        return np.random.default_rng(derive_seed(self.seed, "clap window", clip))


class LaionClap(ClapScorer):
    """A `Scorer`: cosine similarity of clips of any length and rate with texts, by one of LAION's models.

    Clips' rows are stored in `cache`, if given, under the hashes of audio and model (`identity`) and the windows.
    """

    def __init__(
        self,
        name: str,
        model: ClapModel,
        tokenizer: PreTrainedTokenizerBase,
        mel: MelSettings,
        seconds: float = 10.0,
        windows: Windows | None = None,
        cache: ArrayCache | None = None,
        identity: str = "",
    ) -> None:
        self.samples = round(seconds * mel.rate)
        super().__init__(name, model, tokenizer, mel, self.samples // mel.hop + 1)
        self.windows, self.cache, self.identity = windows or Windows(), cache, identity

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-norm rows, shape (N, D); texts are cut to 77 tokens, as in training."""
        return text_features(self.model, self.tokenizer, texts, WORDS).cpu().numpy()

    def embed_clips(self, clips: Sequence[Clip]) -> np.ndarray:
        """Unit-norm rows, shape (N, D), each as it is for the clip alone.

        Raises AudioError for a clip that is empty or not finite.
        """
        hashes = [_hash(clip) for clip in clips]
        precision = "/bf16" if in_half(where(self.model)) else ""
        keys = [f"{self.identity}/{self.windows.kind}:{self.windows.seed}/{digest}{precision}" for digest in hashes]
        cached = self.cache.get(keys) if self.cache else {}
        rows = {key: entry["clap"] for key, entry in cached.items() if "clap" in entry}
        missing = {key: place for place, key in enumerate(keys) if key not in rows}
        computed = self._mean_rows([(clips[place], hashes[place]) for place in missing.values()])
        new = dict(zip(missing, computed, strict=True))
        if self.cache and new:
            self.cache.put({key: {"clap": row} for key, row in new.items()})
        return np.stack([(rows | new)[key] for key in keys])

    def _mean_rows(self, clips: Sequence[tuple[Clip, str]]) -> list[np.ndarray]:
        """Rows of clips, by the mean of their windows' rows; windows of all clips share batches."""
        inputs = [self._inputs(clip, name) for clip, name in clips]
        flat = [window for windows in inputs for window in windows]
        size = batch_size(BATCH, where(self.model))
        rows = [row for first in range(0, len(flat), size) for row in self._rows(flat[first : first + size])]
        ends = np.cumsum([len(windows) for windows in inputs])
        means = [np.mean(rows[end - len(windows) : end], axis=0) for end, windows in zip(ends, inputs, strict=True)]
        return [mean / np.linalg.norm(mean) for mean in means]

    def _inputs(self, clip: Clip, name: str) -> list[tuple[Tensor, bool]]:
        """Each window's pictures (1 or 4, frames, bands), and whether they hold more than the window."""
        wave = quantised(resample(clip, self.mel.rate).waveform)
        if self.fused and self.windows.kind == "random" and len(wave) // self.mel.hop >= self.frames:
            return [(fused(self._picture(wave), self.frames, self.windows.rng(name)), True)]
        starts = self.windows.starts(len(wave), self.samples, name)
        pictures = [self._picture(filled(wave[start : start + self.samples], self.samples)) for start in starts]
        return [(picture.expand(4 if self.fused else 1, -1, -1), False) for picture in pictures]

    def _embed_waves(self, waves: Tensor) -> Tensor:
        """Rows (B, D) of the waveforms' first windows with gradients: as `embed_clips`, but for the 16 bits."""
        wave = waves[:, : self.samples].clamp(-1, 1)
        times = self.samples // wave.shape[1] if wave.shape[1] else 0
        wave = torch.nn.functional.pad(wave.repeat(1, times), (0, self.samples - times * wave.shape[1]))
        device = where(self.model)
        mels = log_mel(wave.to(exact(device)).double(), self.mel).float().to(device)
        pictures = mels[:, None].expand(-1, 4 if self.fused else 1, -1, -1)
        longer = torch.zeros(len(wave), 1, dtype=torch.bool, device=device)
        output: Any = self.model.get_audio_features(pictures, is_longer=longer)
        return unit_rows(output.pooler_output)

    @property
    def fused(self) -> bool:
        """Whether the model was trained to fuse windows of a longer clip."""
        settings: Any = self.model.config.audio_config
        return settings.enable_fusion

    def _picture(self, wave: np.ndarray) -> Tensor:
        """A log-mel picture (1, frames, bands); in float32 an FFT rounds otherwise than the original's convolution."""
        samples = torch.from_numpy(wave).to(exact(where(self.model))).double()
        return log_mel(samples[None], self.mel).float()

    @torch.no_grad()
    def _rows(self, inputs: Sequence[tuple[Tensor, bool]]) -> np.ndarray:
        pictures, longer = torch.stack([picture for picture, _ in inputs]), torch.tensor([[more] for _, more in inputs])
        device = where(self.model)
        output: Any = self.model.get_audio_features(pictures.to(device), is_longer=longer.to(device))
        return unit_rows(output.pooler_output).cpu().numpy()


def quantised(wave: np.ndarray) -> np.ndarray:
    """A waveform as the original's front end takes it: clipped, truncated to 16 bits, float32 again."""
    return (np.trunc(np.clip(wave, -1, 1) * 32767).astype(np.int16) / 32767).astype(np.float32)


def filled(wave: np.ndarray, samples: int) -> np.ndarray:
    """A window repeated as often as it fits whole into `samples`, the rest silence (`repeatpad`)."""
    return fit(np.tile(wave, max(1, samples // len(wave))), samples)


def fused(picture: Tensor, frames: int, rng: np.random.Generator) -> Tensor:
    """A fused model's input for a longer clip: all of it shrunk to `frames`, and a window of each third, (4, …)."""
    parts = np.array_split(np.arange(picture.shape[1] - frames + 1), 3)
    starts = [int(rng.choice(part)) if len(part) else 0 for part in parts]
    shrunk = interpolate(picture[None], size=[frames, picture.shape[2]], mode="bilinear", align_corners=False)[0]
    return torch.cat([shrunk, *(picture[:, start : start + frames] for start in starts)])


def _hash(clip: Clip) -> str:
    """A hash of a clip's samples and rate; AudioError where it is empty or not finite."""
    if not len(clip.waveform) or not np.isfinite(clip.waveform).all():
        raise AudioError("a clip to score is empty or has NaN or infinite samples: make or decode it again")
    return sha256(
        clip.rate.to_bytes(4, "little") + np.ascontiguousarray(clip.waveform, dtype="<f4").tobytes()
    ).hexdigest()


def convert_laion(source: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes LAION's `.pt` as a checkpoint of `transformers`: safetensors, config, feature extractor, tokenizer.

    Raises CheckpointError naming the file and the key that does not fit.
    """
    model, unused = from_original(read_weights(source, CONTAINER), source)
    known: Any = model.config
    if len(tokenizer) > known.text_config.vocab_size:
        raise CheckpointError(
            f"the tokenizer knows {len(tokenizer)} tokens and {source} {known.text_config.vocab_size}: give RoBERTa's"
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    truncation = "fusion" if known.audio_config.enable_fusion else "rand_trunc"
    bands = known.audio_config.num_mel_bins
    ClapFeatureExtractor(feature_size=bands, frequency_min=50, truncation=truncation).save_pretrained(folder)
    save_file({key: value.clone() for key, value in unused.items()}, folder / UNUSED)


def load_laion(
    folder: Path,
    name: str,
    windows: Windows | None = None,
    cache: ArrayCache | None = None,
    identity: str = "",
    device: Any = AUTO,
) -> LaionClap:
    """The scorer of a CLAP in transformers' layout, as `convert_laion` writes it or as the Hub has it, on a device.

    Raises CheckpointError naming the folder and what is wrong with it.
    """
    try:
        model, tokenizer = networks(folder)
        mel, seconds = front_end(folder)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no usable CLAP: {brief(error)}") from None
    for module in model.text_model.modules():  # as they were trained, where a conversion lost it
        if isinstance(module, torch.nn.LayerNorm) and module.eps == STRAY_EPSILON:
            module.eps = EPSILON
    return LaionClap(name, placed(model, device), tokenizer, mel, seconds, windows, cache, identity)


def front_end(folder: Path) -> tuple[MelSettings, float]:
    """The mel front end of a checkpoint and its window in seconds, from its `preprocessor_config.json`.

    Raises KeyError or ValueError where that file is incomplete.
    """
    config = json.loads((folder / "preprocessor_config.json").read_text())
    rate, low, high = config["sampling_rate"], float(config["frequency_min"]), float(config["frequency_max"])
    htk = config.get("truncation") == "fusion"
    sizes = config["fft_window_size"], config["hop_length"], config["feature_size"]
    mel = MelSettings(rate, *sizes, low, high, power=2.0, floor=1e-10, decibels=True, tango=False, htk=htk)
    return mel, float(config["max_length_s"])
