"""What retaining freed memory gains: nano's vocoder and U-Net, forward, with and without it.

    python benchmarks/memory.py [--rounds 5]

Each measurement is a process of its own with one thread; the two kinds take turns, so that neither has the calmer
minutes. Prints Markdown: the median and the range of milliseconds a forward pass takes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

REPEATS = {"vocoder, a clip": 12, "U-Net, eight clips": 6}


def forwards() -> dict[str, Callable[[], object]]:
    """The passes that are timed, on random input of nano's own sizes."""
    import torch

    from milonga.models.load import pipeline

    tango = pipeline("nano")
    mel = torch.randn(1, 256, 64)
    latents, states = torch.randn(8, 8, 32, 8), torch.randn(8, 16, 128)
    return {
        "vocoder, a clip": lambda: tango.vocoder(mel),
        "U-Net, eight clips": lambda: tango.unet(latents, 500, encoder_hidden_states=states),
    }


def measure(kept: bool) -> None:
    """Prints the milliseconds of each pass, in this process."""
    import torch

    from milonga.engines.local import keep_freed_memory

    torch.set_num_threads(1)
    if kept and not keep_freed_memory():
        raise SystemExit("this C library has no malloc to tell")
    with torch.no_grad():
        for name, forward in forwards().items():
            forward()
            began = time.perf_counter()
            for _ in range(REPEATS[name]):
                forward()
            print(name, 1000 * (time.perf_counter() - began) / REPEATS[name], sep="\t")


def measured(kept: bool) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--kept" if kept else "--freed"]
    told = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return {name: float(value) for name, value in (line.split("\t") for line in told.stdout.splitlines())}


def tell(found: list[tuple[dict[str, float], dict[str, float]]]) -> None:
    """The table of the milliseconds without and with it in each round."""
    print("| forward pass | returned to the system, ms | retained, ms | ratio |", "| --- | --- | --- | --- |", sep="\n")
    for name in REPEATS:
        freed, kept = ([pair[side][name] for pair in found] for side in (0, 1))
        ratio = statistics.median(freed) / statistics.median(kept)
        cells = (f"{statistics.median(s):.1f} ({min(s):.1f} to {max(s):.1f})" for s in (freed, kept))
        print(f"| {name} | {' | '.join(cells)} | {ratio:.2f} |")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kept", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--freed", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.kept or asked.freed:
        measure(asked.kept)
    else:
        tell([(measured(False), measured(True)) for _ in range(asked.rounds)])


if __name__ == "__main__":
    main()
