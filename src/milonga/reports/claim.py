"""The claim: one sentence made from the comparisons, which says what got better, what got worse and what is undecided.

No interval is corrected for the number of metrics looked at; the sentence names all of them, so nothing is left out,
and `Claim.corrected` says what Holm's correction leaves of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from milonga.core.records import Comparison
from milonga.evaluation.numbers import Verdict, measures, verdict
from milonga.maths.statistics import LEVEL

LEAD = {
    "better": "{a} fits its captions better than {b}",
    "worse": "{a} fits its captions worse than {b}",
    "undecided": "it is undecided whether {a} fits its captions better than {b}",
}
LEAD_OTHER = {
    "better": "{a} is better than {b}",
    "worse": "{a} is worse than {b}",
    "undecided": "it is undecided whether {a} is better than {b}",
}


@dataclass(frozen=True)
class Finding:
    """One compared metric in words: `text` is "Judge CLAP +0.025 [+0.013, +0.039]"."""

    metric: str
    title: str
    text: str
    verdict: Verdict
    holm: float = math.nan


@dataclass(frozen=True)
class Claim:
    """What may be said of one system against another: one sentence, and every finding behind it.

    `headline` is the sentence without what is undecided: the page lists that right below.
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

    @property
    def corrected(self) -> str:
        """What Holm's correction for all comparisons leaves of the verdicts; empty where it is not known or needed."""
        decided = [one for one in self.findings if one.verdict != "undecided" and math.isfinite(one.holm)]
        kept = [one.title for one in decided if one.holm <= 1 - LEVEL]
        if not decided:
            return ""
        if not kept:
            return "After Holm’s correction for all comparisons, none of the differences is beyond chance."
        left = "all of them" if len(kept) == len(decided) else ", ".join(kept)
        return f"After Holm’s correction for all comparisons, these are beyond chance: {left}."


def finding(row: Comparison) -> Finding:
    """A comparison in words, with its verdict from its interval."""
    measure = measures([row.metric])[0]
    text = f"{measure.title} {measure.change(row.difference)} {measure.interval(row.low, row.high, signed=True)}"
    return Finding(row.metric, measure.title, text.strip(), verdict(row), math.nan if row.holm is None else row.holm)


def claim(rows: dict[str, Comparison]) -> Claim | None:
    """The claim behind comparisons by metric (`report_numbers.compared`); None where there is nothing to compare.

    The first metric of the tables that was compared leads (judge CLAP where it exists); the others follow by verdict.
    """
    if not rows:
        return None
    findings = [finding(rows[measure.name]) for measure in measures(list(rows))]
    first = rows[findings[0].metric]
    lead, found = _lead(first, findings[0]), findings[0].verdict
    sentence = lead + _rest(findings[1:], found) + "."
    headline = lead + _rest([one for one in findings[1:] if one.verdict != "undecided"], found) + "."
    return Claim(first.a, first.b, found, sentence, headline, tuple(findings))


def _lead(row: Comparison, found: Finding) -> str:
    words = (LEAD if row.metric == "clap" else LEAD_OTHER)[found.verdict].format(a=row.a, b=row.b)
    measure = measures([row.metric])[0]
    interval = measure.interval(row.low, row.high, signed=True) or "not known"
    return f"On {row.n:,} captions, {words}: {_bare(found)} {measure.change(row.difference)}, 95 % interval {interval}"


def _bare(found: Finding) -> str:
    """A finding's title inside a sentence: "order right", but "FD" and "KL" as they are."""
    return found.title if found.title.isupper() else found.title[0].lower() + found.title[1:]


def _rest(findings: Sequence[Finding], lead: Verdict) -> str:
    parts = []
    for which in ("better", "worse", "undecided"):
        texts = [_bare(found) if which != "worse" else found.text for found in findings if found.verdict == which]
        if texts:
            parts.append(f"; {'also ' if which == lead else ''}{which}: {', '.join(texts)}")
    return "".join(parts)
