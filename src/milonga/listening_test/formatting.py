"""Results as text for people and as JSON for programs."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from milonga.core.records import Summary
from milonga.listening_test.results import PROTOCOL, Results

NAMES = {"ovl": "OVL", "rel": "REL"}


def as_json(found: Results) -> str:
    """The results as JSON; what could not be measured is null."""
    return json.dumps(_without_nan(found.model_dump(mode="python")), indent=2)


def as_text(found: Results) -> str:
    """The results as aligned tables."""
    parts = [f"{found.title}: {found.ratings} ratings that count, from {found.raters} raters"]
    parts += [*_opinions(found), *_differences(found), *_preferences(found), *_excluded(found)]
    return "\n\n".join([*parts, PROTOCOL])


def _opinions(found: Results) -> list[str]:
    rows = {(one.system, one.metric): one for one in found.summary}
    systems = list(dict.fromkeys(one.system for one in found.summary if one.metric == "ovl"))
    if not systems:
        return []
    lines: list[tuple[str, ...]] = [("mean opinion", "OVL", "REL", "n")]
    for system in systems:
        lines.append((system, *(_value(rows[system, scale]) for scale in NAMES), str(rows[system, "ovl"].n)))
    lines.append(("agreement (alpha)", *(_value(rows["all", f"{scale}_alpha"]) for scale in NAMES), ""))
    return [_aligned(lines)]


def _differences(found: Results) -> list[str]:
    lines = [("difference", "", "value", "p (Holm)", "better")]
    for one in found.comparisons:
        value = f"{one.difference:+.2f} [{_number(one.low, '+.2f')}, {_number(one.high, '+.2f')}]"
        lines.append((f"{one.a} - {one.b}", NAMES[one.metric], value, _number(one.p, ".4f"), one.better))
    return [_aligned(lines)] if found.comparisons else []


def _preferences(found: Results) -> list[str]:
    if not found.preferences:
        return []
    rates = [("preferred", "share", "won/lost/tied")]
    for one in found.preferences:
        share = f"{one.rate:.2f} [{_number(one.low)}, {_number(one.high)}]"
        rates.append((f"{one.a} over {one.b}", share, f"{one.wins}/{one.losses}/{one.ties}"))
    strengths = [("strength (Bradley-Terry)", "", "n")]
    strengths += [(one.system, _value(one), str(one.n)) for one in found.summary if one.metric == "strength"]
    return [_aligned(rates), _aligned(strengths)]


def _excluded(found: Results) -> list[str]:
    lines = [("excluded", "because")] + [(one.rater, one.excluded) for one in found.excluded]
    return [_aligned(lines)] if found.excluded else ["excluded: nobody"]


def _value(one: Summary) -> str:
    return f"{_number(one.value)} [{_number(one.low)}, {_number(one.high)}]"


def _number(value: float, form: str = ".2f") -> str:
    return "-" if math.isnan(value) else format(value, form)


def _aligned(lines: Sequence[Iterable[str]]) -> str:
    rows = [tuple(line) for line in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
