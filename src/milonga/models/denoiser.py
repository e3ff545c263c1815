"""`Denoiser`: the seam between a text-to-audio backbone and everything that encodes data, trains, samples or saves it.

Only this room knows what the network is called, which arguments it takes and where its blocks are. A new backbone is
one class with the members of `Denoiser`; it needs no base class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from milonga.core.records import Clip
from milonga.maths import noise as noises
from milonga.maths.noise import Omega, Prediction, seeded

Precision = Literal["fp32", "bf16"]
Network = Any  # a denoiser's module, or what stands in its place: compiled, wrapped by DDP, a frozen copy
SECONDS = "clip_seconds"  # the tensor (B,) of a conditioning with each clip's length, for a model that is told it
TimelinePart = tuple[float, float, str]  # seconds from and to, and the words that hold there
ALWAYS = (0.0, 1.0)  # the shares of a sampling from and to in which it is guided


class Conditioning(dict[str, Tensor]):
    """What a network is given beside the noisy latents: named tensors of B rows each, batch first.

    `guidance` (B,) among them, where there is one, is the guidance scale of a student that was distilled from guided
    passes: it needs no second pass.

    Dimension 1 of a tensor with two or more dimensions counts tokens. Where two batches differ there, the shorter one
    is padded with zeros, so a boolean mask among the tensors must tell which tokens count.

    `clip_seconds` (B,), where it is among them, is the length of each clip in seconds: the model's own where
    `encode_text` gave it, replaced by that of the clips that are generated or trained on.
    """

    @property
    def rows(self) -> int:
        """B, the number of rows."""
        return len(next(iter(self.values())))

    def take(self, rows: Sequence[int]) -> "Conditioning":
        """The rows with these indices, in this order."""
        return Conditioning({name: value[list(rows)] for name, value in self.items()})

    def to(self, device: torch.device) -> "Conditioning":
        """The same tensors on a device."""
        return Conditioning({name: value.to(device) for name, value in self.items()})

    def float(self) -> "Conditioning":
        """The same with every floating-point tensor in float32."""
        return Conditioning({k: value.float() if value.is_floating_point() else value for k, value in self.items()})

    def repeat(self, times: int) -> "Conditioning":
        """All rows, `times` times over."""
        return Conditioning({name: torch.cat([value] * times) for name, value in self.items()})

    def with_seconds(self, seconds: Sequence[Any] | Tensor) -> "Conditioning":
        """The same rows for clips of these lengths (B); unchanged for a model that is not told lengths."""
        if SECONDS not in self:
            return self
        return Conditioning(self | {SECONDS: torch.as_tensor(seconds).to(self[SECONDS])})

    def with_guidance(self, scales: Any) -> "Conditioning":
        """The same rows for a distilled network, which is told a guidance scale (one, or B of them)."""
        like = next(iter(self.values()))
        return Conditioning(self | {"guidance": torch.as_tensor(scales, device=like.device).float().expand(len(like))})

    def replace(self, chosen: Tensor, other: "Conditioning") -> "Conditioning":
        """These rows, with the single row of `other` where `chosen` (B,) bool is true; both padded to the longer.

        `clip_seconds` stay: they are a clip's, not its caption's.
        """
        mixed = Conditioning()
        for name, value in self.items():
            if name == SECONDS:
                mixed[name] = value
                continue
            length = max(value.shape[1], other[name].shape[1]) if value.dim() > 1 else 0
            place = chosen.to(value.device).reshape(-1, *[1] * (value.dim() - 1))
            mixed[name] = torch.where(place, pad_tokens(other[name].to(value), length), pad_tokens(value, length))
        return mixed

    @staticmethod
    def concat(parts: Sequence["Conditioning"]) -> "Conditioning":
        """The rows of all parts, one after the other, padded to the longest part."""
        joined = Conditioning()
        for name, first in parts[0].items():
            tensors = [part[name] for part in parts]
            length = max(value.shape[1] for value in tensors) if first.dim() > 1 else 0
            joined[name] = torch.cat([pad_tokens(value, length) for value in tensors])
        return joined


class ConditioningRows:
    """The conditionings of N captions, each of its own length: a batch of them is padded to its own longest alone.

    Captions that come several times may share one `Conditioning` of a single row.
    """

    def __init__(self, parts: Sequence[Conditioning]) -> None:
        self.parts = list(parts)

    @property
    def rows(self) -> int:
        """N, the number of captions."""
        return len(self.parts)

    def take(self, rows: Sequence[int]) -> Conditioning:
        """The rows with these indices, in this order, padded to the longest of them."""
        return Conditioning.concat([self.parts[row] for row in rows])

    def with_seconds(self, seconds: Sequence[float]) -> "ConditioningRows":
        """The same captions for clips of these lengths (N); unchanged for a model that is not told lengths."""
        if not self.parts or SECONDS not in self.parts[0]:
            return self
        lengths = zip(self.parts, seconds, strict=True)
        return ConditioningRows([part.with_seconds([length]) for part, length in lengths])


def pad_tokens(value: Tensor, length: int) -> Tensor:
    """Zeros (or False) after the tokens (dimension 1), up to `length`."""
    if value.dim() < 2 or value.shape[1] == length:
        return value
    return torch.cat([value, value.new_zeros(len(value), length - value.shape[1], *value.shape[2:])], dim=1)


def module_hash(module: nn.Module) -> str:
    """A hash of a network's weights and buffers."""
    digest = sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Posterior:
    """An autoencoder's posterior over N clips: mean and log-variance (N, *latent shape), and the scale of its samples.

    The original Tango trains on samples, never on the mode. An autoencoder without noise has a `logvar` of −∞.
    """

    mean: Tensor
    logvar: Tensor
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, rows: slice) -> "Posterior":
        return Posterior(self.mean[rows], self.logvar[rows], self.scale)

    def sample(self, indices: Sequence[int], seed: int, epoch: int) -> Tensor:
        """Scaled latents (B, *latent shape), float32; each clip's draw depends on (seed, index, epoch) alone."""
        mean, logvar = self.mean[list(indices)].float(), self.logvar[list(indices)].float()
        draws = [torch.randn(self.mean.shape[1:], generator=seeded(seed, "latent", i, epoch)) for i in indices]
        return (mean + torch.exp(0.5 * logvar) * torch.stack(draws).to(mean.device)) * self.scale


@dataclass(frozen=True)
class Process:
    """A model's forward process (Eq. 3): ᾱ (N,) of its N timesteps, what it predicts, and the scheduler of its sampler.

    A flow's ᾱ have the signal-to-noise ratios of its 1 − σ and σ. `scheduler` is one of diffusers'; None: the process
    can be trained on, and not sampled from. `times` (N,) are what the network is given for each timestep, where that is
    neither the timestep's number nor a flow's N·σ.
    """

    alphas_cumprod: Tensor
    prediction: Prediction
    scheduler: Any = None
    times: Tensor | None = None

    @classmethod
    def of(cls, scheduler: Any) -> Self:
        """The process of a diffusers scheduler; RecipeError for a prediction or a flow that is not supported."""
        from milonga.models.schedulers import continuous_times, forward_process

        return cls(*forward_process(scheduler), scheduler, continuous_times(scheduler))

    @classmethod
    def flow(cls, shift: float = 1.0, total: int = 1000) -> Self:
        """Rectified flow (Liu et al. 2023): x_σ = (1 − σ)·x + σ·noise, the network predicts noise − x.

        `shift` moves the σ of training and sampling towards noise (Esser et al. 2024); timesteps shown are `total`·σ.
        """
        from diffusers import FlowMatchEulerDiscreteScheduler

        return cls.of(FlowMatchEulerDiscreteScheduler(num_train_timesteps=total, shift=shift))

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Noisy latents (B, …) of clean ones at timesteps (B,), 0 … N − 1 from clean to noisy."""
        return noises.add_noise(latents, noise, self.alphas_cumprod[steps], self.prediction)

    def target(self, latents: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """What the network should predict (B, …): ε, the velocity, or a flow's noise − x."""
        return noises.target(latents, noise, self.alphas_cumprod[steps], self.prediction)

    def clean_and_noise(self, noisy: Tensor, predicted: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and noise (B, …) that noisy latents at timesteps (B,) consist of by a prediction."""
        return noises.clean_and_noise(noisy, predicted, self.alphas_cumprod[steps], self.prediction)

    def target_between(self, noisy: Tensor, latents: Tensor, steps: Tensor) -> Tensor:
        """The prediction (B, …) by which noisy latents at timesteps (B,) are made of these clean `latents`."""
        noise = noises.noise_between(noisy, latents, self.alphas_cumprod[steps], self.prediction)
        return self.target(latents, noise, steps)

    def shown(self, steps: Tensor) -> Tensor:
        """The timesteps as the network is given them (B,): `steps` themselves, `times`, or a flow's N·σ in float32."""
        if self.times is not None:
            return self.times[steps]
        return noises.shown_timesteps(steps, self.alphas_cumprod[steps], len(self), self.prediction)

    def weights(self, steps: Tensor, weighting: Omega, gamma: float | None) -> Tensor | None:
        """ω(λ) of each error (B,), float32 (see `maths.noise.omega`); None: 1 everywhere."""
        weights = noises.omega(weighting, self.alphas_cumprod[steps], self.prediction, gamma)
        return None if weights is None else weights.float()


@runtime_checkable
class Denoiser(Protocol):
    """A text-to-audio latent diffusion or flow model, as data, training and generation see it."""

    module: nn.Module
    """The network that is trained; everything else of the model stays frozen."""
    process: Process
    empty: Conditioning
    """`encode_text([""])`: what guidance uses, and what caption dropout puts in."""
    time_axis: int
    """Which dimension of `latent_shape` is time: editing and long clips lay windows along it."""

    @property
    def others(self) -> Sequence[nn.Module]:
        """The other networks, text encoders and autoencoder: they work on whatever device they have been moved to."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one clip's latents, such as (C, H, W) or (L, D)."""
        ...

    @property
    def latent_scale(self) -> float:
        """The factor between the autoencoder's latents and those that are noised."""
        ...

    @property
    def sampling_rate(self) -> int:
        """Of the waveforms, in Hz."""
        ...

    @property
    def fingerprint(self) -> str:
        """A name for the frozen parts (text encoder and autoencoder), under which encoded data are cached."""
        ...

    @property
    def lora_targets(self) -> Sequence[str]:
        """Ends of the names of the linear layers that LoRA adapts."""
        ...

    @property
    def fsdp_blocks(self) -> Sequence[nn.Module]:
        """The blocks of `module` that FSDP shards one by one."""
        ...

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """The conditioning of B captions, each encoded as it would be alone."""
        ...

    def prepare_waveform(self, clip: Clip, legacy: bool = False) -> Tensor:
        """A clip (any rate and length) as the autoencoder takes it, of the trained length: a mono waveform (samples,),
        or (channels, samples) where the model has channels.

        `legacy` asks for the data path of the original code where the model has one.
        """
        ...

    def encode_audio(self, waves: Sequence[Tensor]) -> Posterior:
        """The posterior of waveforms that `prepare_waveform` made, on the CPU."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Waveforms (B, samples) or (B, channels, samples), float32 on the CPU, of scaled latents (B, *latent_shape).

        With gradients where they are enabled: `draft` trains through it.
        """
        ...

    def predict(
        self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> Tensor:
        """What the network predicts, (B, *latent_shape). `network` is called in the place of `module` where given."""
        ...

    def prepare(self, precision: Precision, shape: Sequence[int]) -> None:
        """Makes `module` ready for training on latents of a `shape`: the place for a backbone's choice of kernels.

        Frozen parts need no gradients from then on.
        """
        ...

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Writes the network into a new folder, with `weights` in the place of its own where given."""
        ...

    def load(self, folder: Path) -> None:
        """Takes the weights that `save` wrote."""
        ...

    def save_model(self, folder: Path) -> None:
        """Writes the whole model, from text encoder to decoder, into a new folder."""
        ...
