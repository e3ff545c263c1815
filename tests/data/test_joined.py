"""Several sources of examples as one: every index finds its own, whatever the order asked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.core.errors import DataError
from milonga.data.examples import PairExamples
from milonga.data.joined import JoinedExamples


def part(count: int, first: int, length: int, **words) -> PairExamples:
    """Examples whose latents are their own number, with captions of `length` tokens."""
    numbers = torch.arange(first, first + count).float()
    latents = numbers[:, None, None, None].expand(count, 1, 2, 2)
    states = numbers[:, None, None].expand(count, length, 3)
    return PairExamples(latents, latents + 0.5, states, torch.ones(count, length), **words)


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(9)), st.integers(1, 9))
def test_every_index_finds_its_own(order: list[int], count: int) -> None:
    joined = JoinedExamples([part(4, 0, 2), part(3, 4, 5), part(2, 7, 3)])
    batch = joined.batch(order[:count], 0)
    assert len(joined) == 9
    assert batch.winner[:, 0, 0, 0].tolist() == order[:count]
    assert batch.loser is not None
    assert batch.loser[:, 0, 0, 0].tolist() == [one + 0.5 for one in order[:count]]
    lengths = [2 if one < 4 else 5 if one < 7 else 3 for one in order[:count]]
    assert batch.mask.sum(1).tolist() == lengths
    assert batch.states[:, 0, 0].tolist() == order[:count]
    assert batch.weights is None


def test_labels_and_groups_are_joined_too_but_not_mixed_with_none() -> None:
    liked = [part(2, n, 2, desirable=torch.tensor([True, False]), groups=["a", str(n)]) for n in (0, 2)]
    batch = JoinedExamples(liked).batch([3, 0], 0)
    assert batch.desirable is not None
    assert batch.desirable.tolist() == [False, True]
    assert batch.groups == ("2", "a")
    with pytest.raises(DataError, match="only some of the joined examples have desirable"):
        JoinedExamples([liked[0], part(2, 2, 2)]).batch([0, 2], 0)


def test_anchors_are_those_of_the_part_that_has_any() -> None:
    joined = JoinedExamples([part(2, 0, 2), part(2, 2, 2, anchors=part(3, 50, 2))])
    assert joined.anchors == 3
    assert joined.anchor_batch([2], 0).winner[0, 0, 0, 0] == 52
    with pytest.raises(DataError, match="no anchors"):
        JoinedExamples([part(2, 0, 2)]).anchor_batch([0], 0)
