"""The tables of a leaderboard as files: results by split, differences, agreement with people; CSV and LaTeX of each."""

import csv
import math
import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

from milonga.evaluation.formatting import NOT_SIGNIFICANT, by_system_and_metric, format_p, in_table_order
from milonga.evaluation.metrics import MINUS, metrics_named
from milonga.reports.material import EvaluationView
from milonga.reports.tables import mean_ranks, result_tables

DIFFERENCE = ("split", "metric", "a", "b", "difference", "low", "high", "p", "holm", "better", "n")


def table_files(view: EvaluationView) -> dict[str, str]:
    """Every table of a leaderboard as `tables/NAME.csv` and `tables/NAME.tex`, by file name."""
    files: dict[str, str] = {}

    def add(name: str, csv_text: str, latex: str) -> None:
        stem = re.sub(r"[^\w-]+", "-", name).strip("-") or "split"
        while f"tables/{stem}.csv" in files:
            stem += "-"
        files[f"tables/{stem}.csv"], files[f"tables/{stem}.tex"] = csv_text, latex

    for split in dict.fromkeys(row.split for row in view.summaries):
        add(split, csv_table(view, split), latex_table(view, split))
    if view.comparisons:
        rows = [[_plain(getattr(row, name)) for name in DIFFERENCE] for row in view.comparisons]
        add("differences", _csv([DIFFERENCE, *rows]), _tabular(*_differences(view)))
    for title, columns, rows in view.agreement:
        cells = [[name, *values, note] for name, values, note in rows]
        heads = ["Metric", *columns, "Against the first"]
        add(f"agreement {title.partition(' (n')[0]}", _csv([heads, *cells]), _tabular(title, heads, cells))
    return files


def _plain(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    out = StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _differences(view: EvaluationView) -> tuple[str, list[str], list[list[str]]]:
    """Title, heads and cells of all differences, in the metrics' own units."""
    cells = []
    for row in view.comparisons:
        metric = metrics_named([row.metric], view.sources)[0]
        change = f"{metric.format_change(row.difference)} {metric.format_interval(row.low, row.high, signed=True)}"
        outcome = NOT_SIGNIFICANT if row.better == "neither" else f"{row.better} is better"
        p = "" if row.holm is None else format_p(row.holm)
        cells.append([row.split, metric.title, f"{row.a} {MINUS} {row.b}", change, p, outcome, str(row.n)])
    heads = ["Split", "Metric", "Systems", "Difference", "p (Holm)", "Outcome", "n"]
    return "differences over the same captions; 95 % intervals", heads, cells


def _tabular(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A LaTeX tabular of cells of text, under a comment."""
    lines = [f"% {' '.join(title.split())}", f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", "\\hline",
             " & ".join(map(_latex, heads)) + r" \\", "\\hline",
             *(" & ".join(map(_latex, row)) + r" \\" for row in rows)]  # fmt: skip
    return "\n".join([*lines, "\\hline", "\\end{tabular}", ""])


def csv_table(view: EvaluationView, split: str) -> str:
    """The results of one split as CSV: system, mean rank, and value, low and high of each metric; empty where there is
    none."""
    ranks, values = mean_ranks(view.summaries, split), by_system_and_metric(view.summaries, split)
    metrics = metrics_named([metric for _, metric in values], view.sources)
    names = [f"{metric.name}{suffix}" for metric in metrics for suffix in ("", "_low", "_high")]
    lines = [["system", "mean_rank", *names]]
    systems = in_table_order([system for system, _ in values])
    for system in sorted(systems, key=lambda name: ranks.get(name, math.inf)):
        rows = [values.get((system, metric.name)) for metric in metrics]
        numbers = [number for row in rows for number in ((row.value, row.low, row.high) if row else (math.nan,) * 3)]
        cells = [repr(number) if math.isfinite(number) else "" for number in numbers]
        lines.append([system, f"{ranks[system]:g}" if system in ranks else "", *cells])
    return _csv(lines)


def latex_table(view: EvaluationView, split: str) -> str:
    """The results of one split as a LaTeX tabular: values with 95 % intervals, and ▲ or ▼ where a system is better or
    worse than the base with significance."""
    parts = ((table, part) for table in result_tables(view, ranked=True) for part in table["groups"])
    metrics, group = next((table["metrics"], part) for table, part in parts if part["split"] == split)
    arrows = {True: "$\\uparrow$", False: "$\\downarrow$"}
    heads = [f"{_latex(metric.title)} {arrows[metric.higher]}" for metric in metrics]
    title = f"% {' '.join(split.split())}, {group['n']} captions; 95 % intervals"
    lines = [title, f"\\begin{{tabular}}{{l{'r' * len(metrics)}}}",
             "\\hline", " & ".join(["System", *heads]) + r" \\", "\\hline"]  # fmt: skip
    marks = {"better": "$^{\\blacktriangle}$", "worse": "$^{\\blacktriangledown}$", "": ""}
    for system, _, cells in group["rows"]:
        texts = [
            f"{_latex(cell['text'])}{marks[cell['mark']]} {{\\scriptsize {_latex(cell['interval'])}}}" for cell in cells
        ]
        lines.append(" & ".join([_latex(system), *texts]) + r" \\")
    return "\n".join([*lines, "\\hline", "\\end{tabular}", ""])


def _latex(text: str) -> str:
    """A text with LaTeX's special characters escaped."""
    text = text.replace("\\", "\\textbackslash ")
    text = re.sub(r"([&%$#_{}])", r"\\\1", text)
    signs = {
        "−": "$-$",
        "∞": "$\\infty$",
        "τ": "$\\tau$",
        "<": "$<$",
        "–": "--",
        "~": "\\textasciitilde ",
        "^": "\\textasciicircum ",
    }
    return "".join(signs.get(letter, letter) for letter in text)
