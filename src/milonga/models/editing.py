"""Editing and long clips without training, for any `Denoiser` and any of its samplers.

A canvas is latents of any length, denoised in windows of the trained length whose predictions are averaged where they
overlap (MultiDiffusion, Bar-Tal et al. 2023). A region is repainted as in RePaint (Lugmayr et al. 2022): what is known
is noised again at every step. Only the region and a splice of 15 ms beside it are taken from the canvas, so all other
samples of the input stay as they are.
"""

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milonga.core.audio import resample
from milonga.core.errors import AudioError, RecipeError
from milonga.core.records import Clip
from milonga.maths.mel import fit
from milonga.models.denoiser import ALWAYS, Conditioning, Denoiser, TimelinePart
from milonga.models.schedulers import check_guidance, model_input, noise_share, prepare_scheduler, takes_generator

OnLatents = Callable[[int, Any, Tensor], Tensor]
SPLICE = 0.015  # seconds of crossfade at each end of a region: a shorter one clicks, a longer one blurs an onset
SEAM = 0.5  # seconds that are repainted where a loop's end meets its beginning
RAMP = 2  # latent rows beside a region that are let go one after the other towards the end
RESAMPLE = 2  # times that a step in the noisy half is taken, so that region and surroundings agree (RePaint, Alg. 1)
STRENGTH = 0.6  # of an edit of the whole clip: on nano the least at which the words' sound takes over
ROWS_PER_PASS = 16  # of a batch that passes the network; results do not depend on it
TIMELINE_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*s?\s+(.+?)\s*", re.DOTALL)
HANDOVER = 16  # exponent of the windows' weights in waveforms: there they change over within one row


@dataclass(frozen=True)
class Window:
    """Rows `start`, `start` + 1, … of a canvas, each with a weight, and the number of the span whose words it has."""

    start: int
    span: int
    weight: Tensor


def windows_over(rows: int, size: int, spans: Sequence[tuple[int, int]], power: int = 1, fine: int = 1) -> list[Window]:
    """Half-overlapping windows of `size` rows over each span of a canvas of `rows`; in every row weights sum to 1.

    A weight is a triangle over the window, to a `power`, and 0 outside the window's span; it has `fine` values a row.
    The spans cover the canvas. Their number, and so the cost, grows linearly with the rows.
    """
    places = (torch.arange(size * fine, dtype=torch.float64) + 0.5) / fine
    triangle = (1 - (2 * places / size - 1).abs()) ** power
    layout, total = [], torch.zeros(rows * fine, dtype=torch.float64)
    for span, (first, last) in enumerate(spans):
        count = 1 + max(0, math.ceil((last - first - size) / (size / 2)))
        begin, end = (first, last - size) if count > 1 else ((first + last - size) // 2,) * 2
        for start in np.linspace(begin, end, count).round().astype(int).clip(0, rows - size).tolist():
            inside = (places + start >= first) & (places + start < last)
            layout.append(Window(start, span, triangle * inside))
            total[start * fine : (start + size) * fine] += layout[-1].weight
    return [
        Window(window.start, window.span, (window.weight / total[window.start * fine :][: size * fine]).float())
        for window in layout
    ]


class Canvas:
    """Latents of B clips of any number of rows, as a denoiser of a fixed length sees them.

    `words` and `negative`, B each, are what a clip is guided to and away from. The parts of a `timeline` hold in the
    place of the words, for all clips. `seconds` is the length that a model is told which is told one (None: that of all
    rows), and at most its trained length, which is what it sees. Raises RecipeError for a guidance, an interval or
    parts that make no sense.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        rows: int,
        words: Sequence[str],
        negative: Sequence[str],
        guidance: float,
        interval: tuple[float, float] = ALWAYS,
        timeline: Sequence[TimelinePart] = (),
        seconds: float | None = None,
    ) -> None:
        check_guidance(guidance, interval)
        self.denoiser, self.guidance, self.interval = denoiser, guidance, interval
        parameter = next(denoiser.module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.axis, self.size = denoiser.time_axis + 1, min(rows, denoiser.latent_shape[denoiser.time_axis])
        self.shape = list(denoiser.latent_shape)
        self.shape[denoiser.time_axis] = rows
        parts = [[text] * len(words) for *_, text in timeline] or [words]
        row = samples_per_row(denoiser) / denoiser.sampling_rate
        edges = [*(min(rows, round(part[0] / row)) for part in timeline or [(0.0,)]), rows]
        if any(last <= first for first, last in pairwise(edges)):
            raise RecipeError(f"a part of a timeline must be longer than {row:g} s with this model")
        self.windows = windows_over(rows, self.size, list(pairwise(edges)))
        length = [min(self.size * row, rows * row if seconds is None else seconds)] * len(words)
        self.words = [denoiser.encode_text(part).with_seconds(length).to(self.device) for part in parts]
        self.against: list[Conditioning] | None = None
        if getattr(denoiser, "guidance_input", False):  # distilled: it is told the scale, and needs no second pass
            if any(negative) or interval != ALWAYS:
                raise RecipeError("a distilled model has no second pass: leave negative prompt and interval out")
            self.words = [part.with_guidance(guidance) for part in self.words]
        elif guidance > 1:
            self.against = [_against(denoiser, negative, part).with_seconds(length).to(self.device) for part in parts]

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Noise (B, *shape), float32, each clip's from its own generator, drawn on the CPU."""
        return torch.stack([torch.randn(self.shape, generator=stream) for stream in generators]).to(self.device)

    def along(self, values: Tensor) -> Tensor:
        """One value a row (rows,), shaped to multiply latents."""
        return values.to(self.device).reshape([-1 if place == self.axis else 1 for place in range(len(self.shape) + 1)])

    def predict(self, latents: Tensor, step: Tensor, share: float) -> Tensor:
        """The guided prediction (B, *shape), float32: the weighted mean of the windows' in every row."""
        guided = self.against is not None and self.interval[0] < share <= self.interval[1]
        total, count = torch.zeros_like(latents), max(1, ROWS_PER_PASS // (len(latents) * (1 + guided)))
        for first in range(0, len(self.windows), count):
            group = self.windows[first : first + count]
            noisy = torch.cat([latents.narrow(self.axis, window.start, self.size) for window in group]).to(self.dtype)
            words = Conditioning.concat([self.words[window.span] for window in group])
            if guided and self.against is not None:
                noisy = torch.cat([noisy] * 2)
                words = Conditioning.concat([*(self.against[window.span] for window in group), words])
            prediction = self.denoiser.predict(noisy, step.expand(len(noisy)).to(self.device), words).float()
            if guided:  # classifier-free guidance: u + g·(c − u)
                unguided, conditioned = prediction.chunk(2)
                prediction = unguided + self.guidance * (conditioned - unguided)
            for window, part in zip(group, prediction.chunk(len(group)), strict=True):
                total.narrow(self.axis, window.start, self.size).add_(part * self.along(window.weight))
        return total

    @torch.no_grad()
    def sample(
        self,
        scheduler: Any,
        latents: Tensor,
        generators: Any,
        on_step: OnLatents | None = None,
        start: int = 0,
        known: Tensor | None = None,
        free: Tensor | None = None,
    ) -> Tensor:
        """Denoised latents of noisy ones at the scheduler's step `start`.

        Rows of `known` clean latents are noised again after every step where the noise's share of the schedule is at
        least `free` (rows,): always where that is 0, never where it is 1. Steps in the noisy half are then taken
        `RESAMPLE` times. `on_step` is given the number of the step, its timestep and the latents, and returns those
        that the next step starts from.
        """
        module, training = self.denoiser.module, self.denoiser.module.training
        module.eval()
        levels = noise_levels(scheduler, self.denoiser.process)
        more = {"generator": generators} if takes_generator(scheduler) else {}
        for number, step in list(enumerate(scheduler.timesteps))[start:]:
            share, (signal, spread), (cleaner, rest) = noise_share(scheduler, step), levels[number], levels[number + 1]
            next_share = noise_share(scheduler, scheduler.timesteps[number + 1]) if number + 1 < len(levels) - 1 else 0
            times = RESAMPLE if known is not None and share > 0.5 and signal > 0 else 1
            for again in range(times):
                before = _snapshot(scheduler) if again + 1 < times else scheduler
                prediction = self.predict(model_input(scheduler, latents, step), step, share)
                latents = scheduler.step(prediction, step, latents, **more).prev_sample
                if known is not None and free is not None:
                    noised = cleaner * known + rest * self.noise(generators) if rest else known
                    latents = torch.where(self.along(free) <= next_share, noised, latents)
                if again + 1 < times:  # back to the noise before this step
                    ratio = signal / cleaner
                    fresh = math.sqrt(max(0.0, spread**2 - (ratio * rest) ** 2))
                    latents = ratio * latents + fresh * self.noise(generators)
                scheduler = before
            latents = latents if on_step is None else on_step(number, step, latents)
        module.train(training)
        return latents


def _snapshot(scheduler: Any) -> Any:
    """A scheduler as it is before a step; a source of noise, which gives the same at every time, is shared."""
    before = copy.copy(scheduler)
    for name, value in list(vars(before).items()):
        if isinstance(value, list):
            setattr(before, name, list(value))
    return before


def _against(denoiser: Any, negative: Sequence[str], words: Sequence[str]) -> Conditioning:
    """What `words` are guided away from, by the model's own rule where it has one."""
    if hasattr(denoiser, "encode_against"):
        return denoiser.encode_against(list(negative), list(words))
    return denoiser.encode_text(list(negative))


def noise_levels(scheduler: Any, process: Any) -> list[tuple[float, float]]:
    """How much of latents and of noise there is at each of a scheduler's timesteps, and (1, 0) after the last."""
    if process.prediction == "flow_prediction":
        return [(1 - sigma, sigma) for sigma in scheduler.sigmas.tolist()]
    if process.times is not None:  # its sampler's latents are x + σ·noise, scaled for the network alone
        return [(1.0, sigma) for sigma in scheduler.sigmas.tolist()]
    alphas = process.alphas_cumprod[scheduler.timesteps.long().cpu()].double().tolist()
    return [*((math.sqrt(alpha), math.sqrt(1 - alpha)) for alpha in alphas), (1.0, 0.0)]


def editable_denoiser(model: Any) -> Denoiser:
    """The denoiser that a model edits by; RecipeError for a model that runs by a pipeline of its own."""
    if not hasattr(model, "denoiser"):
        raise RecipeError(f"{model.name} runs by a pipeline of its own: it generates clips and cannot edit them")
    return model.denoiser


def samples_per_row(denoiser: Denoiser) -> int:
    """Samples of a waveform for each row of latents."""
    silence = Clip(np.zeros(denoiser.sampling_rate, np.float32), denoiser.sampling_rate)
    return denoiser.prepare_waveform(silence).shape[-1] // denoiser.latent_shape[denoiser.time_axis]


def encode(denoiser: Denoiser, wave: np.ndarray) -> tuple[Tensor, float]:
    """Scaled latents (*shape) of a waveform of whole rows at the denoiser's rate, and the gain that it is trained at.

    The gain is that of the loudest window, so a long waveform has one. The latents are the posterior's means.
    """
    axis, hop, rate = denoiser.time_axis, samples_per_row(denoiser), denoiser.sampling_rate
    size, rows = denoiser.latent_shape[axis], len(wave) // hop
    windows = windows_over(rows, size, [(0, rows)])
    parts = [wave[window.start * hop : (window.start + size) * hop].astype(np.float32) for window in windows]
    prepared, gains = [denoiser.prepare_waveform(Clip(part, rate)) for part in parts], []
    for part, own in zip(parts, prepared, strict=True):
        energy = float(part @ part)
        scale = float(part @ own.reshape(-1, len(part))[0].numpy()) / energy if energy else 0.0
        gains += [scale] if scale > 0 else []
    gain = min(gains, default=1.0)
    shape = prepared[0].shape  # a model of several channels gets the same in all of them
    posterior = denoiser.encode_audio([torch.from_numpy(part * np.float32(gain)).expand(shape) for part in parts])
    shape = list(denoiser.latent_shape)
    shape[axis] = rows
    latents = torch.zeros(shape)
    for window, mean in zip(windows, posterior.mean.float() * posterior.scale, strict=True):
        weight = window.weight.reshape([-1 if place == axis else 1 for place in range(len(shape))])
        latents.narrow(axis, window.start, size).add_(mean * weight)
    return latents, gain


@torch.no_grad()
def decode(denoiser: Denoiser, latents: Tensor) -> np.ndarray:
    """Waveforms (B, samples) or (B, channels, samples) of latents (B, …) of any length: windows follow each other
    with a crossfade of a row.
    """
    axis, hop = denoiser.time_axis, samples_per_row(denoiser)
    rows = latents.shape[axis + 1]
    size = min(rows, denoiser.latent_shape[axis])
    waves = np.zeros(0, np.float32)
    for window in windows_over(rows, size, [(0, rows)], HANDOVER, hop):
        part = denoiser.decode(latents.narrow(axis + 1, window.start, size)).float().cpu().numpy()
        waves = waves if waves.size else np.zeros((*part.shape[:-1], rows * hop), np.float32)
        waves[..., window.start * hop :][..., : size * hop] += part * window.weight.numpy()
    return waves


def edit(
    denoiser: Denoiser,
    samples: np.ndarray,
    rate: int,
    prompt: str,
    *,
    steps: int,
    guidance: float,
    seeds: Sequence[int] = (0,),
    negative: str = "",
    region: tuple[float, float] | None = None,
    extend: float | None = None,
    loop: bool = False,
    strength: float | None = None,
    on_step: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Edited audio (B, samples, channels), float64, one for each seed, of `samples` (samples, channels) at a `rate`.

    One of `region` (seconds from and to: repainted in its surroundings), `extend` (seconds added at the end) and `loop`
    (0.5 s around the seam are repainted, so that the end leads into the beginning) leaves all samples equal to the
    input's but for the region and a splice of 15 ms beside it. Without them the whole clip is edited. `strength` is the
    share of the noise that the edit starts from: 0 is the input itself; by default 1, for a whole clip 0.6. `steps` are
    taken at any strength. All channels get the same new sound. Raises RecipeError for what cannot be edited so.
    """
    whole = region is None and extend is None and not loop
    strength = (STRENGTH if whole else 1.0) if strength is None else strength
    hop, axis, model_rate = samples_per_row(denoiser), denoiser.time_axis, denoiser.sampling_rate
    samples, first, last, shift = _placed(samples, rate, hop / model_rate, region, extend, loop, strength)
    if not strength:
        return np.stack([np.roll(samples, -shift, axis=0)] * len(seeds))
    per_row, size = hop * rate / model_rate, denoiser.latent_shape[axis]
    begin, end, total = math.floor(first / per_row), math.ceil(last / per_row), math.ceil(len(samples) / per_row)
    wanted = max(size, end - begin + size // 4)  # an eighth of a window on each side at the least
    top = min(max(0, (begin + end - wanted) // 2), max(0, total - wanted))
    rows = max(size, min(wanted, total - top))
    offset, stop = round(top * per_row), round((top + rows) * per_row)
    context = Clip(samples[offset:stop].mean(axis=1).astype(np.float32), rate)
    wave = resample(context, model_rate).waveform
    mean = wave.mean()
    known, gain = encode(denoiser, fit(wave - mean, rows * hop))

    canvas = Canvas(denoiser, rows, [prompt] * len(seeds), [negative] * len(seeds), guidance)
    count = max(steps, min(len(denoiser.process), round(steps / strength)))
    scheduler = prepare_scheduler(denoiser.process.scheduler, count, canvas.device)
    start = count - max(1, round(strength * count))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    row = torch.arange(rows)
    distance = torch.maximum(begin - top - row, row - (end - top) + 1).clamp(min=0)
    free = (1 - distance / (RAMP + 1)).clamp(min=0)
    clean, (signal, spread) = known.to(canvas.device)[None], noise_levels(scheduler, denoiser.process)[start]
    origin = clean if strength < 1 else torch.where(canvas.along(free) < 1, clean, 0)
    latents = canvas.sample(
        scheduler,
        signal * origin + spread * canvas.noise(generators),
        generators,
        lambda number, _, latents: _reported(on_step, number + 1 - start, latents),
        start,
        None if whole else clean,
        free,
    )
    edited = []
    for wave in decode(denoiser, latents):
        wave = wave if wave.ndim == 1 else wave.mean(axis=0)
        patch = resample(Clip(wave / np.float32(gain) + mean, model_rate), rate).waveform
        edited.append(_spliced(samples, fit(patch, stop - offset), offset, first, last, round(SPLICE * rate)))
    return np.roll(np.stack(edited), -shift, axis=1) if shift else np.stack(edited)


def _placed(
    samples: np.ndarray,
    rate: int,
    row: float,
    region: tuple[float, float] | None,
    extend: float | None,
    loop: bool,
    strength: float,
) -> tuple[np.ndarray, int, int, int]:
    """Samples, float64, the first and the end of those to be made anew, and by how many the samples are rolled.

    `row` are the seconds of a row of latents, the least that is repainted.
    """
    length, shift = len(samples), 0
    if samples.ndim != 2 or not length:
        raise AudioError(f"audio to edit has the shape (samples, channels), not {samples.shape}")
    if (region is not None) + (extend is not None) + bool(loop) > 1:
        raise RecipeError("an edit is one of region, continuation and loop: leave the others out")
    if not 0 <= strength <= 1:
        raise RecipeError(f"strength must be between 0 and 1, not {strength:g}")
    if extend is not None and not (0 < extend < math.inf and strength == 1):
        raise RecipeError(f"a continuation has more than 0 s and the strength 1, not {extend:g} s and {strength:g}")
    samples = samples.astype(np.float64, copy=False)
    if extend is not None:
        samples = np.concatenate([samples, np.zeros((round(extend * rate), samples.shape[1]))])
        region = length / rate, len(samples) / rate
    elif loop:
        if length <= 2 * SEAM * rate:
            raise RecipeError(
                f"a clip of {length / rate:g} s is too short for a loop: it needs more than {2 * SEAM:g} s"
            )
        shift = length // 2
        samples, region = np.roll(samples, shift, axis=0), (shift / rate - SEAM / 2, shift / rate + SEAM / 2)
    if region is None:
        return samples, 0, length, 0
    if not 0 <= region[0] < region[1] <= len(samples) / rate:
        raise RecipeError(f"region {region[0]:g}-{region[1]:g} s is not inside the clip, which has {length / rate:g} s")
    first, last = round(region[0] * rate), round(region[1] * rate)
    if last - first < round(row * rate):
        raise RecipeError(f"{region[1] - region[0]:g} s are too short to repaint: this model needs {row:g} s at least")
    if last - first == len(samples):
        raise RecipeError("the region is the whole clip: leave it out, and choose a strength instead")
    return samples, first, last, shift


def _reported(on_step: Callable[[int], None] | None, done: int, latents: Tensor) -> Tensor:
    if on_step is not None:
        on_step(done)
    return latents


def _spliced(samples: np.ndarray, patch: np.ndarray, offset: int, first: int, last: int, fade: int) -> np.ndarray:
    """Samples with those from `first` to `last` of a patch (samples,) that begins at `offset`, in all channels.

    Beside them old and new crossfade at equal power: a vocoder's phases are not the input's.
    """
    new, edited = patch[:, None].astype(np.float64), samples.copy()
    edited[first:last] = new[first - offset : last - offset]
    for begin, end, rising in ((max(0, first - fade), first, True), (last, min(len(samples), last + fade), False)):
        angle = (np.arange(end - begin) + 0.5) / max(1, end - begin) * (np.pi / 2)
        inner, outer = (np.sin(angle), np.cos(angle)) if rising else (np.cos(angle), np.sin(angle))
        old = samples[begin:end]
        edited[begin:end] = outer[:, None] * old + inner[:, None] * new[begin - offset : end - offset]
    return edited


def parse_timeline(text: str) -> list[tuple[float, float, str]]:
    """The parts of "0-4 rain; 4-10 thunder": seconds from and to, and their words.

    Raises RecipeError where a part cannot be read, or does not begin where the one before ends.
    """
    parts: list[tuple[float, float, str]] = []
    for piece in text.split(";"):
        match = TIMELINE_PART.fullmatch(piece)
        first, last, words = (float(match[1]), float(match[2]), match[3].strip()) if match else (0.0, 0.0, "")
        if not match or not words or first != (parts[-1][1] if parts else 0.0) or last <= first:
            raise RecipeError(
                f"timeline: {piece.strip()!r} is not read: write '0-4 rain; 4-10 thunder', each part from where the "
                "one before ends"
            )
        parts.append((first, last, words))
    return parts
