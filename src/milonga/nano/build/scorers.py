"""Training of nano's scorers: its two taggers (one measures, one rewards), and its three CLAPs (§4.1.2: two rank, one
judges).

A tagger learns by frame-level binary cross-entropy on scenes, half of which went through the codec. For the CLAPs:

First the audio tower alone, with a linear head that must predict which sounds there are, first and last. Then the text
tower alone, with the loss of the T5 encoder (`text.py`) through the same head, frozen, so that both towers use the same
directions. Then both, on clips of which half went through the codec, with a symmetric contrastive loss (Radford et al.
2021) in which each clip meets two misleading captions: its own sounds in another order, and its scene with one sound
replaced. With that loss from the start, or with the text first, these CLAPs did not learn order. The two that rank then
meet the faults of generated clips: also one sound left out, added or doubled. The three differ in seed, in the clips
they learn from, and the judge in its width: it shares nothing with the two that rank.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, cross_entropy

from milonga.core.deferred import deferred_imports
from milonga.core.records import Scene
from milonga.nano.build.corpus import Corpus, Loss, TrainTask, step_rng
from milonga.nano.build.text import hard_negatives, head_loss, near_misses, text_loss
from milonga.nano.captions import caption_in
from milonga.nano.world import CLASSES

with deferred_imports():
    from transformers import ClapConfig, ClapModel, PreTrainedTokenizerFast

Negatives = Callable[[Scene, np.random.Generator], list[Scene]]
Features = Callable[[ClapModel, Tensor], Tensor]
TextFeatures = Callable[[ClapModel, PreTrainedTokenizerFast, list[str]], Tensor]
TAGGER_POOLS = [[2, 2], [2, 2], [1, 2], [1, 2]]
QUIETEST = -11.5129  # ln 1e-5, the floor of the mel front end


def augment(mels: Tensor, rng: np.random.Generator) -> Tensor:
    """Log-mel pictures (B, T, F) at random loudness, half of them blurred and grained as by a poor codec."""
    gain = torch.from_numpy(rng.uniform(-1.5, 1.0, (len(mels), 1, 1))).float()
    times, bands = (int(size) for size in rng.integers(0, [4, 2]))
    smooth = avg_pool2d(mels[:, None], (2 * times + 1, 2 * bands + 1), 1, (times, bands), count_include_pad=False)[:, 0]
    grain = torch.from_numpy(rng.standard_normal(mels.shape, dtype=np.float32)) * float(rng.uniform(0.0, 0.5))
    coded = torch.from_numpy(rng.random((len(mels), 1, 1)) < 0.5)
    return (torch.where(coded, smooth + grain, mels) + gain).clamp(min=QUIETEST)


def mix_coded(clean: Corpus, coded: Corpus, rng: np.random.Generator, batch: int) -> Corpus:
    """`batch` random clips: half as rendered, half from `coded`, which holds clips that went through the codec.

    Generated clips come out of a VAE and a vocoder, which smooth noises and roughen tones: a scorer that only knows
    real clips takes them for other sounds.
    """
    half = batch // 2
    return clean.at(rng.integers(0, len(clean), batch - half)).and_(coded.at(rng.integers(0, len(coded), half)))


@dataclass(frozen=True)
class TaggerSpec:
    """One tagger: its seed, the slice of the corpus it learns from, its channels and its steps."""

    name: str
    seed: int
    first: int
    last: int
    channels: tuple[int, ...]
    steps: int


# The second shares no clip with the first, nor with a CLAP: what rewards must not err as what measures does.
TAGGERS = (
    TaggerSpec("tagger", seed=1, first=0, last=30000, channels=(8, 24, 48, 96), steps=2300),
    TaggerSpec("tagger-b", seed=2, first=36000, last=54000, channels=(8, 20, 40, 80), steps=2300),
)


def tagger_task(spec: TaggerSpec) -> TrainTask:
    """The training of a tagger."""
    return TrainTask(spec.name, steps=spec.steps, batch_size=24, lr=2e-3, ema=0.99)


def tagger_loss(network: nn.Module, clean: Corpus, coded: Corpus, spec: TaggerSpec) -> Loss:
    """The loss of a step for `network` (mels (B, 256, 64) → logits (B, 64, classes)) on clips as in `mix_coded`."""
    task = tagger_task(spec)

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_rng(spec.seed, task.name, step)
        clips = mix_coded(clean, coded, rng, task.batch_size)
        logits = network(augment(clips.mels.float(), rng))
        return {"loss": binary_cross_entropy_with_logits(logits, clips.truth.float())}

    return loss


@dataclass(frozen=True)
class ClapSpec:
    """One CLAP: its seed, the slice of the corpus it learns from, its width, and whether it ranks: those that do also
    learn from near misses, on the first `MISSES_CLIPS` of their slice, and ship their head."""

    name: str
    seed: int
    first: int
    last: int
    width: int
    ranks: bool = False


MISSES_CLIPS = 6000
AGREEMENT = 0.3  # weight of the heads' agreement in the scores of those that rank, chosen on `tune` (docs/nano.md)
CLAPS = (
    ClapSpec("clap-a", seed=11, first=0, last=12000, width=64, ranks=True),
    ClapSpec("clap-b", seed=12, first=12000, last=24000, width=64, ranks=True),
    ClapSpec("clap-judge", seed=13, first=24000, last=36000, width=72),
)


def audio_task(spec: ClapSpec) -> TrainTask:
    """The first task of a CLAP: its audio tower."""
    return TrainTask(f"{spec.name}-sounds", steps=700, batch_size=48, lr=1.5e-3, warmup_steps=60)


def text_task(spec: ClapSpec) -> TrainTask:
    """The second task of a CLAP: its text tower."""
    return TrainTask(f"{spec.name}-words", steps=900, batch_size=48, lr=1.5e-3, warmup_steps=60)


def joint_task(spec: ClapSpec) -> TrainTask:
    """The third task of a CLAP: both towers."""
    return TrainTask(spec.name, steps=400, batch_size=48, lr=1e-3, warmup_steps=60)


def misses_task(spec: ClapSpec) -> TrainTask:
    """The fourth task of a CLAP that ranks: both towers again, against near misses."""
    return TrainTask(f"{spec.name}-misses", steps=300, batch_size=48, lr=5e-4, warmup_steps=30)


def new_clap(spec: ClapSpec, vocabulary: int, pad: int) -> ClapModel:
    """An untrained ClapModel: a Swin of two stages over 16×16 patches, and a RoBERTa of three layers.

    Text positions start as large sinusoids, without which order is learnt late or never.
    """
    text: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 256, "max_position_embeddings": 66, "hidden_dropout_prob": 0.0, "pad_token_id": pad,
        "attention_probs_dropout_prob": 0.0, "initializer_range": 0.05,
    }  # fmt: skip
    audio: dict[str, Any] = {
        "spec_size": 128, "num_mel_bins": 64, "patch_size": 8, "patch_stride": [8, 8], "window_size": 8,
        "patch_embeds_hidden_size": spec.width, "hidden_size": 2 * spec.width, "depths": [2, 2],
        "num_attention_heads": [4, 8], "hidden_dropout_prob": 0.0, "drop_path_rate": 0.0, "num_classes": 1,
    }  # fmt: skip
    clap = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=128, logit_scale_init_value=14.0))
    table = clap.text_model.embeddings.position_embeddings.weight
    table.data.copy_(0.1 * sinusoids(*table.shape))
    pass_words_on(clap.text_model.encoder)
    bias_heads(clap.audio_model.audio_encoder)
    return clap


@torch.no_grad()
def pass_words_on(encoder: Any) -> None:
    """Lets every attention of the text tower start near the identity, so that its first token, the only one that is
    used, begins as a mean of the words.

    From RoBERTa's own start the head cannot predict the sounds after 500 steps; from this one it can after 300, and the
    text tower tells 0.97 of 300 swapped captions apart after 700.
    """
    for layer in encoder.layer:
        for matrix in (layer.attention.self.value.weight, layer.attention.output.dense.weight):
            matrix += 1.5 * torch.eye(len(matrix))


@torch.no_grad()
def bias_heads(encoder: Any) -> None:
    """Lets the first heads of every Swin block start with attention backwards, forwards, down and up.

    With relative positions that start at zero, order was not learnt after 800 steps. Rows of a folded picture are bands
    of an earlier and a later half, so up and down are directions in time as well.
    """
    for layer in encoder.layers:
        for block in layer.blocks:
            table = block.attention.self.relative_position_bias_table
            side = math.isqrt(len(table))
            grid, middle = table.view(side, side, -1), side // 2
            grid[:, :middle, 0] = grid[:, middle + 1 :, 1] = -4.0
            grid[:middle, :, 2] = grid[middle + 1 :, :, 3] = -4.0


def sinusoids(places: int, width: int) -> Tensor:
    """Sines and cosines of geometric wavelengths, shape (places, width) (Vaswani et al. 2017, §3.5)."""
    angles = torch.arange(places)[:, None] / 200.0 ** (torch.arange(width // 2) * 2 / width)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ClapWithHead(nn.Module):
    """A CLAP with the head that reads events: one for both towers, so that they use the same directions before they are
    compared. Those that rank ship it.
    """

    def __init__(self, clap: ClapModel) -> None:
        super().__init__()
        self.clap = clap
        self.head = nn.Linear(clap.config.projection_dim, 3 * len(CLASSES))


@dataclass(frozen=True)
class ClapData:
    """What a CLAP learns from: clips as rendered, clips that went through the codec, its tokenizer, and how its towers
    embed pictures and texts, unit norm."""

    spec: ClapSpec
    clean: Corpus
    coded: Corpus
    tokenizer: PreTrainedTokenizerFast
    embed_audio: Features
    embed_text: TextFeatures


def audio_loss(network: ClapWithHead, data: ClapData) -> Loss:
    """The loss of the first task: the head's, on clips as rendered."""
    task, clean = audio_task(data.spec), data.clean

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_rng(data.spec.seed, task.name, step)
        clips = clean.at(rng.integers(0, len(clean), task.batch_size))
        rows = data.embed_audio(network.clap, augment(clips.mels.float(), rng))
        return {"loss": head_loss(network.head, rows, clips.scenes)}

    return loss


def words_loss(network: ClapWithHead, data: ClapData) -> Loss:
    """The loss of the second task: the text encoder's, through the head as the first task left it."""
    head = copy.deepcopy(network.head).requires_grad_(False)

    def embed(texts: list[str]) -> Tensor:
        return data.embed_text(network.clap, data.tokenizer, texts)

    return text_loss(text_task(data.spec), embed, head, data.spec.seed)


def joint_loss(network: ClapWithHead, data: ClapData, task: TrainTask, wrong: Negatives = hard_negatives) -> Loss:
    """The loss of the last tasks: the head's on both towers, and the contrastive one between clips and captions, in
    which each clip meets the captions of its `wrong` scenes."""
    right = torch.arange(task.batch_size)

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_rng(data.spec.seed, task.name, step)
        clips = mix_coded(data.clean, data.coded, rng, task.batch_size)
        others = [other for scene in clips.scenes for other in wrong(scene, rng)]
        texts = [caption_in("train", *pair, rng) for pair in zip(clips.scenes, clips.counts, strict=True)]
        texts += [caption_in("train", other, {}, rng) for other in others]
        audio = data.embed_audio(network.clap, augment(clips.mels.float(), rng))
        words = data.embed_text(network.clap, data.tokenizer, texts)
        audio_term = head_loss(network.head, audio, clips.scenes)
        text_term = head_loss(network.head, words, [*clips.scenes, *others])
        similarity = network.clap.logit_scale_a.exp().clamp(max=50) * audio @ words.T
        to_clips = similarity[:, : task.batch_size].T
        contrast = (cross_entropy(similarity, right) + cross_entropy(to_clips, right)) / 2
        accuracy = (similarity.argmax(dim=1) == right).float().mean()
        total = contrast + audio_term + text_term
        return {"loss": total, "accuracy": accuracy, "audio": audio_term, "text": text_term}

    return loss


def misses_loss(network: ClapWithHead, data: ClapData) -> Loss:
    """The loss of the fourth task: the third's, against near misses, on the first clips of the slice."""
    stride = len(data.clean) // len(data.coded)
    clean, coded = data.clean.part(0, MISSES_CLIPS), data.coded.part(0, MISSES_CLIPS // stride)
    return joint_loss(network, replace(data, clean=clean, coded=coded), misses_task(data.spec), near_misses)
