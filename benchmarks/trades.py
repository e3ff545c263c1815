"""What fewer steps cost on nano: `python benchmarks/trades.py FOLDER [--captions 200]`, whose end is a table.

Every way of sampling makes the same held-out captions (`world:tune`) from the same noise. A way that is finished lies
in FOLDER and is not done again, so a stopped run goes on. Differences are against the finished way with the most steps,
over the same captions.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import milonga
from milonga.core.ids import clip_seed
from milonga.core.records import Clip, Prompt
from milonga.core.store import write_bytes
from milonga.data.captions import reference, world_prompts
from milonga.evaluation.compute import EvalPlan, Numbers
from milonga.evaluation.features import ClipFeatures, SystemFeatures, extract_features, system_features
from milonga.evaluation.metrics import get_metric
from milonga.experiment.registry import DEFAULT as registry

BATCH, SEED, GUIDANCE = 20, 0, 3.0


@dataclass(frozen=True)
class Way:
    """A way of sampling: scheduler, steps, where guidance acts (shares of the schedule), how long features are kept."""

    scheduler: str
    steps: int
    interval: tuple[float, float] = (0.0, 1.0)

    @property
    def name(self) -> str:
        low, high = self.interval
        return f"{self.scheduler}-{self.steps}-{low:g}-{high:g}"

    @property
    def told(self) -> str:
        guided = "" if self.interval == (0.0, 1.0) else f", guided {self.interval[0]:g}–{self.interval[1]:g}"
        return f"{self.scheduler}{guided}"


WAYS = [
    Way("ddim", 200), Way("dpm++", 16), Way("dpm++", 8), Way("unipc", 8), Way("ddim", 16),
    Way("dpm++", 16, (0.3, 1.0)), Way("dpm++", 16, (0.0, 0.7)), Way("ddpm", 20), Way("dpm++", 4), Way("ddim", 8),
    Way("unipc", 16), Way("dpm++", 8, (0.3, 1.0)), Way("compat", 20), Way("ddpm", 200),
    Way("unipc", 4), Way("ddim", 4), Way("dpm++", 8, (0.0, 0.7)),
    Way("dpm++", 20), Way("ddim", 50), Way("dpm++", 50),
]  # fmt: skip


def perform(way: Way, prompts: list[Prompt], folder: Path) -> None:
    """Makes and hears one way's clips; what was heard and the latents go into `folder`."""
    whole = milonga.load("nano", scheduler=way.scheduler)
    whole.set_progress_bar_config(disable=True)
    clips: list[Clip] = []
    latents, begun = [], time.process_time()
    for first in range(0, len(prompts), BATCH):
        words = [prompt.text for prompt in prompts[first : first + BATCH]]
        seeds = [clip_seed(SEED, text, 0) for text in words]
        made = whole.sample(words, seeds, way.steps, GUIDANCE, interval=way.interval)
        latents.append(made.half().numpy())
        clips += [Clip(wave, whole.sampling_rate) for wave in whole.decode(made).numpy()]
    seconds = time.process_time() - begun
    rows = features_of(prompts, clips)
    np.savez(folder / f"{way.name}.npz", latents=np.concatenate(latents))
    told = {"seconds": seconds, "heard": [row.model_dump() for row in rows]}
    write_bytes(folder / f"{way.name}.json", json.dumps(told).encode())


def features_of(prompts: list[Prompt], clips: list[Clip]) -> list[ClipFeatures]:
    ids = [prompt.id for prompt in prompts]
    return extract_features(ids, prompts, clips, registry.scorer("nano-judge"), registry.tagger("nano-tagger"), BATCH)


def row(way: Way, best: Way, prompts: list[Prompt], real: SystemFeatures, folder: Path) -> str:
    """One way's line of the table."""
    own, last = (json.loads((folder / f"{one.name}.json").read_text()) for one in (way, best))
    systems = [system("best", last["heard"]), system("way", own["heard"])]
    known = {prompt.id: prompt for prompt in prompts}
    plan = EvalPlan({"overall": list(known)}, real, known, True, 1000, SEED)
    numbers = Numbers(
        systems, [get_metric(name) for name in ("clap", "order_accuracy", "order_accuracy_detected", "fd")], plan
    )
    values = {one.metric: one.value for one in numbers.summaries() if one.system == "way"}
    cells = [way.told, str(way.steps), f"{own['seconds'] / len(prompts):.2f}", distance(way, best, folder)]
    for one in numbers.comparisons():
        digits = 1 if one.metric == "fd" else 3
        interval = f"{one.difference:+.{digits}f} [{one.low:+.{digits}f}, {one.high:+.{digits}f}]"
        cells.append(f"{values[one.metric]:.{digits}f} ({interval})")
    return "| " + " | ".join(cells) + " |"


def system(name: str, rows: list[dict]) -> SystemFeatures:
    return system_features(name, [ClipFeatures.model_validate(one) for one in rows])


def distance(way: Way, best: Way, folder: Path) -> str:
    """Root mean square of the difference from the best way's latents, as a share of their own."""
    with np.load(folder / f"{way.name}.npz") as ours, np.load(folder / f"{best.name}.npz") as last:
        mine, its = ours["latents"].astype(np.float32), last["latents"].astype(np.float32)
    return f"{np.sqrt(((mine - its) ** 2).mean() / (its**2).mean()):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--only-table", action="store_true", help="no new clips: the ways that are finished")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    prompts = world_prompts("tune", asked.captions)
    finished = []
    for way in WAYS:
        if not (asked.folder / f"{way.name}.json").exists():
            if asked.only_table:
                continue
            print(f"{way.name} …", flush=True)
            perform(way, prompts, asked.folder)
        finished.append(way)
    real = system_features("reference", features_of(prompts, [reference(prompt) for prompt in prompts]))
    best = max(finished, key=lambda one: one.steps)
    print(
        "| way | steps | CPU s a clip | distance | judge CLAP | order | order, all detected | FD |\n"
        + "| --- " * 8
        + "|"
    )
    for way in sorted(finished, key=lambda one: (one.steps, one.told)):
        print(row(way, best, prompts, real, asked.folder), flush=True)
    print(f"{len(prompts)} captions, torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
