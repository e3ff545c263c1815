"""`TangoModel`: a pipeline behind the Protocol `Model`, as stages and doors ask for clips."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from milonga.core.errors import RecipeError
from milonga.core.records import Clip, Request
from milonga.models.tango import StepCallback, TangoPipeline, warn_beyond


class TangoModel:
    """A `Model` around a pipeline: requests in, clips with their latents out, with a scheduler chosen by name.

    `seconds` is how long its clips are; None for the trained duration. It works on a GPU where this process sees one:
    noise is drawn on the CPU all the same, so its clips are those of a CPU up to float noise.
    """

    def __init__(
        self, name: str, pipeline: TangoPipeline, scheduler: str | None = None, seconds: float | None = None
    ) -> None:
        self.name = name
        self.pipeline = pipeline.to("cuda") if torch.cuda.is_available() else pipeline
        self.rate = pipeline.rate
        pipeline.set_progress_bar_config(disable=True)
        self.seconds = seconds
        warn_beyond(pipeline.config["seconds"], seconds)
        if scheduler is not None:
            pipeline.use(scheduler)

    def generate(self, requests: Sequence[Request], on_step: Callable[[int], None] | None = None) -> list[Clip]:
        """One clip per request, each from its own words and seed; all must share steps and guidance.

        `on_step` is given the denoising steps done, from 1 on; what it raises ends the work. Raises RecipeError when
        the requests share no steps and guidance.
        """
        settings = {(request.steps, request.guidance) for request in requests}
        if len(settings) != 1:
            raise RecipeError("requests of one batch must share their steps and guidance")
        (steps, guidance) = settings.pop()
        words, seeds = [request.words for request in requests], [request.seed for request in requests]
        latents = self.pipeline.sample(words, seeds, steps, guidance, self.seconds, callback=_counted(on_step))
        waves = self.pipeline.decode(latents, self.seconds).numpy()
        kept = latents.float().cpu().numpy()
        return [Clip(np.ascontiguousarray(wave), self.rate, row) for wave, row in zip(waves, kept, strict=True)]


def _counted(on_step: Callable[[int], None] | None) -> StepCallback | None:
    """`on_step` as diffusers' pipelines call it."""

    def called(pipeline: Any, number: int, step: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(number + 1)
        return tensors

    return None if on_step is None else called
