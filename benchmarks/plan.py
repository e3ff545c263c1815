"""How long planning takes, and how much memory: `python benchmarks/plan.py [--prompts 2500 5000 10000]`.

Plans the paper's strategies (1.1, 1.2, 2 and 3, five perturbations by rules) for so many captions of the world, and
prints for each number what that took as JSON, a line each; `peak_mb` is the process's largest resident size up to then.
"""

import argparse
import json
import resource
import time

from milonga.core.config import Strategy
from milonga.data.captions import world_prompts
from milonga.perturbers.rules import RulePerturber
from milonga.preference.plan import plan

STRATEGIES = (
    Strategy(name="1.1", steps=(5, 25, 50, 100), guidance=3.0),
    Strategy(name="1.2", steps=(50, 50, 50, 50), guidance=3.0),
    Strategy(name="2", steps=(50,), guidance=3.0, negatives="perturbed", num_negatives=5),
    Strategy(name="3", steps=(50,), guidance=3.0, negatives="temporal", num_negatives=5),
)


def main() -> None:
    """Plans each number of prompts in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[2500, 5000, 10_000])
    asked = parser.parse_args()
    prompts = world_prompts("train", max(asked.prompts))
    for count in sorted(asked.prompts):
        begun, worked = time.perf_counter(), time.process_time()
        requests, _ = plan(prompts[:count], STRATEGIES, RulePerturber(), run_seed=0)
        took = {"seconds": round(time.perf_counter() - begun, 1), "cpu": round(time.process_time() - worked, 1)}
        shared = sum(len(request.strategies) - 1 for request in requests)
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(json.dumps({"prompts": count, "clips": len(requests), "shared": shared} | took | {"peak_mb": peak}))


if __name__ == "__main__":
    main()
