"""Pairs a second and peak memory: Milonga's trainer against a plain loop that does what the released script does.

    python benchmarks/training.py [--model nano] [--pairs 64] [--step 32] [--batch 4] [--own 32] [--steps 4]
                                  [--rounds 3] [--threads 1] [--ways ...]

In every step the plain loop reads two WAV files a pair, computes mels with the spectrum by convolution, passes them
through the VAE and the captions through T5 (with active dropout, as released), and runs both U-Nets (the reference is a
deep copy), in float32. All ways have the same number of pairs a step (--step); the plain loop accumulates batches of
--batch (the released script has four on a GPU), Milonga batches of --own. Each way runs in a process of its own, on the
same model, pairs and threads. All ways alternate, --rounds times, and the table has the median of CPU time too, because
other work on the machine stretches wall time and, less, CPU time.
"""

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "copy": {},
    "cached": {"reference": "cached", "noise_samples_per_pair": 1},
    "lora": {"lora_rank": 8},
    "lora-cached": {"lora_rank": 8, "reference": "cached", "noise_samples_per_pair": 1},
    "cached-bf16": {"reference": "cached", "noise_samples_per_pair": 1, "precision": "bf16"},
    "lora-cached-bf16": {"lora_rank": 8, "reference": "cached", "noise_samples_per_pair": 1, "precision": "bf16"},
    "small": {
        "reference": "cached",
        "noise_samples_per_pair": 1,
        "gradient_checkpointing": True,
    },  # for memory, not for speed
}
NUMBERS = {"pairs": 64, "step": 32, "batch": 4, "own": 32, "steps": 4, "rounds": 3, "threads": 1}
EPOCHS = 4  # of DPO in the paper's recipe: what encoding and a table of errors are shared out over


def main() -> None:
    """Runs all ways one after the other and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[way for way in WAYS if way != "small"])
    for name, value in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    if asked.way:
        print(json.dumps(measured(asked)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in asked.ways}
    for way in asked.ways * asked.rounds:
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--way", way], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        found[way].append(json.loads(done.stdout.splitlines()[-1]))
    print(table({way: {name: median(one[name] for one in runs) for name in runs[0]} for way, runs in found.items()}))


def table(found: dict[str, dict[str, float]]) -> str:
    """The ways side by side; the columns in the middle share what is done once out over `EPOCHS` epochs: encoding, and
    where there is a table of errors as many passes of the reference as there are draws.
    """
    lines = [
        f"| way | CPU s a pair | pairs a CPU s | against the first | {EPOCHS} epochs, one draw | {EPOCHS} epochs, "
        f"{EPOCHS} draws | wall s a pair | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    plain = found[next(iter(found))]["cpu"]  # the first way named, which is the plain one by default
    for way, one in found.items():
        cpu, encoding = one["cpu"], one["encoding"] / EPOCHS
        gains = [plain / (cpu + more) for more in (0, encoding + one["table"] / EPOCHS, encoding + one["table"])]
        told = " | ".join(f"{gain:.1f}×" for gain in gains)
        lines.append(f"| {way} | {cpu:.4f} | {1 / cpu:.1f} | {told} | {one['wall']:.3f} | {one['peak']:.0f} |")
    return "\n".join(lines)


def measured(asked: argparse.Namespace) -> dict[str, float]:
    """CPU and wall seconds a pair of one way, CPU seconds a pair of encoding and of one table, and the peak in MB."""
    import torch

    from milonga.engines.local import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        files, captions = material(Path(folder), asked.pairs)
        run = plain if asked.way == "plain" else cheap
        found = run(asked, files, captions, Path(folder))
    return found | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def material(folder: Path, pairs: int) -> tuple[list[tuple[Path, Path]], list[str]]:
    """WAV files of winners and losers, and captions: real clips of the world, each loser another caption's."""
    from milonga.core.audio import write_audio
    from milonga.data.captions import reference, world_prompts

    prompts = world_prompts("train", pairs + 1)
    for place, prompt in enumerate(prompts):
        write_audio(folder / f"{place}.wav", reference(prompt))
    files = [(folder / f"{place}.wav", folder / f"{place + 1}.wav") for place in range(pairs)]
    return files, [prompt.text for prompt in prompts[:pairs]]


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds of some work."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def plain(
    asked: argparse.Namespace, files: list[tuple[Path, Path]], captions: list[str], folder: Path
) -> dict[str, float]:
    """The released loop: everything again in every step."""
    import torch

    from milonga.models.load import pipeline

    whole = pipeline(asked.model)
    whole.text_encoder.train()
    reference = copy.deepcopy(whole.unet).requires_grad_(False)
    optimizer = torch.optim.AdamW(whole.unet.parameters(), lr=1e-6)

    def step(number: int) -> None:
        rows = [(number * asked.step + place) % len(files) for place in range(asked.step)]
        for first in range(0, asked.step, asked.batch):
            part = rows[first : first + asked.batch]
            loss = plain_loss(whole, reference, [files[row] for row in part], [captions[row] for row in part])
            (loss * asked.batch / asked.step).backward()
        optimizer.step()
        optimizer.zero_grad()

    step(0)  # warm
    cpu, wall = timed(lambda: [step(number) for number in range(asked.steps)])
    done = asked.steps * asked.step
    return {"cpu": cpu / done, "wall": wall / done, "encoding": 0.0, "table": 0.0}


def plain_loss(whole: Any, reference: Any, files: list[tuple[Path, Path]], captions: list[str]) -> Any:
    """Diffusion-DPO's loss of a batch, from files and words."""
    import torch

    from milonga.core.audio import read_audio
    from milonga.models.tango_denoiser import TangoDenoiser

    denoiser = TangoDenoiser.of(whole)

    with torch.no_grad():
        waves = [denoiser.prepare_waveform(read_audio(pair[role])) for role in (0, 1) for pair in files]
        mel = by_convolution(torch.stack(waves), denoiser.mel_config)
        latents = whole.vae.encode(mel.unsqueeze(1)).latent_dist.sample() * whole.vae.config.scaling_factor
        states, mask = whole.encode_prompt(captions)
        states, mask = states.repeat(2, 1, 1), mask.repeat(2, 1)
    steps = torch.randint(len(whole.scheduler.alphas_cumprod), (len(files),)).repeat(2)
    noise = torch.randn_like(latents[: len(files)]).repeat(2, 1, 1, 1)
    alpha = whole.scheduler.alphas_cumprod[steps].reshape(-1, 1, 1, 1)
    noisy, wanted = (
        alpha.sqrt() * latents + (1 - alpha).sqrt() * noise,
        alpha.sqrt() * noise - (1 - alpha).sqrt() * latents,
    )

    def errors(unet: Any) -> Any:
        answer = unet(noisy, steps, encoder_hidden_states=states, encoder_attention_mask=mask).sample
        return (answer - wanted).pow(2).mean((1, 2, 3)).chunk(2)

    winner, loser = errors(whole.unet)
    with torch.no_grad():
        known_winner, known_loser = errors(reference)
    return -torch.nn.functional.logsigmoid(-1000 * ((winner - loser) - (known_winner - known_loser))).mean()


def by_convolution(waves: Any, settings: Any) -> Any:
    """Tango's log-mel pictures (B, frames, bands) as the original makes them: windowed sines and cosines as kernels."""
    import torch

    from milonga.maths.mel import mel_matrix

    waves = torch.nn.functional.pad(waves[:, None], (settings.fft // 2, settings.fft // 2), mode="reflect")
    spectrum = torch.nn.functional.conv1d(waves, kernels(settings.fft), stride=settings.hop)
    real, imaginary = spectrum.chunk(2, dim=1)
    mel = mel_matrix(settings) @ (real.square() + imaginary.square()).sqrt()
    return mel.clamp(min=settings.floor).log().transpose(1, 2)[:, :-1]


@lru_cache
def kernels(fft: int) -> Any:
    """The rows of a windowed Fourier matrix, real parts then imaginary ones, (fft + 2, 1, fft)."""
    import torch

    rows = torch.fft.rfft(torch.eye(fft)).T * torch.hann_window(fft)
    return torch.cat([rows.real, rows.imag])[:, None]


def cheap(
    asked: argparse.Namespace, files: list[tuple[Path, Path]], captions: list[str], folder: Path
) -> dict[str, float]:
    """Milonga's trainer on what was encoded once; encoding and a table of errors are timed apart."""
    import torch

    from milonga.core.audio import read_audio
    from milonga.core.config import Phase, Settings
    from milonga.data.encode import SHARD
    from milonga.data.examples import PairExamples
    from milonga.models.denoiser import Posterior
    from milonga.models.load import load_denoiser
    from milonga.training.reference import CachedReference
    from milonga.training.trainer import train

    held: list[Any] = []
    denoiser = load_denoiser(asked.model)

    def encode() -> None:
        roles = []
        for role in (0, 1):
            parts = [files[first : first + SHARD] for first in range(0, len(files), SHARD)]
            waves = [[denoiser.prepare_waveform(read_audio(pair[role])) for pair in part] for part in parts]
            posteriors = [denoiser.encode_audio(part) for part in waves]
            mean, logvar = (torch.cat([getattr(one, name) for one in posteriors]).half() for name in ("mean", "logvar"))
            roles.append(Posterior(mean, logvar, denoiser.latent_scale))
        held.append(PairExamples(*roles, denoiser.encode_text(captions)))

    encoding, _ = timed(encode)
    filling = spied_on(CachedReference)
    marks: list[tuple[float, float]] = []
    shape = {"batch_size": asked.own, "gradient_accumulation_steps": asked.step // asked.own}
    settings = Settings(learning_rate=1e-6, **shape, **WAYS[asked.way])
    epochs = -(-(asked.steps + 2) * asked.step // len(files))

    def mark(row: dict[str, Any]) -> None:
        marks.append((time.process_time(), time.perf_counter()))

    train(denoiser, held[0], [Phase(loss="dpo", epochs=epochs, beta=2000.0)], settings, 0, folder / "out", mark)
    done = (len(marks) - 1) * asked.step
    (cpu, wall), (first_cpu, first_wall) = marks[-1], marks[0]
    each = {"cpu": (cpu - first_cpu) / done, "wall": (wall - first_wall) / done}
    return each | {"encoding": encoding / len(files), "table": sum(filling) / len(files)}


def spied_on(cached: Any) -> list[float]:
    """CPU seconds of every filling of a table of errors from now on."""
    found: list[float] = []
    fill = cached.fill

    def filled(*given: Any) -> None:
        found.append(timed(lambda: fill(*given))[0])

    cached.fill = filled
    return found


if __name__ == "__main__":
    main()
