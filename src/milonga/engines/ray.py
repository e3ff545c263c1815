"""Sharded work on a Ray cluster: actors that keep their models, one shard at a time each.

Only shard names and counts travel: workers read and write the run folder themselves, so it must be on storage that
every node sees. The shard of a worker that dies is done again by another; shards are written by renaming, so that is
safe even where the lost worker is still alive.
"""

import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from milonga.core.config import Workers
from milonga.core.errors import EngineError, brief

START = 120  # seconds that a cluster of one's own may take to start; Ray's 30 are too few for a busy machine
LOSSES = 3  # workers that may die in a row while starting, or over one shard, before that is an error
Work = Callable[[str], int]


class RayEngine:
    """Runs shards on the actors of a Ray cluster; results do not depend on how many, nor on which of them die.

    The cluster is the one of RAY_ADDRESS or of `ray start` on this machine; otherwise one is started for this process.
    Actors, with the models that they loaded, stay alive from stage to stage and end with this object.
    `prepare` is called once in each of them.
    """

    name = "ray"

    def __init__(self, workers: Workers | None = None, prepare: Callable[[], Any] | None = None) -> None:
        self.workers = workers or Workers()
        self._prepare = prepare
        self._free: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Work may refer to its engine; what is sent to a worker has no actors."""
        return self.__dict__ | {"_free": []}

    def run(self, work: Work, shards: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Calls `work(shard)` for each shard and yields (shard, items done) as each finishes.

        Work is done once, except for shards whose worker died. The first exception stops the rest and is raised when
        running shards have finished, as in `LocalEngine`. Raises EngineError when there is no cluster, or workers die
        repeatedly.
        """
        if not shards:
            return
        pool = _Pool(_connected(), self.workers, self._prepare, work, shards, self._free)
        try:
            yield from pool.results()
        finally:
            self._free = pool.close()


class _Pool:
    """Actors and what each works on: a shard, or "" while it starts."""

    def __init__(
        self, ray: Any, workers: Workers, prepare: Any, work: Work, shards: Sequence[str], free: Sequence[Any]
    ) -> None:
        self.ray, self.workers, self.prepare = ray, workers, prepare
        self.work, self.left = ray.put(work), deque(shards)
        self.losses: Counter[str] = Counter()
        self.under_way: dict[Any, tuple[Any, str]] = {}
        self.free: list[Any] = []
        room = _room(ray, workers)  # EngineError where no worker fits
        wanted = min(workers.count or room, len(shards))
        for actor in [*free, *(self._actor() for _ in range(wanted - len(free)))]:
            self._begin(actor, "")

    def results(self) -> Iterator[tuple[str, int]]:
        """(shard, items) as they come, until none is left."""
        while self.left or any(shard for _, shard in self.under_way.values()):
            (ref,), _ = self.ray.wait(list(self.under_way), num_returns=1)
            actor, shard = self.under_way.pop(ref)
            done = self._outcome(ref, actor, shard)
            if done is not None:
                yield shard, done

    def close(self) -> list[Any]:
        """Lets running shards finish; returns the actors that are ready for more."""
        at = {ref: actor for ref, (actor, shard) in self.under_way.items() if shard}
        if at:
            self.ray.wait(list(at), num_returns=len(at))
        return [*self.free, *at.values()]

    def _outcome(self, ref: Any, actor: Any, shard: str) -> int | None:
        """The result of a shard, whose actor then gets the next one; None if the actor was lost, or only started."""
        from ray.exceptions import RayError, RayTaskError

        try:
            done = self.ray.get(ref)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            self._lost(actor, shard, error)
            return None
        self.losses.pop(shard, None)
        if self.left:
            self._begin(actor, self.left.popleft())
        else:
            self.free.append(actor)
        return done if shard else None

    def _lost(self, actor: Any, shard: str, error: Exception) -> None:
        """Puts a lost worker's shard back, first in the queue, and starts another worker."""
        self.losses[shard] += 1
        if self.losses[shard] >= LOSSES:
            doing = f"shard {shard}" if shard else "starting"
            # Of a failed Python process the last line says more than the first.
            why = ([line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"])[-1]
            raise EngineError(f"{LOSSES} workers died while {doing}: {type(error).__name__}: {why}") from error
        remedy = f"shard {shard} is done again" if shard else "another one is started"
        print(f"milonga: a worker was lost ({type(error).__name__}); {remedy}", file=sys.stderr)
        with suppress(Exception):  # it may be gone already
            self.ray.kill(actor)
        if shard:
            self.left.appendleft(shard)
        # A worker that waits gets it at once: where a node is gone, another may never start.
        self._begin(self.free.pop() if self.free else self._actor(), "")

    def _begin(self, actor: Any, shard: str) -> None:
        call = actor.do.remote(self.work, shard) if shard else actor.ready.remote()
        self.under_way[call] = (actor, shard)

    def _actor(self) -> Any:
        kind = self.ray.remote(num_cpus=self.workers.cpus, num_gpus=self.workers.gpus, max_restarts=0)(_Worker)
        return kind.remote(os.getcwd(), self.prepare)


class _Worker:
    """One actor: a process whose loaded models stay where the registry keeps them."""

    def __init__(self, folder: str, prepare: Callable[[], Any] | None) -> None:
        with suppress(OSError):  # a node that has no such folder can still use absolute paths
            os.chdir(folder)
        self.prepare = prepare

    def ready(self) -> None:
        """The first call of a worker for a stage: what it needs before it can do a shard."""
        if self.prepare is not None:
            self.prepare()
            self.prepare = None

    def do(self, work: Work, shard: str) -> int:
        return work(shard)


def _connected() -> Any:
    """The library `ray`, connected; EngineError when it is not installed or there is no such cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage report
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(START))
    try:
        import ray
    except ImportError as error:
        raise EngineError("the engine ray needs `ray`: pip install 'milonga[ray]'") from error
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # the library raises these by no better name when it cannot start
            where = os.environ.get("RAY_ADDRESS", "on this machine")
            raise EngineError(f"no Ray cluster answers ({where}): {brief(error)}") from error
    return ray


def _room(ray: Any, workers: Workers) -> int:
    """How many workers the cluster holds now; EngineError when not even one fits."""
    available = ray.cluster_resources()
    needed = {"CPU": workers.cpus, "GPU": workers.gpus}
    fits = min(int(available.get(kind, 0) / amount) for kind, amount in needed.items() if amount)
    if fits < 1:
        resources = ", ".join(f"{available.get(kind, 0):g} {kind}" for kind in needed)
        raise EngineError(
            f"a worker needs {workers.cpus:g} CPU and {workers.gpus:g} GPU, the cluster has {resources}: ask for less"
        )
    return fits
