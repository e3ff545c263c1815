"""`TangoPipeline`: text in, sound out, as the paper's §3.1 draws it, from stock parts of diffusers and transformers.

How it departs from the original code: every clip has a seed of its own and is the same alone or in a batch; a request
for `n` clips returns `n` clips; the duration is a parameter; every text is encoded once; latents are float32 whatever
the networks' type; output is float and never wraps. Training is not here: see `tango_denoiser` and `milonga.training`.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from milonga.core.deferred import deferred_imports
from milonga.core.errors import DataError, MilongaWarning, RecipeError
from milonga.core.ids import clip_seed
from milonga.maths.devices import autocast, has_weights, where
from milonga.maths.mel import MelSettings
from milonga.models.denoiser import ALWAYS, Precision, TimelinePart
from milonga.models.schedulers import (
    check_guidance,
    model_input,
    noise_share,
    prepare_scheduler,
    scheduler_named,
    takes_generator,
)

with deferred_imports():
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.pipelines.pipeline_utils import AudioPipelineOutput, DiffusionPipeline
    from diffusers.utils.torch_utils import randn_tensor
    from transformers import PreTrainedTokenizerBase, SpeechT5HifiGan, T5EncoderModel

StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
MAX_TOKENS = 512  # of a text: what the original cuts at


class TangoPipeline(DiffusionPipeline):
    """Tango (§3.1): T5 encodes the words, a U-Net denoises latents guided by them, a VAE and a HiFi-GAN make sound.

    `seconds` is the trained duration; `steps` and `guidance` are what the model is best sampled with, for those who
    name none. Latents are (B, C, T/r, F/r) with time as height and mel bands as width.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae->vocoder"
    _callback_tensor_inputs = ("latents", "prompt_embeds", "prompt_mask")
    precision: Precision = "fp32"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: T5EncoderModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        vocoder: SpeechT5HifiGan,
        scheduler: Any,
        seconds: float = 10.24,
        steps: int = 200,
        guidance: float = 3.0,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, unet=unet, vae=vae, vocoder=vocoder, scheduler=scheduler
        )
        self.register_to_config(seconds=seconds, steps=steps, guidance=guidance)

    @property
    def device(self) -> torch.device:
        """The device of the networks; those that are shapes alone do not count."""
        networks = (self.unet, self.text_encoder, self.vae, self.vocoder)
        return where(next(filter(has_weights, networks), self.unet))

    def _device_of(self, network: torch.nn.Module) -> torch.device:
        """Where a network computes: where it is, or where a hook of diffusers' offloading brings it."""
        offloaded = hasattr(network, "_hf_hook") or hasattr(network, "_diffusers_hook")
        return self._execution_device if offloaded else where(network)

    @property
    def sampling_rate(self) -> int:
        """The sampling rate of what comes out, in Hz."""
        return self.vocoder.config.sampling_rate

    @property
    def hop(self) -> int:
        """Samples per mel frame: the product of the vocoder's upsampling rates."""
        return math.prod(self.vocoder.config.upsample_rates)

    @property
    def compression(self) -> int:
        """r of §3.1.3: mel frames (and bands) per latent row (and column)."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, seconds: float) -> tuple[int, int, int]:
        """(C, T/r, F/r) of a clip of at least `seconds`: the time is rounded up to the VAE's stride.

        Raises RecipeError when `seconds` is not positive and finite, or is less than a sample.
        """
        if not 0 < seconds < math.inf or not round(seconds * self.sampling_rate):
            raise RecipeError(f"a clip must have a sample and be longer than 0 s, not {seconds} s")
        rows = math.ceil(round(seconds * self.sampling_rate) / self.hop / self.compression)
        return self.unet.config.out_channels, rows, self.vocoder.config.model_in_dim // self.compression

    def set_scheduler(self, scheduler: str) -> "TangoPipeline":
        """Takes another scheduler by its name in `schedules.SCHEDULERS`, with this model's noise schedule.

        Raises RecipeError for an unknown name.
        """
        self.scheduler = scheduler_named(scheduler, self.scheduler.config)
        return self

    def set_precision(self, precision: str) -> "TangoPipeline":
        """Samples in "fp32", "bf16" (the U-Net's products; weights and latents stay float32) or "auto": whichever this
        machine was measured to be faster in (`choose_precision`). Raises RecipeError for another name.
        """
        from milonga.models.tango_denoiser import choose_precision

        if precision not in ("auto", "fp32", "bf16"):
            raise RecipeError(f"precision must be auto, fp32 or bf16, not {precision!r}")
        self.precision = choose_precision(self.unet, self.latent_shape(self.config["seconds"]), precision)
        return self

    @torch.no_grad()
    def encode_prompt(self, words: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """τ of §3.1.1: hidden states (B, L, D) and boolean mask (B, L) of texts, padded to the longest.

        Each different text is encoded once. Of a text only the first 512 tokens are used, as in the original; a
        MilongaWarning says how many are left out, or that a text is longer than those that the model was trained on.
        Raises DataError for anything that is not a string.
        """
        if not all(isinstance(text, str) for text in words):
            raise DataError("a prompt must be text")
        unique = list(dict.fromkeys(words))
        tokens = self.tokenizer(
            unique, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt", verbose=False
        )
        self._warn_of_long(unique, tokens.attention_mask.sum(1).tolist())
        device = self._device_of(self.text_encoder)
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        states = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = torch.tensor([unique.index(text) for text in words], device=states.device)
        return states[rows].to(self.unet.dtype), mask[rows].bool()

    def _warn_of_long(self, texts: Sequence[str], lengths: Sequence[int]) -> None:
        trained = min(self.tokenizer.model_max_length, MAX_TOKENS)
        for text, length in zip(texts, lengths, strict=True):
            if length >= MAX_TOKENS:
                length = len(self.tokenizer(text, verbose=False).input_ids)
            if length > MAX_TOKENS:
                effect = f"the last {length - MAX_TOKENS} have no effect"
            elif length > trained:
                effect = f"this model was trained on {trained} at most"
            else:
                continue
            warnings.warn(f"{text[:40]!r}… has {length} tokens: {effect}", MilongaWarning, stacklevel=3)

    @torch.no_grad()
    def sample(
        self,
        words: Sequence[str],
        seeds: Sequence[int] | None,
        steps: int,
        guidance: float,
        seconds: float | None = None,
        negative: str | Sequence[str] = "",
        latents: torch.Tensor | None = None,
        generator: Any = None,
        callback: StepCallback | None = None,
        interval: tuple[float, float] = ALWAYS,
        watched: Sequence[str] = ("latents",),
        timeline: Sequence[TimelinePart] = (),
    ) -> torch.Tensor:
        """Denoised, scaled latents (B, C, T/r, F/r) of B texts, in float32.

        Beyond the trained length, or with the parts of a `timeline` in the place of the texts, they are denoised in
        overlapping windows (`editing.Canvas`).

        Every clip's noise comes from its own seed, on the CPU and in float32. Guidance at or below 1 runs the U-Net on
        half as much, as a distilled one always runs, and so does a step outside `interval`, whose ends are shares of
        the schedule from no noise (0) to all of it (1) (Kynkäänniemi et al. 2024). A callback is given the tensors that
        it watches and returns those that the next step starts from. Raises RecipeError for steps, guidance or latents
        that do not fit.
        """
        from milonga.models.tango_denoiser import guidance_embedding, takes_guidance

        check_guidance(guidance, interval)
        scheduler = prepare_scheduler(self.scheduler, steps, self._execution_device)
        noise = generator if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
        noise_latents = self._initial(len(words), seconds, latents, noise) * getattr(scheduler, "init_noise_sigma", 1.0)
        against = [negative] * len(words) if isinstance(negative, str) else list(negative)
        extra = {"generator": noise} if takes_generator(scheduler) else {}
        if timeline or noise_latents.shape[2] > self.latent_shape(self.config["seconds"])[1]:
            from milonga.models.editing import Canvas
            from milonga.models.tango_denoiser import TangoDenoiser

            if set(watched) - {"latents"}:
                raise RecipeError("beyond the trained length a callback can be given the latents alone")
            rows, denoiser = noise_latents.shape[2], TangoDenoiser.of(self)
            canvas = Canvas(denoiser, rows, words, against, guidance, interval, timeline)
            with self.progress_bar(total=steps) as bar:  # pyright: ignore[reportCallIssue]

                def after_step(number: int, step: Any, current: torch.Tensor) -> torch.Tensor:
                    bar.update()
                    changed = {} if callback is None else callback(self, number, step, {"latents": current})
                    return changed.get("latents", current)

                return canvas.sample(scheduler, noise_latents, noise, after_step)
        scale, twice = None, guidance > 1
        if takes_guidance(self.unet):  # distilled: it is told the scale, and needs no second pass
            if any(against) or interval != ALWAYS:
                raise RecipeError("a distilled model has no second pass: leave negative prompt and interval out")
            scales = torch.full((len(words),), float(guidance), device=self._execution_device)
            scale, twice = guidance_embedding(scales, self.unet.config.time_cond_proj_dim).to(self.unet.dtype), False
        text = self.encode_prompt([*against, *words] if twice else words)  # the batch that guidance halves
        held = {"latents": noise_latents, "prompt_embeds": text[0], "prompt_mask": text[1]}
        with self.progress_bar(total=steps) as bar:  # pyright: ignore[reportCallIssue]
            for number, step in enumerate(scheduler.timesteps):
                inputs = model_input(scheduler, held["latents"], step)
                guided = twice and interval[0] < noise_share(scheduler, step) <= interval[1]
                rows = slice(None) if guided else slice(-len(inputs), None)  # the conditional half alone
                with autocast(inputs.device, self.precision):
                    prediction = self.unet(
                        (torch.cat([inputs] * 2) if guided else inputs).to(self.unet.dtype),
                        step,
                        encoder_hidden_states=held["prompt_embeds"][rows],
                        encoder_attention_mask=held["prompt_mask"][rows],
                        timestep_cond=scale,
                    ).sample.float()
                if guided:  # classifier-free guidance: u + g·(c − u)
                    unguided, conditioned = prediction.chunk(2)
                    prediction = unguided + guidance * (conditioned - unguided)
                held["latents"] = scheduler.step(prediction, step, held["latents"], **extra).prev_sample
                if callback is not None:
                    held |= callback(self, number, step, {name: held[name] for name in watched})
                bar.update()
        return held["latents"]

    def _initial(self, count: int, seconds: float | None, given: torch.Tensor | None, noise: Any) -> torch.Tensor:
        shape = (count, *self.latent_shape(self.config["seconds"] if seconds is None else seconds))
        if given is None:
            return randn_tensor(shape, noise, self._execution_device, torch.float32)
        if tuple(given.shape) != shape:
            raise RecipeError(f"latents must have the shape {shape}, not {tuple(given.shape)}")
        return given.to(self._execution_device, torch.float32)

    @property
    def mel_config(self) -> MelSettings:
        """The mel front end that the VAE and the vocoder were trained on."""
        return MelSettings(rate=self.sampling_rate, hop=self.hop, bands=self.vocoder.config.model_in_dim)

    def _mels(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """Log-mel pictures (b, frames, bands) of scaled latents, part by part.

        A CPU decodes clip by clip: a batch's pictures and waveforms leave its cache, and take twice as long.
        """
        scaled = latents.to(self._device_of(self.vae), self.vae.dtype) / self.vae.config.scaling_factor
        parts = scaled.split(1 if scaled.device.type == "cpu" else len(scaled))
        return [self.vae.decode(part).sample.squeeze(1).to(self.vocoder.dtype) for part in parts]

    def waveforms(self, latents: torch.Tensor, seconds: float | None = None) -> torch.Tensor:
        """Waveforms (B, samples), float32 on the CPU, of scaled latents, with gradients where they are enabled."""
        waves = torch.cat([self.vocoder(mel).reshape(len(mel), -1) for mel in self._mels(latents)])
        length = self.config["seconds"] if seconds is None else seconds
        return waves[:, : round(length * self.sampling_rate)].float().cpu()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, seconds: float | None = None) -> torch.Tensor:
        """Waveforms (B, samples), float32 on the CPU, of scaled latents; trimmed to `seconds`."""
        return self.waveforms(latents, seconds)

    @torch.no_grad()
    def decode_mels(self, latents: torch.Tensor, seconds: float | None = None) -> torch.Tensor:
        """Log-mel pictures (B, frames, bands) in `mel_config`, float32 on the CPU, of scaled latents: no vocoder.

        They are trimmed to the frames of a waveform of `seconds`.
        """
        length = self.config["seconds"] if seconds is None else seconds
        frames = round(length * self.sampling_rate) // self.hop
        return torch.cat(self._mels(latents))[:, :frames].float().cpu()

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        audio_length_in_s: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_waveforms_per_prompt: int = 1,
        generator: Any = None,
        seeds: int | Sequence[int] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "np",
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
        guidance_interval: tuple[float, float] = ALWAYS,
        timeline: str | None = None,
    ) -> AudioPipelineOutput | tuple:
        """Clips for one text or several, in the manner of diffusers' audio pipelines.

        A length beyond the trained one is generated in overlapping windows, at a cost that grows linearly. A `timeline`
        such as "0-4 rain; 4-10 thunder" stands in the place of prompt and length. `negative_prompt` is what clips are
        guided away from, in the place of the empty text.

        Returns audios of shape (B·n, samples), float32, the n of a prompt side by side; `output_type` "np", "pt" or
        "latent". `seeds` is one number, from which a clip's own derives with its prompt's text and its number among
        that prompt's clips (as in `milonga generate --seed`), or a number for each of the B·n clips; without it
        `generator` (one, or one a clip) decides. Raises DataError for an empty prompt, RecipeError for arguments that
        make no sense or do not fit.
        """
        from milonga.models.editing import parse_timeline

        if prompt is not None and timeline is not None:
            raise RecipeError("a timeline has its own words: leave the prompt out")
        parts = [] if timeline is None else parse_timeline(timeline)
        prompt = (timeline or "") if prompt is None else prompt
        words = repeated(prompt, num_waveforms_per_prompt)
        if output_type not in ("np", "pt", "latent"):
            raise RecipeError(f"output_type must be 'np', 'pt' or 'latent', not {output_type!r}")
        for name in callback_on_step_end_tensor_inputs:
            if name not in self._callback_tensor_inputs:
                raise RecipeError(f"a callback can be given {', '.join(self._callback_tensor_inputs)}, not {name!r}")
        against = _against(negative_prompt, prompt, num_waveforms_per_prompt)
        if parts and audio_length_in_s is not None:
            raise RecipeError("a timeline has its own length: leave audio_length_in_s out")
        length = parts[-1][1] if parts else audio_length_in_s
        steps = self.config["steps"] if num_inference_steps is None else num_inference_steps
        guidance = self.config["guidance"] if guidance_scale is None else guidance_scale
        own = clip_seeds(words, seeds, num_waveforms_per_prompt)
        sampled = self.sample(
            words, own, steps, guidance, length, against, latents, generator, callback_on_step_end,
            guidance_interval, callback_on_step_end_tensor_inputs, parts,
        )  # fmt: skip
        audios = sampled if output_type == "latent" else self.decode(sampled, length)
        result: Any = audios.numpy() if output_type == "np" else audios
        self.maybe_free_model_hooks()
        return AudioPipelineOutput(audios=result) if return_dict else (result,)

    def edit(
        self,
        audio: np.ndarray | str | Path,
        prompt: str = "",
        sampling_rate: int | None = None,
        *,
        region: tuple[float, float] | None = None,
        extend: float | None = None,
        loop: bool = False,
        strength: float | None = None,
        negative_prompt: str = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seeds: int | Sequence[int] = 0,
        num_waveforms: int = 1,
    ) -> AudioPipelineOutput:
        """Edited takes of a file, or of an array (samples,) or (samples, channels) at `sampling_rate` (its own here).

        `audios` has the takes, (n, samples) or (n, samples, channels), float64, at the input's rate. The edit is one of
        `region`, `extend` and `loop`, or one of the whole clip, with a `strength`: see `milonga.models.editing.edit`,
        which says what stays equal and what is raised. `seeds` is as in a call, or a number for each take.
        """
        from milonga.core.audio import read_samples
        from milonga.models.editing import edit
        from milonga.models.tango_denoiser import TangoDenoiser

        rate = sampling_rate or self.sampling_rate
        samples, rate = (audio, rate) if isinstance(audio, np.ndarray) else read_samples(Path(audio))[:2]
        own = clip_seeds([prompt] * num_waveforms, seeds, num_waveforms) or ()
        takes = edit(
            TangoDenoiser.of(self), samples[:, None] if samples.ndim == 1 else samples, rate, prompt,
            steps=self.config["steps"] if num_inference_steps is None else num_inference_steps,
            guidance=self.config["guidance"] if guidance_scale is None else guidance_scale,
            seeds=own, negative=negative_prompt, region=region, extend=extend, loop=loop, strength=strength,
        )  # fmt: skip
        self.maybe_free_model_hooks()
        audios: Any = takes[:, :, 0] if samples.ndim == 1 else takes
        return AudioPipelineOutput(audios=audios)


def repeated(prompt: str | Sequence[str], count: int) -> list[str]:
    """Each prompt `count` times over; DataError for an empty one or half a character, RecipeError for no clip."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
    if not prompts or any(not isinstance(text, str) or not text.strip() for text in prompts):
        raise DataError("the prompt is empty: describe a sound, for example 'a dog barks'")
    if any("\ud800" <= letter <= "\udfff" for text in prompts for letter in text):
        raise DataError("a prompt holds half a character (a lone surrogate): decode it as UTF-8")
    if count < 1:
        raise RecipeError(f"num_waveforms_per_prompt must be at least 1, not {count}")
    return [text for text in prompts for _ in range(count)]


def _against(negative: str | Sequence[str] | None, prompt: str | Sequence[str], count: int) -> str | list[str]:
    """What clips are guided away from: one text for all, or one for each prompt."""
    if negative is None or isinstance(negative, str):
        return negative or ""
    prompts = 1 if isinstance(prompt, str) else len(prompt)
    if len(negative) != prompts:
        raise RecipeError(f"{prompts} prompts need one negative prompt or as many, not {len(negative)}")
    return [text for text in negative for _ in range(count)]


def clip_seeds(words: Sequence[str], seeds: int | Sequence[int] | None, count: int) -> Sequence[int] | None:
    """A seed for each of `words`, of which `count` belong to one prompt, from a number or as many; None for None.

    Raises RecipeError for what is no seed, or another number of them.
    """
    numbers = [seeds] if isinstance(seeds, int | np.integer) else [] if seeds is None else list(seeds)
    for seed in numbers:
        if not isinstance(seed, int | np.integer) or not -(2**63) <= seed < 2**64:
            raise RecipeError(f"a seed is a whole number of at most 64 bits, not {seed!r}")
    if isinstance(seeds, int | np.integer):
        return [clip_seed(int(seeds), text, place % count) for place, text in enumerate(words)]
    if seeds is not None and len(seeds) != len(words):
        raise RecipeError(f"{len(words)} clips need as many seeds, not {len(seeds)}")
    return None if seeds is None else [int(seed) for seed in seeds]
