"""What a listening test found: opinions and their differences, agreement, preferences, and who was left out."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from milonga.core.ids import derive_seed
from milonga.core.records import Comparison, Rating, Record, Summary
from milonga.listening_test.agreement import alpha_interval
from milonga.listening_test.bradley_terry import bradley_terry
from milonga.listening_test.opinions import mean_opinion, opinion_difference
from milonga.listening_test.records import Preference, Test
from milonga.listening_test.screening import Verdict
from milonga.maths.statistics import Difference, Interval, holm

SCALES = ("ovl", "rel")
WON = {"a": 1.0, "b": 0.0, "same": 0.5}
PROTOCOL = "intervals: 95 %, rater and prompt as random effects; agreement: Krippendorff's alpha, ordinal, by clip"


class Results(Record):
    """Everything that `milonga listen results` tells.

    `summary` has `ovl` and `rel` of every system, `ovl_alpha` and `rel_alpha` of all clips together (system `all`), and
    `strength` where systems were compared. `comparisons` are differences of opinion (a − b, the same rater on the same
    prompt), their p by Holm's correction; `preferences` are win rates of a over b.
    """

    title: str
    raters: int
    ratings: int
    excluded: tuple[Verdict, ...]
    summary: tuple[Summary, ...]
    comparisons: tuple[Comparison, ...]
    preferences: tuple[Preference, ...]


def results(test: Test, ratings: Sequence[Rating], verdicts: Sequence[Verdict]) -> Results:
    """The results of all ratings whose rater is not excluded; clips of attention checks are left out."""
    out = {one.rater for one in verdicts if one.excluded}
    counted = [one for one in ratings if not one.check and one.rater not in out]
    rated = [one for one in counted if one.kind == "rate"]
    compared = [one for one in counted if one.kind == "compare"]
    return Results(
        title=test.title,
        raters=len({one.rater for one in counted}),
        ratings=len(counted),
        excluded=tuple(one for one in verdicts if one.excluded),
        summary=(*_opinions(test, rated), *_agreement(test, rated), *_strengths(test, compared)),
        comparisons=tuple(_differences(test, rated)),
        preferences=tuple(_preferences(test, compared)),
    )


def _opinions(test: Test, rated: Sequence[Rating]) -> list[Summary]:
    found = []
    for system in test.systems:
        own = [one for one in rated if one.a == system]
        for scale in SCALES if own else ():
            values = np.array([getattr(one, scale) for one in own], dtype=np.float64)
            found.append(_summary(system, scale, mean_opinion(values, *_labels(own))))
    return found


def _agreement(test: Test, rated: Sequence[Rating]) -> list[Summary]:
    raters = {name: place for place, name in enumerate(dict.fromkeys(one.rater for one in rated))}
    clips = {name: place for place, name in enumerate(dict.fromkeys((one.prompt_id, one.a) for one in rated))}
    found = []
    for scale in SCALES if rated else ():
        table = np.full((len(raters), len(clips)), np.nan)
        for one in rated:
            table[raters[one.rater], clips[one.prompt_id, one.a]] = getattr(one, scale)
        interval = alpha_interval(table, derive_seed(test.seed, "agreement", scale))
        found.append(_summary("all", f"{scale}_alpha", interval))
    return found


def _strengths(test: Test, compared: Sequence[Rating]) -> list[Summary]:
    systems = [name for name in test.systems if any(name in (one.a, one.b) for one in compared)]
    if not systems:
        return []
    first, second = (np.array([systems.index(getattr(one, side)) for one in compared]) for side in ("a", "b"))
    won = np.array([WON[str(one.better)] for one in compared])
    strengths = bradley_terry(first, second, won, *_labels(compared), len(systems))
    return [_summary(name, "strength", one) for name, one in zip(systems, strengths, strict=True)]


def _differences(test: Test, rated: Sequence[Rating]) -> list[Comparison]:
    by_place = {(one.rater, one.prompt_id, one.a): one for one in rated}
    found = []
    for scale in SCALES:
        for b, a in combinations(test.systems, 2):
            own = [one for one in rated if one.a == a and (one.rater, one.prompt_id, b) in by_place]
            if own:
                values = [getattr(one, scale) - getattr(by_place[one.rater, one.prompt_id, b], scale) for one in own]
                found.append((scale, a, b, opinion_difference(np.array(values, dtype=np.float64), *_labels(own))))
    adjusted = _adjusted([row[3].p for row in found])
    rows = zip(found, adjusted, strict=True)
    return [_comparison(scale, a, b, one, float(p)) for (scale, a, b, one), p in rows]


def _adjusted(pvalues: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values, NaN where there was none."""
    p = np.array(pvalues, dtype=np.float64)
    p[~np.isnan(p)] = holm(p[~np.isnan(p)])
    return p


def _comparison(scale: str, a: str, b: str, one: Difference, p: float) -> Comparison:
    better = {"a": a, "b": b, "neither": "neither"}[one.better()]
    numbers: dict[str, Any] = {"difference": one.value, "low": one.low, "high": one.high, "p": p, "n": one.n}
    return Comparison(split="overall", metric=scale, a=a, b=b, better=better, **numbers)


def _preferences(test: Test, compared: Sequence[Rating]) -> list[Preference]:
    found = []
    for b, a in combinations(test.systems, 2):
        own = [one for one in compared if {one.a, one.b} == {a, b}]
        if own:
            votes = np.array([WON[str(one.better)] if one.a == a else 1 - WON[str(one.better)] for one in own])
            rate = mean_opinion(votes, *_labels(own))
            wins, losses, ties = (int((votes == value).sum()) for value in (1.0, 0.0, 0.5))
            found.append(Preference(
                a=a, b=b, rate=rate.value, low=rate.low, high=rate.high, wins=wins, losses=losses, ties=ties,
            ))  # fmt: skip
    return found


def _labels(ratings: Sequence[Rating]) -> tuple[np.ndarray, np.ndarray]:
    """The rater and the prompt of every rating."""
    return np.array([one.rater for one in ratings]), np.array([one.prompt_id for one in ratings])


def _summary(system: str, metric: str, interval: Interval) -> Summary:
    numbers: dict[str, Any] = {name: getattr(interval, name) for name in ("value", "low", "high", "n")}
    return Summary(system=system, split="overall", metric=metric, protocol=PROTOCOL, **numbers)
