"""Results of finished runs as Markdown, for README and benchmarks/alignment.md.

    python benchmarks/tables.py RUN [RUN ...] [--split temporal] [--system aligned] [--first 400]

For each run the systems' values and what one system (else the last) gained over those before it; with several runs
(seeds), each gain beside the others, so that one lucky seed cannot be mistaken for a result, and their mean, whose
interval is over captions: a caption's value is its mean over the runs. Metrics of sets have no such column. With
`--first` only so many of the captions count, as if no others had been asked for.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from milonga.core.records import Comparison, Prompt, Summary
from milonga.core.store import Run
from milonga.evaluation.compute import EvalPlan, Numbers
from milonga.evaluation.features import SystemFeatures, load_features
from milonga.evaluation.inputs import from_run
from milonga.evaluation.metrics import all_metrics, caption_means, clip_values, get_metric, metrics_named
from milonga.maths.statistics import Difference, paired
from milonga.reports.material import read_rows

METRICS = {
    row.name: f"{row.title} {row.arrow}"
    for row in metrics_named([row.name for row in all_metrics()], {"clap_title": "Judge CLAP"})
    if row.name in ("clap", "event_recall", "extra_events", "fd", "kl", "is") or row.headline
}


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


@dataclass(frozen=True)
class RunNumbers:
    """The numbers of a run on one split: its captions, its systems' features, values and differences."""

    name: str
    prompts: dict[str, Prompt]
    systems: dict[str, SystemFeatures]
    values: list[Summary]
    differences: list[Comparison]


def read_run(path: Path, split: str, first: int | None) -> RunNumbers:
    """A run's own numbers of a split, or those of its first captions alone, computed anew."""
    run, inputs = Run(path), from_run(path)
    prompts = dict(list(inputs.prompts.items())[:first])
    keys = [key for key in inputs.splits()[split] if key in prompts]
    systems = {name: load_features(run, name) for name in (*inputs.systems, "reference")}
    if first is None:
        rows, differences = stored_values(path, split), stored_differences(path, split)
    else:
        recipe = inputs.manifest["recipe"]
        plan = EvalPlan(
            {split: keys}, systems["reference"], prompts, True, recipe["evaluate"]["resamples"], recipe["seed"]
        )
        names = {one.metric for one in stored_values(path, split)}
        metrics = [one for one in all_metrics() if one.name in names]
        numbers = Numbers([systems[name] for name in inputs.systems], metrics, plan)
        rows, differences = numbers.summaries(), numbers.comparisons()
    return RunNumbers(path.name, {key: prompts[key] for key in keys}, systems, rows, differences)


def stored_values(path: Path, split: str) -> list[Summary]:
    """A run's own values of a split."""
    rows = read_rows(path / "metrics" / "summary.json", Summary)
    return [one for one in rows if one.split == split]


def stored_differences(path: Path, split: str) -> list[Comparison]:
    """A run's own differences of a split."""
    rows = read_rows(path / "metrics" / "comparisons.json", Comparison)
    return [one for one in rows if one.split == split]


def values(rows: Sequence[Summary]) -> Iterator[str]:
    """The systems of a run, one a line."""
    cells = {(one.system, one.metric): one for one in rows}
    metrics = [metric for metric in METRICS if any(metric == held for _, held in cells)]
    yield row("system", *(METRICS[metric] for metric in metrics))
    yield row("---", *["---"] * len(metrics))
    for system in dict.fromkeys(system for system, _ in cells):
        held = [cells.get((system, metric)) for metric in metrics]
        yield row(system, *(f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" if one else "" for one in held))


def gains(runs: Sequence[RunNumbers], name: str | None) -> Iterator[str]:
    """What the system `name` (None: the last) gained over those before it, a column for each run."""
    yield row("gain", *(run.name for run in runs), "mean")
    yield row("---", *["---"] * len(runs), "---")
    tables = [_differences(run, name) for run in runs]
    for a, b, metric in tables[0]:
        found = [table.get((a, b, metric)) for table in tables]
        per_clip = get_metric(metric).feature in ("clap", "events")
        mean = over_runs(runs, a, b, metric) if per_clip else None
        cells = (difference(one.difference, one.low, one.high) if one else "" for one in found)
        last = difference(mean.value, mean.low, mean.high) if mean else ""
        yield row(f"{a} − {b}, {METRICS[metric]}", *cells, last)


def difference(value: float, low: float, high: float) -> str:
    """A difference with its interval."""
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def over_runs(runs: Sequence[RunNumbers], a: str, b: str, metric: str) -> Difference:
    """The mean difference over all runs, which were asked for the same captions."""
    sides: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for run in runs:
        row = get_metric(metric)
        for name, side in zip((a, b), sides, strict=True):
            keys = list(run.prompts)
            numbers = clip_values(row, run.systems[name].columns[row.feature], run.prompts, keys)
            side.append(caption_means(numbers, keys, run.prompts))
    # A caption counts where the metric applies in some run; both systems are taken over the same runs.
    both = [np.isfinite(one + other) for one, other in zip(*sides, strict=True)]
    mine, theirs = ([np.where(ok, part, np.nan) for ok, part in zip(both, side, strict=True)] for side in sides)
    kept = np.any(both, axis=0)
    return paired(np.nanmean([part[kept] for part in mine], 0), np.nanmean([part[kept] for part in theirs], 0), seed=0)


def _differences(run: RunNumbers, name: str | None) -> dict[tuple[str, str, str], Comparison]:
    """By systems and metric, those of `name` alone."""
    wanted = name or run.differences[-1].a
    return {(one.a, one.b, one.metric): one for one in run.differences if one.a == wanted and one.metric in METRICS}


def main() -> None:
    """Prints the tables of the runs that were named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--split", default="overall")
    parser.add_argument("--system")
    parser.add_argument("--first", type=int, metavar="N")
    asked = parser.parse_args()
    runs = [read_run(path, asked.split, asked.first) for path in asked.runs]
    for run in runs:
        print(f"\n{run.name}\n", *values(run.values), sep="\n")
    print("", *gains(runs, asked.system), sep="\n")


if __name__ == "__main__":
    main()
