"""The local engine does every shard once, stops at the first mistake, and leaves torch's threads as they were."""

import threading

import pytest
import torch

from milonga.core.errors import RecipeError
from milonga.core.protocols import Engine
from milonga.engines.local import LocalEngine

SHARDS = [f"{n:02d}" for n in range(12)]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_shard_is_done_once(workers):
    engine: Engine = LocalEngine(workers)
    done: list[str] = []

    def work(shard: str) -> int:
        done.append(shard)
        return int(shard)

    assert sorted(engine.run(work, SHARDS)) == [(shard, int(shard)) for shard in SHARDS]
    assert sorted(done) == SHARDS


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_first_exception_stops_the_rest(workers, error):
    begun: list[str] = []

    def work(shard: str) -> int:
        begun.append(shard)
        if shard == "01":
            raise error("no more")
        return 1

    with pytest.raises(error, match="no more"):
        list(LocalEngine(workers).run(work, [f"{n:04d}"[2:] for n in range(100)]))
    assert "01" in begun
    assert len(begun) < 100


def test_leaving_early_stops_the_rest():
    begun: list[str] = []
    gate = threading.Event()

    def work(shard: str) -> int:
        begun.append(shard)
        if shard != "00":
            gate.wait(5)
        return 1

    stream = LocalEngine(2).run(work, SHARDS)
    assert next(stream)[0] == "00"
    threading.Timer(0.2, gate.set).start()
    stream.close()
    assert len(begun) <= 4


def test_workers_share_the_cores_and_the_caller_keeps_its_own():
    before = torch.get_num_threads()
    seen: set[int] = set()
    after: list[int] = []

    def work(_: str) -> int:
        seen.add(torch.get_num_threads())
        return 1

    try:
        torch.set_num_threads(2)
        list(LocalEngine(2).run(work, SHARDS))
        assert torch.get_num_threads() == 2
        later = threading.Thread(target=lambda: after.append(torch.get_num_threads()))  # it has computed nothing yet
        later.start()
        later.join()
    finally:
        torch.set_num_threads(before)
    assert (seen, after) == ({1}, [2])


def test_no_worker_is_no_engine():
    with pytest.raises(RecipeError, match="at least one worker"):
        LocalEngine(0)
