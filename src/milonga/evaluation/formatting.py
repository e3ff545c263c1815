"""An evaluation in words: tables and JSON of the command, the table that a run prints, verdicts, and protocols."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from milonga.core.errors import RecipeError
from milonga.core.records import Comparison, Record, Summary
from milonga.core.store import read_json
from milonga.evaluation.metrics import CEILING, MINUS, Metric, all_metrics, metrics_named

if TYPE_CHECKING:
    from milonga.evaluation.against import Agreement
    from milonga.evaluation.features import SystemFeatures
    from milonga.evaluation.inputs import EvalInputs

Verdict = Literal["better", "worse", "neither"]
OVERALL = "overall"
NOT_SIGNIFICANT = "not significant"
SMALLEST_P = 0.0001  # below which a p is not written out
AGREEMENT_TITLES = {"srcc": "SRCC", "kendall": "Kendall τ", "pearson": "Pearson", "pairs": "Pairs"}


@dataclass(frozen=True)
class Evaluation:
    """The numbers of an evaluation, the warnings that belong to them, and what they are of.

    `sources` names where features come from, for titles and meanings of metrics (`metrics.metrics_named`).
    `agreement` is that with people, where ratings were given, and `ratings` says of what these are.
    """

    inputs: "EvalInputs"
    systems: "list[SystemFeatures]"
    summaries: list[Summary]
    comparisons: list[Comparison]
    warnings: list[str]
    splits: dict[str, list[str]]
    sources: dict[str, str]
    agreement: "list[Agreement]" = field(default_factory=list)
    ratings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return as_text(self)

    def to_frame(self) -> Any:
        """The summaries as a pandas DataFrame. Raises RecipeError where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise RecipeError("to_frame needs pandas: pip install pandas, or take `summaries`") from None
        return pandas.DataFrame([row.model_dump() for row in self.summaries])


def as_text(evaluation: Evaluation) -> str:
    """Every split's table of values, the differences between systems, the protocol, and the warnings."""
    summaries, sources = evaluation.summaries, evaluation.sources
    lines: list[str] = []
    for split in dict.fromkeys(row.split for row in summaries):
        lines += [*_values(split, [row for row in summaries if row.split == split], sources), ""]
    if evaluation.comparisons:
        lines += [*_differences(evaluation.comparisons, sources), ""]
    lines += agreement_lines(evaluation)
    own, shared = protocols(summaries, sources)
    if shared:
        lines += ["protocol", *(f"{titles}: {line}" for titles, line in own), f"all: {shared}", ""]
    return "\n".join(lines + [f"note: {warning}" for warning in evaluation.warnings]).rstrip()


def as_json(evaluation: Evaluation) -> str:
    """The same as JSON: `summary`, `comparisons`, `warnings`, and `agreement` with people where there are ratings.

    A number that is not defined is null.
    """
    parts = {
        "summary": plain_rows(evaluation.summaries),
        "comparisons": plain_rows(evaluation.comparisons),
        "warnings": evaluation.warnings,
    }
    if evaluation.agreement:
        parts |= {"agreement": plain_rows(evaluation.agreement), "ratings": evaluation.ratings}
    return json.dumps(parts, indent=1, ensure_ascii=False)


def plain_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Records as plain values, null for NaN."""
    rows = [record.model_dump(mode="json") for record in records]
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]


def _values(split: str, rows: Sequence[Summary], sources: Mapping[str, str]) -> list[str]:
    systems = list(dict.fromkeys(row.system for row in rows))
    cells = {(row.system, row.metric): row for row in rows}
    table = [(f"{split} (N {max(row.n for row in rows)})", systems)]
    for metric in metrics_named([row.metric for row in rows], sources):
        values = [_cell(cells.get((system, metric.name)), metric) for system in systems]
        table.append((f"{metric.title} {metric.arrow}", values))
    first = max(28, *(len(name) + 2 for name, _ in table))
    width = max(24, *(len(cell) + 2 for _, row in table for cell in row))
    return [f"{name:<{first}}" + "".join(f"{cell:>{width}}" for cell in row) for name, row in table]


def _cell(row: Summary | None, metric: Metric) -> str:
    return f"{metric.format_value(row.value)} {metric.format_interval(row.low, row.high)}".strip() if row else "–"


def _differences(rows: Sequence[Comparison], sources: Mapping[str, str]) -> list[str]:
    lines = ["differences over the same prompts, 95 % intervals; p by Holm"]
    for row in rows:
        metric = metrics_named([row.metric], sources)[0]
        outcome = NOT_SIGNIFICANT if row.better == "neither" else f"{row.better} is better"
        change = f"{metric.format_change(row.difference)} {metric.format_interval(row.low, row.high, signed=True)}"
        name = f"{row.a} {MINUS} {row.b}, {metric.title}, {row.split}"
        lines.append(
            f"{name:<60} {change:<34} p {format_p(row.p)}, Holm {format_p(row.holm or 0)}; {outcome} (n {row.n})"
        )
    return lines


def protocols(
    summaries: Sequence[Summary], sources: Mapping[str, str] | None = None
) -> tuple[list[tuple[str, str]], str]:
    """The protocols of the numbers on all captions: (titles of metrics, their own part), and the part of all of them.

    A part in which the systems of a metric differ, such as the deviation over an inception score's splits, names the
    system.
    """
    parts = {(row.metric, row.system): row.protocol.split("; ") for row in summaries if row.split == OVERALL}
    shared = _common(list(parts.values()))
    lines: dict[str, list[str]] = {}
    for metric in metrics_named([name for name, _ in parts], sources):
        stamps = {system: stamp for (name, system), stamp in parts.items() if name == metric.name}
        common = _common(list(stamps.values()))
        apart = [f"{part} ({system})" for system, stamp in stamps.items() for part in stamp if part not in common]
        line = "; ".join([part for part in common if part not in shared] + apart)
        lines.setdefault(line, []).append(metric.title)
    return [(", ".join(titles), line) for line, titles in lines.items() if line], "; ".join(shared)


def _common(stamps: Sequence[Sequence[str]]) -> list[str]:
    """The parts that all stamps have, in the order of the first."""
    return [part for part in (stamps[0] if stamps else []) if all(part in stamp for stamp in stamps)]


def format_p(p: float) -> str:
    """A p-value with four digits, "< 0.0001" below them, "-" where there is none."""
    return "-" if math.isnan(p) else f"< {SMALLEST_P:.4f}" if p < SMALLEST_P else f"{p:.4f}"


# -- agreement with people


def agreement_tables(evaluation: Evaluation) -> list[tuple[str, list[str], list[tuple[str, list[str], str]]]]:
    """The agreement with people as tables: (title, columns, rows of a metric's title, cells and note).

    Metrics are ranked by their first statistic; the ceiling comes first. The note says of a metric that it agrees less
    than the first, with its p.
    """
    tables = []
    for scale, level in dict.fromkeys((row.scale, row.level) for row in evaluation.agreement):
        own = [row for row in evaluation.agreement if (row.scale, row.level) == (scale, level)]
        statistics = [name for name in AGREEMENT_TITLES if any(row.statistic == name for row in own)]
        cells = {(row.metric, row.statistic): row for row in own}
        metrics = {row.name: row for row in metrics_named([row.metric for row in own], evaluation.sources)}

        def rank(name: str, cells: Mapping = cells, first: str = statistics[0]) -> tuple[bool, float]:
            return name != CEILING, -(cells[name, first].value if (name, first) in cells else -math.inf)

        rows = []
        for name in sorted(dict.fromkeys(row.metric for row in own), key=rank):
            values = [_agreement_cell(cells.get((name, statistic))) for statistic in statistics]
            p = next((row.behind for row in own if row.metric == name and row.behind is not None), None)
            note = "" if p is None else f"{'behind, ' if p <= 0.05 else ''}p {format_p(p)}"
            rows.append(("ceiling of the ratings" if name == CEILING else metrics[name].title, values, note))
        n = max(row.n for row in own)
        unit = "system" if level == "system" else ("comparison" if statistics == ["pairs"] else "clip")
        tables.append((f"{scale} by {unit} (n {n})", [AGREEMENT_TITLES[name] for name in statistics], rows))
    return tables


def agreement_lines(evaluation: Evaluation) -> list[str]:
    """The agreement with people as lines of the command's table; none where there are no ratings."""
    lines = []
    for title, columns, rows in agreement_tables(evaluation):
        lines.append(f"{title:<36}" + "".join(f"{column:>24}" for column in columns))
        lines += [f"{name:<36}" + "".join(f"{cell:>24}" for cell in cells) + f"  {note}" for name, cells, note in rows]
        lines.append("")
    if lines:
        lines.insert(0, "agreement with people, 95 % intervals over captions and raters; p by Holm of agreeing as well "
                        "as the first")  # fmt: skip
        lines += [f"ratings: {line}" for line in evaluation.ratings] + [""]
    return [line.rstrip() for line in lines]


def _agreement_cell(row: Any) -> str:
    if row is None:
        return "–"
    interval = f" [{row.low:z.3f}, {row.high:z.3f}]" if math.isfinite(row.low) else ""
    return f"{row.value:z.3f}{interval}".replace("-", MINUS)


# -- the table that a run prints


def run_outcome(run: Path) -> str | None:
    """A run's headline numbers, and the differences of its systems from the first, the base; None before `evaluate`.

    Raises StoreError when the metrics are damaged.
    """
    folder = run / "metrics"
    if not all((folder / name).exists() for name in ("summary.json", "comparisons.json")):
        return None
    summaries = [row for row in read_json(folder / "summary.json") if row["split"] == OVERALL]
    comparisons = [row for row in read_json(folder / "comparisons.json") if row["split"] == OVERALL]
    systems = list(dict.fromkeys(row["system"] for row in summaries if row["system"] != "reference"))
    cells = {(row["system"], row["metric"]): row for row in summaries}
    metrics = metrics_named([row.name for row in all_metrics() if row.headline], {"clap_title": "Judge CLAP"})
    titles = {row.name: row.title if row.higher else f"{row.title} (lower is better)" for row in metrics}
    lines = [f"{'held-out captions, 95 % intervals':<34}" + "".join(f"{name:>24}" for name in systems)]
    for name, title in titles.items():
        row = (cells.get((system, name)) for system in systems)
        lines.append(f"{title:<34}" + "".join(f"{_plain_cell(cell):>24}" for cell in row))
    lines.append("")
    for row in sorted(comparisons, key=lambda row: systems.index(row["a"])):
        if row["metric"] in titles and row["b"] == systems[0]:
            outcome = NOT_SIGNIFICANT if row["better"] == "neither" else f"{row['better']} is better"
            difference = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
            lines.append(f"{row['a']} − {row['b']}, {titles[row['metric']]}: {difference}, {outcome} (n {row['n']})")
    return "\n".join(lines).rstrip()


def _plain_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    interval = "" if row["low"] is None else f" [{row['low']:z.3f}, {row['high']:z.3f}]"
    return f"{row['value']:z.3f}{interval}"


# -- comparisons of two systems


def verdict(row: Comparison) -> Verdict:
    """Whether `row.a` is better or worse than `row.b` by the recorded `better`, which follows Holm's p.

    Neither where the interval includes zero, or where `better` contradicts the metric's direction: a record that
    disagrees with itself supports no claim.
    """
    if not (math.isfinite(row.low) and math.isfinite(row.high)) or row.low <= 0 <= row.high:
        return "neither"
    known = {metric.name: metric.higher for metric in all_metrics()}
    gains = (row.low > 0) == known[row.metric] if row.metric in known else row.better == row.a
    if row.better != (row.a if gains else row.b):
        return "neither"
    return "better" if gains else "worse"


def verdict_words(verdict: Verdict) -> str:
    """A verdict for a reader."""
    return NOT_SIGNIFICANT if verdict == "neither" else verdict


def compared(rows: Sequence[Comparison], system: str, baseline: str, split: str) -> dict[str, Comparison]:
    """By metric, the comparisons of `system` (as a) with `baseline` (as b) on one split, turned round where needed."""
    of_both = [row for row in rows if row.split == split and {row.a, row.b} == {system, baseline}]
    return {row.metric: row if row.a == system else turned(row) for row in of_both}


def turned(row: Comparison) -> Comparison:
    """The same comparison seen from the other side: b against a."""
    numbers = {"difference": -row.difference, "low": -row.high, "high": -row.low}
    return row.model_copy(update={"a": row.b, "b": row.a, **numbers})


def in_table_order(names: Sequence[str]) -> list[str]:
    """Systems as tables list them: base first, then as they came, then `aligned`; the real clips come last."""
    rank = {"base": 0, "aligned": 2, "reference": 3}
    return sorted(dict.fromkeys(names), key=lambda name: rank.get(name, 1))


def split_words(split: str) -> str:
    """A split in words: "all captions", "temporal captions"."""
    return "all captions" if split == OVERALL else f"{split} captions"


def by_system_and_metric(summaries: Sequence[Summary], split: str) -> dict[tuple[str, str], Summary]:
    """The summaries of one split by (system, metric)."""
    return {(row.system, row.metric): row for row in summaries if row.split == split}
