"""What students of nano keep: `python benchmarks/distil.py FOLDER [--teachers nano nano-2] [--captions 800]`.

From each teacher a student is distilled on clips of the world's training captions, in FOLDER/TEACHER. It samples
held-out captions (`world:test`) in 1, 2, 4 and 8 passes; differences are against 16 guided DDIM steps of its teacher
from the same noise. With two teachers, the second an alignment of the first, the last table says what the students keep
of the alignment. An interrupted distillation resumes, and what is measured already is read from FOLDER.
"""

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from trades import BATCH, GUIDANCE, SEED, features_of, system

import milonga
from milonga.core.audio import write_audio
from milonga.core.config import Phase
from milonga.core.ids import clip_seed
from milonga.core.records import Clip, Comparison, Prompt
from milonga.core.store import write_bytes
from milonga.data.captions import reference, world_prompts
from milonga.engines.local import keep_freed_memory
from milonga.evaluation.compute import EvalPlan, Numbers
from milonga.evaluation.metrics import get_metric

METRICS = (
    "exact_match",
    "order_accuracy",
    "order_accuracy_detected",
    "extra_events",
    "full_recall",
    "clap",
    "kad",
    "fd",
)
PASSES = (1, 2, 4, 8)
TEACHER = "teacher, 16 × 2 DDIM"
Rows = dict[str, dict[str, Any]]


def training_clips(folder: Path, count: int) -> Path:
    """A table of clips of the world with their captions, in `folder`."""
    table = folder / "metadata.csv"
    if not table.exists():
        folder.mkdir(parents=True, exist_ok=True)
        prompts = world_prompts("train", count)
        for number, prompt in enumerate(prompts):
            write_audio(folder / f"{number:05d}.flac", reference(prompt))
        with table.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["file_name", "caption"])
            rows.writerows([f"{number:05d}.flac", prompt.text] for number, prompt in enumerate(prompts))
    return table


def distilled(teacher: str, asked: argparse.Namespace) -> Path:
    """The student's folder; nothing is done where it is finished."""
    config = milonga.AlignConfig(
        output_dir=asked.folder / teacher / "student",
        phases=tuple(Phase(loss=loss, steps=steps) for loss, steps in zip(asked.losses, asked.steps, strict=True)),
        seed=SEED, learning_rate=asked.learning_rate, warmup_steps=20, ema=0.95, batch_size=asked.batch,
        snr_gamma=asked.snr_gamma, distil_guidance=tuple(asked.guidance),
    )  # fmt: skip
    begun = time.process_time()
    folder = milonga.AlignTrainer(
        teacher, f"clips:{training_clips(asked.folder / 'clips', asked.clips)}", config
    ).train()
    print(f"student of {teacher}: {time.process_time() - begun:.0f} CPU seconds", flush=True)
    return folder


def generated(model: str, scheduler: str | None, steps: int, prompts: list[Prompt], path: Path) -> dict[str, Any]:
    """Features of one way's clips and their CPU seconds, stored in `path`."""
    if path.exists():
        return json.loads(path.read_text())
    pipe = milonga.load(model, scheduler=scheduler)
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


def compared(first: dict[str, Any], second: dict[str, Any], plan: EvalPlan) -> dict[str, tuple[float, Comparison]]:
    """By metric: the second way's value, and its difference from the first."""
    systems = [system("first", first["rows"]), system("second", second["rows"])]
    numbers = Numbers(systems, [get_metric(name) for name in METRICS], plan)
    values = {row.metric: row.value for row in numbers.summaries() if row.system == "second"}
    return {one.metric: (values[one.metric], one) for one in numbers.comparisons()}


def print_table(title: str, cells: dict[str, list[str]], columns: Sequence[str] = METRICS) -> None:
    """Rows of cells by the way that they are of."""
    print(f"\n| {title} | {' | '.join(columns)} |\n" + "| --- " * (1 + len(columns)) + "|")
    for name, row in cells.items():
        print(f"| {name} | {' | '.join(row)} |", flush=True)


def differences(rows: Rows, plan: EvalPlan) -> dict[str, list[str]]:
    """Every way's seconds and metrics, with differences from the teacher."""
    cells: dict[str, list[str]] = {}
    for name, row in rows.items():
        metrics = compared(rows[TEACHER], row, plan).values()
        shown = [f"{value:.3f} ({one.difference:+.3f} [{one.low:+.3f}, {one.high:+.3f}])" for value, one in metrics]
        cells[name] = [f"{row['seconds']:.3f}", *shown]
    return cells


def kept(base: Rows, aligned: Rows, plan: EvalPlan) -> dict[str, list[str]]:
    """What alignment gains, for the teachers and for their students, and the share that students keep."""
    gains = {name: one.difference for name, (_, one) in compared(base[TEACHER], aligned[TEACHER], plan).items()}
    cells: dict[str, list[str]] = {}
    for name in base:
        metrics = compared(base[name], aligned[name], plan)
        cells[name] = [
            f"{one.difference:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
            + (f", {one.difference / gains[metric]:.2f} kept" if gains[metric] else "")
            for metric, (_, one) in metrics.items()
        ]
    return cells


def main() -> None:
    """Distils, generates, measures, and prints a table for each teacher and one of what is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teachers", nargs="+", default=["nano", "nano-2"])
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--losses", nargs="+", default=["distil-guidance"])
    parser.add_argument("--steps", type=int, nargs="+", default=[600], help="of each loss")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--snr-gamma", type=float)
    parser.add_argument("--guidance", type=float, nargs=2, default=(1.0, 6.0), help="the scales that it learns")
    parser.add_argument("--captions", type=int, default=800)
    asked = parser.parse_args()
    keep_freed_memory()
    prompts = world_prompts("test", asked.captions)
    known = {prompt.id: prompt for prompt in prompts}
    real = system("reference", [row.model_dump() for row in features_of(prompts, [reference(p) for p in prompts])])
    plan = EvalPlan({"overall": list(known)}, real, known, True, 1000, SEED)
    measured: list[Rows] = []
    for teacher in asked.teachers:
        student, folder = str(distilled(teacher, asked)), asked.folder / teacher
        ways: dict[str, tuple[str, str | None, int]] = {TEACHER: (teacher, "ddim", 16)}
        ways["teacher, 4 × 2 UniPC"] = (teacher, "unipc", 4)
        ways |= {f"student, {passes}": (student, None, passes) for passes in PASSES}
        rows = {
            name: generated(*way, prompts, folder / f"{number}-{asked.captions}.json")
            for number, (name, way) in enumerate(ways.items())
        }
        print_table(f"student of {teacher}", differences(rows, plan), ["CPU s a clip", *METRICS])
        measured.append(rows)
    if len(measured) == 2:
        print_table("gain by alignment", kept(*measured, plan))
    print(f"{len(prompts)} captions, torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
