"""The noise schedules by which latents are denoised, by name, and where each of them starts.

How they depart from the original: every count of steps starts at full noise ("trailing" timesteps, Lin et
al. 2023), where the original's start below it wherever the count does not divide 1000, and for few steps far below.
`compat` has the original's timesteps. A model that predicts a flow has schedulers of its own. `lcm` is for distilled
models, which predict the end of their path at once: each of its steps goes there and adds new noise (latent
consistency, arXiv 2310.04378).
"""

import copy
import inspect
import math
from numbers import Integral
from typing import Any

import torch

from milonga.core.deferred import deferred_imports
from milonga.core.errors import RecipeError
from milonga.maths.noise import Prediction

with deferred_imports():
    from diffusers import (
        CosineDPMSolverMultistepScheduler,
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        FlowMatchLCMScheduler,
        LCMScheduler,
        UniPCMultistepScheduler,
    )

POINTS = 50  # of a schedule that a student is distilled on; the 1 to 50 steps of `lcm` are among them
FULL_NOISE = {"timestep_spacing": "trailing", "steps_offset": 0}
# Every kind with what it changes in a model's own noise schedule.
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, FULL_NOISE),
    "ddim": (DDIMScheduler, FULL_NOISE),
    "dpm++": (DPMSolverMultistepScheduler, FULL_NOISE | {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": (UniPCMultistepScheduler, FULL_NOISE),
    "compat": (DDPMScheduler, {"timestep_spacing": "leading", "steps_offset": 1}),
    "lcm": (LCMScheduler, {"original_inference_steps": POINTS}),
}

FLOWS = (FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler)
SOLVER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
# The same for models that predict a flow, whose schedule is a shift of an even one.
FLOW_SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "euler": (FlowMatchEulerDiscreteScheduler, {}),
    "dpm++": (DPMSolverMultistepScheduler, SOLVER | {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": (UniPCMultistepScheduler, SOLVER),
    "lcm": (FlowMatchLCMScheduler, {}),
}
NAMES = tuple(dict.fromkeys([*SCHEDULERS, *FLOW_SCHEDULERS]))
UNEVEN = ("use_dynamic_shifting", "stochastic_sampling", "invert_sigmas", "shift_terminal")  # of diffusers' flows


def check_scheduler(name: str | None) -> None:
    """Raises RecipeError for a name that no scheduler has, listing the known ones; None is the model's own."""
    if name is not None and name not in NAMES:
        raise RecipeError(f"unknown scheduler {name!r}: choose one of {', '.join(NAMES)}")


def scheduler_named(name: str, config: Any) -> Any:
    """A new scheduler of one of `SCHEDULERS`' kinds with another's noise schedule (betas, prediction); of one of
    `FLOW_SCHEDULERS`', where the other's model predicts a flow.

    Raises RecipeError for an unknown name, and for one that the model's prediction rules out, listing those it has.
    """
    check_scheduler(name)
    if "sigma_data" in config:
        raise RecipeError(f"scheduler {name} does not fit a model of continuous time, which has one sampler: name none")
    flow = predicts_flow(config)
    known = FLOW_SCHEDULERS if flow else SCHEDULERS
    if name not in known:
        prediction = "predicts a flow" if flow else "predicts no flow"
        raise RecipeError(f"scheduler {name} does not fit a model that {prediction}: choose one of {', '.join(known)}")
    kind, changes = known[name]
    if not flow:
        return kind.from_config(config, **changes)
    shift = config.get("shift", config.get("flow_shift", 1.0))
    called = "shift" if kind in FLOWS else "flow_shift"
    return kind(num_train_timesteps=config["num_train_timesteps"], **{called: shift}, **changes)


def predicts_flow(config: Any) -> bool:
    """Whether a scheduler's config belongs to a model that predicts a flow: flow matching's names no prediction."""
    return config.get("prediction_type", "flow_prediction") == "flow_prediction"


def forward_process(scheduler: Any) -> tuple[torch.Tensor, Prediction]:
    """What a model was trained on: ᾱ (N,) of its timesteps, and what it predicts.

    A flow's ᾱ, float64, are those with the ratio of signal and noise that 1 − σ and σ have. Raises RecipeError for a
    prediction, or a flow's schedule, that is not known here.
    """
    config = scheduler.config
    if not predicts_flow(config):
        if config.prediction_type not in ("epsilon", "v_prediction"):
            raise RecipeError(f"the model predicts {config.prediction_type!r}: only noise, velocity and flow are known")
        times = continuous_times(scheduler)
        alphas = scheduler.alphas_cumprod if times is None else torch.cos(times.double() * math.pi / 2) ** 2
        return alphas, config.prediction_type
    _check_even(config)
    total, shift = config.num_train_timesteps, config.get("shift", config.get("flow_shift", 1.0))
    even = torch.arange(1, total + 1, dtype=torch.float64) / total
    sigmas = shift * even / (1 + (shift - 1) * even)
    return (1 - sigmas) ** 2 / ((1 - sigmas) ** 2 + sigmas**2), "flow_prediction"


def continuous_times(scheduler: Any) -> torch.Tensor | None:
    """N times spread evenly over (0, 1), float32, of a model that is trained at any time t and given t itself.

    Those are models with the cosine schedule √ᾱ = cos(πt/2), such as Stable Audio's; None for any other.
    """
    if not isinstance(scheduler, CosineDPMSolverMultistepScheduler):
        return None
    total = scheduler.config["num_train_timesteps"]
    return (torch.arange(total, dtype=torch.float32) + 0.5) / total


def prepare_scheduler(scheduler: Any, steps: int, device: Any = None) -> Any:
    """A copy of a scheduler, set to the first of `steps` steps.

    A scheduler remembers where it is: with one for each call, threads may share a pipeline. Raises RecipeError when
    there are fewer than 1 or more steps than the schedule has, and for a flow's schedule that is not known here.
    """
    total = scheduler.config.num_train_timesteps
    if not isinstance(steps, Integral):
        raise RecipeError(f"steps must be a whole number, not {steps!r}")
    if not 1 <= steps <= total:
        raise RecipeError(f"steps must be at least 1 and at most {total}, not {steps}")
    prepared = _even(scheduler, steps) or copy.deepcopy(scheduler)
    if isinstance(prepared, FLOWS):
        _check_even(prepared.config)  # left to itself it ends with a step that moves nothing
        prepared.set_timesteps(sigmas=[1 - place / steps for place in range(steps)], device=device)
        return prepared
    if isinstance(prepared, LCMScheduler) and steps > POINTS:
        raise RecipeError(f"a distilled model takes 1 to {POINTS} steps, not {steps}: 4 are a good choice")
    prepared.set_timesteps(steps, device=device)
    if int(max(prepared.timesteps)) >= total:
        raise RecipeError(f"{steps} steps begin beyond the schedule, as in the original: choose fewer, or another kind")
    return prepared


def check_guidance(guidance: float, interval: tuple[float, float]) -> None:
    """Raises RecipeError for a guidance that is no number, or an interval that is no two shares of the schedule."""
    if not math.isfinite(guidance):
        raise RecipeError(f"guidance must be a finite number, not {guidance}")
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise RecipeError(f"guidance_interval must be two shares of the schedule, 0 ≤ low ≤ high ≤ 1, not {interval}")


def noise_share(scheduler: Any, step: Any) -> float:
    """The place of a timestep between no noise (0) and full noise (1), as a share of the schedule."""
    if isinstance(scheduler, CosineDPMSolverMultistepScheduler):  # whose timesteps are that share
        return float(step)
    is_flow = isinstance(scheduler, FLOWS)  # whose timesteps count from 1
    return float(step if is_flow else step + 1) / scheduler.config.num_train_timesteps


def model_input(scheduler: Any, latents: torch.Tensor, step: Any) -> torch.Tensor:
    """Latents as a scheduler wants them shown to the network; a flow's are shown as they are."""
    scale = getattr(scheduler, "scale_model_input", None)
    return latents if scale is None else scale(latents, step)


def _check_even(config: Any) -> None:
    for name in UNEVEN:
        if config.get(name):
            raise RecipeError(f"the model's flow has {name}, which is not supported: only a fixed shift is")


def _even(scheduler: Any, steps: int) -> Any:
    """DDIM as the first-order solver that it is (Lu et al. 2022, §4.1), where `steps` does not divide the schedule.

    There diffusers' DDIM denoises by 1000 // steps a step and says that it was 1000 / steps: noise is left over.
    """
    config, ddim = scheduler.config, type(scheduler) is DDIMScheduler
    if not (ddim and config.num_train_timesteps % steps and config.timestep_spacing == "trailing"):
        return None
    return DPMSolverMultistepScheduler.from_config(scheduler.config, solver_order=1, algorithm_type="dpmsolver++")


def takes_generator(scheduler: Any) -> bool:
    """Whether a scheduler's steps draw noise, and so need a generator."""
    return "generator" in inspect.signature(scheduler.step).parameters
