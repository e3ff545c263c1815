"""What `milonga evaluate` prints and writes: a table to read, JSON for programs, and one page to listen to."""

import json
import math
from collections.abc import Sequence
from typing import Any

from milonga.core.records import Comparison, Record, Summary
from milonga.evaluation.evaluate import Evaluation
from milonga.evaluation.numbers import MINUS, Measure, measures, stamps


def as_text(found: Evaluation) -> str:
    """Every split's table of values, the differences between systems, and what must be said with them."""
    lines: list[str] = []
    for split in dict.fromkeys(row.split for row in found.summaries):
        lines += [*_values(split, [row for row in found.summaries if row.split == split]), ""]
    if found.comparisons:
        lines += [*_differences(found.comparisons), ""]
    lines += [*_made(found.summaries), ""]
    return "\n".join(lines + [f"note: {told}" for told in found.warnings]).rstrip()


def as_json(found: Evaluation) -> str:
    """The same as JSON: `summary`, `comparisons`, `warnings`; null where there is no interval."""
    told = {"summary": rows(found.summaries), "comparisons": rows(found.comparisons), "warnings": found.warnings}
    return json.dumps(told, indent=1, ensure_ascii=False)


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Records as plain values, null for NaN."""
    plain = [record.model_dump(mode="json") for record in records]
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in plain]


def _values(split: str, found: Sequence[Summary]) -> list[str]:
    systems = list(dict.fromkeys(row.system for row in found))
    cells = {(row.system, row.metric): row for row in found}
    head = f"{split} (N {max(row.n for row in found)})"
    table = [(head, systems)]
    for one in measures([row.metric for row in found]):
        table.append((f"{one.title} {one.arrow}", [_cell(cells.get((system, one.name)), one) for system in systems]))
    first = max(28, *(len(name) for name, _ in table))
    width = max(24, *(len(cell) + 2 for _, row in table for cell in row))
    return [f"{name:<{first}}" + "".join(f"{cell:>{width}}" for cell in row) for name, row in table]


def _cell(row: Summary | None, measure: Measure) -> str:
    return f"{measure.value(row.value)} {measure.interval(row.low, row.high)}".strip() if row else "–"


def _made(found: Sequence[Summary]) -> list[str]:
    lines, shared = stamps(found)
    return ["how they were made", *(f"{titles}: {line}" for titles, line in lines), f"all: {shared}"] if shared else []


def _differences(found: Sequence[Comparison]) -> list[str]:
    lines = ["differences over the same prompts, 95 % intervals; p by Holm over all of a split"]
    for row in found:
        one = measures([row.metric])[0]
        verdict = "undecided" if row.better == "neither" else f"{row.better} is better"
        change = f"{one.change(row.difference)} {one.interval(row.low, row.high, signed=True)}"
        name = f"{row.a} {MINUS} {row.b}, {one.title}, {row.split}"
        lines.append(f"{name:<60} {change:<34} p {row.p:.3g}, Holm {row.holm or 0:.3g}; {verdict} (n {row.n})")
    return lines
