"""The arithmetic of diffusion-DPO against errors, logits and losses recorded from the original Tango 2."""

import re

import pytest
import reference
import torch
from safetensors.torch import load_file

from milonga.maths.losses import Errors, dpo, preference_margin

FOLDER = reference.TANGO
RECORDED = FOLDER / "dpo_loss.safetensors"

pytestmark = reference.needed(RECORDED)


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(RECORDED)


@pytest.fixture(scope="module")
def pairs() -> int:
    return reference.manifest()["training_latent_shape"][0]


def cases(recorded: dict[str, torch.Tensor]) -> list[tuple[str, float]]:
    """The recorded cases, each with the β that its name gives."""
    names = sorted(key.removesuffix(".logsigmoid_arg") for key in recorded if key.endswith(".logsigmoid_arg"))
    found = [(name, float(match[1])) for name in names if (match := re.match(r"beta([\d.]+)_", name))]
    assert len(found) == len(names) > 0
    return found


def recorded_errors(recorded: dict[str, torch.Tensor], case: str, pairs: int) -> Errors:
    """The recorded errors of policy and reference, each stored as B winners, then B losers."""
    winner, loser = recorded[f"{case}.policy_mse_w_then_l"].split(pairs)
    reference_winner, reference_loser = recorded[f"{case}.ref_mse_w_then_l"].split(pairs)
    return Errors(winner, loser, reference_winner, reference_loser)


def test_logits_are_the_recorded_ones(recorded: dict[str, torch.Tensor], pairs: int) -> None:
    for case, beta in cases(recorded):
        errors = recorded_errors(recorded, case, pairs)
        # The original subtracts in another order: float32 keeps about 5e-7 of each mean error, times ½β.
        torch.testing.assert_close(
            0.5 * beta * preference_margin(errors),
            recorded[f"{case}.logsigmoid_arg"],
            atol=5e-7 * beta,
            rtol=1e-6,
            msg=lambda text, case=case: f"{case}: {text}",
        )


def test_losses_are_the_recorded_ones(recorded: dict[str, torch.Tensor], pairs: int) -> None:
    for case, beta in cases(recorded):
        loss = dpo(recorded_errors(recorded, case, pairs), beta).mean()
        assert loss.item() == pytest.approx(recorded[f"{case}.loss"].item(), rel=2e-3, abs=1e-6), case
