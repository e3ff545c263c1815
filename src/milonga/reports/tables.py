"""The report's tables as plain rows: the headline comparison, and the paper's Tables 2 to 5 in miniature."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from milonga.core.config import Threshold
from milonga.core.records import Comparison, Summary
from milonga.evaluation.numbers import COLOURS, OVERALL, Measure, Verdict, compared, measures, ordered, told, verdict
from milonga.preference.pair import refusals, table2, unfiltered
from milonga.reports.figures import Line, curves, forest, histogram
from milonga.reports.material import Material

# The paper's tables by the splits that they are about; splits of other names follow in a table of their own.
TABLES = (
    ("Table 3", "all captions", (OVERALL,)),
    ("Table 4", "several concepts or a single one in the caption", ("multi-concept", "single-concept")),
    ("Table 5", "temporal captions and the others", ("temporal", "non-temporal")),
)

REASONS = {
    "not a number": "a scorer could not judge the clip",
    "order": "order: the loser scores as high as the winner",
    "alpha": "α: the winner scores too low",
    "beta": "β: the loser scores too low",
    "delta": "Δ: the two are too close or too far apart",
    "worst": "another loser ranks lower, and only the worst was asked for",
}


@dataclass(frozen=True)
class Cell:
    """A value with its interval, and whether it is better or worse than the base's by a paired interval."""

    text: str
    interval: str
    mark: str


@dataclass(frozen=True)
class Group:
    """One split: a row of cells per system."""

    split: str
    n: int
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True)
class Table:
    """A table of the paper in miniature."""

    name: str
    about: str
    measures: list[Measure]
    groups: list[Group]


@dataclass(frozen=True)
class Difference:
    """A system's difference from the base: as text, its interval, the verdict, and the relative change."""

    system: str
    text: str
    interval: str
    verdict: Verdict
    relative: str
    holm: str


@dataclass(frozen=True)
class Headline:
    """One metric of the headline table: the base's value, every system's difference, and their forest plot."""

    measure: Measure
    base: str
    differences: list[Difference]
    plot: Markup


@dataclass(frozen=True)
class PairRow:
    """A strategy's line of Table 2; the scores are those of the first scorer, over the kept pairs."""

    strategy: str
    made: int
    kept: int
    winner: str
    loser: str
    delta: str


def result_tables(material: Material) -> list[Table]:
    """Tables 3 to 5, and one of any other splits, as far as there are summaries for them."""
    splits = list(dict.fromkeys(row.split for row in material.summaries))
    listed = {split for _, _, names in TABLES for split in names}
    others = tuple(split for split in splits if split not in listed)
    wanted = [*TABLES, ("Other splits", ", ".join(others), others)]
    made = [_table(material, name, about, [s for s in names if s in splits]) for name, about, names in wanted]
    return [table for table in made if table.groups]


def _table(material: Material, name: str, about: str, splits: Sequence[str]) -> Table:
    rows = [row for row in material.summaries if row.split in splits]
    columns = measures([row.metric for row in rows])
    return Table(name, about, columns, [_group(material, split, columns) for split in splits])


def _group(material: Material, split: str, columns: list[Measure]) -> Group:
    values = told(material.summaries, split)
    systems = ordered([system for system, _ in values])
    rows = []
    for system in systems:
        against = compared(material.comparisons, system, material.baseline, split)
        rows.append((system, [_cell(values.get((system, m.name)), m, against.get(m.name)) for m in columns]))
    return Group(split, max(row.n for row in values.values()), rows)


def _cell(row: Summary | None, measure: Measure, against: Comparison | None) -> Cell:
    if row is None:
        return Cell("–", "", "")
    found = verdict(against) if against else "undecided"
    mark = "" if found == "undecided" else found
    return Cell(measure.value(row.value), measure.interval(row.low, row.high), mark)


def headline(material: Material, split: str, systems: Sequence[str]) -> list[Headline]:
    """Every system's differences from the base on a split: per metric, with a forest plot to one scale.

    A system's place in `systems` is its colour.
    """
    values = told(material.summaries, split)
    base_name = material.baseline
    against = {name: compared(material.comparisons, name, base_name, split) for name in systems if name != base_name}
    names = {metric for rows in against.values() for metric in rows}
    colours = {name: place % COLOURS for place, name in enumerate(systems)}
    found = []
    for measure in measures(sorted(names)):
        rows = [(colours[name], rows[measure.name]) for name, rows in against.items() if measure.name in rows]
        base = values.get((base_name, measure.name))
        label = "; ".join(f"{row.a}: {measure.change(row.difference)}, {verdict(row)}" for _, row in rows)
        plot = forest(rows, measure, f"{measure.title} against {base_name}: {label}")
        differences = [_difference(row, measure, base) for _, row in rows]
        found.append(Headline(measure, measure.value(base.value) if base else "–", differences, plot))
    return found


def _difference(row: Comparison, measure: Measure, base: Summary | None) -> Difference:
    relative = ""
    if base and not measure.share and math.isfinite(row.difference) and base.value > 0:
        relative = f"{100 * row.difference / base.value:+.0f} %".replace("-", "−")
    interval = measure.interval(row.low, row.high, signed=True)
    holm = "" if row.holm is None or not math.isfinite(row.holm) else f"Holm p {row.holm:.2g}"
    return Difference(row.a, measure.change(row.difference), interval, verdict(row), relative, holm)


def pair_rows(material: Material) -> list[PairRow]:
    """Table 2: by strategy and overall, how many pairs were made and kept, and the kept ones' mean scores."""
    pairs = [*material.kept, *material.refused]
    if not pairs:
        return []
    made = Counter(pair.strategy for pair in pairs)
    rows = table2(pairs, first_scorer(material))
    return [
        PairRow(
            row.strategy, made.get(row.strategy, len(pairs)), row.n, *map(_score, (row.winner, row.loser, row.delta))
        )
        for row in rows
    ]


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def first_scorer(material: Material) -> str:
    """The scorer that Table 2 speaks of: the first threshold's, else the first that the pairs name."""
    named = next(iter((material.kept + material.refused)[0].chosen_scores))
    return material.thresholds[0].scorer if material.thresholds else named


def refused_by(material: Material) -> list[tuple[str, int]]:
    """How many pairs each condition refused, those that refused none left out."""
    return [(REASONS[name], count) for name, count in refusals(material.refused).items() if count]


def figure2(material: Material) -> list[tuple[str, Markup]]:
    """Figure 2: for each scorer, how winner scores and differences Δ spread over the pairs before the thresholds."""
    pairs = [*material.kept, *material.refused]
    scorers = list(dict.fromkeys(name for pair in pairs for name in pair.chosen_scores))
    limits = {threshold.scorer: threshold for threshold in material.thresholds}
    return [figure for scorer in scorers for figure in _spreads(material, scorer, limits.get(scorer))]


def _spreads(material: Material, scorer: str, limit: Threshold | None) -> list[tuple[str, Markup]]:
    alpha = [(limit.alpha, f"α {limit.alpha:g}")] if limit else []
    delta = (
        [(limit.delta_low, f"Δ ≥ {limit.delta_low:g}"), (limit.delta_high, f"≤ {limit.delta_high:g}")] if limit else []
    )
    kept, refused = (unfiltered(side, scorer) for side in (material.kept, material.refused))
    winners = [_joined([part.winners for part in side]) for side in (kept, refused)]
    deltas = [_joined([part.deltas for part in side]) for side in (kept, refused)]
    found = []
    for title, (good, bad), lines in (("winner score", winners, alpha), ("difference Δ", deltas, delta)):
        if len(good) + len(bad):
            label = f"{scorer}: {title} of {len(good)} kept and {len(bad)} refused pairs"
            found.append((f"{scorer}: {title}", histogram(good, bad, lines, label)))
    return found


def _joined(parts: Sequence[tuple[float, ...]]) -> np.ndarray:
    return np.array([value for part in parts for value in part])


CURVES = (
    ("Loss", (("loss", "loss", "c1"),)),
    ("Error over reference", (("delta_winner", "winner", "c1"), ("delta_loser", "loser", "c2"))),
    ("Margin", (("margin", "margin", "c1"),)),
    ("Pairs ranked right", (("accuracy", "training", "c1"), ("heldout_accuracy", "held out", "c2"))),
    ("Learning rate", (("lr", "rate", "c1"),)),
)


def training_curves(rows: Sequence[dict]) -> list[tuple[str, list[tuple[str, str]], Markup]]:
    """A system's training as (title, legend of (name, style), figure), leaving out what was not logged."""
    steps = np.arange(1, len(rows) + 1, dtype=float)
    phases = [(i + 1, str(row.get("phase", ""))) for i, row in enumerate(rows) if _begins(rows, i)]
    found = []
    for title, series in CURVES:
        lines = [Line(name, style, steps, _column(rows, key), noisy=key != "lr") for key, name, style in series]
        lines = [line for line in lines if np.isfinite(line.y).any()]
        figure = curves(lines, phases, len(rows), f"{title} over {len(rows)} steps")
        if figure is not None:
            legend = [(line.name, line.style) for line in lines] if len(lines) > 1 else []
            found.append((title, legend, figure))
    return found


def _begins(rows: Sequence[dict], place: int) -> bool:
    return place == 0 or rows[place].get("phase") != rows[place - 1].get("phase")


def _column(rows: Sequence[dict], key: str) -> np.ndarray:
    return np.array([row[key] if isinstance(row.get(key), int | float) else math.nan for row in rows], dtype=float)
