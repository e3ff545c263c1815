"""Models that make clips from requests: Tango's pipeline, any `Denoiser`, and the baselines of §5.2.

The baselines are AudioLDM, AudioLDM 2 and Stable Audio Open by diffusers' own pipelines. They run by their own defaults
(steps, guidance, length) and without a choice among several candidates, which AudioLDM's published numbers have and
Tango's have not. Their requests run one by one: within a batch those pipelines pad captions to the longest, and the
padding changes the sound.
"""

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from milonga.core.errors import CheckpointError, RecipeError, brief
from milonga.core.records import Clip, Request
from milonga.maths.mel import MelSettings
from milonga.models.denoiser import Denoiser
from milonga.models.editing import Canvas, decode, samples_per_row
from milonga.models.schedulers import prepare_scheduler
from milonga.models.tango import StepCallback, TangoPipeline, TimelinePart
from milonga.models.tango_denoiser import TangoDenoiser, takes_guidance

OnStep = Callable[[int], None]
# Baseline pipelines by the class that `model_index.json` names, with their call's argument for a clip's length.
LENGTHS = {
    "AudioLDMPipeline": "audio_length_in_s",
    "AudioLDM2Pipeline": "audio_length_in_s",
    "StableAudioPipeline": "audio_end_in_s",
}


class TangoModel:
    """A `Model` around a pipeline: requests in, clips with their latents out, with a scheduler chosen by name.

    `seconds` is the clips' length; None for the trained duration. It runs on a GPU where this process has one: noise is
    drawn on the CPU all the same, so its clips are those of a CPU up to float noise.
    """

    def __init__(
        self, name: str, pipeline: TangoPipeline, scheduler: str | None = None, seconds: float | None = None
    ) -> None:
        self.name = name
        self.pipeline = pipeline.to("cuda") if torch.cuda.is_available() else pipeline
        self.rate = pipeline.sampling_rate
        pipeline.set_progress_bar_config(disable=True)
        self.seconds = seconds
        if scheduler is not None and not takes_guidance(pipeline.unet):  # a distilled one has a sampler of its own
            pipeline.set_scheduler(scheduler)

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

    def __init__(self, name: str, denoiser: Denoiser, seconds: float | None = None) -> None:
        """`seconds` is the length; None for the trained. Raises RecipeError for a process without a scheduler."""
        if denoiser.process.scheduler is None:
            raise RecipeError(f"{name}: its process has no scheduler, so it cannot be sampled")
        self.name, self.denoiser, self.rate, self.seconds = name, denoiser, denoiser.sampling_rate, seconds

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
        samples = hop * trained if seconds is None else round(seconds * self.rate)
        rows, words = max(trained, -(-samples // hop)), [request.words for request in requests]
        canvas = Canvas(denoiser, rows, words, [negative] * count, guidance, timeline=timeline)
        scheduler = prepare_scheduler(denoiser.process.scheduler, steps, canvas.device)
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        noise = canvas.noise(generators) * getattr(scheduler, "init_noise_sigma", 1.0)

        def after_step(number: int, step: Any, latents: torch.Tensor) -> torch.Tensor:
            if on_step is not None:
                on_step(number + 1)
            return latents

        latents = canvas.sample(scheduler, noise, generators, after_step)
        waves, packed = decode(denoiser, latents)[:, :samples], latents.float().cpu().numpy()
        return [Clip(np.ascontiguousarray(wave), self.rate, row) for wave, row in zip(waves, packed, strict=True)]


class BaselineModel:
    """A `Model` around one of diffusers' own text-to-audio pipelines; clips are mono, the mean of its channels.

    `seconds` is the length of a clip; None leaves it to the pipeline.
    """

    def __init__(self, name: str, pipeline: Any, seconds: float | None = None) -> None:
        self.name, self.pipeline, self.seconds = name, pipeline, seconds
        vocoder = getattr(pipeline, "vocoder", None)
        self.rate: int = pipeline.vae.sampling_rate if vocoder is None else vocoder.config.sampling_rate
        pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], on_step: OnStep | None = None, negative: str = "") -> list[Clip]:
        """One clip per request, float32, from its own words, steps and guidance, and noise drawn on the CPU."""
        more: dict[str, Any] = {"negative_prompt": negative} if negative else {}
        if self.seconds is not None:
            more[LENGTHS[type(self.pipeline).__name__]] = self.seconds
        clips = []
        for request in requests:
            audio = self.pipeline(
                request.words,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                num_waveforms_per_prompt=1,
                generator=torch.Generator().manual_seed(request.seed),
                **more,
            ).audios[0]
            wave = np.asarray(audio.float().cpu() if isinstance(audio, torch.Tensor) else audio, dtype=np.float32)
            clips.append(Clip(np.ascontiguousarray(wave.mean(axis=0) if wave.ndim == 2 else wave), self.rate))
        return clips


def generator_of(name: str, denoiser: Denoiser) -> "TangoModel | DenoiserModel":
    """A model that generates with the weights that a denoiser has at the moment of each call."""
    return TangoModel(name, denoiser.pipe) if isinstance(denoiser, TangoDenoiser) else DenoiserModel(name, denoiser)


def shared_sampling(requests: Sequence[Request]) -> tuple[int, float]:
    """The steps and the guidance of all requests; RecipeError when they differ."""
    settings = {(request.steps, request.guidance) for request in requests}
    if len(settings) != 1:
        raise RecipeError("requests of one batch must share their steps and guidance")
    return settings.pop()


def baseline_class(folder: Path) -> str | None:
    """The class of the pipeline in a folder, where it is one of `LENGTHS`; None for any other folder."""
    try:
        name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if name in LENGTHS else None


def baseline_sampling(kind: str) -> tuple[int, float]:
    """The default steps and guidance of a baseline's pipeline."""
    parameters = inspect.signature(_diffusers(kind).__call__).parameters
    return parameters["num_inference_steps"].default, parameters["guidance_scale"].default


def load_baseline(
    name: str, folder: Path, seconds: float | None = None, dtype: torch.dtype = torch.float32
) -> BaselineModel:
    """The baseline of a folder in diffusers' layout, on the CPU.

    Raises CheckpointError naming the folder and what is wrong with it.
    """
    kind = baseline_class(folder)
    if kind is None:
        raise CheckpointError(f"{folder} holds none of {', '.join(LENGTHS)}: its model_index.json names no such class")
    try:
        pipeline = _diffusers(kind).from_pretrained(folder, local_files_only=True, torch_dtype=dtype)
    except Exception as error:  # diffusers, transformers, safetensors and the Rust tokenizers raise their own
        raise CheckpointError(f"{folder} holds no usable {kind}: {brief(error)}") from None
    return BaselineModel(name, pipeline, seconds)


def _diffusers(kind: str) -> Any:
    import diffusers

    return getattr(diffusers, kind)
