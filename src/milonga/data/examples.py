"""What the trainer trains on: latents of winners and losers with their encoded captions, held in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Protocol

import torch
from torch import Tensor

from milonga.core.errors import DataError
from milonga.core.ids import derive_seed
from milonga.maths.noise import seeded


@dataclass(frozen=True)
class Batch:
    """B examples: scaled latents (B, C, H, W) of winners and losers (None: none), states (B, L, D), mask (B, L) bool.

    A training example without a loser is simply a clip and its caption. `weights` (B,) are rewards, `desirable` (B,)
    bool tells liked clips from disliked ones, `groups` are the names by which held-out pairs are told apart.
    """

    winner: Tensor
    loser: Tensor | None
    states: Tensor
    mask: Tensor
    weights: Tensor | None = None
    desirable: Tensor | None = None
    groups: tuple[str, ...] | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        fields = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **fields)


class Examples(Protocol):
    """What the trainer asks of its data.

    `epoch` counts the passes over the data from 0, through all phases: data that is sampled or augmented must depend
    on nothing but the index and the epoch, or a resumed run would see other data.
    """

    anchors: int

    def __len__(self) -> int:
        """How many examples there are."""
        ...

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The examples with these indices, in this order."""
        ...

    def anchor_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """Of the `anchors` real clips (0: none), those with these indices; losers play no part."""
        ...


@dataclass(frozen=True)
class Moments:
    """A VAE's posterior over N clips: mean and log-variance (N, C, H, W), and the factor that scales its samples.

    The original trains on samples, never on the mode (`FACTS`: autoencoder.py:126).
    """

    mean: Tensor
    logvar: Tensor
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.mean)

    def sample(self, indices: Sequence[int], seed: int, epoch: int) -> Tensor:
        """Scaled latents (B, C, H, W), float32; each clip's draw depends on (seed, index, epoch) alone."""
        mean, logvar = self.mean[list(indices)].float(), self.logvar[list(indices)].float()
        draws = [torch.randn(self.mean.shape[1:], generator=seeded(seed, "latent", i, epoch)) for i in indices]
        return (mean + torch.exp(0.5 * logvar) * torch.stack(draws).to(mean.device)) * self.scale


Latents = Tensor | Moments


class PairExamples:
    """N preference pairs (or, without losers, N captioned clips) whose tensors are held in memory.

    Latents are scaled tensors (N, C, H, W) or `Moments` to sample from; states (N, L, D) and mask (N, L) are the
    encoded captions. `anchors` are real clips for the anchor term; `weights`, `desirable` and `groups`, one for each
    example, are those of `Batch`. Raises DataError when the lengths differ.
    """

    def __init__(
        self,
        winner_latents: Latents,
        loser_latents: Latents | None,
        states: Tensor,
        mask: Tensor,
        anchors: "PairExamples | None" = None,
        seed: int = 0,
        weights: Tensor | None = None,
        desirable: Tensor | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        self._winner, self._loser, self._states, self._mask = winner_latents, loser_latents, states, mask.bool()
        self._anchors, self._seed = anchors, seed
        self._weights, self._desirable, self._groups = weights, desirable, groups
        self.anchors = 0 if anchors is None else len(anchors)
        parts = {"winners": winner_latents, "losers": loser_latents, "states": states, "masks": mask}
        parts |= {"weights": weights, "labels": desirable, "groups": groups}
        sizes = {name: len(part) for name, part in parts.items() if part is not None}
        if len(set(sizes.values())) > 1:
            raise DataError(
                f"the parts of training examples differ in number ({sizes}): encode them from the same pairs"
            )

    def __len__(self) -> int:
        return len(self._winner)

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The pairs with these indices; where there are moments, sampled anew each epoch."""
        rows = list(indices)
        loser = None if self._loser is None else _take(self._loser, rows, self._seed, "loser", epoch)
        winner = _take(self._winner, rows, self._seed, "winner", epoch)
        weights, desirable = (None if part is None else part[rows] for part in (self._weights, self._desirable))
        groups = None if self._groups is None else tuple(self._groups[row] for row in rows)
        return Batch(winner, loser, self._states[rows].float(), self._mask[rows], weights, desirable, groups)

    def anchor_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The real clips with these indices; DataError if there are none."""
        if self._anchors is None:
            raise DataError("these examples have no anchors: give real clips, or set anchor = 0 in the recipe")
        return self._anchors.batch(indices, epoch)


class CaptionedClips:
    """N real clips whose captions may differ from epoch to epoch, for the LDM phase (Eq. 4).

    `say(index, epoch)` gives a clip's caption; `encode(texts)` gives its states (B, L, D) and mask (B, L).
    """

    anchors = 0

    def __init__(
        self,
        latents: Latents,
        say: Callable[[int, int], str],
        encode: Callable[[Sequence[str]], tuple[Tensor, Tensor]],
        seed: int = 0,
    ) -> None:
        self._latents, self._say, self._encode, self._seed = latents, say, encode, seed

    def __len__(self) -> int:
        return len(self._latents)

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The clips with these indices and this epoch's captions."""
        states, mask = self._encode([self._say(index, epoch) for index in indices])
        return Batch(_take(self._latents, list(indices), self._seed, "clip", epoch), None, states, mask)

    def anchor_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """Real clips have no anchors beside them: DataError."""
        raise DataError("these examples are real clips themselves: set anchor = 0")


def padded(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """States of captions of several lengths, each (L, D), as one (B, L, D) with zeros after the shorter ones, and which
    tokens there are, (B, L) bool."""
    lengths = torch.tensor([len(one) for one in states])
    together = torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True)
    return together, torch.arange(together.shape[1]) < lengths[:, None]


class Part:
    """Some of other examples, by their places there; anchors are shared."""

    def __init__(self, whole: Examples, places: Sequence[int]) -> None:
        self._whole, self._places, self.anchors = whole, list(places), whole.anchors

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The examples with these indices among those chosen."""
        return self._whole.batch([self._places[index] for index in indices], epoch)

    def anchor_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The real clips with these indices."""
        return self._whole.anchor_batch(indices, epoch)


class _Anchored:
    """Examples with the winners of others as their anchors."""

    def __init__(self, examples: Examples, clips: Examples) -> None:
        self._examples, self._clips, self.anchors = examples, clips, len(clips)

    def __len__(self) -> int:
        return len(self._examples)

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        return self._examples.batch(indices, epoch)

    def anchor_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        return self._clips.batch(indices, epoch)


def with_anchors(examples: Examples, clips: Examples) -> Examples:
    """Examples that are anchored to real clips."""
    return _Anchored(examples, clips)


def of_groups(examples: Examples, groups: Sequence[str]) -> Examples:
    """The examples of these groups alone, in their order; DataError where there are none."""
    told = [examples.batch([place], 0).groups for place in range(len(examples))]
    places = [place for place, names in enumerate(told) if names is not None and names[0] in groups]
    if not places:
        raise DataError(f"no pair is of {' or '.join(groups)}: name other strategies, or loosen pair.thresholds")
    return Part(examples, places)


def held_out(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples | None]:
    """Examples to train on, and those of a share of the captions to be judged on: no caption is in both.

    Which captions depends on them and `seed` alone. With a share of 0 all is trained on. DataError when either part
    would be empty.
    """
    if share == 0:
        return examples, None
    captions = [_caption_id(examples.batch([place], 0)) for place in range(len(examples))]
    order = sorted(set(captions), key=lambda one: derive_seed(seed, "held out", one))
    apart = set(order[: max(1, round(share * len(order)))])
    places = [[place for place, one in enumerate(captions) if (one in apart) == kind] for kind in (False, True)]
    if not all(places):
        raise DataError(f"{len(order)} captions are too few to hold out {share:.0%} of them: set train.heldout = 0")
    return Part(examples, places[0]), Part(examples, places[1])


def _caption_id(one: Batch) -> str:
    """A hash of an example's encoded caption: examples of one caption have one."""
    return sha256(one.states[0][one.mask[0]].numpy().tobytes()).hexdigest()


def _take(latents: Latents, rows: list[int], seed: int, role: str, epoch: int) -> Tensor:
    """Rows of plain latents, or samples from moments; winner and loser have draws of their own."""
    if isinstance(latents, Moments):
        return latents.sample(rows, derive_seed(seed, role), epoch)
    return latents[rows].float()
