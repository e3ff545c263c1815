"""What the trainer trains on: latents of winners and losers with their encoded captions, in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from milonga.core.errors import DataError
from milonga.core.ids import derive_seed
from milonga.maths.group_losses import advantages
from milonga.maths.noise import seeded
from milonga.models.denoiser import SECONDS, Conditioning, ConditioningRows, Posterior, pad_tokens

Latents = Tensor | Posterior
NO_PRIOR = "these examples have no prior-preservation clips: give real clips, or set prior_weight = 0"


@dataclass(frozen=True)
class Batch:
    """B examples: scaled latents (B, *latent shape) of winners and losers (None: none), and the captions' conditioning.

    An example without a loser is simply a clip and its caption. `weights` (B,) are rewards, `desirable` (B,) bool tells
    liked clips from disliked ones, `groups` are the names (strategies) by which validation pairs are told apart.

    In a batch of groups an example is the K clips of one caption: `winner` is (B, K, *latent shape), and `advantages`
    (B, K) says how much better than its group each clip is.

    Of captions alone, whose clips the trainer samples, `winner` is the noise that they start from and `texts` are they.
    `gaps` (B,) are by how much winners beat losers (`pairs.score_gaps`). `regions` (B, rows of latents) bool are where
    errors count.
    """

    winner: Tensor
    loser: Tensor | None
    conditioning: Conditioning
    weights: Tensor | None = None
    desirable: Tensor | None = None
    groups: tuple[str, ...] | None = None
    advantages: Tensor | None = None
    texts: tuple[str, ...] | None = None
    gaps: Tensor | None = None
    regions: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        movable = {name: value for name, value in vars(self).items() if isinstance(value, Tensor | Conditioning)}
        return replace(self, **{name: value.to(device) for name, value in movable.items()})


class Examples(Protocol):
    """The trainer's data.

    `epoch` counts the passes over the data from 0, through all phases. Data that is sampled or augmented must depend
    on nothing but the index and the epoch, or a resumed run would see other data. `num_prior` is the number of real
    clips for the prior-preservation term (0: none).
    """

    num_prior: int

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The examples with these indices, in this order."""
        ...

    def prior_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The real clips with these indices; DataError if there are none."""
        ...


class PairExamples:
    """N preference pairs (or, without losers, N captioned clips) whose tensors are in memory.

    Latents are scaled tensors (N, *latent shape) or a `Posterior` to sample from anew each epoch. `prior` are real
    clips for the prior-preservation term; `weights`, `desirable`, `groups`, `gaps` and `regions`, one for each example,
    are those of `Batch`. `captions` stand for the conditioning in a fingerprint, where that is encoded anew each time.
    Raises DataError when the lengths differ.
    """

    def __init__(
        self,
        winners: Latents,
        losers: Latents | None,
        conditioning: Conditioning | ConditioningRows,
        prior: Examples | None = None,
        seed: int = 0,
        weights: Tensor | None = None,
        desirable: Tensor | None = None,
        groups: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
        gaps: Sequence[float] | None = None,
        regions: Tensor | None = None,
    ) -> None:
        self.captions = captions
        self.winners, self.losers, self.conditioning = winners, losers, conditioning
        self._prior, self._seed = prior, seed
        self._weights, self._desirable, self._groups = weights, desirable, groups
        self._regions = regions
        self._gaps = None if gaps is None else torch.tensor(gaps, dtype=torch.float32)
        self.num_prior = 0 if prior is None else len(prior)
        parts = {
            "winners": winners,
            "losers": losers,
            "weights": weights,
            "labels": desirable,
            "groups": groups,
            "gaps": gaps,
            "regions": regions,
        }
        sizes = {name: len(part) for name, part in parts.items() if part is not None}
        of_captions = {"captions": conditioning.rows} if isinstance(conditioning, ConditioningRows) else conditioning
        sizes |= {name: value if isinstance(value, int) else len(value) for name, value in of_captions.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(
                f"the parts of training examples differ in number ({sizes}): encode them from the same pairs"
            )

    def __len__(self) -> int:
        return len(self.winners)

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The pairs with these indices."""
        rows = list(indices)
        winner = _latents(self.winners, rows, self._seed, "winner", epoch)
        loser = None if self.losers is None else _latents(self.losers, rows, self._seed, "loser", epoch)
        weights, desirable, gaps, regions = (
            None if part is None else part[rows] for part in (self._weights, self._desirable, self._gaps, self._regions)
        )
        groups = None if self._groups is None else tuple(self._groups[row] for row in rows)
        return Batch(
            winner, loser, self.conditioning.take(rows).float(), weights, desirable, groups, gaps=gaps, regions=regions
        )

    def prior_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The real clips with these indices; DataError if there are none."""
        if self._prior is None:
            raise DataError(NO_PRIOR)
        return self._prior.batch(indices, epoch)


class GroupExamples:
    """N groups of K clips of one caption each, for group-wise losses.

    `latents` (N, K, *latent shape) are scaled; `rewards` (N, K) become advantages within their group
    (`maths.group_losses.advantages`). Groups of equal rewards teach nothing and are left out: `num_flat` counts them.
    Raises DataError when the lengths differ, or where no group is left.
    """

    num_prior = 0

    def __init__(self, latents: Tensor, rewards: Tensor, conditioning: Conditioning | ConditioningRows) -> None:
        if latents.shape[:2] != rewards.shape or conditioning.rows != len(rewards):
            sizes = f"latents {tuple(latents.shape[:2])}, rewards {tuple(rewards.shape)}, captions {conditioning.rows}"
            raise DataError(f"the parts of training groups differ in number: {sizes}")
        scaled = advantages(rewards)
        taught = scaled.ne(0).any(1).nonzero().flatten().tolist()
        self.num_flat = len(rewards) - len(taught)
        if not taught:
            raise DataError("no group teaches anything: within each caption all clips have one reward")
        self._latents, self._advantages = latents[taught], scaled[taught]
        self._conditioning = ConditioningRows([conditioning.take([row]) for row in taught])

    def __len__(self) -> int:
        return len(self._latents)

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The groups with these indices."""
        rows = list(indices)
        conditioning = self._conditioning.take(rows).float()
        return Batch(self._latents[rows].float(), None, conditioning, advantages=self._advantages[rows].float())

    def prior_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """Always DataError: groups have no prior-preservation clips; `with_prior_data` adds some."""
        raise DataError(NO_PRIOR)


class CaptionExamples:
    """N captions whose clips the trainer samples itself (`draft`): an example is a caption and its clip's first noise.

    The noise has the `shape` of latents and depends on `seed`, the caption's place and the epoch.
    """

    num_prior = 0

    def __init__(
        self, captions: Sequence[str], conditioning: Conditioning | ConditioningRows, shape: Sequence[int], seed: int
    ) -> None:
        if conditioning.rows != len(captions):
            raise DataError(f"{len(captions)} captions have {conditioning.rows} rows of conditioning: encode these")
        self.captions, self._conditioning, self._shape, self._seed = list(captions), conditioning, tuple(shape), seed

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The captions with these indices, each with its noise of this epoch."""
        streams = [seeded(self._seed, "draft", epoch, index) for index in indices]
        noise = torch.stack([torch.randn(self._shape, generator=stream) for stream in streams])
        texts = tuple(self.captions[index] for index in indices)
        return Batch(noise, None, self._conditioning.take(list(indices)).float(), texts=texts)

    def prior_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """Always DataError: captions have no prior-preservation clips; `with_prior_data` adds some."""
        raise DataError(NO_PRIOR)


class CaptionedClips:
    """N real clips whose captions may differ from epoch to epoch, for the LDM phase (Eq. 4).

    `captions` are each clip's, of which one is drawn for each epoch, or a function (index, epoch) → caption;
    `encode_text(captions)` gives the captions' conditioning, `seconds` are the clips' lengths for a model that is told
    them. `rows` are, where an example is another clip in another epoch, the places of its clips in all of these, which
    epochs take in turn.
    """

    num_prior = 0

    def __init__(
        self,
        latents: Latents,
        captions: Sequence[Sequence[str]] | Callable[[int, int], str],
        encode_text: Callable[[Sequence[str]], Conditioning],
        seed: int = 0,
        seconds: Sequence[float] = (),
        rows: Sequence[Sequence[int]] = (),
    ) -> None:
        self._latents, self._captions, self._encode_text, self._seed = latents, captions, encode_text, seed
        self._seconds, self._rows = seconds, rows or [[place] for place in range(len(latents))]

    def __len__(self) -> int:
        return len(self._rows)

    def _row(self, index: int, epoch: int) -> int:
        """The place of an example's clip in an epoch."""
        return self._rows[index][epoch % len(self._rows[index])]

    def caption_of(self, index: int, epoch: int) -> str:
        """A clip's caption in an epoch."""
        if callable(self._captions):
            return self._captions(index, epoch)
        own = self._captions[self._row(index, epoch)]
        return own[derive_seed(self._seed, "caption", index, epoch) % len(own)]

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The clips with these indices and this epoch's captions."""
        conditioning = self._encode_text([self.caption_of(index, epoch) for index in indices])
        rows = [self._row(index, epoch) for index in indices]
        if self._seconds:
            conditioning = conditioning.with_seconds([self._seconds[row] for row in rows])
        return Batch(_latents(self._latents, rows, self._seed, "clip", epoch), None, conditioning)

    def prior_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """Always DataError: real clips have no prior-preservation clips beside them."""
        raise DataError("these examples are real clips themselves: set prior_weight = 0")


class Subset:
    """Some of other examples, by their places there; their prior-preservation clips are shared."""

    def __init__(self, examples: Examples, places: Sequence[int]) -> None:
        self._examples, self._places, self.num_prior = examples, list(places), examples.num_prior

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The examples with these indices among the chosen ones."""
        return self._examples.batch([self._places[index] for index in indices], epoch)

    def prior_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The real clips with these indices."""
        return self._examples.prior_batch(indices, epoch)


class ConcatExamples:
    """The examples of all parts, one after the other: the first part keeps its indices, the rest follows.

    Prior-preservation clips are those of the first part that has any, or the examples in `prior`.
    """

    def __init__(self, parts: Sequence[Examples], prior: Examples | None = None) -> None:
        self._parts, self._prior = list(parts), prior
        self._starts = [0, *accumulate(len(part) for part in parts)]
        self._with_prior = next((part for part in parts if part.num_prior), None)
        self.num_prior = 0 if self._with_prior is None else self._with_prior.num_prior
        if prior is not None:
            self.num_prior = len(prior)

    def __len__(self) -> int:
        return self._starts[-1]

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The examples with these indices, in this order, whichever parts they are of."""
        batches, places = [], []
        for part, first, last in zip(self._parts, self._starts, self._starts[1:], strict=False):
            mine = [place for place, index in enumerate(indices) if first <= index < last]
            if mine:
                batches.append(part.batch([indices[place] - first for place in mine], epoch))
                places += mine
        order = torch.tensor(places).argsort()
        return Batch(**{field.name: _concat(batches, field.name, order) for field in fields(Batch)})

    def prior_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The real clips with these indices; DataError if there are none."""
        if self._prior is not None:
            return self._prior.batch(indices, epoch)
        if self._with_prior is None:
            raise DataError(NO_PRIOR)
        return self._with_prior.prior_batch(indices, epoch)


def with_prior_data(examples: Examples, clips: Examples) -> Examples:
    """The examples with real clips for the prior-preservation term."""
    return ConcatExamples([examples], prior=clips)


def filter_by_strategy(examples: Examples, strategies: Sequence[str]) -> Examples:
    """The pairs of these strategies alone, in their order; DataError where there are none."""
    names = [examples.batch([place], 0).groups for place in range(len(examples))]
    places = [place for place, groups in enumerate(names) if groups is not None and groups[0] in strategies]
    if not places:
        raise DataError(f"no pair is of {' or '.join(strategies)}: name other strategies, or loosen pair.thresholds")
    return Subset(examples, places)


def train_val_split(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples | None]:
    """Examples to train on, and those of a `fraction` of the captions to validate on: no caption is in both.

    Which captions depends on them and `seed` alone. With a fraction of 0 there is no validation part. Raises DataError
    when either part would be empty.
    """
    if fraction == 0:
        return examples, None
    captions = [_caption_id(examples.batch([place], 0).conditioning) for place in range(len(examples))]
    order = sorted(set(captions), key=lambda caption: derive_seed(seed, "held out", caption))
    val_captions = set(order[: max(1, round(fraction * len(order)))])
    train, val = ([i for i, name in enumerate(captions) if (name in val_captions) == part] for part in (False, True))
    if not train or not val:
        raise DataError(
            f"{len(order)} captions are too few to validate on {fraction:.0%} of them: set val_fraction = 0"
        )
    return Subset(examples, train), Subset(examples, val)


def fingerprint(examples: Examples) -> str:
    """A hash of what all examples hold: latents as they are stored, captions, and what belongs to them."""
    digest = sha256()
    _update(digest, examples)
    return digest.hexdigest()[:16]


def _update(digest: Any, value: Any) -> None:
    """Adds a value to a hash: tensors by their bytes, examples by all that is stored of each."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy())
    elif isinstance(value, Posterior):
        _update(digest, [value.mean, value.logvar])
    elif isinstance(value, Conditioning):
        _update(digest, [part for name in sorted(value) for part in (name, value[name])])
    elif isinstance(value, ConditioningRows):
        _update_rows(digest, value)
    elif isinstance(value, list | tuple) and all(isinstance(part, str | int | float) for part in value):
        digest.update(repr(list(value)).encode())
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} parts".encode())
        for part in value:
            _update(digest, part)
    elif hasattr(value, "batch"):
        _update(digest, _contents(value))
    else:
        digest.update(repr(value).encode())


def _update_rows(digest: Any, rows: ConditioningRows) -> None:
    """Adds captions to a hash as if they were one padded `Conditioning`, without its memory."""
    first = rows.parts[0]
    digest.update(f"{2 * len(first)} parts".encode())
    for name in sorted(first):
        digest.update(repr(name).encode())
        length = max(part[name].shape[1] for part in rows.parts) if first[name].dim() > 1 else 0
        shape = (rows.rows, length, *first[name].shape[2:]) if length else (rows.rows,)
        digest.update(f"{first[name].dtype} {shape}".encode())
        for part in rows.parts:
            padded = pad_tokens(part[name].detach().cpu(), length).contiguous()
            digest.update(padded.flatten().view(torch.uint8).numpy())


def _contents(examples: Any) -> list[Any]:
    """What examples hold, without what their seed draws; of a class that is not known here, each example."""
    match examples:
        case PairExamples():
            texts = examples.conditioning if examples.captions is None else list(examples.captions)
            parts = (examples.winners, examples.losers, examples._weights, examples._desirable, examples._groups)
            more = (examples._gaps, examples._regions, examples._prior)
            return [*parts, texts, *(part for part in more if part is not None)]
        case GroupExamples():
            return [examples._latents, examples._advantages, examples._conditioning]
        case CaptionedClips() if not callable(examples._captions):
            lengths = [list(examples._seconds)] if examples._seconds else []
            varied = [list(rows) for rows in examples._rows if len(rows) > 1]
            return [examples._latents, *map(list, examples._captions), *lengths, *varied]
        case CaptionExamples():
            return [examples.captions, examples._conditioning]
        case Subset():
            return [examples._examples, examples._places]
        case ConcatExamples():
            return [*examples._parts, examples._prior]
    return [list(vars(examples.batch([place], 0)).values()) for place in range(len(examples))]


def _caption_id(caption: Conditioning) -> str:
    """A hash of an example's encoded caption, without its padding: examples of one caption share it."""
    digest, mask = sha256(), caption.get("mask")
    for name in sorted(caption.keys() - {"mask", SECONDS}):
        row = caption[name][0]
        digest.update((row if mask is None or row.shape[:1] != mask[0].shape else row[mask[0]]).numpy().tobytes())
    return digest.hexdigest()


def _latents(latents: Latents, rows: list[int], seed: int, role: str, epoch: int) -> Tensor:
    """Rows of plain latents, or samples of a posterior; winner and loser have draws of their own."""
    if isinstance(latents, Posterior):
        return latents.sample(rows, derive_seed(seed, role), epoch)
    return latents[rows].float()


def _concat(batches: Sequence[Batch], name: str, order: Tensor) -> Any:
    """One field of all batches, in order; None where all have None, DataError where only some do."""
    values: list[Any] = [getattr(batch, name) for batch in batches]
    if all(value is None for value in values):
        return None
    if name == "regions":  # elsewhere the errors of the whole clip count
        width = next(value.shape[1] for value in values if value is not None)
        values = [
            torch.ones(len(batch.winner), width, dtype=torch.bool) if batch.regions is None else batch.regions
            for batch in batches
        ]
    if any(value is None for value in values):
        raise DataError(f"only some of the concatenated examples have {name}: train on them separately")
    if isinstance(values[0], Conditioning):
        return Conditioning.concat(values).take(order.tolist())
    if isinstance(values[0], Tensor):
        return torch.cat(values)[order]
    flat = [group for value in values for group in value]
    return tuple(flat[place] for place in order.tolist())
