"""Whole runs on a Ray cluster of two nodes: the same as in this process, whatever is killed."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import fake_parts
import pytest
import test_online
from fake_parts import RECIPE, FakeParts, NoiseModel
from tiny_parts import network_bytes, parts_folder
from two_nodes import two_nodes

from milonga.core.config import Workers
from milonga.core.errors import StoreError
from milonga.core.records import Candidate, Pair
from milonga.core.store import Run
from milonga.engines.local import LocalEngine
from milonga.engines.ray import RayEngine
from milonga.experiment import run as pipeline
from milonga.experiment.recipe import load_recipe, parse_recipe
from milonga.preference.candidates import generate_shard

pytest.importorskip("ray", reason="the engine ray needs the extra `ray`")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FAKE = parse_recipe(RECIPE, "fake.toml")


@pytest.fixture(scope="module")
def cluster():
    with two_nodes(fake_parts, sys.modules[__name__]) as two:
        yield two


def shards(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*.parquet"))}


def scores_of(run: Run) -> dict[tuple[str, str], float]:
    """Each score by clip and scorer."""
    candidates = run.stage("score").read_records(Candidate)
    return {(one.request.id, by): value for one in candidates for by, value in one.scores.items()}


def test_the_same_files_as_from_this_process(tmp_path, cluster):
    for name, engine in (("local", LocalEngine(2)), ("ray", RayEngine())):
        pipeline.run(FAKE, tmp_path / name, until="pair", engine=engine, parts=FakeParts())
    assert shards(tmp_path / "ray") == shards(tmp_path / "local")


def test_nano_makes_the_same_pairs_and_scores_alone_in_batches_and_on_a_cluster(tmp_path, cluster):
    """Pair ids equal and scores within 1e-5: `local` one clip at a time, `local` 32 at a time, `ray` on two nodes."""
    ways = {"one": (1, LocalEngine()), "many": (32, LocalEngine(2)), "ray": (16, RayEngine(Workers(cpus=1)))}
    runs = {}
    for name, (batch, engine) in ways.items():
        small = ('prompts.sources=["world:train:24"]', "prompts.per_cluster=1", "plan.shard_size=16")
        recipe = load_recipe("smoke", [*small, f"generate.batch_size={batch}", f"score.batch_size={batch}"])
        runs[name] = pipeline.run(recipe, tmp_path / name, until="pair", engine=engine)
    scores = {name: scores_of(run) for name, run in runs.items()}
    pairs = {name: [p.id for p in run.stage("pair").read_records(Pair)] for name, run in runs.items()}
    assert pairs["one"] == pairs["many"] == pairs["ray"] != []
    for name in ("many", "ray"):
        assert scores[name].keys() == scores["one"].keys()
        assert max(abs(value - scores["one"][key]) for key, value in scores[name].items()) <= 1e-5


def test_a_worker_that_does_not_see_the_run_folder_says_so(tmp_path, cluster):
    run = pipeline.run(FAKE, tmp_path / "run", until="plan", parts=FakeParts())
    here = pipeline.Context(FAKE, run, FakeParts(), RayEngine())
    (run.path / "manifest.json").unlink()  # what a worker elsewhere sees
    with pytest.raises(StoreError, match="put the run where all machines see it"):
        here.over_shards("generate", {"a": 1}, partial(generate_shard, run, "generate", list, list, 1))


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import fake_parts, ray
from fake_parts import RECIPE, FakeParts, NoiseModel
from milonga.experiment import run as pipeline
from milonga.experiment.recipe import parse_recipe
ray.cloudpickle.register_pickle_by_value(fake_parts)
parts = FakeParts(NoiseModel(Path(sys.argv[3]), slow=0.1))
recipe = parse_recipe(RECIPE, "fake.toml")
pipeline.run(recipe, Path(sys.argv[2]), until="pair", engine=pipeline.engine_named("ray", recipe.workers), parts=parts)
"""


def test_a_killed_driver_goes_on_and_does_no_finished_shard_again(tmp_path, cluster):
    out, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "-c", DRIVER, str(Path(__file__).parents[1] / "support"), str(out), str(log)]
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(Run(out).stage("generate").names()) < 2:
        assert driver.poll() is None, driver.stderr and driver.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    finished = Run(out).stage("generate").names()
    assert 2 <= len(finished) < 5
    subprocess.run(command, check=True, capture_output=True, env=environment)
    again = log.read_text().split()
    assert len(set(again)) == 40
    assert len(again) <= 40 + 2 * 8, "more was made twice than the shards that two workers were at"
    whole = pipeline.run(FAKE, tmp_path / "whole", until="pair", parts=FakeParts(NoiseModel()))
    assert shards(out) == shards(whole.path)
    assert not list(out.rglob("*.part"))


@pytest.mark.parametrize(
    ("overlap", "says"),
    [
        ("false", "engine ray makes the clips, and training waits for them: staleness 0"),
        ("true", "clips are made while the iteration before trains: staleness 1"),
    ],
)
def test_online_training_is_the_same_by_any_engine(tmp_path, cluster, capsys, overlap, says):
    """The cluster makes and scores the clips of each policy; training waits for them, or is beside them."""
    folder = parts_folder(tmp_path / "tiny")
    changes = [f"online.iterations={2 if overlap == 'true' else 1}", f"online.overlap={overlap}"]
    online = parse_recipe(test_online.RECIPE.format(folder=folder), "online.toml", changes)
    pipeline.run(online, tmp_path / "local", until="train", engine=LocalEngine(2))
    capsys.readouterr()
    pipeline.run(online, tmp_path / "ray", until="train", engine=RayEngine(Workers(cpus=1)))
    assert says in capsys.readouterr().err
    assert shards(tmp_path / "ray") == shards(tmp_path / "local")
    assert network_bytes(tmp_path / "ray/checkpoints/aligned") == network_bytes(tmp_path / "local/checkpoints/aligned")
