"""One run, three ways: `python benchmarks/engines.py FOLDER [--recipe nano-alpaca] [--set KEY=VALUE]...`.

Builds the recipe's pairs in FOLDER/local-32 (this machine, 32 clips at once), in FOLDER/local-1 (one by one), and in
FOLDER/ray-2 (two nodes of a Ray cluster), and compares all with the first: clips planned and generated, their scores,
pairs built and kept. Resumes after an interruption. Prints the result as JSON; exit status 1 where scores differ by
more than 1e-5, or where anything else differs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.records import Candidate, Pair
from milonga.core.store import Run

ALIKE = 1e-5  # the largest difference of scores of the same clip
WAYS = {"local-32": ("local", 32), "local-1": ("local", 1), "ray-2": ("ray", 32)}


@contextmanager
def two_nodes() -> Iterator[dict[str, str]]:
    """A Ray cluster of two nodes with a CPU each on this machine, as the environment that finds it."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}  # machines may be busy
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield {"RAY_ADDRESS": cluster.address}
    finally:
        cluster.shutdown()


def made(asked: argparse.Namespace, way: str) -> float:
    """Runs one way until its pairs exist; the seconds that it took."""
    engine, batch = WAYS[way]
    changes = [*asked.set, f"generate.batch_size={batch}", f"score.batch_size={batch}"]
    words = [sys.executable, "-m", "milonga", "run", asked.recipe, "--until", "pair", "--engine", engine]
    words += ["--out", str(asked.folder / way), *(word for change in changes for word in ("--set", change))]
    begun = time.perf_counter()
    if engine == "local":
        subprocess.run(words, check=True)
    else:
        with two_nodes() as found:
            subprocess.run(words, check=True, env=os.environ | found)
    return round(time.perf_counter() - begun, 1)


def compared(one: Run, other: Run) -> dict[str, Any]:
    """What differs between two runs of one recipe."""
    scores = [{c.request.id: c.scores for c in run.stage("score").read_records(Candidate)} for run in (one, other)]
    same = sorted(scores[0].keys() & scores[1].keys())
    rows = [np.array([[both[clip][name] for name in sorted(both[clip])] for clip in same]) for both in scores]
    apart = np.abs(rows[0] - rows[1])
    pairs, kept = ids(one), ids(one, "pair")
    return {
        "clips": len(same),
        "clips of one alone": len(scores[0].keys() ^ scores[1].keys()),
        "scores differ by at most": float(apart.max()),
        "median difference": float(np.median(apart)),
        "pairs": len(pairs),
        "pairs of one alone": len(pairs ^ ids(other)),
        "kept": len(kept),
        "kept by one alone": len(kept ^ ids(other, "pair")),
    }


def ids(run: Run, *stages: str) -> set[str]:
    """The ids of a run's pairs, the refused ones among them unless stages are named."""
    return {pair.id for stage in stages or ("pair", "refused") for pair in run.stage(stage).read_records(Pair)}


def alike(found: dict[str, Any]) -> bool:
    """Whether one comparison found the same clips, scores and pairs."""
    alone = found["clips of one alone"] + found["pairs of one alone"] + found["kept by one alone"]
    return not alone and found["scores differ by at most"] <= ALIKE


def main() -> None:
    """Runs all ways and prints how they compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="nano-alpaca")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    seconds = {way: made(asked, way) for way in WAYS}
    first, *others = (Run(asked.folder / way) for way in WAYS)
    found = {other.path.name: compared(first, other) for other in others}
    print(json.dumps({"seconds": seconds, "against local-32": found}, indent=1))
    sys.exit(0 if all(map(alike, found.values())) else 1)


if __name__ == "__main__":
    main()
