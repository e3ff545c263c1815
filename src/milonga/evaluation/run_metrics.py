"""Evaluate (§5.3-5.5): what every system's clips are worth, overall and by split, each number with its interval.

Systems are compared over the same prompts and seeds. Metrics of a clip: the judge's CLAP, event presence, order and
their like; of a set: FD and KL against real clips of the same prompts, and IS. FD, KL and IS rest on the tagger's
features, not on PANNs', so their values compare within a run and not with the paper's. What the numbers mean is in
`maths.metrics`, how their intervals are made in `maths.statistics`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from milonga.core.ids import derive_seed
from milonga.core.records import Comparison, Prompt, Summary
from milonga.evaluation.hear import Heard
from milonga.maths import bootstrap as resampled
from milonga.maths import metrics, statistics

CLIP_METRICS: dict[str, Callable[[Prompt, Heard], float]] = {
    "clap": lambda prompt, heard: heard.clap,
    "all_present": lambda prompt, heard: float(metrics.all_present(_scene(prompt), heard.events)),
    "presence": lambda prompt, heard: metrics.presence(_scene(prompt), heard.events),
    "extra": lambda prompt, heard: float(metrics.extra(_scene(prompt), heard.events)),
    "order": lambda prompt, heard: float(metrics.in_order(_scene(prompt), heard.events)),
    "order_heard": lambda prompt, heard: _order_heard(prompt, heard),
    "correct": lambda prompt, heard: float(metrics.correct(_scene(prompt), heard.events)),
}
LOWER_IS_BETTER = ("extra", "fd", "kl")
# A share of yes and no: its interval is Wilson's, which has a width even when all say yes.
SHARES = ("all_present", "order", "order_heard", "correct")
SETS = ("fd", "kl", "is")
# Below this many clips the covariance of the features and the ten parts of IS say nothing.
SMALLEST_SET = 20
MOST_DRAWS = 500  # of a set metric: its interval's ends move little with more
Drawn = dict[tuple[str, tuple[str, ...]], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class System:
    """One system's clips as heard, by prompt id."""

    name: str
    heard: Mapping[str, Heard]


def splits_of(prompts: Sequence[Prompt], names: Sequence[str]) -> dict[str, list[Prompt]]:
    """The prompts of each named split (§5.5): overall, temporal, non-temporal, multi-concept, single-concept."""
    rules: dict[str, Callable[[Prompt], bool]] = {
        "overall": lambda prompt: True,
        "temporal": lambda prompt: "temporal" in prompt.tags,
        "non-temporal": lambda prompt: "temporal" not in prompt.tags,
        "multi-concept": lambda prompt: "multi-concept" in prompt.tags,
        "single-concept": lambda prompt: "multi-concept" not in prompt.tags,
    }
    found = {name: [prompt for prompt in prompts if rules[name](prompt)] for name in names}
    return {name: part for name, part in found.items() if part}


def asked_of(metric: str, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that a metric can be asked of: events need a known scene, order a scene of two groups or more."""
    if metric == "clap" or metric in SETS:
        return list(prompts)
    return [p for p in prompts if p.scene and (not metric.startswith("order") or len(p.scene) > 1)]


def values_of(metric: str, system: System, prompts: Sequence[Prompt]) -> np.ndarray:
    """A clip metric's value for each prompt, shape (N,); NaN where it does not apply or the clip is missing."""
    rule = CLIP_METRICS[metric]
    return np.array([rule(p, system.heard[p.id]) if p.id in system.heard else np.nan for p in prompts])


def numbers(systems: Sequence[System], splits: Mapping[str, Sequence[Prompt]]) -> int:
    """How many numbers `summaries` and `comparisons` report progress of."""
    asked = (len(systems) + 1 + len(list(combinations(systems, 2)))) * len(splits)
    return asked * (len(CLIP_METRICS) + len(SETS))


def summaries(
    systems: Sequence[System], reference: System, splits: Mapping[str, Sequence[Prompt]], resamples: int, seed: int,
    protocol: str, advance: resampled.Advance = resampled.unheard,
) -> list[Summary]:  # fmt: skip
    """Every metric of every system on every split, with its 95 % interval; `advance` is told of each one."""
    rows = []
    for split, prompts in splits.items():
        for system in [*systems, reference]:
            for metric in (*CLIP_METRICS, *SETS):
                interval = _measured(metric, system, reference, asked_of(metric, prompts), resamples, seed)
                advance(1)
                if interval is not None:
                    found = {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
                    rows.append(Summary(system=system.name, split=split, metric=metric, protocol=protocol, **found))
    return rows


def comparisons(
    systems: Sequence[System], reference: System, splits: Mapping[str, Sequence[Prompt]], resamples: int, seed: int,
    advance: resampled.Advance = resampled.unheard,
) -> list[Comparison]:  # fmt: skip
    """The difference of every two systems (later − earlier) on every metric and split, over the same prompts."""
    rows = []
    for split, prompts in splits.items():
        for metric in (*CLIP_METRICS, *SETS):
            drawn: Drawn = {}
            for b, a in combinations(systems, 2):
                found = _compared(metric, a, b, reference, asked_of(metric, prompts), resamples, seed, drawn)
                advance(1)
                if found is not None:
                    rows.append(comparison(split, metric, a.name, b.name, found, metric not in LOWER_IS_BETTER))
    return corrected(rows)


def corrected(rows: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with Holm's p for all of their split; `better` goes by interval and p of each alone."""
    splits = {split: [row for row in rows if row.split == split] for split in dict.fromkeys(row.split for row in rows)}
    return [
        row.model_copy(update={"holm": float(p)})
        for part in splits.values()
        for row, p in zip(part, statistics.holm([row.p for row in part]), strict=True)
    ]


def comparison(split: str, metric: str, a: str, b: str, found: statistics.Difference, up: bool) -> Comparison:
    """A difference of the systems named `a` and `b` as a record; `up`: more of the metric is better."""
    verdict = {"a": a, "b": b, "neither": "neither"}[found.better(higher=up)]
    return Comparison(
        split=split, metric=metric, a=a, b=b, difference=found.value, low=found.low, high=found.high, p=found.p,
        n=found.n, better=verdict,
    )  # fmt: skip


def _measured(
    metric: str, system: System, reference: System, prompts: Sequence[Prompt], resamples: int, seed: int
) -> statistics.Interval | None:
    """A metric's interval; None where no clip can be asked, or too few for a metric of sets."""
    draw = derive_seed(seed, "bootstrap", metric)
    if metric in SETS:
        rows = _rows(metric, system, reference, prompts)
        if (system is reference and metric != "is") or len(rows[0]) < SMALLEST_SET:
            return None
        value, draws = set_draws(metric, rows, draw, min(resamples, MOST_DRAWS))
        return statistics.interval_of(value, draws, len(rows[0]))
    values = values_of(metric, system, prompts)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return None
    return statistics.proportion(values) if metric in SHARES else statistics.bootstrap(values, draw, resamples)


def _compared(
    metric: str, a: System, b: System, reference: System, prompts: Sequence[Prompt], resamples: int, seed: int,
    drawn: Drawn,
) -> statistics.Difference | None:  # fmt: skip
    """The paired difference; `drawn` keeps each system's draws, which its next comparison takes up."""
    draw = derive_seed(seed, "paired", metric)
    if metric in SETS:
        both = [prompt for prompt in prompts if prompt.id in a.heard and prompt.id in b.heard]
        for system in (a, b):
            rows = _rows(metric, system, reference, both)
            if len(rows[0]) < SMALLEST_SET:
                return None
            key = (system.name, tuple(prompt.id for prompt in both))
            if key not in drawn:
                drawn[key] = set_draws(metric, rows, draw, min(resamples, MOST_DRAWS))
        (value_a, draws_a), (value_b, draws_b) = (drawn[one.name, tuple(p.id for p in both)] for one in (a, b))
        return statistics.difference_of(value_a - value_b, draws_a - draws_b, len(rows[0]))
    values = values_of(metric, a, prompts), values_of(metric, b, prompts)
    if np.isfinite(values[0] + values[1]).sum() < 2:
        return None
    return statistics.paired(*values, draw, resamples)


def _rows(metric: str, system: System, reference: System, prompts: Sequence[Prompt]) -> list[np.ndarray]:
    """What a set metric is a function of: the system's rows and, but for IS, the references' of the same prompts."""
    known = [prompt.id for prompt in prompts if prompt.id in system.heard and prompt.id in reference.heard]
    column = "embedding" if metric == "fd" else "logits"
    sides = (system,) if metric == "is" else (system, reference)
    return [np.array([getattr(side.heard[name], column) for name in known]) for side in sides]


def set_draws(metric: str, rows: Sequence[np.ndarray], seed: int, resamples: int) -> tuple[float, np.ndarray]:
    """A set metric of `rows` (`_rows`), each (N, D), and its value in each of `resamples` draws of clips."""
    indices = statistics.draw_clips(len(rows[0]), seed, resamples)
    if metric == "fd":
        times = resampled.counts(indices, len(rows[0]))
        return metrics.frechet_distance(*rows), resampled.frechet_draws(rows[0], rows[1], times, times)
    if metric == "kl":
        divergences = metrics.kl_softmax(rows[1], rows[0])
        return float(divergences.mean()), resampled.mean_draws(divergences, indices)
    return metrics.inception_score(rows[0])[0], resampled.inception_draws(rows[0], indices)


def _scene(prompt: Prompt) -> Any:
    """A prompt's scene, which `asked_of` has made sure of."""
    return prompt.scene


def _order_heard(prompt: Prompt, heard: Heard) -> float:
    """1 or 0, or NaN where some event is missing, so that order is judged only where all of it can be heard."""
    found = metrics.order_heard(_scene(prompt), heard.events)
    return np.nan if found is None else float(found)
