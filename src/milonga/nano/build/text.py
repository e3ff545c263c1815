"""Training of nano's text encoder on captions alone, as FLAN-T5 knows language before Tango.

A byte-level BPE tokenizer is fitted to the grammar's captions. The T5 encoder then learns that two captions of one
scene mean the same: a contrastive loss over pooled states in which the same sounds in another order, and the same scene
with one sound replaced, are always among the negatives. With that loss alone it ignores order for long (a similarity is
a product, so a feature that both sides lack gets no gradient), so a linear head must also predict from the pooled
states which sounds the caption names, and which come first and last. The head is discarded. The encoder is frozen while
the base model is trained, as in the paper.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from milonga.core.deferred import deferred_imports
from milonga.core.records import Scene
from milonga.nano.build.corpus import Loss, TrainTask, step_rng
from milonga.nano.captions import caption_in
from milonga.nano.world import CLASSES, draw_counts, draw_scene

with deferred_imports():
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

VOCABULARY = 1024
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 128,
    "d_kv": 32,
    "num_heads": 4,
    "num_layers": 4,
    "d_ff": 256,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
}
TASK = TrainTask("text", steps=700, batch_size=48, lr=1.5e-3)
TEMPERATURE = 0.07
SHARPNESS, HEAD_WEIGHT = 10.0, 30.0  # unit-norm rows need large logits; the mean over 78 answers is small


def sentences(seed: int, count: int) -> Iterator[str]:
    """`count` captions of randomly drawn scenes."""
    rng = step_rng(seed, "sentences", 0)
    for _ in range(count):
        scene = draw_scene(rng)
        yield caption_in("train", scene, draw_counts(scene, rng), rng)


def fit_tokenizer(texts: Iterator[str], pad: str, unknown: str, start: str, end: str) -> PreTrainedTokenizerFast:
    """A lower-casing byte-level BPE tokenizer; texts begin with `start` (where it is not empty) and end with `end`."""
    specials = [pad, end, unknown] if not start else [start, pad, end, unknown]
    inner = Tokenizer(models.BPE(unk_token=unknown))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(texts, trainer)
    template = f"{start} $A {end}".strip()
    inner.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, inner.token_to_id(token)) for token in (start, end) if token]
    )
    names = {"pad_token": pad, "unk_token": unknown, "eos_token": end}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=64,
        **names,
        **({"bos_token": start, "cls_token": start} if start else {}),
    )


def swapped(scene: Scene) -> Scene | None:
    """The same groups in reverse order; None where there is only one group."""
    return scene[::-1] if len(scene) > 1 else None


def replaced(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one of its sounds replaced by another class."""
    flat = [label for group in scene for label in group]
    gone = flat[rng.integers(len(flat))]
    new = rng.choice([label for label in CLASSES if label not in flat])
    return tuple(tuple(str(new) if label == gone else label for label in group) for group in scene)


def without_one(scene: Scene, place: int) -> Scene:
    """The scene with the sound at `place` (counted through all groups) left out."""
    places = iter(range(sum(len(group) for group in scene)))
    groups = [tuple(label for label in group if next(places) != place) for group in scene]
    return tuple(group for group in groups if group)


def hard_negatives(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    """A wrong order (where there is one) and a wrong sound: what must be told apart from `scene`."""
    other = swapped(scene)
    return [*([other] if other is not None else [replaced(scene, rng)]), replaced(scene, rng)]


def near_misses(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    """Up to three scenes that differ from `scene` by one fault of the kinds that generated clips have.

    The wrong order is one of them where there is an order; the others are drawn among a sound replaced, left out,
    added (before, after or beside the last) and doubled (it sounds again at the end). All have one to three sounds.
    """
    flat = [label for group in scene for label in group]
    wrong = [replaced(scene, rng)]
    if len(flat) > 1:
        wrong.append(without_one(scene, int(rng.integers(len(flat)))))
    if len(flat) < 3:
        new = str(rng.choice([label for label in CLASSES if label not in flat]))
        beside = (*scene[:-1], (*scene[-1], new))
        added = [((new,), *scene), (*scene, (new,)), beside]
        wrong += [added[rng.integers(len(added))], (*scene, (flat[rng.integers(len(flat))],))]
    order = [scene[::-1]] if len(scene) > 1 else []
    return order + [wrong[place] for place in rng.permutation(len(wrong))[: 3 - len(order)]]


def scene_target(scene: Scene) -> Tensor:
    """The targets of a linear head, shape (3·classes,): is a sound in the scene, in the first of several groups, in the
    last of several groups.
    """
    target = torch.zeros(3, len(CLASSES))
    for place, group in enumerate(scene):
        columns = [CLASSES.index(label) for label in group]
        target[0, columns] = 1
        if len(scene) > 1 and place in (0, len(scene) - 1):
            target[1 if place == 0 else 2, columns] = 1
    return target.flatten()


def head_loss(head: nn.Linear, rows: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Binary cross-entropy of `head` on unit-norm rows (N, D) against their scenes' targets, weighted."""
    targets = torch.stack([scene_target(scene) for scene in scenes])
    return binary_cross_entropy_with_logits(SHARPNESS * head(rows), targets) * HEAD_WEIGHT


def pooled(encoder: T5EncoderModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Unit-norm means of the encoder's states over the words, shape (N, D)."""
    tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    states = encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    mask = tokens.attention_mask.unsqueeze(-1)
    return normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


class EncoderWithHead(nn.Module):
    """The encoder with the head that only its training needs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = T5EncoderModel(T5Config(**T5))
        self.head = nn.Linear(T5["d_model"], 3 * len(CLASSES))
        bias_heads(self.encoder)


@torch.no_grad()
def bias_heads(encoder: T5EncoderModel) -> None:
    """Lets the first heads start with attention to the left, the right and near words.

    From T5's own start, with almost no position, the order of words is not learnt in 700 steps.
    """
    first: Any = encoder.encoder.block[0]
    bias = first.layer[0].SelfAttention.relative_attention_bias.weight
    half = bias.shape[0] // 2  # buckets from here on are words to the right, and the distance grows within each half
    bias[half:, 0] = -5.0
    bias[:half, 1] = -5.0
    bias[4:half, 2] = -4.0
    bias[half + 4 :, 2] = -4.0


def text_loss(task: TrainTask, embed: Callable[[list[str]], Tensor], head: nn.Linear, seed: int) -> Loss:
    """The loss of a step: each caption must find its scene's other caption among all others and its hard negatives,
    and the head must predict every caption's scene. `embed` gives unit-norm rows of texts, shape (N, D).
    """

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_rng(seed, task.name, step)
        scenes = [draw_scene(rng) for _ in range(task.batch_size)]
        counts = [draw_counts(scene, rng) for scene in scenes]
        others = [other for scene in scenes for other in hard_negatives(scene, rng)]
        right = [caption_in("train", *pair, rng) for _ in range(2) for pair in zip(scenes, counts, strict=True)]
        wrong = [caption_in("train", other, {}, rng) for other in others]
        rows = embed(right + wrong)
        similarity = rows[: task.batch_size] @ rows[task.batch_size :].T / TEMPERATURE
        targets = torch.arange(task.batch_size)
        accuracy = (similarity.argmax(dim=1) == targets).float().mean()
        head_term = head_loss(head, rows, [*scenes, *scenes, *others])
        return {"loss": cross_entropy(similarity, targets) + head_term, "head": head_term, "accuracy": accuracy}

    return loss
