"""How long `evaluate --against` takes beyond the metrics themselves: `python benchmarks/against.py`.

10 systems × 1,000 captions, 10 metrics, 4 ratings a clip by 100 raters in a CSV: reading, matching, and all statistics
with their intervals, by clip and by system. Prints JSON; exit status 1 from a minute on.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.records import Prompt
from milonga.evaluation.against import agreement, place_ratings
from milonga.evaluation.compute import EvalPlan, Numbers
from milonga.evaluation.features import SystemFeatures
from milonga.evaluation.inputs import EvalInputs
from milonga.evaluation.metrics import scorer_metric

RATERS, EACH, MOST = 100, 4, 60.0


def main() -> None:
    """Times one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--systems", type=int, default=10)
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--metrics", type=int, default=10)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    prompts = {f"{number}": Prompt.of(f"caption {number}", "benchmark") for number in range(options.captions)}
    names = [f"s{number}" for number in range(options.systems)]
    worth = {name: rng.normal(0.2 * place, 1, len(prompts)) for place, name in enumerate(names)}
    sides: Any = {name: dict.fromkeys(prompts) for name in names}  # no audio is read
    inputs = EvalInputs("benchmark", sides, prompts=prompts)
    metrics = [scorer_metric(f"score m{number}") for number in range(options.metrics)]
    systems = [
        SystemFeatures(
            name,
            {
                metric.feature: dict(zip(prompts, own + (1 + place / 5) * rng.normal(size=len(own)), strict=True))
                for place, metric in enumerate(metrics)
            },
        )
        for name, own in worth.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "ratings.csv"
        lines = ["system,clip,caption,rater,ovl"]
        for name, own in worth.items():
            for key, value in zip(prompts, own, strict=True):
                marks = np.clip(np.rint(3 + value + rng.normal(size=EACH)), 1, 5).astype(int)
                raters = rng.choice(RATERS, EACH, replace=False)
                lines += [f"{name},{name}/{key}.wav,{prompts[key].text},r{rater},{mark}"
                          for rater, mark in zip(raters, marks, strict=True)]  # fmt: skip
        table.write_text("\n".join(lines) + "\n")
        started, used = time.perf_counter(), time.process_time()
        plan = EvalPlan({"overall": list(prompts)}, None, prompts, False, 1000, 0)
        rows, notes = agreement(place_ratings(table, (), inputs), Numbers(systems, metrics, plan), {})
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    print(json.dumps({"ratings": notes[0], "rows": len(rows), "seconds": round(seconds, 1), "CPU s": round(cpu, 1)}))
    sys.exit(0 if cpu < MOST else 1)


if __name__ == "__main__":
    main()
