"""Results of a listening test: opinion scores, their differences, agreement, preferences and excluded raters.

`compute_results` computes them; `formatting` presents them to people and to programs.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from milonga.core.errors import DataError
from milonga.core.ids import derive_seed
from milonga.core.records import Rating, Record
from milonga.evaluation.inputs import SPLITS
from milonga.evaluation.opinions import (
    LARGE_SAMPLE,
    Components,
    alpha_interval,
    bradley_terry,
    components,
    intraclass,
    mean_opinion,
    omnibus,
    opinion_difference,
)
from milonga.evaluation.ordinal import fit_ordinal
from milonga.listening_test.records import ANCHOR, Opinion, OpinionDifference, Preference, ScaleTest, Test
from milonga.listening_test.screening import Verdict
from milonga.maths.statistics import Interval, holm

SCALES = {"ovl": "OVL", "rel": "REL", "score": "MUSHRA"}  # overall quality, relevance to the text, sliders
POINTS = {"a": 1.0, "b": 0.0, "same": 0.5}  # what an answer to a comparison counts for system a
PROTOCOL = "intervals: 95 %, rater and prompt as random effects; agreement: Krippendorff's alpha, ordinal, and ICC(A,1)"
ALL, STRICT = "all raters", "no failed check"  # other rules of exclusion, for the robustness of the means


class Results(Record):
    """The results that `milonga listen results` prints.

    `summary` has `ovl`, `rel` and `score` of every system, overall and on each split of the prompts (§5.5), their
    `_alpha` and `_icc` over all clips (system `all`), and `strength` where systems were compared. `comparisons` are
    differences of opinion scores (a − b, same rater, same prompt, the better of the two first) with p-values after
    Holm's correction; `preferences` are win rates of a over b. `tests` has one row a scale, over all systems.
    `robustness` has the overall means under other rules of exclusion, named by `split`. `ordinal` has differences of
    OVL and REL in log odds by an ordinal mixed model, where asked for; their effect size is the odds ratio.
    """

    title: str
    raters: int
    prompts: int
    ratings: int
    clips: int
    excluded: tuple[Verdict, ...]
    tests: tuple[ScaleTest, ...]
    summary: tuple[Opinion, ...]
    comparisons: tuple[OpinionDifference, ...]
    preferences: tuple[Preference, ...]
    robustness: tuple[Opinion, ...]
    ordinal: tuple[OpinionDifference, ...] = ()


def compute_results(
    test: Test, ratings: Sequence[Rating], verdicts: Sequence[Verdict], ordinal: bool = False
) -> Results:
    """The results of all ratings by raters who are not excluded. Attention checks do not count.

    With `ordinal` the marks are also compared by an ordinal mixed model, which takes some seconds a scale.
    """
    judged = [rating for rating in ratings if not rating.check]
    excluded = tuple(verdict for verdict in verdicts if verdict.excluded)
    out = {verdict.rater for verdict in excluded}
    careless = out | {verdict.rater for verdict in verdicts if verdict.failed}
    counted = [rating for rating in judged if rating.rater not in out]
    rated = [rating for rating in counted if rating.kind != "compare"]
    compared = [rating for rating in counted if rating.kind == "compare"]
    summary = _opinions(test, rated, "overall")
    for name, belongs in SPLITS.items():
        part = {prompt.id for prompt in test.prompts if belongs(prompt)}
        if 0 < len(part) < len(test.prompts):
            summary += _opinions(test, [rating for rating in rated if rating.prompt_id in part], name)
    robustness: list[Opinion] = []
    for rule, names in ((ALL, set()), (STRICT, careless)):
        if names != out:
            robustness += _opinions(
                test, [own for own in judged if own.kind != "compare" and own.rater not in names], rule
            )
    return Results(
        title=test.title,
        raters=len({rating.rater for rating in counted}),
        prompts=len({rating.prompt_id for rating in counted}),
        ratings=len(counted),
        clips=len({(rating.prompt_id, system) for rating in counted for system in (rating.a, rating.b) if system}),
        excluded=excluded,
        tests=tuple(_tests(test, rated)),
        summary=(*summary, *_agreement(test, rated), *_strengths(test, compared)),
        comparisons=tuple(_differences(test, rated, summary)),
        preferences=tuple(_preferences(test, compared)),
        robustness=tuple(robustness),
        ordinal=tuple(_ordinal(test, rated)) if ordinal else (),
    )


def on_scale(ratings: Sequence[Rating], scale: str) -> tuple[list[Rating], np.ndarray]:
    """The ratings that have a mark on a scale, and those marks (N,)."""
    own = [rating for rating in ratings if getattr(rating, scale) is not None]
    return own, np.array([getattr(rating, scale) for rating in own], dtype=np.float64)


def single_ratings(ratings: Sequence[Rating], scale: str) -> Components | None:
    """Variance components of single ratings about their system's mean; None without ratings on this scale."""
    own, values = on_scale(ratings, scale)
    if not own:
        return None
    systems = np.unique([rating.a for rating in own], return_inverse=True)[1]
    means = np.bincount(systems, values) / np.bincount(systems)
    return components(values - means[systems], *_raters_and_prompts(own))


def differences(ratings: Sequence[Rating], scale: str, a: str, b: str) -> tuple[list[Rating], np.ndarray]:
    """a's ratings of which the same rater rated b on the same prompt, and the differences a − b (N,)."""
    other = {(rating.rater, rating.prompt_id): getattr(rating, scale) for rating in ratings if rating.a == b}
    own, values = on_scale([rating for rating in ratings if rating.a == a], scale)
    both = [place for place, row in enumerate(own) if other.get((row.rater, row.prompt_id)) is not None]
    gaps = [values[place] - other[own[place].rater, own[place].prompt_id] for place in both]
    return [own[place] for place in both], np.array(gaps)


def _opinions(test: Test, rated: Sequence[Rating], split: str) -> list[Opinion]:
    rows = []
    for system in (*test.systems, ANCHOR):
        for scale in SCALES:
            own, values = on_scale([rating for rating in rated if rating.a == system], scale)
            if own:
                rows.append(_opinion(system, scale, mean_opinion(values, *_raters_and_prompts(own)), own, split))
    return rows


def _tests(test: Test, rated: Sequence[Rating]) -> list[ScaleTest]:
    rows = []
    for scale in SCALES:
        spread = single_ratings(rated, scale)
        own, values = on_scale([rating for rating in rated if rating.a in test.systems], scale)
        if spread is not None and own:
            result = omnibus(values, np.array([rating.a for rating in own]), *_raters_and_prompts(own))
            rows.append(ScaleTest(
                scale=scale, **vars(result), rater_sd=spread.rater**0.5, prompt_sd=spread.prompt**0.5,
                rest_sd=spread.rest**0.5,
            ))  # fmt: skip
    return rows


def _agreement(test: Test, rated: Sequence[Rating]) -> list[Opinion]:
    rows = []
    for scale in SCALES:
        own, values = on_scale(rated, scale)
        if not own:
            continue
        raters = np.unique([rating.rater for rating in own], return_inverse=True)[1]
        clips = np.unique([f"{rating.prompt_id}/{rating.a}" for rating in own], return_inverse=True)[1]
        table = np.full((raters.max() + 1, clips.max() + 1), np.nan)
        table[raters, clips] = values
        alpha = alpha_interval(table, derive_seed(test.seed, "agreement", scale))
        rows.append(_opinion("all", f"{scale}_alpha", alpha, own))
        icc = intraclass(values, raters, clips, derive_seed(test.seed, "icc", scale))
        rows.append(_opinion("all", f"{scale}_icc", icc, own))
    return rows


def _strengths(test: Test, compared: Sequence[Rating]) -> list[Opinion]:
    systems = [name for name in test.systems if any(name in (rating.a, rating.b) for rating in compared)]
    if not systems:
        return []
    first, second = (np.array([systems.index(getattr(rating, side)) for rating in compared]) for side in ("a", "b"))
    points = np.array([POINTS[str(rating.better)] for rating in compared])
    strengths = bradley_terry(first, second, points, *_raters_and_prompts(compared), len(systems))
    return [
        _opinion(name, "strength", interval, [rating for rating in compared if name in (rating.a, rating.b)])
        for name, interval in zip(systems, strengths, strict=True)
    ]


def _differences(test: Test, rated: Sequence[Rating], means: Sequence[Opinion]) -> list[OpinionDifference]:
    """Differences of every two systems on all scales, the one with the higher mean of all marks first.

    p-values and verdicts are after Holm's correction; NaN for no p.
    """
    order = {
        system: float(np.mean([own.value for own in means if own.system == system and own.split == "overall"] or [0.0]))
        for system in test.systems
    }
    rows = []
    for scale in SCALES:
        for a, b in combinations(sorted(test.systems, key=lambda system: -order[system]), 2):
            own, gaps = differences(rated, scale, a, b)
            if own:
                rows.append((scale, a, b, own, gaps, opinion_difference(gaps, *_raters_and_prompts(own))))
    adjusted = _holm([row[-1].p for row in rows])
    return [
        OpinionDifference(
            split="overall", metric=scale, a=a, b=b, difference=result.value, low=result.low, high=result.high, p=p,
            better=_better(a, b, result.low, result.high, p), n=result.n, effect=_effect(gaps, own), **_counts(own),
        )
        for (scale, a, b, own, gaps, result), p in zip(rows, adjusted, strict=True)
    ]  # fmt: skip


def _ordinal(test: Test, rated: Sequence[Rating]) -> list[OpinionDifference]:
    """Differences of every two systems in log odds, the better one first, with p after Holm's correction."""
    rows = []
    for scale in ("ovl", "rel"):
        own, values = on_scale(rated, scale)
        systems = [name for name in test.systems if any(rating.a == name for rating in own)]
        raters, prompts = (np.unique(labels, return_inverse=True)[1] for labels in _raters_and_prompts(own))
        if len(systems) < 2 or min(raters.max(), prompts.max()) < 1 or len(set(values.tolist())) < 2:
            continue
        try:
            fit = fit_ordinal(values, np.array([systems.index(rating.a) for rating in own]), raters, prompts)
        except np.linalg.LinAlgError:
            raise DataError(
                f"{scale}: the marks of some system do not overlap the others', so its odds have no estimate: leave "
                "out --ordinal"
            ) from None
        for i, j in combinations(sorted(range(len(systems)), key=lambda place: -fit.effects[place]), 2):
            both = [rating for rating in own if rating.a in (systems[i], systems[j])]
            rows.append((scale, systems[i], systems[j], both, *fit.difference(i, j)))
    adjusted = _holm([row[-1] for row in rows])
    return [
        OpinionDifference(
            split="overall", metric=scale, a=a, b=b, difference=value, low=value - LARGE_SAMPLE * error,
            high=value + LARGE_SAMPLE * error, p=p, n=len(own), effect=float(np.exp(value)),
            better=_better(a, b, value - LARGE_SAMPLE * error, value + LARGE_SAMPLE * error, p), **_counts(own),
        )
        for (scale, a, b, own, value, error, _), p in zip(rows, adjusted, strict=True)
    ]  # fmt: skip


def _effect(gaps: np.ndarray, ratings: Sequence[Rating]) -> float:
    """The mean difference over the standard deviation of a single difference by any rater on any prompt."""
    spread = components(gaps, *_raters_and_prompts(ratings))
    deviation = (spread.rater + spread.prompt + spread.rest) ** 0.5
    return float(gaps.mean() / deviation) if deviation > 0 else float("nan")


def _better(a: str, b: str, low: float, high: float, p: float) -> str:
    if np.isnan(p) or p > 0.05 or not (low > 0 or high < 0):
        return "neither"
    return a if low > 0 else b


def _preferences(test: Test, compared: Sequence[Rating]) -> list[Preference]:
    rows = []
    for b, a in combinations(test.systems, 2):
        own = [rating for rating in compared if {rating.a, rating.b} == {a, b}]
        if own:
            votes = np.array(
                [POINTS[str(rating.better)] if rating.a == a else 1 - POINTS[str(rating.better)] for rating in own]
            )
            if votes.mean() < 0.5:
                a, b, votes = b, a, 1 - votes
            rows.append((a, b, own, votes, opinion_difference(votes - 0.5, *_raters_and_prompts(own))))
    adjusted = _holm([row[-1].p for row in rows])
    return [
        Preference(
            a=a, b=b, rate=rate.value + 0.5, low=float(np.clip(rate.low + 0.5, 0, 1)),
            high=float(np.clip(rate.high + 0.5, 0, 1)), p=p,
            wins=int((votes == 1).sum()), losses=int((votes == 0).sum()), ties=int((votes == 0.5).sum()),
            **_counts(own),
        )
        for (a, b, own, votes, rate), p in zip(rows, adjusted, strict=True)
    ]  # fmt: skip


def _holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, NaN staying NaN."""
    adjusted = np.array(values, dtype=np.float64)
    adjusted[~np.isnan(adjusted)] = holm(adjusted[~np.isnan(adjusted)])
    return [float(p) for p in adjusted]


def _raters_and_prompts(ratings: Sequence[Rating]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([rating.rater for rating in ratings]), np.array([rating.prompt_id for rating in ratings])


def _counts(ratings: Sequence[Rating]) -> dict[str, int]:
    return {
        "raters": len({rating.rater for rating in ratings}),
        "prompts": len({rating.prompt_id for rating in ratings}),
    }


def _opinion(
    system: str, metric: str, interval: Interval, ratings: Sequence[Rating], split: str = "overall"
) -> Opinion:
    numbers: dict[str, Any] = {name: getattr(interval, name) for name in ("value", "low", "high", "n")}
    return Opinion(system=system, split=split, metric=metric, protocol=PROTOCOL, **numbers, **_counts(ratings))
