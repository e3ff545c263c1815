"""The Ray engine on a real cluster of two nodes on this machine: every shard done, whatever dies; one line when not."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from two_nodes import two_nodes

from milonga.core.config import Workers
from milonga.core.errors import DataError, EngineError
from milonga.core.protocols import Engine
from milonga.engines.ray import RayEngine

pytestmark = pytest.mark.slow

pytest.importorskip("ray", reason="the engine ray needs the extra `ray`")
SHARDS = [f"{n:02d}" for n in range(8)]
SMALL = Workers(count=2, cpus=0.5)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One cluster for all tests here, because it takes seconds to come up."""
    with two_nodes(sys.modules[__name__]) as two:
        yield two


def noted(folder: Path, shard: str) -> int:
    """Writes down who did what; a shard's number is its count of items."""
    with (folder / shard).open("a") as file:
        file.write(f"{os.getpid()} ")
    return int(shard)


def once_killed(folder: Path, shard: str, victim: str = "03") -> int:
    """As `noted`, but the first worker at `victim` is killed as the system kills: with SIGKILL."""
    if shard == victim and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return noted(folder, shard)


def doers(folder: Path) -> dict[str, list[str]]:
    return {shard: (folder / shard).read_text().split() for shard in SHARDS if (folder / shard).exists()}


def test_every_shard_is_done_once_by_workers_that_live_on(tmp_path):
    engine: Engine = RayEngine(SMALL)
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        assert sorted(engine.run(lambda shard, at=folder: noted(at, shard), SHARDS)) == [(s, int(s)) for s in SHARDS]
        assert all(len(by) == 1 for by in doers(folder).values())
    pids = [{by for one in doers(folder).values() for by in one} for folder in (first, second)]
    assert pids[0] & pids[1], "the second stage should find the workers of the first, with their models"
    assert str(os.getpid()) not in pids[0]


def test_a_killed_worker_costs_its_shard_alone_which_is_done_again(tmp_path, capsys):
    done = list(RayEngine(SMALL).run(lambda shard: once_killed(tmp_path, shard), SHARDS))
    assert sorted(done) == [(shard, int(shard)) for shard in SHARDS]
    assert all(len(by) == 1 for by in doers(tmp_path).values())
    assert "a worker was lost" in (told := capsys.readouterr().err)
    assert "shard 03 is done again" in told


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_is_an_error_in_one_line(tmp_path):
    def deadly(shard: str) -> int:
        if shard == "01":
            os.kill(os.getpid(), signal.SIGKILL)
        return noted(tmp_path, shard)

    with pytest.raises(EngineError, match="3 workers died while shard 01") as failure:
        list(RayEngine(SMALL).run(deadly, SHARDS))
    assert "\n" not in str(failure.value)


def test_an_error_in_the_work_is_raised_as_itself_and_stops_the_rest(tmp_path):
    def wrong(shard: str) -> int:
        time.sleep(0.05)
        if shard == "02":
            raise DataError("this shard is no good")
        return noted(tmp_path, shard)

    with pytest.raises(DataError, match=r"^this shard is no good$"):
        list(RayEngine(SMALL).run(wrong, [f"{n:02d}" for n in range(50)]))
    assert len(list(tmp_path.iterdir())) < 40


@pytest.mark.slow
def test_what_fails_in_preparing_a_worker_is_told():
    def unable() -> None:
        raise OSError("no memory to keep")

    with pytest.raises(OSError, match="no memory to keep"):
        list(RayEngine(SMALL, prepare=unable).run(lambda shard: 1, SHARDS))


class _OfAnotherMachine:
    """What a worker cannot read, as where Milonga is not installed on its node."""

    def __call__(self) -> None: ...

    def __reduce__(self):
        return exec, ("import a_library_that_is_not_there",)


@pytest.mark.slow
def test_workers_that_cannot_start_are_an_error_in_one_line():
    with pytest.raises(EngineError, match=r"3 workers died while starting.*a_library_that_is_not_there") as failure:
        list(RayEngine(SMALL, prepare=_OfAnotherMachine()).run(lambda shard: 1, SHARDS))
    assert "\n" not in str(failure.value)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_the_cluster_has_not_is_told_however_many_workers_are_asked_for(count):
    with pytest.raises(EngineError, match="needs 1 CPU and 1 GPU, the cluster has 2 CPU, 0 GPU"):
        list(RayEngine(Workers(gpus=1, count=count)).run(lambda shard: 1, SHARDS))
    assert list(RayEngine(SMALL).run(lambda shard: 1, [])) == []


@pytest.mark.slow
def test_a_node_that_goes_takes_nothing_with_it(tmp_path, cluster):
    node = cluster.add_node(num_cpus=1, resources={"third": 1})

    def slow(shard: str) -> int:
        time.sleep(0.3)
        return noted(tmp_path, shard)

    stream = RayEngine(Workers(count=3, cpus=0.9)).run(slow, SHARDS)
    found = [next(stream)]
    cluster.remove_node(node, allow_graceful=False)
    assert sorted([*found, *stream]) == [(shard, int(shard)) for shard in SHARDS]
