"""The report's part on rounds and on the reward model: a table and a curve across rounds, and one sentence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from milonga.core.records import RewardReport, Round
from milonga.evaluation.numbers import MEASURES, Verdict
from milonga.preference.sweep import ticks
from milonga.reports.figures import HEIGHT, WIDTH, Frame, short, svg

JUDGE = next(measure for measure in MEASURES if measure.name == "clap")
SHARE = next(measure for measure in MEASURES if measure.name == "all_present")


@dataclass(frozen=True)
class RoundRow:
    """One round as the table shows it; `chosen` is the round whose policy the system is."""

    name: str
    clips: str
    pairs: str
    judge: str
    interval: str
    gain: str
    gain_interval: str
    verdict: Verdict
    present: str
    order: str
    chosen: bool


def rounds_shown(found: dict[str, list[Round]]) -> list[tuple[str, list[RoundRow], Markup]]:
    """(system, rows, figure) of every system that was trained in rounds."""
    return [(name, _rows(rounds), _figure(name, rounds)) for name, rounds in found.items() if rounds]


def reward_told(report: RewardReport | None) -> str:
    """What a reward model learnt by its report, in one sentence; empty for none."""
    if report is None:
        return ""
    share, interval = SHARE.value(report.accuracy), SHARE.interval(report.low, report.high)
    return (
        f"The reward model on {report.scorer}’s features learnt from {report.taught:,} labels and is right on "
        f"{share} {interval} of {report.held_out:,} held-out ones (the commoner answer alone: "
        f"{SHARE.value(report.majority)}); it places a good clip above a bad one in {SHARE.value(report.auc)} of "
        f"couples, the bare similarity in {SHARE.value(report.cosine_auc)}."
    )


def _rows(rounds: Sequence[Round]) -> list[RoundRow]:
    best = max(rounds[1:], key=lambda one: (one.judge, -one.number), default=None)
    return [_row(one, one is best) for one in rounds]


def _row(one: Round, chosen: bool) -> RoundRow:
    trained = one.number > 0
    verdict: Verdict = "better" if one.gain_low > 0 else "worse" if one.gain_high < 0 else "undecided"
    return RoundRow(
        name=f"round {one.number}" if trained else "base",
        clips=f"{one.clips:,}" if trained else "–",
        pairs=f"{one.pairs:,}" if trained else "–",
        judge=JUDGE.value(one.judge),
        interval=JUDGE.interval(one.low, one.high),
        gain=JUDGE.change(one.gain) if trained else "–",
        gain_interval=JUDGE.interval(one.gain_low, one.gain_high, signed=True) if trained else "",
        verdict=verdict,
        present=SHARE.value(one.present),
        order=SHARE.value(one.order),
        chosen=chosen,
    )


def _figure(name: str, rounds: Sequence[Round]) -> Markup:
    """The judge's mean by round, with whiskers."""
    values = [value for one in rounds for value in (one.low, one.high, one.judge) if math.isfinite(value)]
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.05
    frame = Frame((-0.3, max(1, rounds[-1].number) + 0.3), (low - pad, high + pad))
    body = [*_grid(frame, [one.number for one in rounds])]
    points = [(frame.px(one.number), frame.py(one.judge)) for one in rounds]
    body.append(f'<path class="curve c1" d="M{"L".join(f"{x} {y}" for x, y in points)}"/>')
    for one, (x, y) in zip(rounds, points, strict=True):
        top, bottom = frame.py(one.high), frame.py(one.low)
        body.append(f'<path class="curve c1" d="M{x} {top}V{bottom}M{x - 4:g} {top}h8M{x - 4:g} {bottom}h8"/>')
        body.append(f'<circle class="point" cx="{x}" cy="{y}" r="3.5"/>')
    told = ", ".join(f"{one.number}: {JUDGE.value(one.judge)}" for one in rounds)
    return svg(body, f"{name}: judge CLAP by round, {told}")


def _grid(frame: Frame, numbers: Sequence[int]) -> list[str]:
    right, base = WIDTH - frame.right, HEIGHT - frame.bottom
    parts = [f'<path class="axis" d="M{frame.left:g} {base:g}H{right:g}"/>']
    for value in ticks(*frame.y):
        y, x = frame.py(value), frame.left - 5
        parts.append(f'<path class="grid" d="M{frame.left:g} {y}H{right:g}"/>')
        parts.append(f'<text class="tick" x="{x:g}" y="{y + 3.5:g}" text-anchor="end">{short(value)}</text>')
    for number in numbers:
        x = frame.px(number)
        parts.append(f'<text class="tick" x="{x}" y="{base + 14:g}" text-anchor="middle">{number or "base"}</text>')
    return parts
