"""SDPO's guard, held against what a step in weights really does to the winner's error."""

from dataclasses import replace

import pytest
import tiny_training as tiny
import torch

from milonga.core.config import Phase, Settings
from milonga.data.examples import Batch, PairExamples
from milonga.training.distributed import Ranks
from milonga.training.reference import FrozenCopy
from milonga.training.schedule import Step
from milonga.training.step import StepOutput, TrainStep

BETA, STEP = 100.0, 2e-6  # a step in weights so short that first order is all there is


class Greedy:
    """A pair whose loser is the winner, three times as loud and a little later: the answers to the two have little in
    common, but weights that unlearn the one unlearn the other."""

    num_prior = 0

    def __len__(self) -> int:
        return 1

    def batch(self, indices, epoch: int) -> Batch:
        one = PairExamples.batch(tiny.pairs(1, prior=False), [0], 0)
        return replace(one, loser=3 * one.winner.roll(3, 2))


def train_step(model, settings: Settings) -> TrainStep:
    model.module.eval()
    phase = Phase(loss="sft", epochs=1)
    return TrainStep(model, model.module, FrozenCopy(model.module), Greedy(), settings, 3, Ranks(), phase)


def stepped(loss: str, settings: Settings) -> tuple[float, float, StepOutput]:
    """What a plain step down the gradient does to the winner's error and to the loser's, on the same noise."""
    model = tiny.model(levels=2)
    one = train_step(model, settings)
    found = one.run(Step(0, 1, Phase(loss=loss, epochs=1, beta=BETA), 0, (0,), True, True), BETA, 0.0)
    noisy = one.noisy_batch(0, [0], losers=True)
    with torch.no_grad():
        before = noisy.errors()
        for parameter in model.module.parameters():
            if parameter.grad is not None:
                parameter -= STEP * parameter.grad
        winner, loser = (noisy.errors() - before).tolist()
    return winner, loser, found


def test_dpo_gives_the_winner_up_where_its_loser_pulls_harder() -> None:
    winner, loser, _ = stepped("dpo", Settings())
    assert loser > winner > 1e-6


def test_guarded_by_answers_nothing_is_held_back_where_only_weights_tie_the_two_together() -> None:
    winner, _, found = stepped("sdpo", Settings())
    assert found.errors.safeguard is not None
    assert found.errors.safeguard.item() == 1.0
    assert winner > 1e-6


def test_guarded_by_weights_the_winners_error_does_not_rise_to_first_order() -> None:
    given_up, lost, _ = stepped("dpo", Settings())
    winner, loser, found = stepped("sdpo", Settings(safeguard="parameters"))
    assert found.errors.safeguard is not None
    assert 0 < found.errors.safeguard.item() < 1
    assert winner == pytest.approx(0, abs=0.02 * given_up)
    assert 0 < loser < lost


@pytest.mark.slow
def test_the_guards_share_of_the_winners_own_descent_is_kept() -> None:
    winner, _, _ = stepped("sdpo", Settings(safeguard="parameters", sdpo_mu=0.5))
    alone, _, _ = stepped("sft", Settings())
    assert winner == pytest.approx(0.5 * alone * BETA / 4, rel=0.05)  # where policy and reference agree, DPO's factor
