"""Models that predict a flow: their forward process, their schedulers, and a training whose model is then sampled."""

from pathlib import Path
from typing import Any, get_args

import pytest
import small_networks
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from milonga.core.config import Phase, Settings
from milonga.core.errors import RecipeError
from milonga.data.examples import PairExamples
from milonga.experiment.recipe import Scheduler
from milonga.maths.noise import add_noise, rates, target
from milonga.models import load
from milonga.models.original.layout import SCHEDULE
from milonga.models.schedulers import FLOW_SCHEDULERS, NAMES, forward_process, prepare_scheduler, scheduler_named
from milonga.models.tango_denoiser import TangoDenoiser
from milonga.training import noising
from milonga.training.noising import draw
from milonga.training.trainer import train

FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)


def flowing(shift: float = 1.0) -> Any:
    made = small_networks.pipeline()
    made.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(shift=shift))
    return made


def test_the_process_is_that_of_diffusers_flow_matching() -> None:
    alphas, kind = forward_process(FLOW)
    signal, spread = rates(alphas, kind)
    torch.testing.assert_close(spread.float(), FLOW.sigmas.flip(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(signal + spread, torch.ones(1000, dtype=torch.float64))
    x, noise = torch.randn(2, 4, 3, 8, 4).unbind(0)
    steps = torch.tensor([0, 10, 500, 999])
    theirs = FLOW.scale_noise(x, FLOW.timesteps[999 - steps], noise)
    torch.testing.assert_close(add_noise(x, noise, alphas[steps], kind), theirs)
    moved = theirs + (0 - FLOW.sigmas[999 - steps]).reshape(-1, 1, 1, 1) * target(x, noise, alphas[steps], kind)
    torch.testing.assert_close(moved, x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("name", sorted(set(FLOW_SCHEDULERS) - {"lcm"}))  # that wants a network distilled for it
def test_the_best_answers_lead_from_full_noise_to_the_data(name: str, steps: int, shift: float) -> None:
    """For data that is normal the flow is known in closed form; a single step gives its mean."""
    scheduler = prepare_scheduler(scheduler_named(name, FlowMatchEulerDiscreteScheduler(shift=shift).config), steps)
    mean, width = 2.0, 0.1
    x = torch.randn(500, 1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float(scheduler.sigmas[0]) > 0.998
    for place, step in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[place])
        gain = (1 - sigma) * width**2 / ((1 - sigma) ** 2 * width**2 + sigma**2)
        clean = mean + gain * (x - (1 - sigma) * mean)
        x = scheduler.step((x - clean) / sigma, step, x).prev_sample.double()
    assert abs(float(x.mean()) - mean) < 0.02
    assert float(x.std()) < 1.1 * width
    if steps == 50:
        assert float(x.std()) > 0.6 * width


def test_a_scheduler_of_the_other_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"ddim does not fit a model that predicts a flow: choose one of euler, dpm"):
        scheduler_named("ddim", FLOW.config)
    with pytest.raises(RecipeError, match="euler does not fit a model that predicts no flow: choose one of ddpm"):
        scheduler_named("euler", SCHEDULE)
    again = scheduler_named("euler", scheduler_named("unipc", FLOW.config).config)
    assert again.config.shift == 3.0
    assert set(get_args(Scheduler)) == set(NAMES)


@pytest.mark.parametrize("name", ["use_dynamic_shifting", "stochastic_sampling", "invert_sigmas"])
def test_a_flow_that_is_not_known_here_is_refused(name: str) -> None:
    odd = FlowMatchEulerDiscreteScheduler(**{name: True})
    for refused in (lambda: forward_process(odd), lambda: prepare_scheduler(odd, 5)):
        with pytest.raises(RecipeError, match=f"flow has {name}, which is not supported"):
            refused()
    with pytest.raises(RecipeError, match="predicts 'sample': only noise, velocity and flow are known"):
        forward_process(DDPMScheduler(prediction_type="sample"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_a_flowing_pipeline_makes_the_same_clip_alone_and_in_a_batch(name: str, tmp_path: Path) -> None:
    flowing(3.0).save_pretrained(tmp_path / "flow")
    pipeline = load.pipeline(str(tmp_path / "flow")).set_scheduler(name)
    pipeline.set_progress_bar_config(disable=True)
    many = pipeline(list(small_networks.WORDS), seeds=3, num_inference_steps=4).audios
    one = pipeline(small_networks.WORDS[2], seeds=3, num_inference_steps=4).audios[0]
    torch.testing.assert_close(torch.tensor(many[2]), torch.tensor(one), atol=2e-5, rtol=0)
    plain = pipeline(small_networks.WORDS[2], seeds=3, num_inference_steps=4, guidance_scale=1.0).audios[0]
    assert abs(plain - one).max() > 1e-4  # every step, the first too, is guided


def test_the_network_is_shown_the_noise_level_at_which_it_is_sampled() -> None:
    pipeline = flowing(3.0)
    shown = prepare_scheduler(pipeline.scheduler, 1000).timesteps
    model = TangoDenoiser.of(pipeline)
    batch = PairExamples(torch.randn(1, 4, 8, 16), None, model.encode_text(["a dog"])).batch([0], 0)
    for first in (0, 40, 999):
        draws = draw((4, 8, 16), [("pair", 0, 0)], 0, 1000, Settings())
        draws.timesteps[:] = first
        noisy = noising.add_noise(model, batch, draws, losers=False, gamma=5.0)
        assert float(noisy.timesteps) == pytest.approx(float(shown[999 - first]), rel=1e-4)
        assert noisy.weights is not None
        assert noisy.weights.dtype == torch.float32


@pytest.mark.slow  # half a minute and more
def test_what_is_trained_as_a_flow_is_sampled_as_one(tmp_path: Path) -> None:
    pipeline = flowing()
    words = list(small_networks.WORDS[:2])
    data = torch.stack([torch.full((4, 8, 16), 1.0), torch.full((4, 8, 16), -1.0)])
    model = TangoDenoiser.of(pipeline)
    settings = Settings(batch_size=16, learning_rate=4e-3, ema=0.0)
    examples = PairExamples(data.repeat(8, 1, 1, 1), None, model.encode_text(words).repeat(8))

    def far() -> float:
        made = pipeline(words, seeds=1, num_inference_steps=8, guidance_scale=1.0, output_type="latent").audios
        return float((made - data).pow(2).mean())

    before = far()
    train(model, examples, (Phase(loss="sft", epochs=150),), settings, 0, tmp_path, lambda row: None)
    assert far() < 0.25 * before
