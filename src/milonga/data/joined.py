"""Several sources of training examples as one: what comes first keeps its indices, and the rest follows."""

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from milonga.core.errors import DataError
from milonga.data.examples import Batch, Examples


class JoinedExamples:
    """The examples of all parts, one after the other; anchors are those of the first part that has any."""

    def __init__(self, parts: Sequence[Examples]) -> None:
        self._parts = list(parts)
        self._starts = [0, *accumulate(len(part) for part in parts)]
        self._anchored = next((part for part in parts if part.anchors), None)
        self.anchors = 0 if self._anchored is None else self._anchored.anchors

    def __len__(self) -> int:
        return self._starts[-1]

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The examples with these indices, in this order, whichever parts they are of."""
        found, places = [], []
        for part, first, last in zip(self._parts, self._starts, self._starts[1:], strict=False):
            mine = [place for place, index in enumerate(indices) if first <= index < last]
            if mine:
                found.append(part.batch([indices[place] - first for place in mine], epoch))
                places += mine
        order = torch.tensor(places).argsort()
        whole = _padded(found)
        return replace(whole[0], **{one.name: _stacked(whole, one.name, order) for one in fields(Batch)})

    def anchor_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """The real clips with these indices; DataError if there are none."""
        if self._anchored is None:
            raise DataError("these examples have no anchors: give real clips, or set anchor = 0 in the recipe")
        return self._anchored.anchor_batch(indices, epoch)


def _padded(batches: Sequence[Batch]) -> list[Batch]:
    """The batches with their captions padded to the longest of them."""
    from torch.nn.functional import pad

    longest = max(batch.states.shape[1] for batch in batches)

    def filled(batch: Batch) -> Batch:
        missing = longest - batch.states.shape[1]
        return replace(batch, states=pad(batch.states, (0, 0, 0, missing)), mask=pad(batch.mask, (0, missing)))

    return [filled(batch) for batch in batches]


def _stacked(batches: Sequence[Batch], name: str, order: Tensor) -> Any:
    """One field of all batches, in order; None where all have None, DataError where only some do."""
    values = [getattr(batch, name) for batch in batches]
    if all(value is None for value in values):
        return None
    if any(value is None for value in values):
        raise DataError(f"only some of the joined examples have {name}: train on them apart")
    if all(isinstance(value, Tensor) for value in values):
        return torch.cat(values)[order]
    whole = [one for value in values for one in value]
    return tuple(whole[place] for place in order.tolist())
