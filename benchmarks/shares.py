"""Which share of a run's CPU seconds the networks take, by stage: `python benchmarks/shares.py RECIPE [--set ...]`.

The run goes into a temporary folder, in one process on one worker; with OMP_NUM_THREADS=1 nothing else computes. A
second in a network is one between the first call of a module and its return, of whatever module calls it, or in a
backward pass. Noise, schedulers, losses, optimizers, loading, decoded files and all bookkeeping are outside.
"""

import argparse
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from milonga.engines.local import LocalEngine, keep_freed_memory
from milonga.experiment.recipe import load_recipe
from milonga.experiment.run import run


class Networks:
    """CPU seconds in networks, of all threads together."""

    def __init__(self) -> None:
        self.seconds, self._own, self._lock = 0.0, threading.local(), threading.Lock()
        register_module_forward_pre_hook(lambda *_: self.enter())
        register_module_forward_hook(lambda *_: self.leave(), always_call=True)
        backward = torch.autograd.backward

        def timed(*arguments: Any, **options: Any) -> None:
            self.enter()
            try:
                backward(*arguments, **options)
            finally:
                self.leave()

        torch.autograd.backward = timed

    def enter(self) -> None:
        """A module or a backward pass begins on this thread."""
        depth = getattr(self._own, "depth", 0)
        if not depth:
            self._own.since = time.thread_time()
        self._own.depth = depth + 1

    def leave(self) -> None:
        """It ends."""
        self._own.depth -= 1
        if not self._own.depth:
            with self._lock:
                self.seconds += time.thread_time() - self._own.since


def main() -> None:
    """Walks the recipe and prints a row for each stage, and one for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    keep_freed_memory()
    networks, rows = Networks(), defaultdict[str, list[float]](lambda: [0.0, 0.0])

    @contextmanager
    def measured(stage: str) -> Iterator[None]:
        cpu, before = time.process_time(), networks.seconds
        yield
        rows[stage][0] += time.process_time() - cpu
        rows[stage][1] += networks.seconds - before

    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(asked.recipe, asked.overrides)
        run(recipe, Path(folder) / "run", engine=LocalEngine(1), around=measured)
    rows["all"] = [sum(row[place] for row in rows.values()) for place in (0, 1)]
    print("\n| stage | CPU s | in networks |\n| --- | --- | --- |")
    for stage, (cpu, inside) in rows.items():
        print(f"| {stage} | {cpu:.1f} | {inside / cpu:.0%} |")


if __name__ == "__main__":
    main()
