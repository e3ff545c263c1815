"""What a student of nano keeps: `python benchmarks/distil.py FOLDER [--clips 1000] [--steps 900] [--captions 200]`.

A student is distilled from nano (or from --teacher) on clips of the world's training captions, in FOLDER/student. It
makes the held-out captions (`world:tune`) in 1, 2, 4 and 8 passes; differences are against the teacher's 16 guided DDIM
steps from the same noise. An interrupted distillation resumes, and what is measured already is read from FOLDER.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import torch
from trades import BATCH, GUIDANCE, SEED, features_of, system

import milonga
from milonga.core.audio import write_audio
from milonga.core.config import Phase
from milonga.core.ids import clip_seed
from milonga.core.records import Clip, Prompt
from milonga.core.store import write_bytes
from milonga.data.captions import reference, world_prompts
from milonga.engines.local import keep_freed_memory
from milonga.evaluation.compute import EvalPlan, Numbers
from milonga.evaluation.metrics import get_metric

METRICS = ("exact_match", "order_accuracy", "extra_events", "clap", "fd")
TEACHER_STEPS = 16


def distilled(asked: argparse.Namespace) -> Path:
    """The student's folder; nothing is done where it is finished."""
    clips = asked.folder / "clips"
    if not (clips / "metadata.csv").exists():
        clips.mkdir(parents=True, exist_ok=True)
        prompts = world_prompts("train", asked.clips)
        for number, prompt in enumerate(prompts):
            write_audio(clips / f"{number:05d}.flac", reference(prompt))
        with (clips / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["file_name", "caption"])
            rows.writerows([f"{number:05d}.flac", prompt.text] for number, prompt in enumerate(prompts))
    config = milonga.AlignConfig(
        output_dir=asked.folder / "student", phases=(Phase(loss=asked.loss, steps=asked.steps),), seed=SEED,
        learning_rate=asked.learning_rate, warmup_steps=20, snr_gamma=5.0, ema=0.95, batch_size=asked.batch,
        distil_guidance=tuple(asked.guidance),
    )  # fmt: skip
    return milonga.AlignTrainer(asked.teacher, f"clips:{clips}", config).train()


def generated(model: str, steps: int, prompts: list[Prompt], path: Path) -> dict:
    """Features of one way's clips and their CPU seconds, stored in `path`."""
    if path.exists():
        return json.loads(path.read_text())
    pipe = milonga.load(model, scheduler="lcm" if steps < TEACHER_STEPS else "ddim")
    pipe.set_progress_bar_config(disable=True)
    clips: list[Clip] = []
    begun = time.process_time()
    for first in range(0, len(prompts), BATCH):
        words = [prompt.text for prompt in prompts[first : first + BATCH]]
        seeds = [clip_seed(SEED, text, 0) for text in words]
        waves = pipe.decode(pipe.sample(words, seeds, steps, GUIDANCE)).numpy()
        clips += [Clip(wave, pipe.sampling_rate) for wave in waves]
    seconds = (time.process_time() - begun) / len(prompts)
    row = {"seconds": seconds, "rows": [features.model_dump() for features in features_of(prompts, clips)]}
    write_bytes(path, json.dumps(row).encode())
    return row


def main() -> None:
    """Distils, generates, measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teacher", default="nano")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--loss", choices=("distil", "distil-huber"), default="distil")
    parser.add_argument("--guidance", type=float, nargs=2, default=(1.0, 6.0), help="the scales that it learns")
    parser.add_argument("--captions", type=int, default=200)
    asked = parser.parse_args()
    keep_freed_memory()
    begun = time.process_time()
    student = str(distilled(asked))
    print(f"distilled in {time.process_time() - begun:.0f} CPU seconds")
    prompts = world_prompts("tune", asked.captions)
    known = {prompt.id: prompt for prompt in prompts}
    ways = {"teacher, 16 × 2": (asked.teacher, TEACHER_STEPS)}
    ways |= {f"student, {steps}": (student, steps) for steps in (1, 2, 4, 8)}
    rows = {
        name: generated(model, steps, prompts, asked.folder / f"{steps:02d}-{asked.captions}.json")
        for name, (model, steps) in ways.items()
    }
    real = system("reference", [row.model_dump() for row in features_of(prompts, [reference(p) for p in prompts])])
    metrics = [get_metric(name) for name in METRICS]
    teacher = next(iter(ways))
    print("| way | CPU s a clip | " + " | ".join(metric.title for metric in metrics) + " |\n" + "| --- " * 7 + "|")
    for name, row in rows.items():
        systems = [system("teacher", rows[teacher]["rows"]), system("way", row["rows"])]
        plan = EvalPlan({"overall": list(known)}, real, known, True, 1000, SEED)
        numbers = Numbers(systems, metrics, plan)
        values = {summary.metric: summary.value for summary in numbers.summaries() if summary.system == "way"}
        cells = [
            f"{values[one.metric]:.3f} ({one.difference:+.3f} [{one.low:+.3f}, {one.high:+.3f}])"
            for one in numbers.comparisons()
        ]
        print(f"| {name} | {row['seconds']:.3f} | {' | '.join(cells)} |", flush=True)
    print(f"{len(prompts)} captions, torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
