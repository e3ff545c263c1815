"""Examples in memory: the right rows, samples that depend on index and epoch alone, and parts that must fit."""

import pytest
import tiny_training as tiny
import torch

from milonga.core.errors import DataError
from milonga.stages.latents import Moments, PairExamples


def test_rows_come_in_the_order_asked_for() -> None:
    winners, losers, states = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2), torch.randn(4, 3, 2)
    examples = PairExamples(winners.half(), losers, states, torch.ones(4, 3))
    batch = examples.batch([2, 0], epoch=5)
    assert len(examples) == 4
    assert torch.equal(batch.winner, winners.half().float()[[2, 0]])
    assert batch.loser is not None
    assert torch.equal(batch.loser, losers[[2, 0]])
    assert torch.equal(batch.states, states[[2, 0]])
    assert batch.mask.dtype == torch.bool


def test_samples_of_moments_depend_on_seed_index_and_epoch_and_nothing_else() -> None:
    moments = Moments(torch.zeros(5, 2, 3, 3), torch.zeros(5, 2, 3, 3))
    whole = moments.sample([0, 1, 2, 3, 4], seed=1, epoch=2)
    assert torch.equal(whole[[3, 1]], moments.sample([3, 1], seed=1, epoch=2))
    for seed, epoch in ((1, 3), (2, 2)):
        assert not torch.equal(whole, moments.sample([0, 1, 2, 3, 4], seed, epoch))


def test_samples_have_the_moments_mean_and_spread_times_the_scale() -> None:
    moments = Moments(torch.full((1, 8, 64, 64), 3.0), torch.full((1, 8, 64, 64), -1.0), scale=0.5)
    sample = moments.sample([0], seed=0, epoch=0)
    assert float(sample.mean()) == pytest.approx(1.5, abs=0.01)
    assert float(sample.std()) == pytest.approx(0.5 * 2.718281828**-0.5, rel=0.02)


def test_winners_and_losers_are_sampled_apart() -> None:
    same = Moments(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    batch = PairExamples(same, same, torch.zeros(2, 1, 2), torch.ones(2, 1)).batch([0, 1], 0)
    assert batch.loser is not None
    assert not torch.equal(batch.winner, batch.loser)


def test_parts_of_different_length_are_refused() -> None:
    with pytest.raises(DataError, match="differ in number"):
        PairExamples(torch.zeros(3, 1, 2, 2), None, torch.zeros(2, 1, 2), torch.ones(2, 1))


def test_anchors_are_the_real_clips_or_an_error() -> None:
    assert tiny.pairs().anchors == 4
    assert tiny.pairs().anchor_batch([3], 0).loser is None
    with pytest.raises(DataError, match="no anchors"):
        tiny.pairs(anchors=False).anchor_batch([0], 0)
