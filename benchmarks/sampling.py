"""What a clip costs with networks of the published size: `python benchmarks/sampling.py FOLDER [--device cuda] ...`.

Weights are random: they cost what trained ones cost. FOLDER gets a checkpoint in the original's seven-file layout (5.3
GB, once). Parts, all or by name: `loading` (start-up time and peak memory, each way in a process of its own), `steps`
(seconds a step and a clip, and the share of the rate at which this machine multiplies matrices, measured beside every
step), `gpu` (clips a second at several batches, types and compilers; needs --device cuda). What a few-step sampling
costs in quality is in trades.py.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch.utils.flop_counter import FlopCounterMode

import milonga
from milonga.models.original.layout import AUTOENCODER, MAIN, SCHEDULE, VAE, read_layout
from milonga.models.original.load import blank, places

WORDS = str(Path(str(files("milonga.nano"))) / "weights" / "tango" / "tokenizer")  # any will do for random weights
PROMPT = "a dog barks then a bell rings"
MAIN_CONFIG = {
    "text_encoder_name": "google/flan-t5-large",
    "scheduler_name": "stabilityai/stable-diffusion-2-1",
    "unet_model_name": None,
    "unet_model_config_path": "configs/diffusion_model_config.json",
}


def write_checkpoint(folder: Path) -> None:
    """A full-size checkpoint with random weights; kept where it exists."""
    if (folder / VAE).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main_config.json").write_text(json.dumps(MAIN_CONFIG))
    (folder / "vae_config.json").write_text(json.dumps(AUTOENCODER))
    for name in (MAIN, VAE):
        (folder / name).touch()
    networks = blank(read_layout(folder))
    for file, name in (("main", MAIN), ("vae", VAE)):
        tensors = {key: 0.02 * torch.randn(place.original_shape) for key, place in places(networks, file).items()}
        if file == "main":
            tensors["text_encoder.encoder.embed_tokens.weight"] = tensors["text_encoder.shared.weight"]
        torch.save(tensors, folder / name)


def load_ours(folder: Path) -> Any:
    """Streamed: networks without memory, weights mapped from their files."""
    return milonga.load(str(folder), tokenizer=WORDS)


def load_plainly(folder: Path) -> dict[str, Any]:
    """As the original does: every network filled with random numbers first, whole files read, then copied over."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig, T5Config, T5EncoderModel

    layout = read_layout(folder)
    networks: dict[str, Any] = {
        "unet": UNet2DConditionModel.from_config(layout.unet),
        "text_encoder": T5EncoderModel(T5Config.from_dict(dict(layout.text_encoder))),
        "vae": AutoencoderKL(**layout.autoencoder),
        "vocoder": SpeechT5HifiGan(SpeechT5HifiGanConfig(**layout.vocoder)),
    }
    for file, path in (("main", layout.main), ("vae", layout.vae)):
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        for key, place in places(networks, file).items():
            networks[place.network].get_parameter(place.key).data.copy_(tensors[key].reshape(place.shape))
    return networks


def loading(folder: Path) -> None:
    print("\n| loading | seconds | CPU s | peak memory, GB |\n| --- | --- | --- | --- |")
    for way in ("plainly", "ours", "plainly", "ours"):
        told = subprocess.run([sys.executable, __file__, str(folder), "--load", way], capture_output=True, text=True)
        if told.returncode:
            raise RuntimeError(told.stderr)
        print(told.stdout.strip(), flush=True)


def one_loading(folder: Path, way: str) -> None:
    """Loads in one way and touches every weight once, as a first step would."""
    begun, used = time.perf_counter(), time.process_time()
    held = {"ours": load_ours, "plainly": load_plainly}[way](folder)
    ready = time.perf_counter() - begun, time.process_time() - used
    networks = held if isinstance(held, dict) else held.components
    for network in networks.values():
        if isinstance(network, torch.nn.Module):
            sum(float(one.detach().sum()) for one in network.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"| {way} | {ready[0]:.1f} | {ready[1]:.1f} | {peak:.1f} |")


def flops(unet: Any, rows: int) -> float:
    """Floating-point operations of one forward of `rows` clips of 10.24 s (multiply and add are two)."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        blank_unet = type(unet).from_config(unet.config)
        states, mask = torch.zeros(rows, 12, 1024), torch.ones(rows, 12)
        blank_unet(torch.zeros(rows, 8, 256, 16), 500, encoder_hidden_states=states, encoder_attention_mask=mask)
    return counter.get_total_flops()


def rate(device: str, dtype: torch.dtype, size: int, times: int = 3) -> float:
    """FLOP/s of this machine's own product of two square matrices, the best of `times`."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = min(timed(lambda: a @ a, device) for _ in range(times))
    return 2 * size**3 / best


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds on the clock until the device has done it."""
    begun = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


@torch.no_grad()
def plain_loop(whole: Any, steps: int) -> torch.Tensor:
    """What the original does for one clip: both prompts encoded, one U-Net call of two rows a step, DDPM."""
    scheduler = DDPMScheduler.from_config(SCHEDULE)
    scheduler.set_timesteps(steps)
    states, mask = whole.encode_prompt(["", PROMPT])
    latents = torch.randn(1, *whole.latent_shape(10.24))
    for step in scheduler.timesteps:
        answer = whole.unet(
            torch.cat([latents] * 2), step, encoder_hidden_states=states, encoder_attention_mask=mask
        ).sample
        unguided, guided = answer.chunk(2)
        latents = scheduler.step(unguided + 3.0 * (guided - unguided), step, latents).prev_sample
    return latents


@contextmanager
def channels_last(whole: Any) -> Iterator[None]:
    whole.unet.to(memory_format=torch.channels_last)
    yield
    whole.unet.to(memory_format=torch.contiguous_format)


def steps(folder: Path, count: int) -> None:
    whole = load_ours(folder)
    whole.set_progress_bar_config(disable=True)
    asked: dict[str, Any] = {"seeds": [1], "steps": count, "guidance": 3.0}
    ways: dict[str, tuple[Callable[[], Any], Any]] = {
        "plain loop": (lambda: plain_loop(whole, count), nullcontext()),
        "ours": (lambda: whole.sample([PROMPT], **asked), nullcontext()),
        "ours, channels last": (lambda: whole.sample([PROMPT], **asked), channels_last(whole)),
        "ours, guided in half of the steps": (
            lambda: whole.sample([PROMPT], **asked, interval=(0.5, 1.0)), nullcontext()
        ),
        "ours, not guided": (lambda: whole.sample([PROMPT], **asked | {"guidance": 1.0}), nullcontext()),
    }  # fmt: skip
    forward = flops(whole.unet, 1)
    encoding = timed(lambda: whole.encode_prompt(["", PROMPT]), "cpu")
    decoding = timed(lambda: whole.decode(torch.randn(1, *whole.latent_shape(10.24))), "cpu")
    print(f"\none forward of one clip {forward / 1e12:.3f} TFLOP; encoding {encoding:.2f} s, decoding {decoding:.1f} s")
    print("| way | s a step | clip of 200 steps, s | of 20 | share of the matrix rate |\n" + "| --- " * 5 + "|")
    clip: dict[str, Callable[[int], float]] = {}
    for name, (work, around) in ways.items():
        with around:
            before = rate("cpu", torch.float32, 2048)
            seconds = timed(work, "cpu") / count
            own = (before + rate("cpu", torch.float32, 2048)) / 2
        rows = 1 if "not guided" in name else 1.5 if "half" in name else 2
        share = "" if "deep" in name else f"{rows * forward / seconds / own:.0%} of {own / 1e9:.0f} GFLOP/s"
        clip[name] = lambda n, s=seconds: encoding + n * s + decoding
        whole_clip = [f"{clip[name](n):.0f}" for n in (200, 20)]
        print(f"| {name} | {seconds:.2f} | {whole_clip[0]} | {whole_clip[1]} | {share} |", flush=True)
    guided, student = clip["ours"](16), clip["ours, not guided"](4)
    print(f"16 guided steps {guided:.0f} s, a student's 4 passes {student:.0f} s: {guided / student:.1f} times")


@torch.no_grad()
def gpu(folder: Path, device: str) -> None:
    print("\n| type | compiled | batch | s a step | clips/s at 20 steps | memory, GB | share of the matrix rate |")
    print("| --- " * 7 + "|")
    for dtype in (torch.float32, torch.bfloat16):
        own = rate(device, dtype, 8192, 10)
        for compiler in (None, "default", "reduce-overhead"):  # the last records CUDA graphs
            whole = milonga.load(str(folder), tokenizer=WORDS, scheduler="dpm++", dtype=dtype, device=device)
            whole.set_progress_bar_config(disable=True)
            forward = flops(whole.unet, 1)
            if compiler:
                whole.unet.compile(mode=compiler, dynamic=False)
            for batch in (1, 8, 32):
                seeds = list(range(batch))
                whole.sample([PROMPT] * batch, seeds, 3, 3.0)  # warms up, and compiles
                torch.cuda.reset_peak_memory_stats()
                seconds = timed(lambda w=whole, s=seeds: w.sample([PROMPT] * len(s), s, 20, 3.0), device) / 20
                decoding = timed(lambda w=whole, b=batch: w.decode(torch.randn(b, *w.latent_shape(10.24))), device)
                cells = [
                    str(dtype),
                    compiler or "no",
                    batch,
                    f"{seconds:.4f}",
                    f"{batch / (20 * seconds + decoding):.2f}",
                ]
                cells += [
                    f"{torch.cuda.max_memory_allocated() / 1e9:.1f}",
                    f"{2 * batch * forward / seconds / own:.0%}",
                ]
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="*", choices=["loading", "steps", "gpu", []], default=[])
    parser.add_argument("--count", type=int, default=2, help="timed steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--load", choices=["ours", "plainly"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.load:
        one_loading(asked.folder, asked.load)
        return
    write_checkpoint(asked.folder)
    parts = asked.parts or (["loading", "steps"] if asked.device == "cpu" else ["gpu"])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {asked.device}")
    if "loading" in parts:
        loading(asked.folder)
    if "steps" in parts:
        steps(asked.folder, asked.count)
    if "gpu" in parts:
        gpu(asked.folder, asked.device)


if __name__ == "__main__":
    main()
