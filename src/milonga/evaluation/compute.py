"""Every metric of all systems on every split: intervals, paired differences, and the warnings that go with them.

One draw of clips serves both sides of a bootstrap where the real clips are those of the systems' own prompts; real
clips of other prompts are drawn by themselves, and then there is no KL.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from milonga.core.errors import DataError
from milonga.core.ids import derive_seed
from milonga.core.progress import Advance
from milonga.core.records import Comparison, Prompt, Summary
from milonga.evaluation.features import SystemFeatures
from milonga.evaluation.metrics import (
    SMALLEST_SET,
    Metric,
    Rows,
    caption_means,
    caption_of,
    clip_interval,
    clip_values,
    metrics_named,
    set_draws,
)
from milonga.maths import statistics
from milonga.maths.bootstrap import no_progress


@dataclass(frozen=True)
class EvalPlan:
    """What metrics are computed over: keys by split, the real clips, the prompts, and how the bootstrap draws.

    Clips of one prompt count together: a metric is the mean of its captions' means, and draws are of captions.
    """

    splits: Mapping[str, Sequence[str]]
    reference: SystemFeatures | None
    prompts: Mapping[str, Prompt]
    paired: bool
    resamples: int
    seed: int


class Numbers:
    """All numbers of an evaluation. `stamp` gives the protocol of a metric.

    Values of clips and draws of sets are computed once, and serve summaries and comparisons alike.
    """

    def __init__(
        self, systems: Sequence[SystemFeatures], metrics: Sequence[Metric], plan: EvalPlan,
        stamp: Callable[[Metric], str] = lambda metric: metric.stamp,
    ) -> None:  # fmt: skip
        self.systems, self.metrics, self.plan, self.stamp = systems, metrics, plan, stamp
        self.failures: list[str] = []
        self._values: dict[tuple[str, str], dict[str, float]] = {}
        self._draws: dict[tuple[str, str, tuple[str, ...]], tuple[float, np.ndarray] | None] = {}

    @property
    def count(self) -> int:
        """How many numbers `summaries` and `comparisons` report progress of."""
        pairs = len(self.systems) * (len(self.systems) - 1) // 2
        per_metric = len(self.systems) + pairs + (self.plan.reference is not None)
        return len(self.plan.splits) * len(self.metrics) * per_metric

    def summaries(self, advance: Advance = no_progress) -> list[Summary]:
        """Every metric of every system on every split that allows it, and of the real clips themselves."""
        rows = []
        for split, keys in self.plan.splits.items():
            for system in [*self.systems, *([self.plan.reference] if self.plan.reference else [])]:
                for metric in self.metrics:
                    interval = self._interval(metric, system, split, keys)
                    advance(1)
                    if interval is None:
                        continue
                    detail = (
                        metric.detail(self._rows(metric, system, self._held(metric, system, keys)))
                        if metric.detail
                        else ""
                    )
                    parts = (self.stamp(metric), detail, f"{self.plan.resamples} resamples", f"N {interval.n}")
                    protocol = "; ".join([part for part in parts if part] + [f"seed {self.plan.seed}"])
                    numbers = {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
                    rows.append(
                        Summary(system=system.name, split=split, metric=metric.name, protocol=protocol, **numbers)
                    )
        return rows

    def comparisons(self, advance: Advance = no_progress) -> list[Comparison]:
        """Differences of every two systems (later − earlier) over the prompts that both have, with Holm's p.

        Where events are measured, the headline metrics are a family of their own that Holm corrects for; the other
        metrics are corrected for all comparisons of the split. A system is `better` where the interval excludes zero
        and Holm's p is at most 0.05.
        """
        rows = []
        for split, keys in self.plan.splits.items():
            family = []
            for metric in self.metrics:
                for b, a in combinations(self.systems, 2):
                    difference = self._difference(metric, a, b, split, keys)
                    advance(1)
                    if difference is not None:
                        family.append((metric, a.name, b.name, difference))
            p_values = np.array([difference.p for *_, difference in family])
            adjusted = statistics.holm(p_values)
            leads = np.array([metric.headline for metric, *_ in family], dtype=bool)
            if any(metric.headline and metric.feature == "events" for metric, *_ in family):
                adjusted[leads] = statistics.holm(p_values[leads])
            for (metric, a, b, difference), p in zip(family, adjusted.tolist(), strict=True):
                winner = replace(difference, p=p).better(higher=metric.higher)
                rows.append(
                    Comparison(
                        split=split, metric=metric.name, a=a, b=b, difference=difference.value, low=difference.low,
                        high=difference.high, p=difference.p, n=difference.n, holm=p,
                        better={"a": a, "b": b, "neither": "neither"}[winner],
                    )
                )  # fmt: skip
        return rows

    def warnings(self) -> list[str]:
        """What a reader must know: bias at small N, the bound of IS, splits and references that do not compare."""
        plan, lines = self.plan, []
        clips = max(map(len, plan.splits.values()), default=0)
        titles = {metric.name: metrics_named([metric.name])[0].title for metric in self.metrics}
        if plan.reference is None:
            without = [titles[metric.name] for metric in self.metrics if metric.reference]
            if without:
                lines.append(f"no real clips, so none of {', '.join(without)}: give a reference")
        for metric in self.metrics:
            if metric.kind != "set" or clips < metric.least or (metric.reference and plan.reference is None):
                continue
            arrays = [list(system.columns.get(metric.feature, {}).values()) for system in self.systems]
            short = sum(not array.size for side in arrays for array in side)
            if short and metric.caution:
                lines.append(f"{titles[metric.name]}: {short} clips are too short for a single row and are left out")
            rows = min(sum(len(np.atleast_2d(array)) for array in side) for side in arrays)
            width = next((array.shape[-1] for side in arrays for array in side), 0)
            text = metric.caution(clips, rows, width) if metric.caution else ""
            if text:
                lines.append(f"{titles[metric.name]}: {text}")
        if len(plan.splits) > 1:
            lines.append("splits differ in N: Fréchet distances and IS compare within a split, never across")
        small = [split for split, keys in plan.splits.items() if self._count(keys) < SMALLEST_SET]
        if small:
            lines.append(
                f"fewer than {SMALLEST_SET} clips, so no intervals of metrics of sets, and those of means (of two "
                f"clips or more) are too narrow: {', '.join(small)}"
            )
        if not plan.paired and plan.reference is not None:
            lines.append("real clips are of other names, so there is no KL, and splits have no distances to them")
        return lines

    def clip_cells(self, metric: Metric, system: SystemFeatures) -> dict[str, float]:
        """A clip metric of each of a system's clips by key, NaN where it does not apply."""
        if (metric.name, system.name) not in self._values:
            features = system.columns.get(metric.feature, {})
            own, real = sorted(features), None
            if self.plan.reference and self.plan.paired:
                real_clips = self.plan.reference.columns.get(metric.feature, {})
                real = {key: real_clips[clip] for key in own if (clip := self._real(key, real_clips)) in real_clips}
            numbers = clip_values(metric, features, self.plan.prompts, own, real)
            self._values[metric.name, system.name] = dict(zip(own, numbers.tolist(), strict=True))
        return self._values[metric.name, system.name]

    def values(self, metric: Metric, system: SystemFeatures, keys: Sequence[str]) -> np.ndarray:
        """A clip metric for each caption of the keys, the mean of its clips, shape (N,); NaN where there is none."""
        cells = self.clip_cells(metric, system)
        return caption_means(np.array([cells.get(key, np.nan) for key in keys]), keys, self.plan.prompts)

    def _real(self, key: str, real: Mapping[str, Any]) -> str:
        """The key of a clip's real clip: its own, or that of its caption's first clip."""
        return key if key in real else caption_of(key, self.plan.prompts)

    def _count(self, keys: Sequence[str]) -> int:
        """How many captions some clips have."""
        return len({caption_of(key, self.plan.prompts) for key in keys})

    def _interval(
        self, metric: Metric, system: SystemFeatures, split: str, keys: Sequence[str]
    ) -> statistics.Interval | None:
        if system is self.plan.reference and metric.reference:
            return None
        if metric.kind == "clip":
            draw = derive_seed(self.plan.seed, "bootstrap", metric.name)
            return clip_interval(metric, self.values(metric, system, keys), draw, self.plan.resamples)
        held = self._held(metric, system, keys)
        drawn = self._drawn(metric, system, split, held)
        if drawn is None:
            return None
        if self._count(held) < SMALLEST_SET:
            return statistics.Interval(drawn[0], np.nan, np.nan, self._count(held))
        interval = statistics.interval_of(*drawn, self._count(held))
        return replace(interval, low=max(interval.low, metric.floor))

    def _difference(
        self, metric: Metric, a: SystemFeatures, b: SystemFeatures, split: str, keys: Sequence[str]
    ) -> statistics.Difference | None:
        if metric.kind == "clip":
            first, second = self.values(metric, a, keys), self.values(metric, b, keys)
            both = np.isfinite(first) & np.isfinite(second)
            draw = derive_seed(self.plan.seed, "paired", metric.name)
            return statistics.paired(first[both], second[both], draw, self.plan.resamples) if both.sum() > 1 else None
        shared = set(self._held(metric, b, keys))
        held = [key for key in self._held(metric, a, keys) if key in shared]
        if self._count(held) < SMALLEST_SET:
            return None
        drawn_a, drawn_b = (self._drawn(metric, system, split, held) for system in (a, b))
        if drawn_a is None or drawn_b is None:
            return None
        return statistics.difference_of(drawn_a[0] - drawn_b[0], drawn_a[1] - drawn_b[1], self._count(held))

    def _held(self, metric: Metric, system: SystemFeatures, keys: Sequence[str]) -> list[str]:
        """The clips that a set metric is computed over: those with rows, and with a real clip where they are paired.

        A clip shorter than a row of VGGish has no row, and is left out.
        """
        own = system.columns.get(metric.feature, {})
        real = self.plan.reference.columns.get(metric.feature, {}) if self.plan.reference else {}
        needs_real = metric.reference and self.plan.paired
        return [
            key
            for key in keys
            if key in own and own[key].size and (not needs_real or np.size(real.get(self._real(key, real), ())))
        ]

    def _rows(self, metric: Metric, system: SystemFeatures, keys: Sequence[str]) -> Rows:
        seed = derive_seed(self.plan.seed, "bootstrap", metric.name)
        owners = [caption_of(key, self.plan.prompts) for key in keys]
        return Rows.of(system.columns[metric.feature], keys, seed, owners)

    def _drawn(
        self, metric: Metric, system: SystemFeatures, split: str, keys: Sequence[str]
    ) -> tuple[float, np.ndarray] | None:
        """A set metric over `keys` and its value in draws of their captions (none below SMALLEST_SET captions).

        None where there are too few clips, or no real clips that belong to the split, or where the metric is not
        defined for these features, which `failures` then says.
        """
        place = (metric.name, system.name, tuple(keys))
        if place not in self._draws:
            try:
                self._draws[place] = self._draw(metric, system, split, keys)
            except DataError as error:
                self.failures.append(f"{metrics_named([metric.name])[0].title} of {system.name}: {error}")
                self._draws[place] = None
        return self._draws[place]

    def _draw(
        self, metric: Metric, system: SystemFeatures, split: str, keys: Sequence[str]
    ) -> tuple[float, np.ndarray] | None:
        plan, real, count, others_count = self.plan, None, self._count(keys), self._count(keys)
        if count < metric.least:
            return None
        if metric.reference:
            if plan.reference is None or not (plan.paired or split == "overall"):
                return None
            columns = plan.reference.columns.get(metric.feature, {})
            real_keys = list(dict.fromkeys(self._real(key, columns) for key in keys))
            if not plan.paired:
                real_keys = self._held(metric, plan.reference, sorted(columns))
            if not real_keys:
                return None
            real, others_count = self._rows(metric, plan.reference, real_keys), self._count(real_keys)
        rows = self._rows(metric, system, keys)
        value = metric.value(rows, real)
        if count < SMALLEST_SET:
            return value, np.empty(0)
        resamples = min(plan.resamples, metric.most)
        own = statistics.draw_clips(count, rows.seed, resamples)
        others = own if plan.paired else statistics.draw_clips(others_count, rows.seed + 1, resamples)
        return value, set_draws(metric, rows, real, own, others)
