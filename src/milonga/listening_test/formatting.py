"""Results of a listening test as text, Markdown, LaTeX, CSV or JSON, and as the sentences of a paper's methods."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.errors import DataError, RecipeError
from milonga.evaluation.formatting import SMALLEST_P, format_p
from milonga.evaluation.opinions import Components, components, raters_needed
from milonga.listening_test.material import QUIETEST, TARGET
from milonga.listening_test.records import Opinion
from milonga.listening_test.results import PROTOCOL, SCALES, Results, differences, single_ratings
from milonga.listening_test.screening import TONE_ITEMS, TONES_NEEDED
from milonga.listening_test.sessions import Sessions

FORMATS = ("text", "markdown", "latex", "csv", "json")
COUNTS = ("n", "raters", "prompts")
PLANNED_PROMPTS = (10, 20, 40, 80, 160)
# Variances of raters, prompts and the rest, of single ratings from 1 to 5 and of differences of two systems: those of
# the simulated raters of benchmarks/listening.py.
TYPICAL = Components(0.25, 0.32, 0.49, 0.0, 0.0), Components(0.18, 0.32, 0.98, 0.0, 0.0)
LATEX = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
         "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", "−": r"$-$"}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of text: its title, the heads of its columns, its rows."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def format_results(results: Results, form: str = "text") -> str:
    """The results in one of FORMATS; RecipeError for another one."""
    if form not in FORMATS:
        raise RecipeError(f"unknown format {form!r}: there are {', '.join(FORMATS)}")
    if form == "json":
        return as_json(results)
    own = tables(results)
    if form == "csv":
        return "\n".join(_csv(table) for table in own)
    if form == "markdown":
        return "\n\n".join([f"# {results.title}", methods(results), *(_markdown(table) for table in own), PROTOCOL])
    if form == "latex":
        return "\n\n".join([f"% {results.title}", _escaped(methods(results)), *(_latex(table) for table in own)])
    return as_text(results)


def as_text(results: Results) -> str:
    """The results as aligned tables, with the methods sentences."""
    head = (
        f"{results.title}: {results.ratings} valid ratings, from {results.raters} raters on {results.prompts} prompts"
    )
    parts = [head, *(_aligned(table) for table in tables(results))]
    if not results.excluded:
        parts.append("excluded raters: none")
    return "\n\n".join([*parts, methods(results), PROTOCOL] if results.ratings else [*parts, PROTOCOL])


def as_json(results: Results) -> str:
    """The results as JSON, with null where a number could not be computed."""

    def without_nan(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_nan(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [without_nan(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(without_nan(results.model_dump(mode="python") | {"methods": methods(results)}), indent=2)


def tables(results: Results) -> list[Table]:
    """The results as tables, without those that would be empty."""
    scales = [scale for scale in SCALES if any(row.metric == scale for row in results.summary)]
    titles = tuple(SCALES[scale] for scale in scales)
    parts = []
    for split in dict.fromkeys(row.split for row in results.summary):
        own = [row for row in results.summary if row.split == split]
        title = "mean opinion" if split == "overall" else f"mean opinion, prompts: {split}"
        parts.append(Table(title, ("system", *titles, "ratings", "raters", "prompts"), _mean_rows(own, scales)))
    for rule in dict.fromkeys(row.split for row in results.robustness):
        own = [row for row in results.robustness if row.split == rule]
        title = f"mean opinion, {rule} (robustness)"
        parts.append(Table(title, ("system", *titles, "ratings", "raters", "prompts"), _mean_rows(own, scales)))
    agreement = {row.metric: _value(row) for row in results.summary if row.system == "all"}
    parts.append(Table("agreement", ("", *titles), [
        (name, *(agreement[f"{scale}_{short}"] for scale in scales))
        for short, name in (("alpha", "Krippendorff's alpha"), ("icc", "ICC(A,1)")) if agreement
    ]))  # fmt: skip
    parts.append(Table("all systems alike?", ("scale", "F", "df", "p", "sd of raters", "of prompts", "of the rest"), [
        (SCALES[row.scale], number(row.f), f"{number(row.between, '.1f')}, {number(row.within, '.1f')}",
         format_p(row.p), *(number(value) for value in (row.rater_sd, row.prompt_sd, row.rest_sd)))
        for row in results.tests
    ]))  # fmt: skip
    parts.append(Table("difference", ("", "scale", "value", "effect size", "p (Holm)", "better", "raters", "prompts"), [
        (f"{row.a} − {row.b}", SCALES[row.metric], _interval(row.difference, row.low, row.high, "+.2f"),
         number(row.effect, "+.2f"), format_p(row.p), row.better, str(row.raters), str(row.prompts))
        for row in results.comparisons
    ]))  # fmt: skip
    parts.append(Table(
        "ordinal mixed model, log odds", ("", "scale", "value", "odds ratio", "p (Holm)", "better"), [
        (f"{row.a} − {row.b}", SCALES[row.metric], _interval(row.difference, row.low, row.high, "+.2f"),
         number(row.effect), format_p(row.p), row.better)
        for row in results.ordinal
    ]))  # fmt: skip
    parts.append(Table("preferred", ("", "share", "p (Holm)", "won/lost/tied", "raters", "prompts"), [
        (f"{row.a} over {row.b}", _interval(row.rate, row.low, row.high), format_p(row.p),
         f"{row.wins}/{row.losses}/{row.ties}", str(row.raters), str(row.prompts))
        for row in results.preferences
    ]))  # fmt: skip
    strengths = [row for row in results.summary if row.metric == "strength"]
    parts.append(Table("strength (Bradley-Terry)", ("system", "strength", "comparisons"), [
        (row.system, _value(row), str(row.n)) for row in strengths
    ]))  # fmt: skip
    parts.append(Table("excluded raters", ("rater", "reason"), [(own.rater, own.excluded) for own in results.excluded]))
    return [table for table in parts if table.rows]


def methods(results: Results) -> str:
    """The sentences that a paper's section on the listening test needs, with this test's numbers."""
    if not results.ratings:
        return "Nobody has rated anything yet."
    scales = [SCALES[scale] for scale in SCALES if any(row.metric == scale for row in results.summary)]
    systems = list(dict.fromkeys(row.system for row in results.summary if row.system != "all"))
    tasks = []
    if scales:
        tasks.append(f"rated them for {' and '.join(scales)}")
    if results.preferences:
        tasks.append("compared them in blind pairs")
    kinds = [name for name in ("headphones", "attention", "timing", "revoked")
             if any(name in row.excluded for row in results.excluded)]  # fmt: skip
    out = f"; {len(results.excluded)} more were excluded ({', '.join(kinds)})" if results.excluded else ""
    text = [
        f"{results.raters} raters listened to {results.clips} clips of {len(systems)} systems on {results.prompts} "
        f"prompts and {' and '.join(tasks)}, {results.ratings} ratings in all{out}.",
        f"All clips of a prompt were played at one loudness, {TARGET:g} LUFS or the highest that all of them reach "
        f"(ITU-R BS.1770-4, not below {QUIETEST:g} LUFS), in an order balanced by Williams squares.",
        f"Raters passed the headphone check of Woods et al. (2017; at least {TONES_NEEDED} of {TONE_ITEMS}) and "
        "unannounced attention checks, and could answer only after the clips had been played to their ends.",
        "Means have 95 % intervals with rater and prompt as crossed random effects (variance components by moments, "
        "Satterthwaite degrees of freedom).",
    ]
    for row in results.tests:
        p = "p " + "= " * (row.p >= SMALLEST_P) + format_p(row.p)
        text.append(
            f"{SCALES[row.scale]} differs between systems with F({number(row.between, '.1f')}, "
            f"{number(row.within, '.1f')}) = {number(row.f)}, {p} (ANOVA-type test)."
        )
    if results.comparisons or results.preferences:
        text.append("Pairs of systems were compared on the same rater and prompt with Holm's correction.")
    return " ".join(text)


def plan_text(folder: Path | None, width: float, per_rater: int) -> str:
    """How many raters give 95 % intervals of ± `width` for a system's mean and for a difference of two systems.

    The spreads of raters, prompts and single ratings are those of a test's ratings so far, the largest of its scales;
    without a test they are TYPICAL. Raises RecipeError for a width that is not above 0, DataError for a test with too
    few ratings.
    """
    if not width > 0:
        raise RecipeError(f"--width is half of an interval and above 0, not {width:g}")
    single, gap, origin = *TYPICAL, "typical spreads; give a pilot test for its own"
    if folder is not None:
        sessions = Sessions(folder, archive=True)
        judgements, verdicts = sessions.judgements()
        out = {verdict.rater for verdict in verdicts if verdict.excluded}
        rated = [own for own in judgements if not own.check and own.kind != "compare" and own.rater not in out]
        singles = [spread for scale in SCALES if (spread := single_ratings(rated, scale)) is not None]
        gaps = [
            components(values, *(np.array([getattr(row, name) for row in rows]) for name in ("rater", "prompt_id")))
            for scale in SCALES for a, b in combinations(sessions.test.systems, 2)
            for rows, values in [differences(rated, scale, a, b)] if rows
        ]  # fmt: skip
        if not singles or not gaps or any(np.isnan(spread.rest) for spread in (*singles, *gaps)):
            raise DataError(f"{folder} has too few ratings for its spreads: two raters on two prompts and two systems")
        single, gap = (
            Components(
                rater=max(spread.rater for spread in own),
                prompt=max(spread.prompt for spread in own),
                rest=max(spread.rest for spread in own),
                error=0.0,
                freedom=0.0,
            )
            for own in (singles, gaps)
        )
        origin = f"spreads of {folder}, the largest of its scales and pairs"
    rows = []
    for prompts in PLANNED_PROMPTS:
        needed = [raters_needed(width, spread, prompts, per_rater) for spread in (single, gap)]
        rows.append((str(prompts), *("more prompts needed" if count is None else str(count) for count in needed)))
    table = Table("prompts", ("prompts", "raters for a mean", "raters for a difference"), rows)
    deviations = [
        f"{name}: raters {spread.rater**0.5:.2f}, prompts {spread.prompt**0.5:.2f}, rest {spread.rest**0.5:.2f}"
        for name, spread in (("single ratings", single), ("differences", gap))
    ]
    head = f"95 % intervals of ±{width:g}, {per_rater} prompts per rater ({origin})"
    return "\n\n".join([head, _aligned(table), "standard deviations of " + "; of ".join(deviations)])


def number(value: float, form: str = ".2f") -> str:
    """A number, or "-" for NaN."""
    return "-" if math.isnan(value) else format(value, form)


def _mean_rows(rows: Sequence[Opinion], scales: Sequence[str]) -> list[tuple[str, ...]]:
    """One row a system, the highest mean first."""
    by_system: dict[str, dict[str, Opinion]] = {}
    for row in rows:
        if row.metric in SCALES:
            by_system.setdefault(row.system, {})[row.metric] = row
    order = sorted(by_system, key=lambda name: -sum(row.value for row in by_system[name].values()))
    return [
        (
            name, *(_value(by_system[name][scale]) if scale in by_system[name] else "-" for scale in scales),
            *(str(max(getattr(own, count) for own in by_system[name].values())) for count in COUNTS),
        )
        for name in order
    ]  # fmt: skip


def _value(row: Opinion) -> str:
    return _interval(row.value, row.low, row.high)


def _interval(value: float, low: float, high: float, form: str = ".2f") -> str:
    return f"{number(value, form)} [{number(low, form)}, {number(high, form)}]"


def _aligned(table: Table) -> str:
    rows = [(table.title, *table.head[1:]), *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _csv(table: Table) -> str:
    out = StringIO()
    csv.writer(out, lineterminator="\n").writerows([(table.title, *table.head[1:]), *table.rows])
    return out.getvalue()


def _markdown(table: Table) -> str:
    rows = [table.head, tuple("---" for _ in table.head), *table.rows]
    return f"**{table.title}**\n\n" + "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows
    )


def _latex(table: Table) -> str:
    lines = [
        r"\begin{table}",
        rf"\caption{{{_escaped(table.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
        r"\toprule",
        " & ".join(map(_escaped, table.head)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_escaped, row)) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)
