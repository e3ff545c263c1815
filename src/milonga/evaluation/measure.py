"""Measure (§5.3-5.5): every metric of any systems' clips from what the listeners heard, by split, with its interval.

A `Performance` is what was heard of one system: columns of arrays by clip. A `Metric` says which column it is taken of
and how. Where systems answered the same prompts and the real clips are those prompts' own, one draw of clips serves
them all; real clips of other prompts are drawn by themselves, and then there is no KL.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from milonga.core.errors import DataError
from milonga.core.ids import derive_seed
from milonga.core.records import Comparison, Summary
from milonga.evaluation.numbers import measures
from milonga.evaluation.run_metrics import MOST_DRAWS, SMALLEST_SET, comparison, corrected
from milonga.maths import bootstrap as resampled
from milonga.maths import distances, metrics, statistics
from milonga.maths.distances import SMALLEST_SHARE

Kind = Literal["mean", "share", "kl", "kl_sigmoid", "frechet", "endless", "kernel", "inception"]
OF_CLIPS = ("mean", "share", "kl", "kl_sigmoid")
AGAINST_REAL = ("kl", "kl_sigmoid", "frechet", "endless", "kernel")
MOST_ENDLESS = 100  # draws of FD∞, each of which is four distances
IS_SPLITS = 10
FLIPS = 5000  # of signs, at least: a p must be able to pass a correction for many


@dataclass(frozen=True)
class Metric:
    """A metric: its name, how it is taken of which column of what was heard, what is better, and its protocol stamp."""

    name: str
    kind: Kind
    column: str
    stamp: str
    up: bool = True


@dataclass(frozen=True)
class Performance:
    """What was heard of one system: columns by name, each an array by clip key."""

    name: str
    columns: Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Question:
    """What is asked of systems: their clips' splits (keys by split name), the real clips, and how chance is drawn."""

    splits: Mapping[str, Sequence[str]]
    reference: Performance | None
    paired: bool
    resamples: int
    seed: int


def count(systems: Sequence[Performance], listed: Sequence[Metric], asked: Question) -> int:
    """How many numbers `summaries` and `comparisons` report progress of."""
    pairs = len(systems) * (len(systems) - 1) // 2
    return len(asked.splits) * len(listed) * (len(systems) + pairs + (asked.reference is not None))


def summaries(
    systems: Sequence[Performance], listed: Sequence[Metric], asked: Question,
    advance: resampled.Advance = resampled.unheard,
) -> list[Summary]:  # fmt: skip
    """Every metric of every system on every split that it can be taken of, and of the real clips themselves."""
    rows = []
    for split, keys in asked.splits.items():
        for system in [*systems, *([asked.reference] if asked.reference else [])]:
            for metric in listed:
                found = _interval(metric, system, asked, split, keys)
                advance(1)
                if found is not None:
                    numbers = {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
                    stamp = f"{metric.stamp}{_deviation(metric, system, keys)}; N {found.n}; seed {asked.seed}"
                    rows.append(Summary(system=system.name, split=split, metric=metric.name, protocol=stamp, **numbers))
    return rows


def comparisons(
    systems: Sequence[Performance], listed: Sequence[Metric], asked: Question,
    advance: resampled.Advance = resampled.unheard,
) -> list[Comparison]:  # fmt: skip
    """Differences of every two systems (later − earlier) over the prompts that both answered, with Holm's p.

    Holm corrects for all comparisons of a split; `better` goes by the interval and the p of each alone.
    """
    rows = []
    for split, keys in asked.splits.items():
        for metric in listed:
            drawn: dict[tuple[str, int], tuple[float, np.ndarray]] = {}
            for b, a in combinations(systems, 2):
                found = _difference(metric, a, b, asked, split, keys, drawn)
                advance(1)
                if found is not None:
                    rows.append(comparison(split, metric.name, a.name, b.name, found, metric.up))
    return corrected(rows)


def warnings(systems: Sequence[Performance], listed: Sequence[Metric], asked: Question) -> list[str]:
    """What must be said aloud with these numbers: bias at small N, the bound of IS, what does not compare."""
    told, clips = [], len(asked.splits["overall"])
    against = [metric for metric in listed if metric.kind in AGAINST_REAL]
    if asked.reference is None and against:
        told.append(f"no real clips, so none of {', '.join(map(_title, against))}: give a reference")
    for metric in listed:
        if asked.reference is None and metric in against:
            continue
        width = _width(metric, systems)
        rows = min(_rows_of(one, metric.column) for one in systems)
        lost = sum(not array.size for one in systems for array in one.columns.get(metric.column, {}).values())
        if metric.kind == "frechet" and lost:
            told.append(f"{_title(metric)}: {lost} clips are too short for a single row and count for nothing")
        if metric.kind == "frechet" and rows < 2 * width:
            told.append(
                f"{_title(metric)}: {rows} rows of {width} dimensions a system; a Fréchet distance falls as N grows, "
                f"so compare it with others at N {clips} only"
            )
        if metric.kind == "endless" and SMALLEST_SHARE * rows < width:
            told.append(
                f"{_title(metric)}: the parts that it extrapolates from have fewer rows than {width} dimensions, so it "
                "falls too low; below 0 it says no more than near"
            )
        if metric.kind == "inception" and clips < 100 * IS_SPLITS:
            told.append(
                f"{_title(metric)}: with {clips} clips in {IS_SPLITS} splits it cannot pass {clips / IS_SPLITS:g}"
            )
    if len(asked.splits) > 1:
        told.append("splits differ in N: Fréchet distances and IS compare within a split, never across")
    small = [split for split, keys in asked.splits.items() if len(keys) < SMALLEST_SET]
    if small:
        told.append(
            f"fewer than {SMALLEST_SET} clips, so no intervals of metrics of sets, and those of means are too narrow: "
            f"{', '.join(small)}"
        )
    if not asked.paired and asked.reference is not None:
        told.append("real clips are of other names, so there is no KL, and splits have no distances to them")
    return told


def _title(metric: Metric) -> str:
    return measures([metric.name])[0].title


def values(metric: Metric, system: Performance, asked: Question, keys: Sequence[str]) -> np.ndarray:
    """A metric of clips for each key, shape (N,); NaN where it was not or could not be taken."""
    own = system.columns.get(metric.column, {})
    if metric.kind in ("mean", "share"):
        return np.array([float(own[key]) if key in own else np.nan for key in keys])
    real = asked.reference.columns.get(metric.column, {}) if asked.reference and asked.paired else {}
    there = np.array([key in own and key in real for key in keys], dtype=bool)
    found = np.full(len(keys), np.nan)
    if there.any():
        both = [key for key, held in zip(keys, there, strict=True) if held]
        rule = metrics.kl_softmax if metric.kind == "kl" else metrics.kl_sigmoid
        found[there] = rule(np.stack([real[key] for key in both]), np.stack([own[key] for key in both]))
    return found


def _interval(
    metric: Metric, system: Performance, asked: Question, split: str, keys: Sequence[str]
) -> statistics.Interval | None:
    draw = derive_seed(asked.seed, "bootstrap", metric.name)
    if system is asked.reference and metric.kind in AGAINST_REAL:
        return None
    if metric.kind in OF_CLIPS:
        measured = values(metric, system, asked, keys)
        measured = measured[np.isfinite(measured)]
        if len(measured) < 2:
            return None
        if metric.kind == "share":
            return statistics.proportion(measured)
        return statistics.bootstrap(measured, draw, asked.resamples)
    held = _held(metric, system, keys)
    if not _possible(metric, held, asked, split):
        return None
    value, draws = _drawn(metric, system, asked, held, draw)
    if len(held) < SMALLEST_SET:
        return statistics.Interval(value, np.nan, np.nan, len(held))
    return statistics.interval_of(value, draws, len(held))


def _difference(
    metric: Metric, a: Performance, b: Performance, asked: Question, split: str, keys: Sequence[str],
    drawn: dict[tuple[str, int], tuple[float, np.ndarray]],
) -> statistics.Difference | None:  # fmt: skip
    draw = derive_seed(asked.seed, "paired", metric.name)
    if metric.kind in OF_CLIPS:
        first, second = (values(metric, one, asked, keys) for one in (a, b))
        both = np.isfinite(first) & np.isfinite(second)
        return (
            statistics.paired(first[both], second[both], draw, max(asked.resamples, FLIPS)) if both.sum() > 1 else None
        )
    both = set(_held(metric, a, keys)) & set(_held(metric, b, keys))
    held = [key for key in keys if key in both]
    if len(held) < SMALLEST_SET or not _possible(metric, held, asked, split):
        return None
    for one in (a, b):
        if (one.name, hash(tuple(held))) not in drawn:
            drawn[one.name, hash(tuple(held))] = _drawn(metric, one, asked, held, draw)
    (value_a, draws_a), (value_b, draws_b) = (drawn[one.name, hash(tuple(held))] for one in (a, b))
    return statistics.difference_of(value_a - value_b, draws_a - draws_b, len(held))


def _held(metric: Metric, system: Performance, keys: Sequence[str]) -> list[str]:
    """The clips of which something was heard: one shorter than a row of VGGish has none, and counts for nothing."""
    own = system.columns.get(metric.column, {})
    return [key for key in keys if key in own and own[key].size]


def _deviation(metric: Metric, system: Performance, keys: Sequence[str]) -> str:
    """The deviation over the parts of an inception score, which is published beside it."""
    if metric.kind != "inception":
        return ""
    rows, _ = _stacked(system.columns[metric.column], _held(metric, system, keys))
    return f"; sd of the splits {metrics.inception_score(rows, IS_SPLITS)[1]:.6g}"


def _rows_of(system: Performance, column: str) -> int:
    """How many rows of features a system has, of all its clips."""
    return sum(len(np.atleast_2d(array)) for array in system.columns.get(column, {}).values())


def _width(metric: Metric, systems: Sequence[Performance]) -> int:
    """The dimensions of a metric's features."""
    own = next((one.columns[metric.column] for one in systems if one.columns.get(metric.column)), {})
    return next((array.shape[-1] for array in own.values() if array.ndim), 0)


def _possible(metric: Metric, held: Sequence[str], asked: Question, split: str) -> bool:
    """Whether a metric of sets can be taken: of enough clips, and against real ones that belong to the split."""
    if metric.kind == "inception":
        return len(held) >= IS_SPLITS
    if asked.reference is None or not _held(metric, asked.reference, sorted(asked.reference.columns[metric.column])):
        return False
    if not asked.paired and split != "overall":
        return False
    return len(held) >= (10 if metric.kind == "endless" else 2)


def _drawn(
    metric: Metric, system: Performance, asked: Question, keys: Sequence[str], seed: int
) -> tuple[float, np.ndarray]:
    """A metric of sets over `keys`, and its value in draws of them."""
    rows, owner = _stacked(system.columns[metric.column], keys)
    most = MOST_ENDLESS if metric.kind == "endless" else MOST_DRAWS
    indices = statistics.draw_clips(len(keys), seed, min(asked.resamples, most) if len(keys) >= SMALLEST_SET else 1)
    if metric.kind == "inception":
        return metrics.inception_score(rows, IS_SPLITS)[0], resampled.inception_draws(rows, indices, IS_SPLITS)
    assert asked.reference is not None
    real = asked.reference.columns[metric.column]
    own_keys = list(keys) if asked.paired else _held(metric, asked.reference, sorted(real))
    lost = [key for key in own_keys if key not in real]
    if lost:
        raise DataError(f"{len(lost)} clips have no real clip to be compared with, {lost[0]} first")
    real_rows, real_owner = _stacked(real, own_keys)
    others = indices if asked.paired else statistics.draw_clips(len(own_keys), seed + 1, len(indices))
    in_real = resampled.counts(others, len(own_keys))[:, real_owner]
    if metric.kind == "endless":
        value = distances.frechet_infinity(rows, real_rows, owner, seed)
        return value, distances.frechet_infinity_draws(rows, real_rows, indices, in_real, owner)
    in_own = resampled.counts(indices, len(keys))[:, owner]
    if metric.kind == "kernel":
        kernel = distances.KernelDistance(rows, real_rows)
        return kernel.value, kernel.of_draws(in_own, in_real)
    return metrics.frechet_distance(rows, real_rows), resampled.frechet_draws(rows, real_rows, in_own, in_real)


def _stacked(column: Mapping[str, np.ndarray], keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All rows of some clips (M, D), and which of the clips each is of (M,)."""
    parts = [np.atleast_2d(column[key]) for key in keys]
    return np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])
