"""How long choosing captions takes, and how much memory: `python benchmarks/prompts.py audiocaps/train.csv`.

Reads a file of captions, embeds, clusters and chooses as the `prompts` stage does, and prints what that took as JSON.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

from milonga.experiment.registry import DEFAULT as registry
from milonga.preference.select import cluster, sample_clusters, temporal
from milonga.reports.clusters import page


def main() -> None:
    """Measures each part in turn; `peak_mb` is the process's largest resident size up to then."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--embedder", default="tfidf-svd")
    parser.add_argument("--clusters", type=int, default=200)
    parser.add_argument("--per-cluster", type=int, default=70)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        found = work()
        seconds[name] = round(time.perf_counter() - begun, 1)
        return found

    captions = timed("read", lambda: registry.prompt_source(f"captions:{asked.file}"))
    embedder = registry.text_embedder(asked.embedder)
    clusters = timed("embed and cluster", lambda: cluster(captions, embedder, asked.clusters, asked.seed))
    kept = timed("choose", lambda: sample_clusters(clusters, asked.per_cluster, asked.seed))
    timed("report", lambda: page(clusters, kept, embedder.name))
    counts = {"captions": len(captions), "tau_1": len(kept), "tau_2_of_all": len(temporal(captions))}
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(
        json.dumps(counts | {"seconds": seconds | {"all": round(sum(seconds.values()), 1)}, "peak_mb": peak}, indent=1)
    )


if __name__ == "__main__":
    main()
