"""What a run ends by printing: every system's headline numbers, and what the last one gained over the others."""

from collections.abc import Sequence
from pathlib import Path

from milonga.core.records import Comparison, Summary
from milonga.core.store import read_json

# The headline metrics, with the words a reader needs; the report has all of them.
HEADLINE = {
    "clap": "judge CLAP",
    "all_present": "all events present",
    "order": "order right",
    "correct": "exactly as asked",
    "fd": "FD (lower is better)",
}


def outcome(run: Path) -> str | None:
    """The comparison of a run as lines of text; None while it has not been evaluated.

    Raises StoreError when the metrics are damaged.
    """
    folder = run / "metrics"
    if not all((folder / name).exists() for name in ("summary.json", "comparisons.json")):
        return None
    summaries = [Summary.model_validate(row) for row in read_json(folder / "summary.json")]
    found = [Comparison.model_validate(row) for row in read_json(folder / "comparisons.json")]
    systems = list(dict.fromkeys(row.system for row in summaries if row.system != "reference"))
    header = f"{'held-out captions, 95 % intervals':<34}" + "".join(f"{name:>24}" for name in systems)
    lines = [header, *(_row(metric, systems, summaries) for metric in HEADLINE)]
    return "\n".join(lines + _gains(systems, found))


def _row(metric: str, systems: Sequence[str], rows: Sequence[Summary]) -> str:
    cells = {row.system: row for row in rows if row.split == "overall" and row.metric == metric}
    shown = [f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" if (one := cells.get(s)) else "-" for s in systems]
    return f"{HEADLINE[metric]:<34}" + "".join(f"{cell:>24}" for cell in shown)


def _gains(systems: Sequence[str], rows: Sequence[Comparison]) -> list[str]:
    """One line for each headline difference of the last system to each other one."""
    lines = []
    for row in rows:
        if row.split == "overall" and row.metric in HEADLINE and row.a == systems[-1]:
            verdict = "undecided" if row.better == "neither" else f"{row.better} is better"
            difference = f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
            lines.append(f"{row.a} − {row.b}, {HEADLINE[row.metric]}: {difference}, {verdict} (n {row.n})")
    return ["", *lines] if lines else []
