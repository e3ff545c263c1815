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
from milonga.core.store import Run, read_json
from milonga.evaluation.run_metrics import CLIP_METRICS, System, asked_of, comparisons, splits_of, summaries, values_of
from milonga.experiment.evaluation import as_heard
from milonga.experiment.recipe import load_recipe
from milonga.maths.statistics import Difference, paired

METRICS = {
    "clap": "judge CLAP ↑",
    "presence": "events present ↑",
    "all_present": "all events present ↑",
    "order": "order right ↑",
    "correct": "exactly as asked ↑",
    "fd": "FD ↓",
    "kl": "KL ↓",
    "is": "IS ↑",
}


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


@dataclass(frozen=True)
class Told:
    """What a run says of one split: its captions, its systems' clips as heard, their values and differences."""

    name: str
    prompts: list[Prompt]
    systems: dict[str, System]
    values: list[Summary]
    differences: list[Comparison]


def told(path: Path, split: str, first: int | None) -> Told:
    """A run's own numbers of a split, or those of its first captions alone, reckoned anew."""
    run, recipe = Run(path), load_recipe(str(path / "recipe.toml"))
    prompts = run.stage("evaluate/prompts").read_records(Prompt)[:first]
    parts = splits_of(prompts, [split])
    heard = {name: as_heard(run, name) for name in ("base", *(one.name for one in recipe.train.systems), "reference")}
    if first is None:
        rows, found = kept_values(path, split), kept_differences(path, split)
    else:
        asked, real, draws = list(heard.values())[:-1], heard["reference"], recipe.evaluate.resamples
        rows = summaries(asked, real, parts, draws, recipe.seed, f"first {first} captions")
        found = comparisons(asked, real, parts, draws, recipe.seed)
    return Told(path.name, parts[split], heard, rows, found)


def kept_values(path: Path, split: str) -> list[Summary]:
    """A run's own values of a split."""
    found = [Summary.model_validate(one) for one in read_json(path / "metrics" / "summary.json")]
    return [one for one in found if one.split == split]


def kept_differences(path: Path, split: str) -> list[Comparison]:
    """A run's own differences of a split."""
    found = [Comparison.model_validate(one) for one in read_json(path / "metrics" / "comparisons.json")]
    return [one for one in found if one.split == split]


def values(rows: Sequence[Summary]) -> Iterator[str]:
    """The systems of a run, one a line."""
    cells = {(one.system, one.metric): one for one in rows}
    metrics = [metric for metric in METRICS if any(metric == held for _, held in cells)]
    yield row("system", *(METRICS[metric] for metric in metrics))
    yield row("---", *["---"] * len(metrics))
    for system in dict.fromkeys(system for system, _ in cells):
        held = [cells.get((system, metric)) for metric in metrics]
        yield row(system, *(f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" if one else "" for one in held))


def gains(runs: Sequence[Told], name: str | None) -> Iterator[str]:
    """What the system `name` (None: the last) gained over those before it, a column for each run."""
    yield row("gain", *(run.name for run in runs), "mean")
    yield row("---", *["---"] * len(runs), "---")
    tables = [_differences(run, name) for run in runs]
    for a, b, metric in tables[0]:
        found = [table.get((a, b, metric)) for table in tables]
        mean = over_runs(runs, a, b, metric) if metric in CLIP_METRICS else None
        cells = (difference(one.difference, one.low, one.high) if one else "" for one in found)
        last = difference(mean.value, mean.low, mean.high) if mean else ""
        yield row(f"{a} − {b}, {METRICS[metric]}", *cells, last)


def difference(value: float, low: float, high: float) -> str:
    """A difference with its interval."""
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def over_runs(runs: Sequence[Told], a: str, b: str, metric: str) -> Difference:
    """The mean difference over all runs, which were asked for the same captions."""
    sides: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for run in runs:
        prompts = asked_of(metric, run.prompts)
        for name, side in zip((a, b), sides, strict=True):
            side.append(values_of(metric, run.systems[name], prompts))
    # A caption counts where the metric applies in some run; both systems are taken over the same runs.
    both = [np.isfinite(one + other) for one, other in zip(*sides, strict=True)]
    mine, theirs = ([np.where(ok, part, np.nan) for ok, part in zip(both, side, strict=True)] for side in sides)
    kept = np.any(both, axis=0)
    return paired(np.nanmean([part[kept] for part in mine], 0), np.nanmean([part[kept] for part in theirs], 0), seed=0)


def _differences(run: Told, name: str | None) -> dict[tuple[str, str, str], Comparison]:
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
    runs = [told(path, asked.split, asked.first) for path in asked.runs]
    for run in runs:
        print(f"\n{run.name}\n", *values(run.values), sep="\n")
    print("", *gains(runs, asked.system), sep="\n")


if __name__ == "__main__":
    main()
