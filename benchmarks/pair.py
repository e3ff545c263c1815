"""How long pairing again and a sweep take: `python benchmarks/pair.py FOLDER [--candidates 200000]`.

Makes a run folder whose candidates have scores by chance (ten a prompt, three strategies) unless FOLDER has it
already, pairs it again by other thresholds, sweeps them, and prints what that took as JSON. Memory is that of pairing
only where the folder was there before: run it twice.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from milonga.core.records import Candidate, Prompt, Request
from milonga.core.store import Run, cut
from milonga.experiment.manifest import describe, write_manifest
from milonga.experiment.pair import pair, sweep
from milonga.experiment.recipe import parse_recipe

RECIPE = """
name = "pair-again"
[models]
scorers = ["a", "b"]
[prompts]
sources = ["world:train:1"]
[plan]
strategies = [{ name = "1.1", steps = [1], guidance = 3.0 }]
[pair]
thresholds = [
  { scorer = "a", min_winner_score = 0.45, min_loser_score = 0.40, min_margin = 0.05, max_margin = 0.35 },
  { scorer = "b", min_winner_score = 0.60, min_loser_score = 0.00, min_margin = 0.08, max_margin = 0.70 },
]
"""
HASHES = {"models": {"model": "0", "judge": "0", "tagger": "0", "scorers": {"a": "0", "b": "0"}}}


def candidates(count: int) -> Iterator[Candidate]:
    """Ten of each prompt: four of strategy 1.1 and 1.2 each, three losers of strategy 2, one winner for all."""
    chance = np.random.default_rng(0)
    for number in range(count):
        prompt, place = Prompt.of(f"sound number {number // 10} and then another one", "chance"), number % 10
        words = prompt.text if place < 7 else f"{prompt.text} that is wrong {place}"
        strategies = (("1.1", "1.2", "2"), ("1.1",), ("1.2",), ("2",))[
            0 if not place else 1 if place < 4 else 2 if place < 7 else 3
        ]
        request = Request.of(0, prompt, words, 50, 3.0, place, strategies)
        yield Candidate(request=request, scores=dict(zip("ab", chance.uniform(0.2, 0.8, 2).tolist(), strict=True)))


def main() -> None:
    """Writes candidates, pairs them, sweeps thresholds and prints times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--candidates", type=int, default=200_000)
    asked = parser.parse_args()
    run, recipe = Run(asked.folder), parse_recipe(RECIPE, "benchmark")
    if not run.stage("score").names():
        for name, part in cut(list(candidates(asked.candidates)), 2000).items():
            run.stage("score").write_records(name, part, Candidate)
        write_manifest(run, recipe, describe(recipe, HASHES))
    begun = time.perf_counter()
    paired = pair(run.path, [f"pair.thresholds.0.alpha={0.4 + begun % 0.1:.6f}"])
    between, peak = time.perf_counter(), peak_mb()
    sweep(run.path)
    took = {"pair": round(between - begun, 1), "sweep": round(time.perf_counter() - between, 1)}
    told = {"pairs": paired.pairs, "kept": paired.accepted, "seconds": took, "cpu": round(time.process_time(), 1)}
    print(json.dumps(told | {"peak_mb": {"pair": peak, "sweep": peak_mb()}}, indent=1))


def peak_mb() -> int:
    """This process's largest resident size so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
