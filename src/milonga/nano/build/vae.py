"""The VAE's lesson: reconstruct log-mel pictures (§3.1.3), with a small KL term.

Departures from the paper: no adversarial loss, and no attention in the middle. Whole clips, no crops: the network's
group norms look at a whole picture, so what is learnt on crops would not hold for clips.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from milonga.nano.build.corpus import FRAMES, Corpus
from milonga.nano.build.task import Lesson, Loss, generator

VAE: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 16, 48, 96],
    "layers_per_block": 1,
    "latent_channels": 8,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
LESSON = Lesson("vae", steps=4000, batch=6, rate=2e-3, average=0.995)
KL_WEIGHT = 2e-3
CLIPS = 20000


def new_vae() -> AutoencoderKL:
    """An untrained VAE whose last bias is the average log-mel value, so that it does not spend its lesson on that."""
    vae = AutoencoderKL(**VAE)
    torch.nn.init.constant_(vae.decoder.conv_out.bias, -7.0)  # type: ignore[arg-type]
    return vae


def vae_loss(vae: AutoencoderKL, corpus: Corpus, seed: int) -> Loss:
    """The loss of a step: mean absolute error and squared error of mels in nepers, and the KL to a unit Gaussian."""

    def loss(step: int) -> dict[str, Tensor]:
        rng = generator(seed, LESSON.name, step)
        chosen = rng.integers(0, len(corpus), LESSON.batch)
        mels = corpus.mels[chosen].float().unsqueeze(1)
        posterior = vae.encode(mels, return_dict=False)[0]
        spread = torch.from_numpy(rng.standard_normal(posterior.mean.shape)).float()
        latents: Any = posterior.mean + posterior.std * spread
        answer = vae.decode(latents, return_dict=False)[0]
        error = answer - mels
        rebuilt, kl = error.abs().mean() + 0.25 * error.square().mean(), posterior.kl().mean()
        return {"loss": rebuilt + KL_WEIGHT * kl / FRAMES, "error": error.abs().mean(), "kl": kl}

    return loss


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL, corpus: Corpus) -> float:
    """The factor that brings latents to unit variance (FACTS §3), measured on the first 200 clips."""
    moments = torch.cat(
        [vae.encode(part.float().unsqueeze(1), return_dict=False)[0].sample() for part in corpus.mels[:200].split(20)]
    )
    return float(1 / moments.std())
