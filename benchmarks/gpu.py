"""What one accelerator does with Tango and Stable Audio Open at full size, with random weights; see gpu.sh.

    python benchmarks/gpu.py [FILE] [--tiny] [--seconds 470] [--only TEXT] [--clips 128]

Lines of FILE (default gpu.jsonl): sampling (clips/s at 50 steps and guidance 3, share of the peak), scorers (clips/s),
preference training (pairs/s, peak memory, hours of the paper's training), and how far one seeded clip is from the
CPU's. Stable Audio Open's clips have its own default length, steps and guidance. The most telling figures come first. A
figure that fails, for want of memory say, is a line with its error.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))  # networks of the published sizes
TANGO, STABLE_AUDIO = "TangoPipeline", "StableAudioPipeline"
STEPS, GUIDANCE, SECONDS = 50, 3.0, 10.24  # of a clip, as Audio-alpaca's are sampled
WORDS = ("a dog barks then a bell rings", "rain falls after a man speaks")
PAPER_FLOP = 4e17  # of the paper's training: 15,025 pairs, one epoch of SFT and four of DPO
# Dense peaks by the makers' data sheets, FLOP/s in bfloat16 and in float32 without TF32.
PEAKS = {"H200": (989e12, 67e12), "H100": (989e12, 67e12), "A100": (312e12, 19.5e12)}
TRAININGS: dict[str, dict[str, Any]] = {
    "all weights, bf16": {"precision": "bf16"},
    "LoRA 16, bf16": {"precision": "bf16", "lora_rank": 16},
    "24 GB: cached reference, checkpointing, bf16": {
        "precision": "bf16", "reference": "cached", "noise_samples_per_pair": 1, "gradient_checkpointing": True,
    },
    "all weights, fp32": {},
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measures what is missing, until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=470.0)
    parser.add_argument("--only", default="", help="figures whose name has this text")
    parser.add_argument("--clips", type=int, default=128, help="to encode and to score")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    lines = options.file.read_text().splitlines() if options.file.exists() else []
    done = {json.loads(line)["figure"] for line in lines}
    for figure, measure in figures(options.tiny, 2 if options.tiny else options.clips):
        if figure in done or options.only not in figure:
            continue
        if time.perf_counter() - start > options.seconds:
            print(f"time is up before {figure}: run the same command again", flush=True)
            return
        row: dict[str, Any] = {"figure": figure, "device": device_name()}
        begun = time.perf_counter()
        try:
            row |= measure()
        except (RuntimeError, MemoryError) as error:
            row["error"] = str(error).splitlines()[0]
        line = json.dumps(row | {"took": round(time.perf_counter() - begun, 1)})
        print(line, flush=True)
        with options.file.open("a") as file:
            file.write(line + "\n")


def figures(tiny: bool, clips: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """All figures by name, the most telling first."""
    first, *batches = (1, 2) if tiny else (8, 1, 32)
    yield f"sample bf16, batch {first}", partial(sample, tiny, "bf16", first)
    for name, settings in list(TRAININGS.items())[:3]:
        yield f"DPO {name}", partial(preference, tiny, settings)
    yield "encode clips", partial(encode, tiny, clips)
    for name in ("LAION-CLAP", "PANNs", "VGGish"):
        yield f"score {name}", partial(score, tiny, name, clips)
    yield f"Stable Audio Open: sample bf16, batch {first}", partial(sample_long, tiny, "bf16", first)
    name = "LoRA 16, bf16"
    yield f"Stable Audio Open: DPO {name}", partial(preference, tiny, TRAININGS[name], STABLE_AUDIO)
    yield "parity of one clip with the CPU", partial(parity, tiny)
    for batch in batches:
        yield f"sample bf16, batch {batch}", partial(sample, tiny, "bf16", batch)
    for batch in (first, *batches):
        yield f"sample fp32, batch {batch}", partial(sample, tiny, "fp32", batch)
    yield f"sample bf16 compiled, batch {first}", partial(sample, tiny, "bf16", first, compiled=not tiny)
    yield "DPO all weights, fp32", partial(preference, tiny, TRAININGS["all weights, fp32"])


def device_name() -> str:
    """The accelerator's name; "cpu" without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


@cache
def pipeline(tiny: bool, kind: str = TANGO) -> Any:
    """A model at full size with random weights, or nano or Stable Audio as small as it goes, on the device."""
    import milonga
    from milonga.experiment.rehearsal.stand_ins import random_tango
    from milonga.maths.devices import device_of

    if kind == STABLE_AUDIO:
        import full_backbones
        import small_backbones

        return (small_backbones if tiny else full_backbones).make(kind).to(device_of())
    return milonga.load("nano") if tiny else random_tango(WORDS).to(device_of())


@cache
def flops(tiny: bool, kind: str = TANGO) -> float:
    """FLOP of one pass of the network for one clip."""
    import copy

    from milonga.experiment.rehearsal.cost import pass_flops
    from milonga.models.load import as_denoiser, load_denoiser
    from milonga.models.original import layout
    from milonga.models.original.load import blank
    from milonga.models.tango import TangoPipeline
    from milonga.models.tango_denoiser import TangoDenoiser

    if kind == STABLE_AUDIO:
        import full_backbones
        import small_backbones
        import torch

        if tiny:
            return pass_flops(as_denoiser(small_backbones.make(kind)))
        with torch.device("meta"):
            shapes = full_backbones.network(kind)
        return pass_flops(as_denoiser(full_backbones.make(kind, shapes)))
    if tiny:
        return pass_flops(load_denoiser("nano", parts=("text_encoder",)))
    pipe = pipeline(tiny)
    networks = blank(layout.published()) | {"text_encoder": copy.deepcopy(pipe.text_encoder)}
    shapes = TangoPipeline(pipe.tokenizer, scheduler=pipe.scheduler, **networks)
    return pass_flops(TangoDenoiser.of(shapes))


def precision(name: str) -> AbstractContextManager[Any]:
    """Autocast to bfloat16, or nothing."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, torch.bfloat16) if name == "bf16" else nullcontext()


def seconds(work: Callable[[], Any], times: int, warm: bool = True) -> float:
    """Seconds of one call, the mean of `times`, after one that does not count where it is to `warm` up."""
    if warm:
        work()
    synchronise()
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronise()
    return (time.perf_counter() - start) / times


def synchronise() -> None:
    """Waits for the accelerator."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak(name: str) -> float | None:
    """The device's peak in FLOP/s, where it is known."""
    known = next((values for key, values in PEAKS.items() if key in device_name()), None)
    return None if known is None else known[name != "bf16"]


def sample(tiny: bool, kind: str, batch: int, compiled: bool = False) -> dict[str, Any]:
    """Clips a second at 50 steps: the time of a step and of decoding, each measured."""
    import torch

    pipe, count = pipeline(tiny), 1 if tiny else 6
    if compiled:
        pipe.unet.compile(dynamic=False)
    reset_memory()
    words, seeds = [WORDS[place % 2] for place in range(batch)], list(range(batch))
    with precision(kind), torch.no_grad():
        several = seconds(lambda: pipe.sample(words, seeds, 1 + count, GUIDANCE), 1)
        single = seconds(lambda: pipe.sample(words, seeds, 1, GUIDANCE), 1)
        latents = pipe.sample(words, seeds, 1, GUIDANCE)
        decoding = seconds(lambda: pipe.decode(latents), 1)
    step = (several - single) / count
    rate, top = 2 * batch * flops(tiny) / step, peak(kind)
    return {
        "clips_per_s": batch / (STEPS * step + decoding), "ms_per_step": 1000 * step, "ms_decode": 1000 * decoding,
        "tflops": rate / 1e12, "share_of_peak": None if top is None else rate / top, "peak_gb": memory(),
    }  # fmt: skip


def sample_long(tiny: bool, kind: str, batch: int) -> dict[str, Any]:
    """Clips a second of Stable Audio Open by its own sampler and defaults, from captions to waveforms."""
    from milonga.core.records import Prompt, Request
    from milonga.models.generator import DenoiserModel
    from milonga.models.load import as_denoiser

    denoiser, count = as_denoiser(pipeline(tiny, STABLE_AUDIO)), 1 if tiny else 4
    (steps, guidance), model = denoiser.sampling, DenoiserModel(STABLE_AUDIO, denoiser)
    prompts = [Prompt.of(f"{WORDS[place % 2]} {place}", "benchmark") for place in range(batch)]

    def work(steps: int) -> None:
        model.generate([Request.of(0, prompt, prompt.text, steps, guidance) for prompt in prompts])

    reset_memory()
    with precision(kind):
        several, single = seconds(lambda: work(1 + count), 1), seconds(lambda: work(1), 1)
    step = (several - single) / count
    rate, top = 2 * batch * flops(tiny, STABLE_AUDIO) / step, peak(kind)
    return {
        "clips_per_s": batch / (single + (steps - 1) * step), "ms_per_step": 1000 * step,
        "tflops": rate / 1e12, "share_of_peak": None if top is None else rate / top, "peak_gb": memory(),
    }  # fmt: skip


def noise(count: int) -> list[Any]:
    """Clips of noise."""
    import numpy as np

    from milonga.core.records import Clip

    rng = np.random.default_rng(0)
    return [Clip(rng.uniform(-0.3, 0.3, round(SECONDS * 16000)).astype(np.float32), 16000) for _ in range(count)]


def with_share(work: Callable[[], Any], owner: Any, method: str, count: int) -> dict[str, Any]:
    """Clips a second of some work on `count` clips, and which share of its time `owner.method` takes.

    On a CPU, which may be busy with other work, the share is one of the process's own CPU seconds.
    """
    import torch

    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    spent, inner = [0.0], getattr(owner, method)

    def timed(*arguments: Any, **options: Any) -> Any:
        synchronise()
        start = clock()
        result = inner(*arguments, **options)
        synchronise()
        spent[0] += clock() - start
        return result

    work()
    reset_memory()
    setattr(owner, method, timed)
    try:
        start, cpu = clock(), time.process_time()
        took = seconds(work, 1, warm=False)
    finally:
        delattr(owner, method)
    return {
        "clips_per_s": count / took,
        "cpu_s_per_clip": (time.process_time() - cpu) / count,
        "network_share": spent[0] / (clock() - start),
        "peak_gb": memory(),
    }


def encode(tiny: bool, count: int) -> dict[str, Any]:
    """Clips a second from waveforms to the posterior of the VAE."""
    from milonga.models.tango_denoiser import TangoDenoiser

    denoiser, clips = TangoDenoiser.of(pipeline(tiny)), noise(count)

    def work() -> None:
        denoiser.encode_audio([denoiser.prepare_waveform(clip) for clip in clips])

    return with_share(work, denoiser.pipe.vae, "encode", count)


def score(tiny: bool, name: str, count: int) -> dict[str, Any]:
    """Clips a second by one network, from waveforms to rows."""
    from milonga.experiment.rehearsal.stand_ins import random_scorer
    from milonga.maths.devices import device_of, placed
    from milonga.scorers.load import scorer
    from milonga.scorers.panns import FRONT_ENDS, Cnn14, PannsEmbedder
    from milonga.scorers.vggish import Vggish, VggishEmbedder

    clips, width, device = noise(count), 1 if tiny else 64, device_of()
    if name == "LAION-CLAP":
        clap = scorer("nano-clap-a") if tiny else random_scorer(name, WORDS, device)
        return with_share(lambda: clap.embed_clips(clips), clap.model, "get_audio_features", count)
    if name == "PANNs":
        panns = PannsEmbedder(name, placed(Cnn14(FRONT_ENDS[16000], width), device))
        return with_share(lambda: panns.features(clips), panns.network, "forward", count)
    vggish = VggishEmbedder(placed(Vggish(width), device))
    return with_share(lambda: vggish.embed(clips), vggish.network, "forward", count)


def preference(tiny: bool, settings: dict[str, Any], kind: str = TANGO) -> dict[str, Any]:
    """Pairs a second of diffusion-DPO on random latents, four pairs a batch, eight a step."""
    import copy

    import torch

    from milonga.core.config import Phase, Settings
    from milonga.data.examples import PairExamples
    from milonga.models.load import as_denoiser
    from milonga.training.trainer import Trainer, TrainerCallback

    class Marks(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step(self, row: dict[str, Any]) -> None:
            synchronise()
            self.times.append(time.perf_counter())

    pipe, batch = pipeline(tiny, kind), 1 if tiny else 4
    part = "unet" if kind == TANGO else "transformer"
    network = getattr(pipe, part)
    pipe.register_modules(**{part: copy.deepcopy(network)})
    try:
        denoiser, marks = as_denoiser(pipe), Marks()
        count, steps = 2 * batch, 2 if tiny else 4
        latents = torch.randn(2, count, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
        words = denoiser.encode_text([WORDS[place % 2] for place in range(count)]).to(torch.device("cpu"))
        examples = PairExamples(latents[0], latents[1], words)
        own = Settings(batch_size=batch, gradient_accumulation_steps=2, learning_rate=9.6e-7, **settings)
        reset_memory()
        with TemporaryDirectory() as folder:
            phases = [Phase(loss="dpo", steps=steps, beta=2000.0)]
            Trainer(denoiser, examples, phases, own, 0, Path(folder) / "out", callbacks=[marks]).run()
        each = (marks.times[-1] - marks.times[0]) / (len(marks.times) - 1) / count
    finally:
        pipe.register_modules(**{part: network})
    passes = 2 * (3 + (settings.get("reference") != "cached"))
    rate = passes * flops(tiny, kind) / each
    row = {"pairs_per_s": 1 / each, "tflops": rate / 1e12, "peak_gb": memory()}
    return row | ({"paper_hours": PAPER_FLOP / rate / 3600} if kind == TANGO else {})


def parity(tiny: bool) -> dict[str, Any]:
    """The largest difference of a seeded clip of two steps from the CPU's, and its share of the CPU's peak."""
    import torch

    pipe = pipeline(tiny)
    home, waves = pipe.device, []
    for device in (home, torch.device("cpu")):
        pipe.to(device)
        waves.append(pipe.decode(pipe.sample([WORDS[0]], [7], 2, GUIDANCE)))
    pipe.to(home)
    difference = float((waves[0] - waves[1]).abs().max())
    return {"largest_difference": difference, "share_of_peak": difference / float(waves[1].abs().max())}


def reset_memory() -> None:
    """Begins to count memory anew."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory() -> float | None:
    """The most memory of the accelerator since the last reset, in GB; None on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


if __name__ == "__main__":
    main()
