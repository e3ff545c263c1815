"""Several sources of examples as one: every index finds its own, whatever the order asked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.core.errors import DataError
from milonga.data.examples import ConcatExamples, PairExamples
from milonga.models.denoiser import Conditioning


def part(count: int, first: int, length: int, **words) -> PairExamples:
    """Examples whose latents are their own number, with captions of `length` tokens."""
    numbers = torch.arange(first, first + count).float()
    latents = numbers[:, None, None, None].expand(count, 1, 2, 2)
    states = numbers[:, None, None].expand(count, length, 3)
    captions = Conditioning(states=states, mask=torch.ones(count, length, dtype=torch.bool))
    return PairExamples(latents, latents + 0.5, captions, **words)


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(9)), st.integers(1, 9))
def test_every_index_finds_its_own(order: list[int], count: int) -> None:
    joined = ConcatExamples([part(4, 0, 2), part(3, 4, 5), part(2, 7, 3)])
    batch = joined.batch(order[:count], 0)
    assert len(joined) == 9
    assert batch.winner[:, 0, 0, 0].tolist() == order[:count]
    assert batch.loser is not None
    assert batch.loser[:, 0, 0, 0].tolist() == [one + 0.5 for one in order[:count]]
    lengths = [2 if one < 4 else 5 if one < 7 else 3 for one in order[:count]]
    assert batch.conditioning["mask"].sum(1).tolist() == lengths
    assert batch.conditioning["states"][:, 0, 0].tolist() == order[:count]
    assert batch.weights is None


def test_labels_and_groups_are_joined_too_but_not_mixed_with_none() -> None:
    liked = [part(2, n, 2, desirable=torch.tensor([True, False]), groups=["a", str(n)]) for n in (0, 2)]
    batch = ConcatExamples(liked).batch([3, 0], 0)
    assert batch.desirable is not None
    assert batch.desirable.tolist() == [False, True]
    assert batch.groups == ("2", "a")
    with pytest.raises(DataError, match="only some of the concatenated examples have desirable"):
        ConcatExamples([liked[0], part(2, 2, 2)]).batch([0, 2], 0)


def test_prior_clips_are_those_of_the_part_that_has_any() -> None:
    joined = ConcatExamples([part(2, 0, 2), part(2, 2, 2, prior=part(3, 50, 2))])
    assert joined.num_prior == 3
    assert joined.prior_batch([2], 0).winner[0, 0, 0, 0] == 52
    with pytest.raises(DataError, match="no prior-preservation clips"):
        ConcatExamples([part(2, 0, 2)]).prior_batch([0], 0)
