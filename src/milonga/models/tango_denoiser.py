"""Tango's U-Net behind the `Denoiser` protocol: T5 states in, latents of a mel VAE out; and its precision.

bfloat16 halves a pass on processors that multiply in it, and is slower than float32 on those that do not; on a CPU it
also decides which attention is faster. No list of processors says so: the network itself is timed on the machine once,
with the latents it is used for, and the fastest way is remembered.
"""

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from milonga.core.cache import cache_folder
from milonga.core.errors import StoreError
from milonga.core.ids import content_id
from milonga.core.store import read_json, write_json
from milonga.maths.devices import autocast
from milonga.models.denoiser import Conditioning, Network, Precision
from milonga.models.pipeline_denoiser import MelDenoiser

if TYPE_CHECKING:
    from milonga.models.tango import TangoPipeline

GUIDANCE_WIDTH = 256  # of a guidance scale's embedding, as in diffusers' distilled models
STUDENT_STEPS = 4  # that a distilled model is sampled with by default
# In a distilled U-Net's config: whether consistency was distilled. diffusers keeps what begins with "_" and ignores it.
CONSISTENT = "_consistent"
SMALL = 512  # positions of a latent up to which plain attention is faster in bfloat16 on a CPU
Choice = Literal["auto", "fp32", "bf16"]
GAIN = 1.1  # times that bfloat16 must be faster at the least: within noise the numbers of float32 are worth more
SLOW = 2.0  # seconds of a pass that is timed once; a faster one is repeated, and the fastest counts
REPEATS = 5
# Ways to pass: the precision, and whether attention is plain.
WAYS: dict[str, tuple[Precision, bool]] = {
    "fp32": ("fp32", False),
    "bf16": ("bf16", False),
    "bf16 plain": ("bf16", True),
}


def takes_guidance(unet: Any) -> bool:
    """Whether a U-Net has an input for the guidance scale."""
    return unet.config.get("time_cond_proj_dim") is not None


def guidance_embedding(guidance: Tensor, width: int) -> Tensor:
    """Sines and cosines (B, width) of guidance scales (B,), as diffusers' pipelines embed them: of a thousand times the
    scale less 1.
    """
    from diffusers.models.embeddings import get_timestep_embedding

    return get_timestep_embedding(1000 * (guidance.float() - 1), width, downscale_freq_shift=1)


def is_consistency_model(unet: Any) -> bool:
    """Whether a U-Net is a consistency model, which `lcm` samples; one with guidance distilled has any sampler."""
    return takes_guidance(unet) and unet.config.get(CONSISTENT, True)


def as_student(pipe: "TangoPipeline") -> None:
    """Sets the scheduler and the steps of a pipeline with a distilled U-Net."""
    pipe.set_scheduler("lcm" if is_consistency_model(pipe.unet) else "unipc").register_to_config(steps=STUDENT_STEPS)


class TangoDenoiser(MelDenoiser):
    """A `Denoiser` around a `UNet2DConditionModel` with cross-attention to text states."""

    frozen = ("text_encoder", "vae")

    @property
    def sampling(self) -> tuple[int, float]:  # type: ignore[override]
        """The steps and the guidance in the pipeline's config."""
        return self.pipe.config["steps"], self.pipe.config["guidance"]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, T/r, F/r) of a clip of the trained duration."""
        return self.pipe.latent_shape(self.pipe.config["seconds"])

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """T5's `states` (B, L, D) and `mask` (B, L) bool, padded to the longest caption."""
        states, mask = self.pipe.encode_prompt(captions)
        return Conditioning(states=states, mask=mask)

    def decode(self, latents: Tensor) -> Tensor:
        """Waveforms (B, samples), float32 on the CPU, by VAE and vocoder; gradients pass where they are enabled."""
        return self.pipe.waveforms(latents)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> Tensor:
        """The U-Net's answer, (B, C, H, W), in its own type."""
        unet = self.module if network is None else network
        states, mask = conditioning["states"], conditioning["mask"]
        scale = None
        if "guidance" in conditioning:
            scale = guidance_embedding(conditioning["guidance"], GUIDANCE_WIDTH).to(noisy.dtype)
        sampled_in = "fp32" if self._pipe is None or network is not None else self._pipe.precision
        with autocast(noisy.device, sampled_in):
            return unet(
                noisy, timesteps, encoder_hidden_states=states, encoder_attention_mask=mask, timestep_cond=scale
            ).sample

    @property
    def guidance_input(self) -> bool:
        """Whether the U-Net is told the guidance scale, as a distilled one is, and so needs no second pass for it."""
        return takes_guidance(self.module)

    def add_guidance_input(self, consistent: bool) -> None:
        """Gives the U-Net an input for the guidance scale (diffusers' `timestep_cond`), which has no effect yet, where
        it has none; and the sampler of what is distilled.
        """
        unet = self.module
        if not self.guidance_input:
            config = {
                key: value for key, value in unet.config.items() if not key.startswith("_")
            }  # those name defaults
            config["time_cond_proj_dim"] = GUIDANCE_WIDTH
            self.module = type(unet).from_config(config).to(unet.device).eval()
            if unet.dtype != self.module.dtype:
                self.module.to(unet.dtype)
            torch.nn.init.zeros_(self.module.time_embedding.cond_proj.weight)
            self.module.load_state_dict(unet.state_dict(), strict=False)
        self.module.register_to_config(**{CONSISTENT: consistent})
        if self._pipe is not None:
            self._pipe.register_modules(unet=self.module)
            as_student(self._pipe)

    def prepare(self, precision: Precision, shape: Sequence[int]) -> None:
        """Freezes what is not trained, and replaces torch's fused attention where it is slower: bfloat16 on a CPU with
        small latents.

        Its backward pass there costs some 12 ms a call however small the input, two fifths of nano's step (torch 2.13).
        Latents (C, H, W) = `shape` of Tango's own size are faster with it. The numbers agree up to rounding.
        """
        super().prepare(precision, shape)
        if precision == "bf16" and self.module.device.type == "cpu" and shape[1] * shape[2] <= SMALL:
            from diffusers.models.attention_processor import AttnProcessor

            self.module.set_attn_processor(AttnProcessor())


def choose_precision(unet: Any, shape: Sequence[int], choice: Choice = "auto") -> Precision:
    """The precision in which a U-Net passes latents of a `shape` (C, H, W), with its attention set to suit.

    `auto` takes bfloat16 where it was measured at least 1.1 times as fast as float32; the times are measured once for
    each machine, torch, number of threads and network, and stored in the cache's folder `precision`. `bf16` takes the
    faster of fused and plain attention. Weights keep their type.
    """
    if choice == "fp32" or unet.dtype != torch.float32:
        return "fp32"
    seconds = pass_seconds(unet, shape)
    way = min(("bf16", "bf16 plain"), key=seconds.__getitem__)
    if choice == "auto" and seconds["fp32"] < GAIN * seconds[way]:
        return "fp32"
    _set_attention(unet, plain=WAYS[way][1])
    return "bf16"


def pass_seconds(unet: Any, shape: Sequence[int]) -> dict[str, float]:
    """Seconds of a pass of one guided clip, by way; from the cache where this machine has measured them."""
    key = content_id({k: v for k, v in unet.config.items() if not k.startswith("_")}, list(shape), machine(unet.device))
    path = cache_folder("precision") / f"{key}.json"
    try:
        stored = read_json(path)
        if stored.keys() >= WAYS.keys():
            return stored
    except (StoreError, AttributeError):  # none, or damaged: it is measured again
        pass
    seconds = {}
    for name, (precision, plain) in WAYS.items():
        _set_attention(unet, plain)
        seconds[name] = _timed(unet, shape, precision)
    _set_attention(unet, plain=False)
    write_json(path, seconds)
    return seconds


def machine(device: torch.device) -> list[str]:
    """What a time depends on beside the network: processor, torch, threads."""
    facts = [torch.__version__, str(torch.get_num_threads()), device.type]
    if device.type == "cuda":
        return [*facts, torch.cuda.get_device_name(device)]
    known, path = [platform.machine(), platform.processor()], Path("/proc/cpuinfo")
    if path.is_file():
        lines = path.read_text(errors="replace").splitlines()
        known += sorted({line for line in lines if line.startswith(("model name", "flags"))})
    return facts + known


@torch.no_grad()
def _timed(unet: Any, shape: Sequence[int], precision: Precision) -> float:
    """The seconds of the fastest pass."""
    rows = torch.zeros(2, *shape, device=unet.device)
    states = torch.zeros(2, 16, unet.config["cross_attention_dim"], device=unet.device)
    mask, fastest = torch.ones(2, 16, dtype=torch.bool, device=unet.device), float("inf")
    for number in range(1 + REPEATS):
        begun = time.perf_counter()
        with autocast(unet.device, precision):
            unet(rows, 500, encoder_hidden_states=states, encoder_attention_mask=mask)
        if unet.device.type == "cuda":
            torch.cuda.synchronize(unet.device)
        seconds = time.perf_counter() - begun
        if number or seconds > SLOW:  # the first is a warm-up, where a second one can be afforded
            fastest = min(fastest, seconds)
        if seconds > SLOW:
            break
    return fastest


def _set_attention(unet: Any, plain: bool) -> None:
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    unet.set_attn_processor(AttnProcessor() if plain else AttnProcessor2_0())
