"""Sharded work in this process, on a few threads, and how this process treats freed memory.

Threads suffice, because torch and numpy release the interpreter while they compute.
"""

import ctypes
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from milonga.core.config import Workers
from milonga.core.errors import RecipeError
from milonga.core.protocols import Engine

# Threads share the models, so more of them cost little memory; beyond four, Python itself is in their way.
MOST_WORKERS = 4


def engine_named(name: str, workers: Workers | None = None) -> Engine:
    """The engine `local` or `ray` with a recipe's `workers`; RecipeError for another name."""
    if name == "ray":
        from milonga.engines.ray import RayEngine

        return RayEngine(workers, prepare=keep_freed_memory)
    if name != "local":
        raise RecipeError(f"no engine {name!r}: there are local and ray")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    return LocalEngine((workers.count if workers else 0) or min(MOST_WORKERS, cores))


# malloc.h: the most mappings at once, the free memory above which the heap shrinks, what it grows by.
M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -4, -1, -2


class LocalEngine:
    """Runs shards in this process, `workers` at a time; results do not depend on how many.

    With one worker the work runs in the calling thread, with all of torch's own threads; with more, each worker has
    one. Shards that run when an exception or Ctrl-C arrives are finished (a shard is short); others are not started.
    """

    name = "local"

    def __init__(self, workers: int = 1) -> None:
        if workers < 1:
            raise RecipeError(f"an engine needs at least one worker, not {workers}")
        self.workers = workers

    def run(self, work: Callable[[str], int], shards: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Calls `work(shard)` once for each shard and yields (shard, items done) as each finishes.

        The first exception stops the rest and is raised; closing the generator stops the rest, too.
        """
        if self.workers == 1:
            for shard in shards:
                yield shard, work(shard)
            return
        import torch

        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self.workers, "milonga", torch.set_num_threads, (1,))
        try:
            pending = {pool.submit(work, shard): shard for shard in shards}
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)  # torch gives a worker's number to threads that have computed nothing yet


def keep_freed_memory() -> bool:
    """Lets malloc of this process keep freed memory instead of returning it to the system; False without glibc.

    A network on a CPU frees and allocates the same large tensors at every step. By default glibc maps and unmaps each
    of them, and the system finds and clears every page again: two fifths of the time of a vocoder's forward pass
    (benchmarks/memory.md). For commands that generate, train or evaluate.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26))
    return all(bool(mallopt(option, value)) for option, value in options)
