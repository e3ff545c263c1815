"""The pages' tables as plain rows: headline comparison, the paper's Tables 2 to 5 in miniature, training, rounds."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from milonga.core.config import Threshold
from milonga.core.records import Comparison, RewardReport, Round, SearchPoint, Summary
from milonga.data.pairs import refusals, table2
from milonga.evaluation.formatting import (
    OVERALL,
    by_system_and_metric,
    compared,
    in_table_order,
    verdict,
    verdict_words,
)
from milonga.evaluation.metrics import MINUS, Metric, get_metric, metrics_named
from milonga.preference.pair import unfiltered
from milonga.reports.figures import Line, curves, forest, hacking_figure, histogram, rounds_figure, whiskers
from milonga.reports.material import EvaluationView, RunMaterial

COLOURS = 6  # how many systems the style sheet tells apart
# The paper's tables by the splits that they are about; splits of other names follow in a table of their own.
TABLES = (
    ("Table 3", "all captions", (OVERALL,)),
    ("Table 4", "several concepts or a single one in the caption", ("multi-concept", "single-concept")),
    ("Table 5", "temporal captions and the others", ("temporal", "non-temporal")),
)

REASONS = {
    "not a number": "a scorer gave the clip no score",
    "order": "order: the loser scores as high as the winner",
    "min_winner_score": "α: the winner scores too low",
    "min_loser_score": "β: the loser scores too low",
    "min_margin": "Δ: the two are too close",
    "max_margin": "Δ: the two are too far apart",
    "worst": "another loser ranks lower, and only the worst is paired",
}


@dataclass(frozen=True)
class PairRow:
    """A strategy's line of Table 2; the scores are those of the first scorer, over the kept pairs."""

    strategy: str
    built: int
    accepted: int
    winner: str
    loser: str
    delta: str


def result_tables(view: EvaluationView, ranked: bool = False) -> list[dict[str, Any]]:
    """Tables 3 to 5, and one of any other splits, as far as there are summaries for them.

    Each has its `name`, what it is `about`, the `metrics` of its columns, and `groups`: a split with `rows` of systems
    (name, rank, cells), by rank where they are `ranked`.
    """
    splits = list(dict.fromkeys(row.split for row in view.summaries))
    listed = {split for _, _, names in TABLES for split in names}
    others = tuple(split for split in splits if split not in listed)
    tables = []
    for name, about, names in [*TABLES, ("Other splits", ", ".join(others), others)]:
        rows = [row for row in view.summaries if row.split in names]
        if rows:
            metrics = metrics_named([row.metric for row in rows], view.sources)
            groups = [_group(view, split, metrics, ranked) for split in names if split in splits]
            tables.append({"name": name, "about": about, "metrics": metrics, "groups": groups})
    return tables


def _group(view: EvaluationView, split: str, metrics: list[Metric], ranked: bool) -> dict[str, Any]:
    """One split: for each system a cell for each metric, marked where it differs significantly from the base's."""
    values, rows = by_system_and_metric(view.summaries, split), []
    ranks = mean_ranks(view.summaries, split) if ranked else {}
    systems = in_table_order([system for system, _ in values])
    for system in sorted(systems, key=lambda name: ranks.get(name, math.inf)) if ranks else systems:
        against, cells = compared(view.comparisons, system, view.baseline, split), []
        for metric in metrics:
            row, outcome = values.get((system, metric.name)), "neither"
            if metric.name in against:
                outcome = verdict(against[metric.name])
            text = metric.format_value(row.value) if row else "–"
            interval = metric.format_interval(row.low, row.high) if row else ""
            cells.append(
                {
                    "text": text,
                    "interval": interval,
                    "mark": outcome.replace("neither", ""),
                    "value": row.value if row and math.isfinite(row.value) else "",
                }
            )
        rows.append((system, f"{ranks[system]:.1f}" if system in ranks else "", cells))
    return {"split": split, "n": max(row.n for row in values.values()), "rows": rows}


def mean_ranks(summaries: Sequence[Summary], split: str) -> dict[str, float]:
    """Each system's mean rank, 1 the best, over the headline metrics that all systems of a split have (all metrics
    where there is none); empty for one system. The real clips are no system."""
    cells = {(row.system, row.metric): row.value for row in summaries if row.split == split}
    systems = [name for name in dict.fromkeys(system for system, _ in cells) if name != "reference"]
    shared = [metric for metric in metrics_named([name for _, name in cells])
              if all(math.isfinite(cells.get((name, metric.name), math.nan)) for name in systems)]  # fmt: skip
    used = [metric for metric in shared if metric.headline] or shared
    if len(systems) < 2 or not used:
        return {}
    ranks = []
    for metric in used:
        values = np.array([cells[name, metric.name] for name in systems]) * (-1 if metric.higher else 1)
        ranks.append((values[:, None] > values).sum(axis=1) + ((values[:, None] == values).sum(axis=1) + 1) / 2)
    return dict(zip(systems, np.mean(ranks, axis=0).tolist(), strict=True))


def headline(view: EvaluationView, split: str, systems: Sequence[str]) -> list[dict[str, Any]]:
    """Every system's differences from the base on a split: per metric, with a forest plot to one scale.

    A system's place in `systems` is its colour.
    """
    values, base_name = by_system_and_metric(view.summaries, split), view.baseline
    against = {name: compared(view.comparisons, name, base_name, split) for name in systems if name != base_name}
    colours = {name: place % COLOURS for place, name in enumerate(systems)}
    lines = []
    for metric in metrics_named(sorted({name for rows in against.values() for name in rows}), view.sources):
        rows = [(colours[name], rows[metric.name]) for name, rows in against.items() if metric.name in rows]
        base = values.get((base_name, metric.name))
        differences = [_difference(row, metric, base) for _, row in rows]
        label = "; ".join(f"{one['system']}: {one['text']}, {one['words']}" for one in differences)
        lines.append(
            {
                "metric": metric,
                "base": metric.format_value(base.value) if base else "–",
                "differences": differences,
                "plot": forest(rows, metric, f"{metric.title} against {base_name}: {label}"),
            }
        )
    return lines


def _difference(row: Comparison, metric: Metric, base: Summary | None) -> dict[str, str]:
    """A system's difference from the base: as text, its interval, the verdict, and the relative change."""
    relative = ""
    if base and metric.unit != "%" and math.isfinite(row.difference) and base.value > 0:
        relative = f"{100 * row.difference / base.value:+.0f} %".replace("-", "−")
    outcome = verdict(row)
    return {
        "system": row.a,
        "text": metric.format_change(row.difference),
        "interval": metric.format_interval(row.low, row.high, signed=True),
        "verdict": outcome,
        "words": verdict_words(outcome),
        "relative": relative,
        "holm": "" if row.holm is None or not math.isfinite(row.holm) else f"Holm p {row.holm:.2g}",
    }


def pair_rows(run: RunMaterial) -> list[PairRow]:
    """Table 2: by strategy and overall, how many pairs were built and kept, and the mean scores of those kept."""
    pairs = [*run.accepted, *run.refused]
    if not pairs:
        return []
    built = Counter(pair.strategy for pair in pairs)
    rows = table2(pairs, first_scorer(run))
    return [
        PairRow(
            row.strategy, built.get(row.strategy, len(pairs)), row.n, *map(_score, (row.winner, row.loser, row.delta))
        )
        for row in rows
    ]


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def first_scorer(run: RunMaterial) -> str:
    """The scorer that Table 2 speaks of: the first threshold's, else the first that the pairs name."""
    scores = (run.accepted + run.refused)[0].chosen_scores
    return run.thresholds[0].scorer if run.thresholds else next(iter(scores))


def refused_by(run: RunMaterial) -> list[tuple[str, int]]:
    """How many pairs each condition refused, those that refused none left out."""
    return [(REASONS[name], count) for name, count in refusals(run.refused).items() if count]


def figure2(run: RunMaterial) -> list[tuple[str, Markup]]:
    """Figure 2: for each scorer, how winner scores and differences Δ spread over the pairs before the thresholds."""
    pairs = [*run.accepted, *run.refused]
    scorers = list(dict.fromkeys(name for pair in pairs for name in pair.chosen_scores))
    limits = {threshold.scorer: threshold for threshold in run.thresholds}
    return [figure for scorer in scorers for figure in _spreads(run, scorer, limits.get(scorer))]


def _spreads(run: RunMaterial, scorer: str, limit: Threshold | None) -> list[tuple[str, Markup]]:
    limit, unset = limit or Threshold(scorer), Threshold(scorer)
    alpha = [(limit.min_winner_score, f"α {limit.min_winner_score:g}")] * (
        limit.min_winner_score > unset.min_winner_score
    )
    delta = [(limit.min_margin, f"Δ ≥ {limit.min_margin:g}")] * (limit.min_margin > unset.min_margin)
    delta += [(limit.max_margin, f"≤ {limit.max_margin:g}")] * (limit.max_margin < unset.max_margin)
    sides = [unfiltered(pairs, scorer) for pairs in (run.accepted, run.refused)]
    winners = [_joined([part.winners for part in side]) for side in sides]
    deltas = [_joined([part.deltas for part in side]) for side in sides]
    figures = []
    for title, (good, bad), lines in (("winner score", winners, alpha), ("difference Δ", deltas, delta)):
        if len(good) + len(bad):
            label = f"{scorer}: {title} of {len(good)} kept and {len(bad)} refused pairs"
            figures.append((f"{scorer}: {title}", histogram(good, bad, lines, label)))
    return figures


def _joined(parts: Sequence[tuple[float, ...]]) -> np.ndarray:
    return np.array([value for part in parts for value in part])


CURVES = (
    ("Loss", (("loss", "loss", "c1"),)),
    ("Error over reference", (("delta_winner", "winner", "c1"), ("delta_loser", "loser", "c2"))),
    ("Margin", (("margin", "margin", "c1"),)),
    ("Reward over the model as given", (("reward", "reward", "c1"),)),
    ("Pairs ranked right", (("accuracy", "training", "c1"), ("val_accuracy", "validation", "c2"))),
    ("Learning rate", (("lr", "rate", "c1"),)),
)


def training_curves(rows: Sequence[dict]) -> list[tuple[str, list[tuple[str, str]], Markup]]:
    """A system's training as (title, legend of (name, style), figure), leaving out what was not logged."""
    steps = np.arange(1, len(rows) + 1, dtype=float)
    phases = [
        (place + 1, str(row.get("phase", "")))
        for place, row in enumerate(rows)
        if place == 0 or row.get("phase") != rows[place - 1].get("phase")
    ]
    charts = []
    for title, series in CURVES:
        lines = [Line(name, style, steps, _column(rows, key), noisy=key != "lr") for key, name, style in series]
        lines = [line for line in lines if np.isfinite(line.y).any()]
        figure = curves(lines, phases, len(rows), f"{title} over {len(rows)} steps")
        if figure is not None:
            legend = [(line.name, line.style) for line in lines] if len(lines) > 1 else []
            charts.append((title, legend, figure))
    return charts


def _column(rows: Sequence[dict], key: str) -> np.ndarray:
    return np.array([row[key] if isinstance(row.get(key), int | float) else math.nan for row in rows], dtype=float)


def round_tables(systems: Mapping[str, Sequence[Round]]) -> list[tuple[str, list[dict[str, Any]], Markup, Any]]:
    """(system, rows, figure of the judge, figure of reward and diversity) of every system that was trained online."""
    return [
        (name, _round_rows(rounds), rounds_figure(name, rounds), hacking_figure(name, rounds))
        for name, rounds in systems.items()
        if rounds
    ]


def _round_rows(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """The iterations of one system; the judge chose the best of those that it scored, the earlier one of equals."""
    clap, share, extra = get_metric("clap"), get_metric("full_recall"), get_metric("extra_events")
    judged = [row for row in rounds[1:] if math.isfinite(row.judge)]
    best = max(judged, key=lambda row: (row.judge, -row.number), default=None)
    return [
        {
            "name": f"iteration {row.number}" if row.number else "base",
            "clips": f"{row.clips:,}" if row.number else "–",
            "pairs": (f"{row.groups:,} groups" if row.groups else f"{row.pairs:,} pairs") if row.number else "–",
            "judge": clap.format_value(row.judge),
            "interval": clap.format_interval(row.low, row.high),
            "gain": clap.format_change(row.gain) if row.number else "–",
            "gain_interval": clap.format_interval(row.gain_low, row.gain_high, signed=True) if row.number else "",
            "verdict": "better" if row.gain_low > 0 else "worse" if row.gain_high < 0 else "neither",
            "cells": [
                share.format_value(row.exact),
                extra.format_value(row.extra),
                share.format_value(row.present),
                share.format_value(row.order),
                share.format_value(row.order_detected),
                clap.format_change(row.reward),
                clap.format_value(row.diversity),
                f"{share.format_value(row.silent)}, {share.format_value(row.clipped)}",
                f"{row.loudness:.1f} dB".replace("-", MINUS) if math.isfinite(row.loudness) else "–",
            ],
            "alert": row.alert,
            "chosen": row is best,
        }
        for row in rounds
    ]


def search_curves(points: Sequence[SearchPoint]) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """(what is chosen from and by what, figures of each metric's gain against N), once for a pool and its scorers."""
    curves_of: dict[tuple[str, tuple[str, ...]], dict[str, list[SearchPoint]]] = {}
    names: dict[tuple[str, tuple[str, ...]], str] = {}
    for point in points:
        pool = point.system, point.scorers
        if names.setdefault(pool, point.search) == point.search:
            curves_of.setdefault(pool, {}).setdefault(point.metric, []).append(point)
    return [
        (f"{system}, chosen by {' and '.join(scorers)}", [_search_figure(rows) for rows in by_metric.values()])
        for (system, scorers), by_metric in curves_of.items()
    ]


def _search_figure(rows: Sequence[SearchPoint]) -> tuple[str, Markup]:
    """A metric's title and the figure of its gain over the best of 1, with 95 % intervals."""
    metric = get_metric(rows[0].metric)
    title = metrics_named([metric.name], {"clap_title": "Judge CLAP"})[0].title
    scale = 100 if metric.unit == "%" else 1
    points = [(row.n, scale * row.gain, scale * row.gain_low, scale * row.gain_high) for row in rows]
    marks = [row.n for row in rows if row.n & (row.n - 1) == 0 or row is rows[-1]]  # powers of two, and the end
    gains = ", ".join(f"N {row.n}: {metric.format_change(row.gain)}" for row in rows if row.n in marks)
    unit = "points" if metric.unit == "%" else metric.arrow
    return f"{title}, {unit}", whiskers(points, [(n, str(n)) for n in marks], f"{title}, gain over one clip, {gains}")


def search_costs(points: Sequence[SearchPoint]) -> tuple[list[Metric], list[dict[str, Any]]]:
    """The metrics and rows of the same-compute table: one clip of every searched system, and the best of each search's
    N, with passes of the network and seconds for a clip that is delivered.
    """
    metrics = metrics_named([point.metric for point in points], {"clap_title": "Judge CLAP"})
    cells: dict[tuple[str, str, int, float], dict[str, tuple[str, str]]] = {}
    for point in points:
        if point.n in (1, point.chosen):
            name = point.search if point.n > 1 else ""
            metric = get_metric(point.metric)
            row = cells.setdefault((point.system, name, point.passes, point.seconds), {})
            row[point.metric] = metric.format_value(point.value), metric.format_interval(point.low, point.high)
    return metrics, [
        {"name": name or f"{system}, one clip", "system": system, "passes": passes, "seconds": f"{seconds:.2f}",
         "cells": [row.get(metric.name, ("–", "")) for metric in metrics]}
        for (system, name, passes, seconds), row in cells.items()
    ]  # fmt: skip


def reward_sentence(report: RewardReport | None) -> str:
    """A reward model's report in one sentence; empty for none."""
    if report is None:
        return ""
    share = get_metric("full_recall")
    accuracy = f"{share.format_value(report.accuracy)} {share.format_interval(report.low, report.high)}"
    return (
        f"The reward model on {report.scorer}’s features was trained on {report.taught:,} labels. It is right on "
        f"{accuracy} of {report.held_out:,} held-out labels (majority class: {share.format_value(report.majority)}) "
        f"and ranks a good clip above a bad one in {share.format_value(report.auc)} of pairs (CLAP similarity alone: "
        f"{share.format_value(report.cosine_auc)})."
    )
