"""Sharded work in this process, on a few threads: torch and numpy release the interpreter while they compute."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from milonga.core.errors import RecipeError


class LocalEngine:
    """Runs shards in this process, `workers` at a time; results do not depend on how many.

    With one worker the work runs in the calling thread, with all of torch's own threads; with more, each worker has
    one. What runs when an exception or Ctrl-C arrives is finished (a shard is short); what waits is not begun.
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
            yield from ((shard, work(shard)) for shard in shards)
        else:
            yield from self._threaded(work, shards)

    def _threaded(self, work: Callable[[str], int], shards: Sequence[str]) -> Iterator[tuple[str, int]]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="milonga", initializer=_one_thread)
        try:
            pending = {pool.submit(work, shard): shard for shard in shards}
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                yield from _finished(done, pending)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _finished(done: set[Future[int]], pending: dict[Future[int], str]) -> Iterator[tuple[str, int]]:
    for future in done:
        yield pending.pop(future), future.result()


def _one_thread() -> None:
    """OpenMP keeps the number of threads per calling thread, so each worker sets its own."""
    import torch

    torch.set_num_threads(1)
