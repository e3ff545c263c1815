"""Metrics against people: how well every metric and scorer of an evaluation agrees with a table of ratings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from milonga.core.errors import DataError
from milonga.core.ids import derive_seed
from milonga.core.progress import Advance
from milonga.core.records import Record
from milonga.data.captions import clip_key
from milonga.data.ratings import PREFERENCE, Opinion, read_opinions
from milonga.evaluation.compute import Numbers
from milonga.evaluation.inputs import EvalInputs
from milonga.evaluation.metrics import CEILING
from milonga.maths.agreement import LEAST_CLIPS, LEAST_SYSTEMS, Opinions, ceiling, clip_agreement, system_agreement
from milonga.maths.bootstrap import no_progress

MOST_DRAWS = 400  # of captions: each costs a sort of all clips for each metric
Clip = tuple[str, str]  # system and key


class Agreement(Record):
    """One metric's agreement with people on a scale, clip by clip or by system, with its 95 % interval.

    `statistic` is `srcc` (Spearman), `kendall` (τ-b), `pearson`, or `pairs`, the share of pairs of one caption that the
    metric orders as people do. All count agreement as positive, also for metrics where lower is better. The metric
    `ceiling` is what the truth behind the ratings would have, and has no interval. `behind` is the p (Holm) of agreeing
    as well as the metric with the highest SRCC (for comparisons: most pairs), None for that one and elsewhere.
    """

    scale: str
    level: Literal["clip", "system"]
    metric: str
    statistic: Literal["srcc", "kendall", "pearson", "pairs"]
    value: float
    low: float
    high: float
    n: int
    behind: float | None = None


@dataclass(frozen=True)
class PlacedRatings:
    """Ratings, each with the clip that it is of, or the two that were compared; `notes` say which do not count."""

    placed: list[tuple[Opinion, tuple[Clip, ...]]]
    captions: dict[Clip, str]
    notes: list[str]

    @property
    def scales(self) -> list[str]:
        """The scales that clips were rated on."""
        return list(dict.fromkeys(opinion.scale for opinion, _ in self.placed))


def place_ratings(path: Path, scales: Sequence[str], inputs: EvalInputs) -> PlacedRatings:
    """The ratings of a table (`data.ratings`) that are of an evaluation's clips.

    Clips are found by file name, then by system, caption and folder where several have that name; by system and caption
    in the export of a listening test. Raises DataError where no rating is of these clips, or one fits several.
    """
    opinions, excluded = read_opinions(path, scales)
    clips = _Clips(inputs)
    placed = [(opinion, sides) for opinion in opinions if (sides := clips.sides(opinion))]
    if not placed:
        raise DataError(
            f"{path}: none of its {len(opinions)} ratings is of these clips, {opinions[0].where.rpartition(', ')[2]} "
            f"first ({opinions[0].clip or opinions[0].system!r}); clips pair by file name, or by system and caption"
        )
    notes, missing = [], len(opinions) - len(placed)
    if missing:
        notes.append(f"{missing} of {len(opinions)} ratings are of other clips than these, and do not count")
    if excluded:
        notes.append(f"{excluded} rows of {path.name} are excluded by its own marks")
    return PlacedRatings(placed, {clip: clips.caption(clip) for _, sides in placed for clip in sides}, notes)


def agreement(
    ratings: PlacedRatings, numbers: Numbers, fixed: Mapping[Clip, float], advance: Advance = no_progress
) -> tuple[list[Agreement], list[str]]:
    """Every metric's agreement with people on every scale, and what a reader must know about the ratings.

    `fixed` are values of metrics of sets by (system, metric). `advance` is called once a scale. A scale with too few
    rated clips is left out with a note; DataError where all are.
    """
    systems = [*numbers.systems, *([numbers.plan.reference] if numbers.plan.reference else [])]
    cells = {
        metric.name: {(system.name, key): (value if metric.higher else -value)
                      for system in systems for key, value in numbers.clip_cells(metric, system).items()}
        for metric in numbers.metrics if metric.kind == "clip"
    }  # fmt: skip
    names = [metric.name for metric in numbers.metrics]
    rows, notes, left_out = [], [], []
    for scale in ratings.scales:
        own = [(opinion, sides) for opinion, sides in ratings.placed if opinion.scale == scale]
        rated = list(dict.fromkeys(side for _, sides in own for side in sides))
        if len(rated) < LEAST_CLIPS:
            left_out.append(f"{scale}: {len(rated)} rated clips, and agreement needs {LEAST_CLIPS}")
            advance(1)
            continue
        arrays = _arrays(own, rated, ratings.captions)
        scores = np.array([[cells.get(name, {}).get(clip, np.nan) for clip in rated] for name in names])
        known = np.asarray(np.isfinite(scores).any(axis=1))
        seed = derive_seed(numbers.plan.seed, "against", scale)
        by_clip = clip_agreement(scores[known], arrays, seed, min(numbers.plan.resamples, MOST_DRAWS))
        ranked = [name for name, is_known in zip(names, known.tolist(), strict=True) if is_known]
        lead = "pairs" if scale == PREFERENCE else "srcc"
        for name, statistics, p in zip(ranked, by_clip.rows, by_clip.behind.tolist(), strict=True):
            rows += _rows(scale, "clip", name, statistics, lead, p)
        if scale != PREFERENCE:
            rows += _ceilings(scale, arrays)
            rows += _by_system(scale, names, scores, fixed, rated, arrays, numbers)
        notes.append(_described(scale, own, rated, arrays))
        advance(1)
    if not notes:
        raise DataError("; ".join(left_out))
    return rows, [*notes, *left_out, *ratings.notes]


def _arrays(
    own: Sequence[tuple[Opinion, tuple[Clip, ...]]], rated: Sequence[Clip], texts: Mapping[Clip, str]
) -> Opinions:
    """The opinions of one scale as arrays; a comparison is of the same two clips in either order."""
    place = {clip: number for number, clip in enumerate(rated)}
    raters = {name: number for number, name in enumerate(dict.fromkeys(opinion.rater for opinion, _ in own))}
    captions = {text: number for number, text in enumerate(dict.fromkeys(texts[clip] for clip in rated))}
    systems = {name: number for number, name in enumerate(dict.fromkeys(system for system, _ in rated))}
    values = np.array([opinion.value for opinion, _ in own])
    shared = {
        "rater": np.array([raters[opinion.rater] for opinion, _ in own]),
        "caption": np.array([captions[texts[clip]] for clip in rated]),
        "system": np.array([systems[system] for system, _ in rated]),
    }
    if not own[0][0].other:
        return Opinions(values, np.array([place[sides[0]] for _, sides in own]), **shared)
    turned = np.array([place[sides[0]] > place[sides[1]] for _, sides in own])
    couples = [tuple(sorted((place[a], place[b]))) for _, (a, b) in own]
    numbered = {couple: number for number, couple in enumerate(dict.fromkeys(couples))}
    first, second = np.array(list(numbered)).T
    values = np.where(turned, 1 - values, values)
    return Opinions(values, np.array([numbered[couple] for couple in couples]), **shared, first=first, second=second)


def _rows(scale: str, level: Literal["clip", "system"], name: str, statistics: Mapping, lead: str = "",
          p: float = np.nan) -> list[Agreement]:  # fmt: skip
    return [
        Agreement(
            scale=scale, level=level, metric=name, statistic=statistic, value=one.value, low=one.low, high=one.high,
            n=one.n, behind=p if statistic == lead and np.isfinite(p) else None,
        )
        for statistic, one in statistics.items() if np.isfinite(one.value)
    ]  # fmt: skip


def _ceilings(scale: str, opinions: Opinions) -> list[Agreement]:
    """What the truth behind the ratings would have: by clip, from the raters' spread about each clip's mean; by system,
    from the clips' spread about each system's."""
    means = opinions.means()
    levels: dict[Literal["clip", "system"], float] = {
        "clip": ceiling(opinions.values, opinions.clip),
        "system": ceiling(means, opinions.system),
    }
    return [
        Agreement(scale=scale, level=level, metric=CEILING, statistic=statistic, value=value, low=np.nan, high=np.nan,
                  n=len(means) if level == "clip" else len(np.unique(opinions.system)))
        for level, value in levels.items() if np.isfinite(value)
        and (level == "clip" or len(np.unique(opinions.system)) >= LEAST_SYSTEMS)
        for statistic in ("srcc", "pearson")
    ]  # fmt: skip


def _by_system(
    scale: str, names: Sequence[str], scores: np.ndarray, fixed: Mapping[Clip, float], rated: Sequence[Clip],
    opinions: Opinions, numbers: Numbers,
) -> list[Agreement]:  # fmt: skip
    systems = list(dict.fromkeys(system for system, _ in rated))
    if len(systems) < LEAST_SYSTEMS:
        return []
    sign = {metric.name: 1 if metric.higher else -1 for metric in numbers.metrics}
    sets = np.array([[sign[name] * fixed.get((system, name), np.nan) for system in systems] for name in names])
    seed = derive_seed(numbers.plan.seed, "against", "systems", scale)
    by_system = system_agreement(scores, sets, opinions, seed, numbers.plan.resamples)
    parts = [_rows(scale, "system", name, row) for name, row in zip(names, by_system, strict=True)]
    return [row for part in parts for row in part]


def _described(
    scale: str, own: Sequence[tuple[Opinion, tuple[Clip, ...]]], rated: Sequence[Clip], opinions: Opinions
) -> str:
    people = {opinion.rater for opinion, _ in own} - {""}
    systems = len({system for system, _ in rated})
    who = f"{len(people)} raters" if people else "raters not named, so intervals are over captions only"
    what = "comparisons" if opinions.first is not None else "ratings"
    captions = len(np.unique(opinions.caption))
    return f"{scale}: {len(own)} {what} of {len(rated)} clips of {captions} captions and {systems} systems; {who}"


class _Clips:
    """The evaluated clips, found by what a table of ratings says of them."""

    def __init__(self, inputs: EvalInputs) -> None:
        sides = inputs.systems | ({"reference": inputs.reference} if inputs.reference else {})
        self.prompts, self.systems = inputs.prompts, set(sides)
        self.names: dict[str, list[Clip]] = {}
        self.texts: dict[Clip, list[Clip]] = {}
        for system, clips in sides.items():
            for key in sorted(clips):
                self.names.setdefault(clip_key(key), []).append((system, key))
                self.texts.setdefault((system, self.caption((system, key))), []).append((system, key))

    def caption(self, clip: Clip) -> str:
        """A clip's caption; its key where that is not known."""
        return self.prompts[clip[1]].text if clip[1] in self.prompts else clip[1]

    def sides(self, opinion: Opinion) -> tuple[Clip, ...]:
        """The clip that was rated, or the two that were compared; none where one of them is not here."""
        if opinion.other:
            sides = [self.texts.get((name, opinion.caption), [])[:1] for name in (opinion.system, opinion.other)]
            return tuple(clip for side in sides for clip in side) if all(sides) else ()
        if not opinion.clip:
            return tuple(self.texts.get((opinion.system, opinion.caption), [])[:1])
        fitting = self.names.get(clip_key(opinion.clip), [])
        folder = opinion.clip.replace("\\", "/").split("/")[:-1]
        tests = (
            lambda clip: clip[0] == opinion.system,
            lambda clip: self.caption(clip) == opinion.caption,
            lambda clip: clip[0] in folder,
        )
        for test in tests:
            chosen = [clip for clip in fitting if test(clip)]
            fitting = chosen if len(fitting) > 1 and chosen else fitting
        if len(fitting) > 1:
            several = ", ".join(f"{system}/{key}" for system, key in fitting[:3])
            raise DataError(f"{opinion.where}: {opinion.clip} fits {several}; add a column system, or give clips names")
        return tuple(fitting)
