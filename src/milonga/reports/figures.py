"""The pages' figures as inline SVG: forest plots, histograms with thresholds, training curves, and rounds.

Colours are CSS classes of the page, so that figures follow light and dark; every figure carries a text alternative.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup, escape

from milonga.core.records import Comparison, Round
from milonga.evaluation.formatting import verdict
from milonga.evaluation.metrics import MINUS, Metric
from milonga.preference.sweep import ticks

WIDTH, HEIGHT = 360, 190


@dataclass(frozen=True)
class Frame:
    """A plotting area in SVG units and the data range that it shows."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float = 44
    right: float = 10
    top: float = 10
    bottom: float = 26

    def px(self, value: float) -> float:
        """Horizontal place of a data value."""
        low, high = self.x
        return round(self.left + (value - low) / (high - low) * (WIDTH - self.left - self.right), 1)

    def py(self, value: float) -> float:
        """Vertical place of a data value; upwards is more."""
        low, high = self.y
        return round(HEIGHT - self.bottom - (value - low) / (high - low) * (HEIGHT - self.top - self.bottom), 1)


@dataclass(frozen=True)
class Line:
    """A curve: its name for the legend, its CSS class, its points, and whether it is noisy enough to be smoothed."""

    name: str
    style: str
    x: np.ndarray
    y: np.ndarray
    noisy: bool = True


def short(value: float) -> str:
    """A tick's label: few characters, a true minus sign."""
    text = f"{value:.0e}" if value and abs(value) < 1e-3 else f"{value:.6g}"
    return text.replace("e-0", "e-").replace("-", MINUS)


def svg(body: Sequence[str], label: str, width: float = WIDTH, height: float = HEIGHT, style: str = "chart") -> Markup:
    """An SVG picture that scales to its box; `label` is its text for screen readers."""
    inner = "".join(body)
    return Markup(  # every text in `body` is escaped already
        f'<svg class="{style}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{inner}</svg>'
    )


def axes(frame: Frame, x_labels: Sequence[tuple[float, str]] | None = None) -> list[str]:
    """Grid lines with labels, the baseline, and labels below it (default: round numbers)."""
    parts = []
    for value in ticks(*frame.y):
        y, x = frame.py(value), frame.left - 5
        parts.append(f'<path class="grid" d="M{frame.left:g} {y}H{WIDTH - frame.right:g}"/>')
        parts.append(f'<text class="tick" x="{x:g}" y="{y + 3.5:g}" text-anchor="end">{short(value)}</text>')
    base = HEIGHT - frame.bottom
    parts.append(f'<path class="axis" d="M{frame.left:g} {base:g}H{WIDTH - frame.right:g}"/>')
    for value, text in x_labels or [(value, short(value)) for value in ticks(*frame.x, 5)]:
        x = frame.px(value)
        parts.append(f'<text class="tick" x="{x}" y="{base + 14:g}" text-anchor="middle">{text}</text>')
    return parts


def forest(rows: Sequence[tuple[int, Comparison]], metric: Metric, label: str) -> Markup:
    """Differences from the base with their intervals, one line per system (colour number, comparison).

    Right of the middle is better whatever the metric's direction: for FD, say, a smaller value lies on the right.
    """
    width, step, sign = 200, 15, 1 if metric.higher else -1
    height = step * len(rows) + 5
    finite = [abs(v) for _, row in rows for v in (row.low, row.high, row.difference) if math.isfinite(v)]
    reach = 1.08 * max([*finite, 1e-9])
    body = [f'<path class="zero" d="M{width / 2} 0V{height}"/>']
    for number, (colour, row) in enumerate(rows):
        if not all(math.isfinite(v) for v in (row.low, row.high, row.difference)):
            continue
        y = 10 + step * number
        low, high, middle = (
            round(width / 2 + sign * v / reach * (width / 2 - 4), 1) for v in (row.low, row.high, row.difference)
        )
        hollow = " open" if verdict(row) == "neither" else ""
        body.append(f'<path class="whisker s{colour}" d="M{low} {y}H{high}M{low} {y - 3}v6M{high} {y - 3}v6"/>')
        body.append(f'<circle class="mark s{colour}{hollow}" cx="{middle}" cy="{y}" r="4"/>')
    return svg(body, label, width, height, "forest")


def histogram(
    accepted: np.ndarray, refused: np.ndarray, lines: Sequence[tuple[float, str]], label: str, bins: int = 36
) -> Markup:
    """Counts of kept values stacked on refused ones, and dashed `lines` (value, name) where thresholds lie."""
    values = np.concatenate([accepted, refused, [value for value, _ in lines]])
    low, high = float(values.min()), float(values.max())
    pad = 0.04 * (high - low) or 0.05
    edges = np.linspace(low - pad, high + pad, bins + 1)
    inside, outside = np.histogram(accepted, edges)[0], np.histogram(refused, edges)[0]
    frame = Frame((edges[0], edges[-1]), (0, 1.12 * max(1, int((inside + outside).max()))), top=22)
    body = axes(frame)
    for i in range(bins):
        body += _bar(frame, edges[i], edges[i + 1], 0, int(inside[i]), "kept")
        body += _bar(frame, edges[i], edges[i + 1], int(inside[i]), int(inside[i] + outside[i]), "refused")
    for value, name in lines:
        x = frame.px(value)
        body.append(f'<path class="limit" d="M{x} {frame.top - 4:g}V{HEIGHT - frame.bottom:g}"/>')
        anchor = "end" if x > WIDTH - 60 else "start" if x < 70 else "middle"
        body.append(
            f'<text class="limit-name" x="{x}" y="{frame.top - 9:g}" text-anchor="{anchor}">{escape(name)}</text>'
        )
    return svg(body, label)


def _bar(frame: Frame, left: float, right: float, bottom: int, top: int, style: str) -> list[str]:
    if top == bottom:
        return []
    x, y = frame.px(left), frame.py(top)
    width, height = max(frame.px(right) - x - 0.8, 0.5), frame.py(bottom) - y
    return [f'<rect class="{style}" x="{x}" y="{y}" width="{width:.1f}" height="{height:.1f}"/>']


def curves(lines: Sequence[Line], phases: Sequence[tuple[int, str]], steps: int, label: str) -> Markup | None:
    """Curves over steps 1 to `steps`, their moving mean drawn bold; `phases` are (first step, name).

    None without a finite point.
    """
    lines = [line for line in map(_finite, lines) if len(line.x)]
    if not lines:
        return None
    frame = Frame(_range(np.array([1.0, steps]), 0.0), _range(np.concatenate([line.y for line in lines]), 0.06))
    body = axes(frame)
    for start, name in phases:
        x = frame.px(start)
        body.append(f'<path class="phase" d="M{x} {frame.top:g}V{HEIGHT - frame.bottom:g}"/>')
        body.append(f'<text class="phase-name" x="{x + 4}" y="{frame.top + 7:g}">{escape(name)}</text>')
    edges = [start for start, _ in phases[1:]]
    for line in lines:
        for part in np.split(np.arange(len(line.x)), np.searchsorted(line.x, edges)):
            body += _curve(frame, replace(line, x=line.x[part], y=line.y[part]))
    return svg(body, label)


def _curve(frame: Frame, line: Line) -> list[str]:
    """A curve of one phase: every step thin, if there are many, and their moving mean."""
    if not len(line.x):
        return []
    width = max(1, len(line.y) // 20) if line.noisy else 1
    drawn = [f'<path class="curve {line.style}" d="{_path(frame, line.x, smoothed(line.y, width))}"/>']
    if width > 1:
        drawn.insert(0, f'<path class="curve faint {line.style}" d="{_path(frame, line.x, line.y)}"/>')
    return drawn


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the last `width` values at each place (fewer at the start), same shape as `values`."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    stops = np.arange(1, len(values) + 1)
    starts = np.maximum(stops - width, 0)
    return (total[stops] - total[starts]) / (stops - starts)


def _finite(line: Line) -> Line:
    good = np.isfinite(line.x) & np.isfinite(line.y)
    return replace(line, x=line.x[good], y=line.y[good])


def _range(values: np.ndarray, margin: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-12 * max(1.0, abs(high)):
        return low - max(abs(low), 1.0) * 0.1, high + max(abs(high), 1.0) * 0.1
    return low - margin * (high - low), high + margin * (high - low)


def _path(frame: Frame, x: np.ndarray, y: np.ndarray, most: int = 240) -> str:
    """An SVG path through at most `most` points: neighbours are averaged, so a long run stays a small file."""
    groups = np.array_split(np.arange(len(x)), min(most, len(x)))
    points = [f"{frame.px(x[g].mean())} {frame.py(y[g].mean())}" for g in groups]
    return "M" + "L".join(points) if len(points) > 1 else f"M{points[0]}h2"


def rounds_figure(system: str, rounds: Sequence[Round]) -> Markup:
    """The judge's mean by iteration, with whiskers; policies that it did not score are left out."""
    rounds = [row for row in rounds if math.isfinite(row.judge)]
    points = [(row.number, row.judge, row.low, row.high) for row in rounds]
    label = ", ".join(f"{row.number}: {row.judge:.3f}" for row in rounds)
    ticks_below = [(row.number, str(row.number or "base")) for row in rounds]
    return whiskers(points, ticks_below, f"{system}: judge CLAP by iteration, {label}")


def whiskers(
    points: Sequence[tuple[float, float, float, float]], labels: Sequence[tuple[float, str]], label: str
) -> Markup:
    """A line through points (x, value, low, high), each with its interval; `labels` are the ticks below."""
    values = [value for _, *row in points for value in row if math.isfinite(value)]
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.05
    first, last = points[0][0], points[-1][0]
    frame = Frame((first - 0.3, max(first + 1, last) + 0.3), (low - pad, high + pad))
    places = [(frame.px(x), frame.py(y)) for x, y, *_ in points]
    body = axes(frame, labels)
    body.append(f'<path class="curve c1" d="M{"L".join(f"{x} {y}" for x, y in places)}"/>')
    for (_, _, low, high), (x, y) in zip(points, places, strict=True):
        top, bottom = frame.py(high), frame.py(low)
        body.append(f'<path class="curve c1" d="M{x} {top}V{bottom}M{x - 4:g} {top}h8M{x - 4:g} {bottom}h8"/>')
        body.append(f'<circle class="point" cx="{x}" cy="{y}" r="3.5"/>')
    return svg(body, label)


def hacking_figure(system: str, rounds: Sequence[Round]) -> Markup | None:
    """What the rewarding scorers gained by iteration (standard deviations), beside the relative change of diversity.

    None where neither was measured.
    """
    rounds = [row for row in rounds if math.isfinite(row.reward)]
    numbers = np.array([row.number for row in rounds], dtype=float)
    base = rounds[0].diversity if rounds else math.nan
    lines = [
        Line("reward", "c1", numbers, np.array([row.reward for row in rounds]), noisy=False),
        Line("diversity", "c2", numbers, np.array([row.diversity / base - 1 for row in rounds]), noisy=False),
    ]
    steps = int(numbers.max()) if len(numbers) else 0
    return curves(lines, [], steps, f"{system}: reward and diversity by iteration") if steps > 1 else None
