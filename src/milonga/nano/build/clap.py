"""The lessons of the three CLAPs: hear what a text asks for, and in which order (§4.1.2: two rank, a third judges).

Three lessons. First the audio alone, with a linear head that must tell which sounds there are, first and last. Then
the text alone, as the T5 encoder learns it (`train_text.py`), through the same head, frozen, so that what is read lies
in the directions of what was heard. Then both, on clips of which a half went through the codec, with a symmetric
contrastive loss (Radford et al. 2021) over a batch in which each clip meets two captions made to mislead: its own
sounds in another order, and its scene with one sound replaced. With that loss from the start, or with the text first,
these CLAPs stayed deaf to order. The three differ in seed, in the clips they learn from, and the judge in its width: it
shares nothing with the two that rank.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ClapConfig, ClapModel, PreTrainedTokenizerFast

from milonga.nano.build.corpus import Corpus
from milonga.nano.build.tagger import disturbed, mixed
from milonga.nano.build.task import Lesson, Loss, generator
from milonga.nano.build.text import hard_negatives, head_loss, text_loss
from milonga.nano.captions import caption_in
from milonga.nano.world import CLASSES

Features = Callable[[ClapModel, Tensor], Tensor]
TextFeatures = Callable[[ClapModel, PreTrainedTokenizerFast, list[str]], Tensor]


@dataclass(frozen=True)
class Listener:
    """One CLAP: its lesson's seed, the slice of the corpus it learns from, and its width."""

    name: str
    seed: int
    first: int
    last: int
    width: int


CLAPS = (
    Listener("clap-a", seed=11, first=0, last=12000, width=64),
    Listener("clap-b", seed=12, first=12000, last=24000, width=64),
    Listener("clap-judge", seed=13, first=24000, last=36000, width=72),
)


def sounds_lesson(listener: Listener) -> Lesson:
    """How long each of them first learns to hear."""
    return Lesson(f"{listener.name}-sounds", steps=700, batch=48, rate=1.5e-3, warmup=60)


def words_lesson(listener: Listener) -> Lesson:
    """How long each of them then learns to read."""
    return Lesson(f"{listener.name}-words", steps=900, batch=48, rate=1.5e-3, warmup=60)


def lesson_of(listener: Listener) -> Lesson:
    """How long each of them at last learns to bring sounds and words together."""
    return Lesson(listener.name, steps=400, batch=48, rate=1e-3, warmup=60)


def new_clap(listener: Listener, vocabulary: int, pad: int) -> ClapModel:
    """An untrained ClapModel: a Swin of two stages over 16×16 patches, and a RoBERTa of three layers.

    Positions in the text start as large sinusoids, without which order is learnt late or never.
    """
    text: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 256, "max_position_embeddings": 66, "hidden_dropout_prob": 0.0, "pad_token_id": pad,
        "attention_probs_dropout_prob": 0.0, "initializer_range": 0.05,
    }  # fmt: skip
    audio: dict[str, Any] = {
        "spec_size": 128, "num_mel_bins": 64, "patch_size": 8, "patch_stride": [8, 8], "window_size": 8,
        "patch_embeds_hidden_size": listener.width, "hidden_size": 2 * listener.width, "depths": [2, 2],
        "num_attention_heads": [4, 8], "hidden_dropout_prob": 0.0, "drop_path_rate": 0.0, "num_classes": 1,
    }  # fmt: skip
    clap = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=128, logit_scale_init_value=14.0))
    table = clap.text_model.embeddings.position_embeddings.weight
    table.data.copy_(0.1 * sinusoids(*table.shape))
    gather(clap.text_model.encoder)
    look_around(clap.audio_model.audio_encoder)
    return clap


@torch.no_grad()
def gather(encoder: Any) -> None:
    """Lets every attention of the text tower start out passing the words on, so that its first token, the only one
    that is read, begins as a mean of the words and not of next to nothing.

    From RoBERTa's own start the head cannot tell which sounds are asked for after 500 steps; from this one it can
    after 300, and the text alone tells 0.97 of 300 swapped captions apart after 700.
    """
    for layer in encoder.layer:
        for matrix in (layer.attention.self.value.weight, layer.attention.output.dense.weight):
            matrix += 1.5 * torch.eye(len(matrix))


@torch.no_grad()
def look_around(encoder: Any) -> None:
    """Lets the first heads of every Swin block start out looking back, ahead, down and up.

    The relative positions' own start, zero, makes patches a bag: after 800 steps order was still not heard. Rows of a
    folded picture are bands of an earlier and a later half, so up and down are directions in time as well.
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


class Learner(nn.Module):
    """A CLAP with the head that only its lessons need: one for both towers, so that what they tell lies in the same
    directions before they are compared.
    """

    def __init__(self, clap: ClapModel) -> None:
        super().__init__()
        self.clap = clap
        self.head = nn.Linear(clap.config.projection_dim, 3 * len(CLASSES))


@dataclass(frozen=True)
class Material:
    """What a CLAP learns from: clips as rendered, clips that went through the codec, its tokenizer, and how its towers
    embed pictures and texts, unit norm."""

    listener: Listener
    clean: Corpus
    coded: Corpus
    tokenizer: PreTrainedTokenizerFast
    hear: Features
    read: TextFeatures


def sounds_loss(learner: Learner, material: Material) -> Loss:
    """The first lesson's loss: what the head must tell from clips as rendered."""
    lesson, clean = sounds_lesson(material.listener), material.clean

    def loss(step: int) -> dict[str, Tensor]:
        rng = generator(material.listener.seed, lesson.name, step)
        clips = clean.at(rng.integers(0, len(clean), lesson.batch))
        sounds = material.hear(learner.clap, disturbed(clips.mels.float(), rng))
        return {"loss": head_loss(learner.head, sounds, clips.scenes)}

    return loss


def words_loss(learner: Learner, material: Material) -> Loss:
    """The second lesson's loss: the text encoder's, through the head as the first lesson left it."""
    head = copy.deepcopy(learner.head).requires_grad_(False)

    def embed(texts: list[str]) -> Tensor:
        return material.read(learner.clap, material.tokenizer, texts)

    return text_loss(words_lesson(material.listener), embed, head, material.listener.seed)


def clap_loss(learner: Learner, material: Material) -> Loss:
    """The third lesson's loss: what the head must tell from either, and that sounds and their words find each other."""
    lesson = lesson_of(material.listener)
    right = torch.arange(lesson.batch)

    def loss(step: int) -> dict[str, Tensor]:
        rng = generator(material.listener.seed, lesson.name, step)
        clips = mixed(material.clean, material.coded, rng, lesson.batch)
        others = [wrong for scene in clips.scenes for wrong in hard_negatives(scene, rng)]
        texts = [caption_in("train", *told, rng) for told in zip(clips.scenes, clips.counts, strict=True)]
        texts += [caption_in("train", other, {}, rng) for other in others]
        sounds = material.hear(learner.clap, disturbed(clips.mels.float(), rng))
        words = material.read(learner.clap, material.tokenizer, texts)
        heard = head_loss(learner.head, sounds, clips.scenes)
        told = head_loss(learner.head, words, [*clips.scenes, *others])
        likeness = learner.clap.logit_scale_a.exp().clamp(max=50) * sounds @ words.T
        value = (cross_entropy(likeness, right) + cross_entropy(likeness[:, : lesson.batch].T, right)) / 2
        accuracy = (likeness.argmax(dim=1) == right).float().mean()
        return {"loss": value + heard + told, "accuracy": accuracy, "heard": heard, "told": told}

    return loss
