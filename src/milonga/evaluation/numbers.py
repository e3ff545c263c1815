"""How the report speaks of numbers: what each metric means, which way is better, and what an interval allows to say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from milonga.core.records import Comparison, Summary

Verdict = Literal["better", "worse", "undecided"]
MINUS = "−"
OVERALL = "overall"
COLOURS = 6  # how many systems the style sheet tells apart


@dataclass(frozen=True)
class Measure:
    """A metric as it is shown: its title, whether more is better, whether it is a share, and its decimals."""

    name: str
    title: str
    up: bool = True
    share: bool = False
    digits: int = 3
    meaning: str = ""

    @property
    def arrow(self) -> str:
        """The direction in which the metric improves, as the paper's tables mark it."""
        return "↑" if self.up else "↓"

    def value(self, number: float) -> str:
        """A value for a table: shares in per cent, the rest with this metric's decimals; an en dash if undefined."""
        if not math.isfinite(number):
            return "–"
        text = f"{100 * number:.1f} %" if self.share else f"{number:.{self.digits}f}"
        return text.replace("-", MINUS)

    def change(self, number: float) -> str:
        """A signed difference: percentage points for shares, else the metric's own unit."""
        if not math.isfinite(number):
            return "–"
        text = f"{100 * number:+.1f} points" if self.share else f"{number:+.{self.digits}f}"
        return text.replace("-", MINUS)

    def interval(self, low: float, high: float, signed: bool = False) -> str:
        """`[low, high]` in the metric's unit, or nothing where there is no interval."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return ""
        scale, digits = (100, 1) if self.share else (1, self.digits)
        sign = "+" if signed else ""
        return f"[{scale * low:{sign}.{digits}f}, {scale * high:{sign}.{digits}f}]".replace("-", MINUS)


MEASURES = (
    Measure("clap", "Judge CLAP", meaning="cosine similarity of caption and clip, by a CLAP that only judges"),
    Measure("all_present", "All events present", share=True, meaning="clips in which every event asked for is heard"),
    Measure("presence", "Events present", share=True, meaning="events asked for that are heard"),
    Measure("extra", "Extra events", up=False, meaning="kinds of sound heard per clip that nobody asked for"),
    Measure("order", "Order right", share=True, meaning="clips whose events are heard in the order asked for"),
    Measure("order_heard", "Order where all heard", share=True, meaning="of clips with all events, those in order"),
    Measure("correct", "Exactly as asked", share=True, meaning="all present, in order, and nothing else"),
    Measure("fad", "FAD", up=False, digits=2, meaning="Fréchet distance to the real clips, on VGGish's rows"),
    Measure("fad_inf", "FAD∞", up=False, digits=2, meaning="FAD as it would be of endless generated clips"),
    Measure("fd", "FD", up=False, digits=2, meaning="Fréchet distance to the real clips, on the tagger's features"),
    Measure("fd_inf", "FD∞", up=False, digits=2, meaning="FD as it would be of endless generated clips"),
    Measure("kad", "KAD", up=False, digits=2, meaning="kernel distance to the real clips: unbiased, may be negative"),
    Measure("kl", "KL", up=False, meaning="divergence of the tagger's posteriors from the real clip's"),
    Measure("kl_sigmoid", "KL sigmoid", up=False, digits=2, meaning="the toolkit's sum over classes by themselves"),
    Measure("is", "IS", digits=2, meaning="inception score: each clip sure of its sound, the set diverse"),
    Measure("psnr", "PSNR", digits=2, meaning="signal to noise of mel images against the original clip, in dB"),
    Measure("ssim", "SSIM", meaning="structural similarity of mel images with the original clip's"),
    Measure("ssim_stft", "SSIM STFT", meaning="structural similarity of magnitudes with the original clip's"),
    Measure("lsd", "LSD", up=False, meaning="log-spectral distance from the original clip"),
    Measure("silent", "Silent", up=False, share=True, meaning="clips without sound"),
    Measure("clipped", "Clipped", up=False, share=True, meaning="clips with samples cut off at full scale"),
)


def measures(names: Sequence[str]) -> list[Measure]:
    """The measures called `names`, known ones first in the order of the tables, unknown ones after by name."""
    known = [measure for measure in MEASURES if measure.name in names]
    listed = {measure.name for measure in known}
    others = [Measure(name, name.replace("_", " ").replace("clap ", "CLAP ")) for name in sorted(set(names) - listed)]
    return known + others


def is_known(measure: Measure) -> bool:
    """Whether the report knows which way this metric is better."""
    return measure.name.startswith("clap ") or any(measure.name == known.name for known in MEASURES)


def verdict(row: Comparison) -> Verdict:
    """What may be said of `row.a` against `row.b`: better or worse only if the 95 % interval excludes zero.

    The interval and the recorded `better`, which asks for p too, must agree; where they do not, nothing is claimed.
    """
    if not (math.isfinite(row.low) and math.isfinite(row.high)) or row.low <= 0 <= row.high:
        return "undecided"
    measure = measures([row.metric])[0]
    gains = (row.low > 0) == measure.up if is_known(measure) else row.better == row.a
    if row.better != (row.a if gains else row.b):
        return "undecided"
    return "better" if gains else "worse"


def compared(rows: Sequence[Comparison], system: str, baseline: str, split: str) -> dict[str, Comparison]:
    """By metric, the comparisons of `system` (as a) with `baseline` (as b) on one split, turned round where needed."""
    found = {}
    for row in rows:
        if row.split == split and {row.a, row.b} == {system, baseline}:
            found[row.metric] = row if row.a == system else turned(row)
    return found


def turned(row: Comparison) -> Comparison:
    """The same comparison seen from the other side: b against a."""
    numbers = {"difference": -row.difference, "low": -row.high, "high": -row.low}
    return row.model_copy(update={"a": row.b, "b": row.a, **numbers})


def ordered(names: Sequence[str]) -> list[str]:
    """Systems in the order of telling: base first, then as they came, then `aligned`; the real clips come last."""
    rank = {"base": 0, "aligned": 2, "reference": 3}
    return sorted(dict.fromkeys(names), key=lambda name: rank.get(name, 1))


def captions(split: str) -> str:
    """A split in words: "all captions", "temporal captions"."""
    return "all captions" if split == OVERALL else f"{split} captions"


def told(summaries: Sequence[Summary], split: str) -> dict[tuple[str, str], Summary]:
    """The summaries of one split by (system, metric)."""
    return {(row.system, row.metric): row for row in summaries if row.split == split}


def stamps(summaries: Sequence[Summary]) -> tuple[list[tuple[str, str]], str]:
    """How the numbers of all captions were made: (titles of metrics, what is theirs), and what all stamps share.

    What the systems of a metric differ in, such as the deviation over an inception score's parts, names the system.
    """
    parts = {(row.metric, row.system): row.protocol.split("; ") for row in summaries if row.split == OVERALL}
    shared = _common(list(parts.values()))
    lines: dict[str, list[str]] = {}
    for measure in measures([metric for metric, _ in parts]):
        own = {system: found for (metric, system), found in parts.items() if metric == measure.name}
        common = _common(list(own.values()))
        apart = [f"{part} ({system})" for system, found in own.items() for part in found if part not in common]
        line = "; ".join([part for part in common if part not in shared] + apart)
        lines.setdefault(line, []).append(measure.title)
    return [(", ".join(titles), line) for line, titles in lines.items() if line], "; ".join(shared)


def _common(stamped: Sequence[Sequence[str]]) -> list[str]:
    """The parts that all stamps have, in the order of the first."""
    return [part for part in (stamped[0] if stamped else []) if all(part in one for one in stamped)]
