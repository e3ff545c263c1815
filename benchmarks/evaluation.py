"""How fast FAD, FD, KL and IS come out of clips of ten seconds, and in how much memory, against a plain loop.

The plain loop does what the published toolkits do: one clip at a time through both networks, the spectrum by
convolution, VGGish with a graph that nobody uses, matrix roots of 128² and 2048². Both sides have the same weights, of
full size and random, and must give the same numbers. Each side runs in a process of its own, so that peaks of memory
are its own. References cached: what a second system costs, whose real clips were heard before.

    python benchmarks/evaluation.py [--clips 12] [--rows 886] [--threads 1]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SECONDS, RATE = 10, 16000


def make(folder: Path, clips: int) -> None:
    """Weights of both networks and two folders of clips, from seeds."""
    import torch

    from milonga.core.audio import write_audio
    from milonga.core.records import Clip
    from milonga.scorers.panns import FRONT_ENDS, Cnn14
    from milonga.scorers.vggish import Vggish

    torch.manual_seed(0)
    torch.save({"model": Cnn14(FRONT_ENDS[RATE]).state_dict()}, folder / "panns.pth")
    torch.save(Vggish().state_dict(), folder / "vggish.pth")
    generator = np.random.default_rng(0)
    for side in ("generated", "real"):
        (folder / side).mkdir()
        for number in range(clips):
            tone = np.sin(np.arange(SECONDS * RATE) * generator.uniform(0.02, 1))
            wave = 0.1 * generator.normal(size=SECONDS * RATE) + 0.2 * tone
            write_audio(folder / side / f"{number}.wav", Clip(np.clip(wave, -1, 1).astype(np.float32), RATE))


def ours(folder: Path, cached: bool) -> tuple[dict[str, float], float]:
    """The numbers by `milonga.evaluation`, and the seconds after the weights are loaded."""
    from milonga.core.cache import ArrayCache
    from milonga.evaluation import features as extractors
    from milonga.evaluation.inputs import load_inputs
    from milonga.maths.metrics import frechet_distance, inception_score, kl_softmax
    from milonga.scorers.waveform import of_protocol

    loading, cache = of_protocol("audioldm"), ArrayCache(folder / "cache.sqlite")
    networks = [
        extractors.classifier_extractor(str(folder / "panns.pth"), loading, False),
        extractors.vggish_extractor(str(folder / "vggish.pth"), loading, False),
    ]
    inputs = load_inputs([str(folder / "generated"), str(folder / "real")], None, None)

    def features(side: dict, keep: ArrayCache | None) -> dict[str, np.ndarray]:
        columns = extractors.extract_columns(side, networks, keep, lambda count: None)
        return {
            name: np.concatenate([np.atleast_2d(column[key]) for key in sorted(column)])
            for name, column in columns.items()
        }

    if cached:
        features(inputs.reference, cache)
    start = time.perf_counter()
    own = features(inputs.systems["generated"], None)
    real = features(inputs.reference, cache if cached else None)
    numbers = {
        "fad": frechet_distance(own["vggish"], real["vggish"]),
        "fd": frechet_distance(own["embedding"], real["embedding"]),
        "kl": float(kl_softmax(real["logits"], own["logits"]).mean()),
        "is": inception_score(own["logits"])[0],
    }
    return numbers, time.perf_counter() - start


def plain(folder: Path) -> tuple[dict[str, float], float]:
    """The numbers by a plain loop, and the seconds after the weights are loaded."""
    import torch

    from milonga.scorers.panns import load_panns
    from milonga.scorers.vggish import examples, load_vggish

    panns, vggish = load_panns(folder / "panns.pth").network, load_vggish(folder / "vggish.pth").network
    start = time.perf_counter()
    rows: dict[str, dict[str, np.ndarray]] = {}
    for side in ("generated", "real"):
        found: dict[str, list[np.ndarray]] = {"panns": [], "logits": [], "vggish": []}
        for file in sorted((folder / side).iterdir()):
            wave = loaded(file)
            with torch.no_grad():
                embedding, logits = by_convolution(panns, torch.from_numpy(wave)[None])
            found["panns"].append(embedding.numpy())
            found["logits"].append(logits.numpy())
            pictures = torch.from_numpy(examples(wave)).requires_grad_()
            found["vggish"].append(vggish(pictures).detach().numpy())
        rows[side] = {name: np.concatenate(parts) for name, parts in found.items()}
    own, real = rows["generated"], rows["real"]
    numbers = {name: rooted(own[column], real[column]) for name, column in (("fad", "vggish"), ("fd", "panns"))}
    return numbers | by_classes(own["logits"], real["logits"]), time.perf_counter() - start


def loaded(file: Path) -> np.ndarray:
    """The first channel without its mean."""
    import soundfile

    samples, _ = soundfile.read(file, dtype="float32", always_2d=True)
    return samples[:, 0] - samples[:, 0].mean()


def by_convolution(network, waves):
    """Cnn14 with its spectrum from the kernels that its file carries."""
    import torch
    from torch.nn.functional import conv1d, pad, relu

    mel = network.mel
    padded = pad(waves[:, None], (mel.fft // 2, mel.fft // 2), mode="reflect")
    parts = network.spectrogram_extractor["stft"]
    power = sum(conv1d(padded, parts[part].weight, stride=mel.hop) ** 2 for part in ("conv_real", "conv_imag"))
    mels = power.transpose(1, 2) @ network.logmel_extractor.melW
    picture = 10 * torch.log10(mels.clamp(min=mel.floor))
    picture = network.bn0(picture.transpose(1, 2)).transpose(1, 2).unsqueeze(1)
    for place in range(1, 7):
        picture = network.get_submodule(f"conv_block{place}")(picture)
    frames = picture.mean(dim=3)
    embedding = relu(network.fc1(frames.amax(dim=2) + frames.mean(dim=2)))
    return embedding, network.fc_audioset(embedding)


def rooted(own: np.ndarray, real: np.ndarray) -> float:
    """The Fréchet distance by the root of a matrix."""
    from scipy.linalg import sqrtm

    gap = own.mean(axis=0) - real.mean(axis=0)
    first, second = np.cov(own, rowvar=False), np.cov(real, rowvar=False)
    root = np.real(sqrtm(first @ second))
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2 * np.trace(root))


def by_classes(own: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """KL and IS in plain loops over clips."""
    from scipy.special import softmax

    p, q = softmax(real.astype(np.float64), axis=1), softmax(own.astype(np.float64), axis=1)
    kl = np.mean([np.sum(a * (np.log(a) - np.log(b + 1e-6))) for a, b in zip(p, q, strict=True)])
    q = q[np.random.RandomState(2020).permutation(len(q))]
    parts = [q[i * len(q) // 10 : (i + 1) * len(q) // 10] for i in range(10)]
    scores = [np.exp(np.mean([np.sum(a * np.log(a / part.mean(0))) for a in part])) for part in parts]
    return {"kl": float(kl), "is": float(np.mean(scores))}


def frechet(rows: int) -> dict[str, float]:
    """Seconds of the Fréchet term alone on 2048 dimensions, by matrix root and by singular values."""
    from milonga.maths.metrics import frechet_distance

    generator = np.random.default_rng(0)
    own, real = (np.maximum(generator.normal(size=(rows, 2048)), 0).astype(np.float32) for _ in range(2))

    def timed(way: Callable[[np.ndarray, np.ndarray], float]) -> tuple[float, float]:
        start = time.perf_counter()
        return way(own, real), time.perf_counter() - start

    (by_root, slow), (by_values, fast) = timed(rooted), timed(frechet_distance)
    return {"by root": by_root, "by values": by_values, "seconds by root": slow, "seconds by values": fast}


def main() -> None:
    """Runs each side in its own process and prints a table."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--clips", type=int, default=12)
    words.add_argument("--rows", type=int, default=886)
    words.add_argument("--threads", type=int, default=1)
    words.add_argument("--side", help=argparse.SUPPRESS)
    words.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = words.parse_args()
    if asked.side:
        print(json.dumps(one_side(asked)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, asked.clips)
        found = {side: in_a_process(side, folder, asked) for side in ("plain", "ours", "cached", "frechet")}
    report(found, asked.clips)


def one_side(asked: argparse.Namespace) -> dict:
    """What one process does: numbers, seconds, peak memory in MiB."""
    import torch

    torch.set_num_threads(asked.threads)
    if asked.side == "frechet":
        return frechet(asked.rows)
    numbers, seconds = plain(asked.folder) if asked.side == "plain" else ours(asked.folder, asked.side == "cached")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"numbers": numbers, "seconds": seconds, "peak": peak}


def in_a_process(side: str, folder: Path, asked: argparse.Namespace) -> dict:
    words = ["--side", side, "--folder", folder, "--rows", asked.rows, "--threads", asked.threads]
    done = subprocess.run([sys.executable, __file__, *map(str, words)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def report(found: dict[str, dict], clips: int) -> None:
    for name, value in found["plain"]["numbers"].items():
        print(f"{name}: plain {value:.6g}, ours {found['ours']['numbers'][name]:.6g}")
    slow = found["plain"]["seconds"]
    for side in ("plain", "ours", "cached"):
        one = found[side]
        speed = 2 * clips / one["seconds"]
        told = f"{one['seconds']:8.1f} s {speed:7.2f} clips/s {one['peak']:7.0f} MiB"
        print(f"{side:<8} {told} {slow / one['seconds']:6.2f}×")
    term = found["frechet"]
    slow, fast = term["seconds by root"], term["seconds by values"]
    print(f"Fréchet term: {slow:.2f} s by root, {fast:.3f} s by values, {slow / fast:.0f}×")
    print(f"  its values: {term['by root']:.6f}, {term['by values']:.6f}")


if __name__ == "__main__":
    main()
