"""A training small enough to run anywhere: a U-Net of some 50,000 parameters on random pairs.

Run as a program (`python tiny_training.py FOLDER KILL_AT WHERE [VARIANT]`) it trains in FOLDER and kills itself with
SIGKILL: after step KILL_AT ("step"), while the checkpoint of that step lies beside its place ("checkpoint"), or while
the table of the reference's errors has KILL_AT shards ("table").
"""

import os
import signal
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from milonga.core.config import Phase, Settings
from milonga.data.examples import PairExamples
from milonga.maths.noise import seeded
from milonga.models.denoiser import Conditioning, Posterior, Process
from milonga.models.tango_denoiser import TangoDenoiser
from milonga.training import checkpoint as checkpoints
from milonga.training import reference
from milonga.training.trainer import train

# So small a network is fastest on one thread, and only equal numbers of threads give equal bits.
torch.set_num_threads(1)

PAIRS, SHAPE = 10, (2, 8, 4)
PHASES = (Phase(loss="sft", epochs=1), Phase(loss="dpo", epochs=2, beta=200.0, learning_rate=2e-3))
SETTINGS = Settings(
    batch_size=2,
    gradient_accumulation_steps=2,
    learning_rate=1e-3,
    warmup_steps=2,
    timesteps="high-noise",
    ema=0.9,
    caption_dropout=0.3,
    prior_weight=0.5,
    checkpoint_every=3,
)
VARIANTS = {
    "plain": SETTINGS,
    "cached": SETTINGS.model_copy(update={"reference": "cached", "noise_samples_per_pair": 2}),
    "lora": SETTINGS.model_copy(update={"lora_rank": 2}),
}


def model(seed: int = 0) -> TangoDenoiser:
    """A tiny v-prediction U-Net whose weights depend on `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=2,
            out_channels=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=8,
            attention_head_dim=2,
            norm_num_groups=4,
            dropout=0.1,
        )
    empty = Conditioning(
        states=torch.randn(1, 1, 8, generator=seeded(seed, "empty")), mask=torch.ones(1, 1, dtype=torch.bool)
    )
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.05, 100), 0)
    return TangoDenoiser(unet, Process(alphas, "v_prediction"), empty)


def pairs(count: int = PAIRS, seed: int = 0, prior: bool = True) -> PairExamples:
    """Pairs whose winners and losers come from two different places, with three-token captions."""
    stream = seeded(seed, "pairs")
    winner, loser = torch.randn(2, count, *SHAPE, generator=stream).unbind(0)
    states = torch.randn(count, 3, 8, generator=stream)
    mask = torch.tensor([[True, True, True], [True, True, False]]).repeat(count, 1)[:count]
    captions, real = Conditioning(states=states, mask=mask), None
    if prior:
        real = PairExamples(torch.randn(4, *SHAPE, generator=stream), None, captions.take(range(4)))
    posterior = Posterior(winner + 0.5, torch.full_like(winner, -3.0), scale=0.9)
    return PairExamples(posterior, loser - 0.5, captions, real)


def main(folder: Path, kill_at: int, where: str, variant: str = "plain") -> None:
    """Trains in `folder` until this process kills itself."""

    def on_step(row: dict) -> None:
        if where == "step" and row["step"] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    write_json = checkpoints.write_json

    def die_writing(path: Path, description: dict) -> None:
        if where == "checkpoint" and description["step"] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        write_json(path, description)

    checkpoints.write_json = die_writing
    if where == "table":
        write = reference.CachedReference._write

        def die_filling(table: reference.CachedReference, name: str, errors: torch.Tensor) -> None:
            write(table, name, errors)
            if len(list((folder / "reference").glob("*.parquet"))) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        reference.CachedReference._write = die_filling
    train(model(), pairs(), PHASES, VARIANTS[variant], 7, folder, on_step, val=pairs(5, 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
