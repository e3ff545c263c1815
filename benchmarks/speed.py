"""Milonga's way beside the plain way that a user would otherwise take: same weights, same machine, one run.

    python benchmarks/speed.py [--repeats 5] [--clips 16] [--steps 16] [--pairs 32] [--student FOLDER]
                               [--jobs cold clips ...]

The plain ways: diffusers' loop over the networks for clips, the released script's step for training, a loop that does
what the published toolkits do for metrics (the last two as in training.py and evaluation.py). Every way of every repeat
is a process of its own on one thread, and the ways alternate. The table has medians with their range, and the median
and the range of the repeats' ratios; the lines below it how seconds grow with the clips of a batch (slope of a log-log
line) and the rate of matrix products in float32 and bfloat16, which bounds all of it.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
PROMPT = "a dog barks then a bell rings"
GUIDANCE = 3.0
Row = dict[str, float]


def child(script: str, *words: object) -> tuple[str, Row]:
    """What a script prints, and the wall and CPU seconds and the peak memory in MB of its process."""
    command, begun = [sys.executable, *script.split(), *map(str, words)], time.perf_counter()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=os.environ | {"OMP_NUM_THREADS": "1"})
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        output.seek(0)
        errors.seek(0)
        if status:
            sys.exit(errors.read())
        text = output.read()
    return text, {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss / 1024}


def cold(asked: argparse.Namespace, way: str, folder: Path) -> Row:
    """Seconds from a cold start to the first clip's file."""
    if way == "plain":
        return child(__file__, "--way", "plain", "--job", "cold", "--steps", asked.steps, "--folder", folder)[1]
    model = asked.student if way == "student" else "nano"
    steps = 4 if way == "student" else asked.steps
    options = ("--model", model, "--steps", steps, "--scheduler", "ddim", "--out", folder)
    return child("-m milonga generate", PROMPT, *options)[1]


def clips(asked: argparse.Namespace, way: str, folder: Path) -> Row:
    """Seconds a clip where networks are loaded: text, sampler, VAE and vocoder."""
    options: tuple[object, ...] = ("--student", asked.student) if asked.student else ()
    text, _ = child(__file__, "--way", way, "--job", "clips", "--steps", asked.steps, "--clips", asked.clips, *options)
    return json.loads(text.splitlines()[-1])


def train(asked: argparse.Namespace, way: str, folder: Path) -> Row:
    """Seconds a pair of diffusion-DPO with new noise in every epoch, float32."""
    sizes = ("--pairs", asked.pairs, "--step", asked.pairs, "--own", asked.pairs, "--steps", 1)
    text, _ = child(str(HERE / "training.py"), "--way", "plain" if way == "plain" else "copy", *sizes)
    row = json.loads(text.splitlines()[-1])
    return {"wall": row["wall"], "cpu": row["cpu"] + row["encoding"] / 4, "peak": row["peak"]}


def evaluate(asked: argparse.Namespace, way: str, folder: Path) -> Row:
    """Seconds a clip of FAD, FD, KL and IS together."""
    import evaluation

    if not (folder / "real").exists():
        evaluation.make(folder, asked.clips)
    text, used = child(str(HERE / "evaluation.py"), "--side", way, "--folder", folder)
    row = json.loads(text.splitlines()[-1])
    return {"wall": row["seconds"] / (2 * asked.clips), "cpu": used["cpu"] / (2 * asked.clips), "peak": row["peak"]}


JOBS: dict[str, Callable[[argparse.Namespace, str, Path], Row]] = {
    "cold": cold, "clips": clips, "train": train, "evaluate": evaluate
}  # fmt: skip
TITLES = {
    "cold": "first clip from a cold start", "clips": "a clip, networks loaded", "train": "a pair trained (DPO)",
    "evaluate": "a clip evaluated (FAD, FD, KL, IS)",
}  # fmt: skip


def plain_way(words: list[str], steps: int) -> Callable[[], Any]:
    """Clips as diffusers' examples make them: networks from the folder, a DDIM loop with guidance, VAE, vocoder."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import AutoTokenizer, SpeechT5HifiGan, T5EncoderModel

    import milonga

    weights = Path(milonga.__file__).parent / "nano" / "weights" / "tango"
    unet = UNet2DConditionModel.from_pretrained(weights / "unet").eval()
    vae = AutoencoderKL.from_pretrained(weights / "vae").eval()
    vocoder = SpeechT5HifiGan.from_pretrained(weights / "vocoder", dtype=torch.float32).eval()
    encoder = T5EncoderModel.from_pretrained(weights / "text_encoder", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(weights / "tokenizer")
    scheduler = DDIMScheduler.from_pretrained(weights / "scheduler", timestep_spacing="trailing")
    rows = 4.096 * 16000 / math.prod(vocoder.config.upsample_rates) / 2 ** (len(vae.config.block_out_channels) - 1)
    width = vocoder.config.model_in_dim // 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def generate() -> Any:
        tokens = tokenizer([""] * len(words) + words, padding=True, return_tensors="pt")
        states = encoder(**tokens).last_hidden_state
        scheduler.set_timesteps(steps)
        noise = torch.randn(len(words), unet.config.out_channels, round(rows), width)
        for step in scheduler.timesteps:
            both = unet(
                torch.cat([noise] * 2), step, encoder_hidden_states=states,
                encoder_attention_mask=tokens.attention_mask.bool(),
            ).sample  # fmt: skip
            unguided, conditioned = both.chunk(2)
            noise = scheduler.step(unguided + GUIDANCE * (conditioned - unguided), step, noise).prev_sample
        mel = vae.decode(noise / vae.config.scaling_factor).sample.squeeze(1)
        return vocoder(mel).reshape(len(words), -1).numpy()

    return generate


def in_child(asked: argparse.Namespace) -> None:
    """One way of a job that needs a process of its own: `cold` writes a file, `clips` prints seconds."""
    words = [f"{PROMPT}, {number}" for number in range(asked.clips)]
    if asked.job == "cold":
        import soundfile

        generate = plain_way([PROMPT], asked.steps)
        soundfile.write(asked.folder / "plain.wav", generate()[0], 16000)
        return
    if asked.way == "plain":
        generate = plain_way(words, asked.steps)
    else:
        import milonga

        student = asked.way == "student"
        pipe = milonga.load(asked.student if student else "nano", scheduler=None if student else "ddim")
        pipe.set_progress_bar_config(disable=True)

        def generate() -> Any:
            steps = 4 if student else asked.steps
            return pipe(words, seeds=0, num_inference_steps=steps, guidance_scale=GUIDANCE).audios

    generate()  # warm
    begun, used = time.perf_counter(), time.process_time()
    generate()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    each = (time.perf_counter() - begun) / len(words), (time.process_time() - used) / len(words)
    print(json.dumps({"wall": each[0], "cpu": each[1], "peak": peak}))


def matrix_rate(dtype: str) -> float:
    """GFLOP/s of products of 1024² matrices on one thread, the best of five."""
    import torch

    torch.set_num_threads(1)
    left, right = torch.randn(2, 1024, 1024).to(getattr(torch, dtype)).unbind(0)
    seconds = []
    for _ in range(6):
        begun = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - begun)
    return 2 * 1024**3 / min(seconds[1:]) / 1e9


def spread(values: list[float], digits: int = 3) -> str:
    """The median, with its range."""
    return f"{median(values):.{digits}g} ({min(values):.{digits}g} to {max(values):.{digits}g})"


def main() -> None:
    """Runs all jobs and prints the page's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=32, help="of a step of training")
    parser.add_argument("--student")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        in_child(asked)
        return
    print("| what | plain, s | ours, s | plain / ours | CPU: plain / ours | peak MB, plain and ours |")
    print("|---|---|---|---|---|---|")
    for job in asked.jobs:
        ways = ["plain", "ours", *(["student"] if asked.student and job in ("cold", "clips") else [])]
        rows: dict[str, list[Row]] = {way: [] for way in ways}
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(asked.repeats):
                for way in ways:
                    rows[way].append(JOBS[job](asked, way, Path(folder)))
        for way in ways[1:]:
            ratios = {
                key: [slow[key] / fast[key] for slow, fast in zip(rows["plain"], rows[way], strict=True)]
                for key in ("wall", "cpu")
            }
            peaks = [f"{median(row.get('peak', math.nan) for row in rows[name]):.0f}" for name in ("plain", way)]
            title = TITLES[job] if way == "ours" else f"{TITLES[job]}, student of 4 passes"
            walls = [spread([row["wall"] for row in rows[name]]) for name in ("plain", way)]
            cells = [title, *walls, f"{spread(ratios['wall'])}×", f"{spread(ratios['cpu'])}×", ", ".join(peaks)]
            print(f"| {' | '.join(cells)} |", flush=True)
    if "clips" in asked.jobs:
        counts = [count for count in (1, 2, 4, 8, 16) if count <= asked.clips]
        seconds = []
        for count in counts:
            row = clips(argparse.Namespace(**{**vars(asked), "clips": count}), "ours", Path())
            seconds.append(row["cpu"] * count)
        logs = [(math.log(count), math.log(value)) for count, value in zip(counts, seconds, strict=True)]
        centre = [sum(column) / len(logs) for column in zip(*logs, strict=True)]
        slope = sum((x - centre[0]) * (y - centre[1]) for x, y in logs) / sum((x - centre[0]) ** 2 for x, _ in logs)
        print(f"\nCPU seconds grow with the clips of a batch, 1 to {counts[-1]}, as n^{slope:.2f}.")
    rates = ", ".join(f"{dtype} {matrix_rate(dtype):.0f}" for dtype in ("float32", "bfloat16"))
    print(f"Matrix products, GFLOP/s on one thread: {rates}.")


if __name__ == "__main__":
    main()
