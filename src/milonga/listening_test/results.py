"""Results of a listening test: opinion scores, their differences, agreement, preferences and excluded raters.

`compute_results` computes them; `as_text` and `as_json` format them for people and for programs.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from milonga.core.ids import derive_seed
from milonga.core.records import Comparison, Rating, Record, Summary
from milonga.listening_test.records import Preference, Test
from milonga.listening_test.screening import Verdict
from milonga.maths.opinions import alpha_interval, bradley_terry, mean_opinion, opinion_difference
from milonga.maths.statistics import Interval, holm

SCALES = {"ovl": "OVL", "rel": "REL"}  # overall quality, relevance to the prompt
POINTS = {"a": 1.0, "b": 0.0, "same": 0.5}  # what an answer to a comparison counts for system a
PROTOCOL = "intervals: 95 %, rater and prompt as random effects; agreement: Krippendorff's alpha, ordinal, by clip"


class Results(Record):
    """The results that `milonga listen results` prints.

    `summary` has `ovl` and `rel` of every system, `ovl_alpha` and `rel_alpha` of all clips together (system `all`), and
    `strength` where systems were compared. `comparisons` are differences of opinion scores (a − b, same rater, same
    prompt) with p-values after Holm's correction; `preferences` are win rates of a over b.
    """

    title: str
    raters: int
    ratings: int
    excluded: tuple[Verdict, ...]
    summary: tuple[Summary, ...]
    comparisons: tuple[Comparison, ...]
    preferences: tuple[Preference, ...]


def compute_results(test: Test, ratings: Sequence[Rating], verdicts: Sequence[Verdict]) -> Results:
    """The results of all ratings by raters who are not excluded. Attention checks do not count."""
    excluded = tuple(verdict for verdict in verdicts if verdict.excluded)
    names = {verdict.rater for verdict in excluded}
    counted = [rating for rating in ratings if not rating.check and rating.rater not in names]
    rated = [rating for rating in counted if rating.kind == "rate"]
    compared = [rating for rating in counted if rating.kind == "compare"]
    return Results(
        title=test.title,
        raters=len({rating.rater for rating in counted}),
        ratings=len(counted),
        excluded=excluded,
        summary=(*_opinions(test, rated), *_agreement(test, rated), *_strengths(test, compared)),
        comparisons=tuple(_differences(test, rated)),
        preferences=tuple(_preferences(test, compared)),
    )


def _opinions(test: Test, rated: Sequence[Rating]) -> list[Summary]:
    rows = []
    for system in test.systems:
        own = [rating for rating in rated if rating.a == system]
        for scale in SCALES if own else ():
            values = np.array([getattr(rating, scale) for rating in own], dtype=np.float64)
            rows.append(_summary(system, scale, mean_opinion(values, *_raters_and_prompts(own))))
    return rows


def _agreement(test: Test, rated: Sequence[Rating]) -> list[Summary]:
    raters = {name: place for place, name in enumerate(dict.fromkeys(rating.rater for rating in rated))}
    clips = {name: place for place, name in enumerate(dict.fromkeys((rating.prompt_id, rating.a) for rating in rated))}
    rows = []
    for scale in SCALES if rated else ():
        table = np.full((len(raters), len(clips)), np.nan)
        for rating in rated:
            table[raters[rating.rater], clips[rating.prompt_id, rating.a]] = getattr(rating, scale)
        interval = alpha_interval(table, derive_seed(test.seed, "agreement", scale))
        rows.append(_summary("all", f"{scale}_alpha", interval))
    return rows


def _strengths(test: Test, compared: Sequence[Rating]) -> list[Summary]:
    systems = [name for name in test.systems if any(name in (rating.a, rating.b) for rating in compared)]
    if not systems:
        return []
    first, second = (np.array([systems.index(getattr(rating, side)) for rating in compared]) for side in ("a", "b"))
    points = np.array([POINTS[str(rating.better)] for rating in compared])
    strengths = bradley_terry(first, second, points, *_raters_and_prompts(compared), len(systems))
    return [_summary(name, "strength", interval) for name, interval in zip(systems, strengths, strict=True)]


def _differences(test: Test, rated: Sequence[Rating]) -> list[Comparison]:
    """Differences of every two systems on both scales; p-values and verdicts after Holm's correction, NaN for no p."""
    scores = {(rating.rater, rating.prompt_id, rating.a): rating for rating in rated}
    rows = []
    for scale in SCALES:
        for b, a in combinations(test.systems, 2):
            own = [rating for rating in rated if rating.a == a and (rating.rater, rating.prompt_id, b) in scores]
            if own:
                values = [
                    getattr(rating, scale) - getattr(scores[rating.rater, rating.prompt_id, b], scale) for rating in own
                ]
                difference = opinion_difference(np.array(values, dtype=np.float64), *_raters_and_prompts(own))
                rows.append((scale, a, b, difference))
    adjusted = np.array([difference.p for *_, difference in rows], dtype=np.float64)
    adjusted[~np.isnan(adjusted)] = holm(adjusted[~np.isnan(adjusted)])
    corrected = [(scale, a, b, replace(own, p=float(p))) for (scale, a, b, own), p in zip(rows, adjusted, strict=True)]
    return [
        Comparison(
            split="overall", metric=scale, a=a, b=b, better={"a": a, "b": b, "neither": "neither"}[own.better()],
            difference=own.value, low=own.low, high=own.high, p=own.p, n=own.n,
        )
        for scale, a, b, own in corrected
    ]  # fmt: skip


def _preferences(test: Test, compared: Sequence[Rating]) -> list[Preference]:
    rows = []
    for b, a in combinations(test.systems, 2):
        own = [rating for rating in compared if {rating.a, rating.b} == {a, b}]
        if own:
            votes = np.array(
                [POINTS[str(rating.better)] if rating.a == a else 1 - POINTS[str(rating.better)] for rating in own]
            )
            rate = opinion_difference(votes - 0.5, *_raters_and_prompts(own))
            wins, losses, ties = (int((votes == value).sum()) for value in (1.0, 0.0, 0.5))
            rows.append(Preference(
                a=a, b=b, rate=rate.value + 0.5, low=rate.low + 0.5, high=rate.high + 0.5, p=rate.p, wins=wins,
                losses=losses, ties=ties, raters=len({rating.rater for rating in own}),
                prompts=len({rating.prompt_id for rating in own}),
            ))  # fmt: skip
    return rows


def _raters_and_prompts(ratings: Sequence[Rating]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([rating.rater for rating in ratings]), np.array([rating.prompt_id for rating in ratings])


def _summary(system: str, metric: str, interval: Interval) -> Summary:
    numbers: dict[str, Any] = {name: getattr(interval, name) for name in ("value", "low", "high", "n")}
    return Summary(system=system, split="overall", metric=metric, protocol=PROTOCOL, **numbers)


def as_json(results: Results) -> str:
    """The results as JSON, with null where a number could not be computed."""

    def without_nan(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_nan(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [without_nan(inner) for inner in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return json.dumps(without_nan(results.model_dump(mode="python")), indent=2)


def as_text(results: Results) -> str:
    """The results as aligned tables."""
    parts = [f"{results.title}: {results.ratings} ratings that count, from {results.raters} raters"]
    rows = {(row.system, row.metric): row for row in results.summary}
    systems = list(dict.fromkeys(row.system for row in results.summary if row.metric == "ovl"))
    if systems:
        lines: list[tuple[str, ...]] = [("mean opinion", *SCALES.values(), "n")]
        for name in systems:
            lines.append((name, *(_value(rows[name, scale]) for scale in SCALES), str(rows[name, "ovl"].n)))
        lines.append(("agreement (alpha)", *(_value(rows["all", f"{scale}_alpha"]) for scale in SCALES), ""))
        parts.append(_aligned(lines))
    if results.comparisons:
        lines = [("difference", "", "value", "p (Holm)", "better")]
        for row in results.comparisons:
            value = f"{row.difference:+.2f} [{_number(row.low, '+.2f')}, {_number(row.high, '+.2f')}]"
            lines.append((f"{row.a} - {row.b}", SCALES[row.metric], value, _number(row.p, ".4f"), row.better))
        parts.append(_aligned(lines))
    if results.preferences:
        lines = [("preferred", "share", "won/lost/tied")]
        for rate in results.preferences:
            share = f"{rate.rate:.2f} [{_number(rate.low)}, {_number(rate.high)}]"
            lines.append((f"{rate.a} over {rate.b}", share, f"{rate.wins}/{rate.losses}/{rate.ties}"))
        strengths = [row for row in results.summary if row.metric == "strength"]
        parts.append(_aligned(lines))
        parts.append(_aligned([
            ("strength (Bradley-Terry)", "", "n"), *((row.system, _value(row), str(row.n)) for row in strengths),
        ]))  # fmt: skip
    excluded = [("excluded", "because"), *((verdict.rater, verdict.excluded) for verdict in results.excluded)]
    parts.append(_aligned(excluded) if results.excluded else "excluded: nobody")
    return "\n\n".join([*parts, PROTOCOL])


def _value(row: Summary) -> str:
    return f"{_number(row.value)} [{_number(row.low)}, {_number(row.high)}]"


def _number(value: float, form: str = ".2f") -> str:
    return "-" if math.isnan(value) else format(value, form)


def _aligned(lines: Sequence[Iterable[str]]) -> str:
    rows = [tuple(line) for line in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
