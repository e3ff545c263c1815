"""A training small enough to run anywhere: a U-Net of one level on random pairs.

Run as a program (`python tiny_training.py FOLDER VARIANT WHERE:N...`) it trains in FOLDER once for each WHERE:N, in a
process of its own that kills itself with SIGKILL: after step N ("step"), while the checkpoint of that step lies beside
its place ("checkpoint"), or while the table of the reference's errors has N shards ("table").
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


def model(seed: int = 0, levels: int = 1) -> TangoDenoiser:
    """A tiny v-prediction U-Net of one level, or of two, whose weights depend on `seed`."""
    small = levels == 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=2,
            out_channels=2,
            down_block_types=("DownBlock2D",) if small else ("CrossAttnDownBlock2D", "DownBlock2D"),
            mid_block_type="UNetMidBlock2D" if small else "UNetMidBlock2DCrossAttn",
            up_block_types=("CrossAttnUpBlock2D",) if small else ("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8,) if small else (8, 16),
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


def main(folder: Path, variant: str, *kills: str) -> None:
    """Trains in `folder` once for each of `kills`; raises when one of these processes was not killed."""
    for kill in kills:
        where, _, count = kill.partition(":")
        process = os.fork()  # a child has loaded torch already, which takes longer than its training
        if process == 0:
            train_until_killed(folder, variant, where, int(count))
            os._exit(0)
        status = os.waitpid(process, 0)[1]
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, kill


def train_until_killed(folder: Path, variant: str, where: str, kill_at: int) -> None:
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
    train(model(), pairs(), PHASES, VARIANTS[variant], 7, folder, on_step, val=pairs(3, 1, prior=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
