"""Models that make clips from requests: Tango's pipeline, and any `Denoiser`."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from milonga.core.errors import RecipeError
from milonga.core.records import Clip, Prompt, Request
from milonga.maths.devices import AUTO, device_of, placed, where
from milonga.maths.mel import MelSettings
from milonga.models.denoiser import SECONDS, Denoiser, Process, TimelinePart
from milonga.models.editing import Canvas, decode, samples_per_row
from milonga.models.schedulers import prepare_scheduler, scheduler_named
from milonga.models.tango import AudioPipelineOutput, StepCallback, TangoPipeline, clip_seeds, repeated
from milonga.models.tango_denoiser import TangoDenoiser, is_consistency_model

OnStep = Callable[[int], None]
SAMPLING = (50, 3.0)  # steps and guidance of a denoiser that has none of its own


class TangoModel:
    """A `Model` around a pipeline: requests in, clips with their latents out, with a scheduler chosen by name.

    `seconds` is the clips' length; None for the trained duration. It runs on `device`: noise is drawn on the CPU all
    the same, so its clips are those of a CPU up to float noise.
    """

    def __init__(
        self,
        name: str,
        pipeline: TangoPipeline,
        scheduler: str | None = None,
        seconds: float | None = None,
        device: Any = AUTO,
        precision: str | None = None,
    ) -> None:
        self.name = name
        pipeline = pipeline.to(device_of(device))
        self.rate = pipeline.sampling_rate
        pipeline.set_progress_bar_config(disable=True)
        self.seconds = seconds
        # A consistency model has a sampler of its own.
        if scheduler is not None and not is_consistency_model(pipeline.unet):
            pipeline = copy.copy(pipeline)  # the caller's keeps its own
            pipeline.set_scheduler(scheduler)
        self.pipeline = pipeline
        if precision is not None:
            pipeline.set_precision(precision)

    @property
    def denoiser(self) -> Denoiser:
        """The pipeline behind the protocol, with the scheduler that it has now."""
        return TangoDenoiser.of(self.pipeline)

    def generate(
        self,
        requests: Sequence[Request],
        on_step: OnStep | None = None,
        negative: str = "",
        timeline: Sequence[TimelinePart] = (),
    ) -> list[Clip]:
        """One clip per request, each from its own words and seed; all must share steps and guidance.

        `negative` is what they are guided away from. The parts of a `timeline` hold in the place of words and length.
        `on_step` gets the number of denoising steps done, from 1 on; an exception that it raises ends the work. Raises
        RecipeError when the requests do not share steps and guidance.
        """
        steps, guidance = shared_sampling(requests)
        words, seeds = [request.words for request in requests], [request.seed for request in requests]

        def after_step(pipeline: Any, number: int, step: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if on_step is not None:
                on_step(number + 1)
            return tensors

        callback: StepCallback | None = None if on_step is None else after_step
        seconds = timeline[-1][1] if timeline else self.seconds
        latents = self.pipeline.sample(
            words, seeds, steps, guidance, seconds, negative, callback=callback, timeline=timeline
        )
        waves, packed = self.pipeline.decode(latents, seconds).numpy(), latents.float().cpu().numpy()
        return [Clip(np.ascontiguousarray(wave), self.rate, row) for wave, row in zip(waves, packed, strict=True)]

    @property
    def mel_config(self) -> MelSettings:
        """The front end of `generate_mels`."""
        return self.pipeline.mel_config

    def generate_mels(self, requests: Sequence[Request]) -> list[Clip]:
        """As `generate`, without the vocoder: clips of no samples, with their latents and log-mel pictures."""
        (steps, guidance), config = shared_sampling(requests), self.mel_config
        words, seeds = [request.words for request in requests], [request.seed for request in requests]
        latents = self.pipeline.sample(words, seeds, steps, guidance, self.seconds)
        rows = zip(latents.float().cpu().numpy(), self.pipeline.decode_mels(latents, self.seconds).numpy(), strict=True)
        silence = np.empty(0, dtype=np.float32)
        return [Clip(silence, self.rate, packed, mel=mel, mel_config=config) for packed, mel in rows]


class DenoiserModel:
    """A `Model` around any denoiser, sampled by its process's own scheduler with the weights that it has now."""

    def __init__(self, name: str, denoiser: Denoiser, seconds: float | None = None, device: Any = AUTO) -> None:
        """`seconds` is the length; None for the trained. Raises RecipeError for a process without a scheduler."""
        if denoiser.process.scheduler is None:
            raise RecipeError(f"{name}: its process has no scheduler, so it cannot be sampled")
        for network in (denoiser.module, *denoiser.others):
            placed(network, device)
        self.name, self.denoiser, self.rate, self.seconds = name, denoiser, denoiser.sampling_rate, seconds

    @property
    def sampling_rate(self) -> int:
        """Of the waveforms, in Hz."""
        return self.rate

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        on_step: OnStep | None = None,
        negative: str = "",
        timeline: Sequence[TimelinePart] = (),
    ) -> list[Clip]:
        """One clip per request, as `TangoModel.generate`: its noise comes from its own seed, drawn on the CPU."""
        (steps, guidance), denoiser, count = shared_sampling(requests), self.denoiser, len(requests)
        hop, trained = samples_per_row(denoiser), denoiser.latent_shape[denoiser.time_axis]
        seconds = timeline[-1][1] if timeline else self.seconds
        if seconds is None and SECONDS in denoiser.empty:  # the model's own default
            seconds = float(denoiser.empty[SECONDS][0])
        if seconds is not None and not 0 < seconds < math.inf:
            raise RecipeError(f"a clip's length is a positive number of seconds, not {seconds}")
        samples = hop * trained if seconds is None else round(seconds * self.rate)
        rows = max(1 if getattr(denoiser, "any_length", False) else trained, -(-samples // hop))
        words = [request.words for request in requests]
        canvas = Canvas(denoiser, rows, words, [negative] * count, guidance, timeline=timeline, seconds=seconds)
        scheduler = prepare_scheduler(denoiser.process.scheduler, steps, canvas.device)
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        noise = canvas.noise(generators) * getattr(scheduler, "init_noise_sigma", 1.0)

        def after_step(number: int, step: Any, latents: torch.Tensor) -> torch.Tensor:
            if on_step is not None:
                on_step(number + 1)
            return latents

        latents = canvas.sample(scheduler, noise, generators, after_step)
        waves, packed = decode(denoiser, latents)[..., :samples], latents.float().cpu().numpy()
        return [Clip.of(np.ascontiguousarray(wave.T), self.rate, row) for wave, row in zip(waves, packed, strict=True)]

    def __call__(
        self,
        prompt: str | Sequence[str],
        seeds: int | Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        num_waveforms_per_prompt: int = 1,
        audio_length_in_s: float | None = None,
    ) -> AudioPipelineOutput:
        """Clips for one text or several, as a call of `TangoPipeline`; `audios` is a list of (samples,) or (samples,
        channels).

        Steps and guidance are the model's own by default, seeds are drawn where none are given. Raises as
        `TangoPipeline` does.
        """
        words = repeated(prompt, num_waveforms_per_prompt)
        own = clip_seeds(words, seeds, num_waveforms_per_prompt)
        own = own or torch.randint(2**63 - 1, (len(words),)).tolist()
        steps, guidance = getattr(self.denoiser, "sampling", SAMPLING)
        steps = steps if num_inference_steps is None else num_inference_steps
        guidance = guidance if guidance_scale is None else guidance_scale
        requests = [
            Request.of(0, Prompt.of(text, "call"), text, steps, guidance).model_copy(update={"seed": int(seed)})
            for text, seed in zip(words, own, strict=True)
        ]
        seconds = self.seconds if audio_length_in_s is None else audio_length_in_s
        model = DenoiserModel(self.name, self.denoiser, seconds, where(self.denoiser.module))
        clips = model.generate(requests, negative=negative_prompt)
        audios: Any = [clip.waveform if clip.channels is None else clip.channels for clip in clips]
        return AudioPipelineOutput(audios=audios)


def generator_of(
    name: str, denoiser: Denoiser, device: Any = None, seconds: float | None = None, scheduler: str | None = None
) -> "TangoModel | DenoiserModel":
    """A model that generates with the weights that a denoiser has at the moment of each call, on the network's device
    or on another one, clips of the model's own length or of `seconds`, with its own scheduler or another one.
    """
    device = where(denoiser.module) if device is None else device
    if isinstance(denoiser, TangoDenoiser):
        return TangoModel(name, denoiser.pipe, scheduler, seconds, device)
    if scheduler is not None:
        denoiser = copy.copy(denoiser)  # the caller's keeps its own
        denoiser.process = Process.of(scheduler_named(scheduler, denoiser.process.scheduler.config))
    return DenoiserModel(name, denoiser, seconds, device)


def shared_sampling(requests: Sequence[Request]) -> tuple[int, float]:
    """The steps and the guidance of all requests; RecipeError when they differ."""
    settings = {(request.steps, request.guidance) for request in requests}
    if len(settings) != 1:
        raise RecipeError("requests of one batch must share their steps and guidance")
    return settings.pop()
