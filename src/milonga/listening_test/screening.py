"""Whose ratings count: the rule by which raters are excluded, stated once and applied to all.

A rater is excluded who

1. got fewer than 5 of the 6 tones of the headphone check right, or
2. failed more than a quarter of the attention checks answered so far, or
3. has judged clips but answered no attention check yet, where the test has them.

A check is failed when a broken clip gets an OVL above 2, a real clip heard unannounced an OVL below 3, or, of a real
and a broken clip, the real one is not the better. Clips of checks never count towards any system's result.
"""

from collections.abc import Mapping, Sequence

from milonga.core.records import Rating, Record
from milonga.listening_test.headphones import ITEMS, NEEDED
from milonga.listening_test.records import BROKEN

HIGHEST_BROKEN = 2
LOWEST_REFERENCE = 3
ALLOWED = 0.25  # share of attention checks that may fail


class Verdict(Record):
    """What a rater's checks say: tones right, attention checks answered and failed, and why excluded (or empty)."""

    rater: str
    tones: int
    checks: int
    failed: int
    excluded: str


def failed(rating: Rating) -> bool:
    """Whether an answer to an attention check shows that the rater did not listen."""
    if rating.kind == "compare":
        return rating.better != ("b" if rating.a == BROKEN else "a")
    heard = rating.ovl or 0
    return heard > HIGHEST_BROKEN if rating.check == "broken" else heard < LOWEST_REFERENCE


def verdict(rater: str, ratings: Sequence[Rating], tones: int, checked: bool) -> Verdict:
    """One rater's verdict from their ratings and right tones; `checked`: whether the test has attention checks."""
    checks = [rating for rating in ratings if rating.check]
    wrong = sum(map(failed, checks))
    reasons = []
    if tones < NEEDED:
        reasons.append(f"headphones: {tones} of {ITEMS} tones right")
    if wrong > ALLOWED * len(checks):
        reasons.append(f"attention: {wrong} of {len(checks)} checks failed")
    if checked and not checks:
        reasons.append("attention: no check answered yet")
    return Verdict(rater=rater, tones=tones, checks=len(checks), failed=wrong, excluded="; ".join(reasons))


def verdicts(ratings: Sequence[Rating], tones: Mapping[str, int], checked: bool) -> list[Verdict]:
    """The verdict of everyone who has judged anything; `tones` gives right answers by rater."""
    by_rater: dict[str, list[Rating]] = {}
    for rating in ratings:
        by_rater.setdefault(rating.rater, []).append(rating)
    return [verdict(rater, own, tones.get(rater, 0), checked) for rater, own in by_rater.items()]
