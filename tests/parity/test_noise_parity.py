"""The forward process, the LDM loss's weights and the v target against numbers recorded from the original Tango."""

from collections.abc import Callable

import numpy as np
import pytest
import reference
import torch
from safetensors.torch import load_file

from milonga.maths.noise import add_noise, min_snr_weight, signal_to_noise, velocity

FOLDER = reference.TANGO

pytestmark = reference.needed(FOLDER)


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "scheduler.safetensors")


@pytest.fixture(scope="module")
def draw() -> Callable[[str, tuple[int, ...]], torch.Tensor]:
    rule = reference.rule()["draw"]
    prefix = reference.manifest()["prefix"]
    return lambda name, shape: torch.from_numpy(np.asarray(rule(f"{prefix}/{name}", shape)))


@pytest.mark.parametrize(("name", "function"), [("add_noise", add_noise), ("velocity", velocity)])
def test_noisy_latents_and_velocities_are_the_recorded_ones(
    name: str, function: Callable[..., torch.Tensor], recorded: dict[str, torch.Tensor], draw: Callable
) -> None:
    shape = tuple(recorded[name].shape)
    alpha_bar = recorded["alphas_cumprod"][recorded["add_noise.timesteps"]]
    ours = function(draw("sched/x0", shape), draw("sched/eps", shape), alpha_bar)
    torch.testing.assert_close(ours, recorded[name], atol=1e-6, rtol=0)


def test_signal_to_noise_and_min_snr_weights_are_the_recorded_ones(recorded: dict[str, torch.Tensor]) -> None:
    table = load_file(FOLDER / "ldm_loss.safetensors")
    snr = signal_to_noise(recorded["alphas_cumprod"][table["table.timesteps"]])
    torch.testing.assert_close(snr, table["table.snr"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(min_snr_weight(snr, 5.0, "epsilon"), table["table.weight_gamma5"], rtol=1e-4, atol=1e-6)
