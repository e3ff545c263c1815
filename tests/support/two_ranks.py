"""Trains in every process of a group, several trainings one after the other: `torchrun two_ranks.py FOLDER`.

Each leaves what it trains as usual, and what every rank believed of each step in `FOLDER/NAME/rank-R.jsonl`. The names
of all imported packages are left in `FOLDER/packages.json`.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import tiny_training as tiny
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from milonga.core.config import Phase, Settings
from milonga.data.examples import CaptionExamples, GroupExamples
from milonga.maths.noise import seeded
from milonga.models.denoiser import Process
from milonga.models.tango_denoiser import TangoDenoiser
from milonga.training import trainer
from milonga.training.schedule import Step, learning_rate

PAIRS, SEED = 7, 3  # an odd number: the last step of an epoch cannot be shared evenly
PHASES = (Phase(loss="sft", epochs=1), Phase(loss="dpo", epochs=1, beta=100.0))
GUARDED = (Phase(loss="sft", epochs=1), Phase(loss="sdpo", epochs=1, beta=100.0))
DRAFT = (Phase(loss="draft", steps=4),)
GROUPS = (Phase(loss="dgpo", epochs=2, beta=50.0),)
PLAIN = Settings(
    batch_size=2,
    gradient_accumulation_steps=2,
    learning_rate=1e-3,
    warmup_steps=1,
    ema=0.5,
    prior_weight=0.5,
    caption_dropout=0.2,
)
TRAININGS = {
    "plain": PLAIN.model_copy(update={"checkpoint_every": 2}),
    "cached": PLAIN.model_copy(update={"reference": "cached", "noise_samples_per_pair": 2}),
    "fsdp": PLAIN.model_copy(update={"fsdp": True, "checkpoint_every": 2}),
    "released": PLAIN.model_copy(update={"released_ranks": 2}),
    "guarded": PLAIN.model_copy(update={"safeguard": "parameters", "sdpo_mu": 0.9}),
    "guarded, fsdp": PLAIN.model_copy(update={"safeguard": "parameters", "sdpo_mu": 0.9, "fsdp": True}),
}
TRAININGS["uncut, fsdp"] = PLAIN.model_copy(update={"fsdp": True})
TRAININGS["cached, fsdp"] = TRAININGS["cached"].model_copy(update={"fsdp": True})
SAMPLED = Settings(batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-3, draft_steps=2, train_guidance=2.0)
TRAININGS |= {
    "draft": SAMPLED.model_copy(update={"trust_region": 0.1}),
    "draft, fsdp": SAMPLED.model_copy(update={"trust_region": 0.1, "fsdp": True}),
}
GUIDED = PLAIN.model_copy(update={"prior_weight": 0.0, "train_guidance": 2.0, "trust_region": 0.1})
TRAININGS |= {"groups": GUIDED, "groups, fsdp": GUIDED.model_copy(update={"fsdp": True})}


class Sounding(TangoDenoiser):
    """A tiny denoiser with a sampler, whose clips are its latents."""

    sampling_rate = 16000  # type: ignore[assignment]

    def decode(self, latents: Tensor) -> Tensor:
        return latents.flatten(1)


class Level:
    """Rewards clips whose mean is near a level."""

    name = "level"

    def wave_rewards(self, waves: Tensor, rate: int, texts: Sequence[str]) -> Tensor:
        return -(waves.mean(1) - 0.3).pow(2)


def main(folder: Path) -> None:
    """All trainings of `TRAININGS`; those with frequent checkpoints are stopped after three steps and begun again."""
    rank = int(os.environ.get("RANK", "0"))
    for name, settings in TRAININGS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        with (folder / name / f"rank-{rank}.jsonl").open("a") as file:
            trainer.learning_rate = noted(file)  # type: ignore[assignment]
            if settings.checkpoint_every == 2:
                stop(folder / name, settings)
            run(folder / name, settings)
    if rank == 0:
        (folder / "packages.json").write_text(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))


def run(folder: Path, settings: Settings) -> list[dict]:
    """One training from its last checkpoint; its rows, on the first rank."""
    rows: list[dict] = []
    model, pairs = tiny.model(), tiny.pairs(PAIRS)
    if "draft" in folder.name:
        sampler = Process.of(DDIMScheduler(prediction_type="v_prediction", clip_sample=False))
        captions = CaptionExamples([f"caption {row}" for row in range(PAIRS)], pairs.conditioning, tiny.SHAPE, SEED)
        model = Sounding(model.module, sampler, model.empty)
        trainer.train(model, captions, DRAFT, settings, SEED, folder, rows.append, scorers=[Level()])
        return rows
    if "groups" in folder.name:
        latents = torch.randn(PAIRS, 4, *tiny.SHAPE, generator=seeded(SEED, "groups"))
        rewards = torch.rand(PAIRS, 4, generator=seeded(SEED, "rewards"))
        groups = GroupExamples(latents, rewards, pairs.conditioning)
        trainer.train(model, groups, GROUPS, settings, SEED, folder, rows.append)
        return rows
    phases = GUARDED if settings.safeguard == "parameters" else PHASES
    trainer.train(model, pairs, phases, settings, SEED, folder, rows.append)
    return rows


def stop(folder: Path, settings: Settings) -> None:
    """Breaks off in the third step, on all ranks."""
    monitor = trainer.Trainer._monitor

    def breaks(training, row: dict, *rest) -> str | None:
        text = monitor(training, row, *rest)
        if row["step"] == 3:
            raise KeyboardInterrupt
        return text

    trainer.Trainer._monitor = breaks
    try:
        run(folder, settings)
    except KeyboardInterrupt:
        pass
    finally:
        trainer.Trainer._monitor = monitor


def noted(file):
    """The learning rate, written down with what this rank believes of the step."""

    def rate(step: Step, settings: Settings) -> float:
        found = learning_rate(step, settings)
        belief = {"step": step.number, "phase": step.phase.loss, "epoch": step.epoch, "rate": found}
        file.write(json.dumps(belief) + "\n")
        file.flush()
        return found

    return rate


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
