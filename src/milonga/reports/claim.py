"""The claim: one sentence from the comparisons of two systems, which names every metric and its verdict.

Verdicts follow Holm's p over the headline metrics of the split, and of other metrics over all of its comparisons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from milonga.core.records import Comparison
from milonga.evaluation.formatting import Verdict, verdict
from milonga.evaluation.metrics import metrics_named

LEAD = {
    "better": "{a} fits its captions better than {b}",
    "worse": "{a} fits its captions worse than {b}",
    "neither": "{a} fits its captions neither significantly better nor worse than {b}",
}
LEAD_OTHER = {
    "better": "{a} is better than {b}",
    "worse": "{a} is worse than {b}",
    "neither": "{a} is neither significantly better nor worse than {b}",
}
LABELS = {"better": "better", "worse": "worse", "neither": "not significant"}


@dataclass(frozen=True)
class Finding:
    """One compared metric in words: `text` is "Judge CLAP +0.025 [+0.013, +0.039]"."""

    title: str
    text: str
    verdict: Verdict


@dataclass(frozen=True)
class Claim:
    """The claim of one system against another: one sentence, and every finding behind it.

    `headline` is the sentence without what is not significant: the page lists that right below.
    """

    system: str
    baseline: str
    verdict: Verdict
    sentence: str
    headline: str
    findings: tuple[Finding, ...]

    def having(self, which: Verdict) -> list[Finding]:
        """The findings with this verdict, in the order of the tables."""
        return [finding for finding in self.findings if finding.verdict == which]


def claim(rows: Mapping[str, Comparison], sources: Mapping[str, str] | None = None) -> Claim | None:
    """The claim behind comparisons by metric (`formatting.compared`); None where there is nothing to compare.

    The first metric of the tables with a significant difference leads, else the first; the others follow by verdict.
    """
    if not rows:
        return None
    metrics, findings = metrics_named(list(rows), sources), []
    for metric in metrics:
        row = rows[metric.name]
        change, interval = metric.format_change(row.difference), metric.format_interval(row.low, row.high, signed=True)
        findings.append(Finding(metric.title, f"{metric.title} {change} {interval}".strip(), verdict(row)))
    place = next((n for n, finding in enumerate(findings) if finding.verdict != "neither"), 0)
    metric, lead = metrics[place], findings.pop(place)
    first = rows[metric.name]
    words = (LEAD if first.metric == "clap" else LEAD_OTHER)[lead.verdict].format(a=first.a, b=first.b)
    interval = metric.format_interval(first.low, first.high, signed=True) or "not known"
    change = metric.format_change(first.difference)
    start = f"On {first.n:,} captions, {words}: {_inside(lead.title)} {change}, 95 % interval {interval}"
    significant = [finding for finding in findings if finding.verdict != "neither"]
    sentence, headline = (start + _rest(others, lead.verdict) + "." for others in (findings, significant))
    findings.insert(place, lead)
    return Claim(first.a, first.b, lead.verdict, sentence, headline, tuple(findings))


def _inside(title: str) -> str:
    """A title inside a sentence: "order accuracy", but "FD" and "CLAP of a user" as they are."""
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def _rest(findings: Sequence[Finding], lead: Verdict) -> str:
    parts = []
    for which, label in LABELS.items():
        texts = [_inside(row.title) if which != "worse" else row.text for row in findings if row.verdict == which]
        if texts:
            parts.append(f"; {'also ' if which == lead else ''}{label}: {', '.join(texts)}")
    return "".join(parts)
