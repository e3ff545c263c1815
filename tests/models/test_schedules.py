"""Schedulers by name: where they start, what they keep of the model's own schedule, and that no noise is left over."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.core.errors import RecipeError
from milonga.models.original.layout import SCHEDULE
from milonga.models.schedulers import SCHEDULERS, check_scheduler, prepare_scheduler, scheduler_named, takes_generator

MEAN, SPREAD = 2.0, 0.1  # of the data that the perfect denoiser below knows
FULL = sorted(set(SCHEDULERS) - {"compat", "lcm"})  # lcm wants a network that predicts the end of its path


def named(name: str, **changes: Any) -> Any:
    return scheduler_named(name, SCHEDULE | changes)


def sampled(scheduler: Any, steps: int) -> torch.Tensor:
    """500 numbers denoised by the best possible answer for data that is normal: its v is known in closed form."""
    begins, chance = prepare_scheduler(scheduler, steps), torch.Generator().manual_seed(1)
    x = torch.randn(500, 1, 1, 1, generator=chance, dtype=torch.float64)
    for step in begins.timesteps:
        alpha = begins.alphas_cumprod[int(step)].double()
        clean = MEAN + SPREAD**2 * alpha.sqrt() * (x - alpha.sqrt() * MEAN) / (alpha * SPREAD**2 + 1 - alpha)
        noise = (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        extra = {"generator": chance} if takes_generator(begins) else {}
        x = begins.step(velocity, step, x, **extra).prev_sample
    return x


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("steps", [1, 7, 8, 150, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FULL)
def test_every_count_of_steps_starts_at_full_noise_and_leaves_none(name: str, steps: int, zero_snr: bool) -> None:
    scheduler = named(name, rescale_betas_zero_snr=zero_snr)
    assert int(prepare_scheduler(scheduler, steps).timesteps[0]) == 999
    found = sampled(scheduler, steps)
    assert abs(float(found.mean()) - MEAN) < 0.02
    assert float(found.std()) < 1.1 * SPREAD
    if steps >= 150:
        assert float(found.std()) > 0.65 * SPREAD


def test_plain_ddim_leaves_noise_where_steps_do_not_divide_the_schedule() -> None:
    """What `begun` mends: the gap that diffusers' DDIM takes is not the gap between its own timesteps."""
    plain = DDIMScheduler.from_config(SCHEDULE, timestep_spacing="trailing", steps_offset=0)
    mended = prepare_scheduler(plain, 600)
    assert isinstance(mended, DPMSolverMultistepScheduler)
    assert type(prepare_scheduler(plain, 500)) is DDIMScheduler
    plain.set_timesteps(600)
    x = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)
    for step in plain.timesteps:  # data that is always 0: all that there is, is noise
        alpha = plain.alphas_cumprod[int(step)].double()
        x = plain.step(alpha.sqrt() * x / (1 - alpha).sqrt(), step, x).prev_sample
    left = float(x.abs())
    x = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)
    for step in mended.timesteps:
        alpha = mended.alphas_cumprod[int(step)].double()
        x = mended.step(alpha.sqrt() * x / (1 - alpha).sqrt(), step, x).prev_sample
    assert float(x.abs()) < 1e-6 < left / 100


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([2, 4, 5, 8, 10, 20, 25, 40, 50, 100]))
def test_the_first_order_solver_is_ddim(steps: int) -> None:
    first = DPMSolverMultistepScheduler.from_config(named("ddim").config, solver_order=1, algorithm_type="dpmsolver++")
    torch.testing.assert_close(sampled(first, steps), sampled(named("ddim"), steps), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_models_noise_schedule_is_kept(name: str) -> None:
    scheduler = named(name)
    assert isinstance(scheduler, SCHEDULERS[name][0])
    assert scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(scheduler.alphas_cumprod, DDPMScheduler.from_config(SCHEDULE).alphas_cumprod)


@pytest.mark.slow
@given(st.integers(1, 999))
def test_compat_has_the_originals_timesteps(steps: int) -> None:
    first = (steps - 1) * (1000 // steps) + 1  # FACTS §4
    found = prepare_scheduler(named("compat"), steps).timesteps
    assert (int(found[0]), int(found[-1]), len(found)) == (first, 1, steps)


def test_what_no_schedule_has_is_told() -> None:
    for steps in (0, -1, 1001):
        with pytest.raises(RecipeError, match=f"steps must be at least 1 and at most 1000, not {steps}"):
            prepare_scheduler(named("ddpm"), steps)
    with pytest.raises(RecipeError, match="1000 steps begin beyond the schedule"):
        prepare_scheduler(named("compat"), 1000)
    with pytest.raises(RecipeError, match=r"unknown scheduler 'heun': choose one of ddpm, ddim, dpm\+\+, unipc, com"):
        check_scheduler("heun")
    check_scheduler(None)


def test_a_scheduler_that_is_shared_stands_still() -> None:
    shared = named("dpm++")
    before = dict(vars(shared))
    sampled(shared, 5)
    assert vars(shared).keys() == before.keys()
    assert shared.num_inference_steps == before["num_inference_steps"]
