"""Screening of raters: the headphone check, the attention checks, and the rule that excludes raters.

The headphone check is that of Woods, Siegel, Traer & McDermott (2017): which of three tones is the quietest? One tone
is 6 dB quieter; another is as loud as the third, but its two channels have opposite sign. In headphones the quieter one
is obvious; from loudspeakers the opposite one cancels in the air and is mistaken for it.

A rater is excluded who

1. got fewer than 5 of the 6 tones of the headphone check right, or
2. failed more than a quarter of the attention checks answered so far, or two of one kind, or
3. has judged clips but answered no attention check yet, where the test has them, or
4. sent more than two answers before the clips could have been played, by the server's clock, or
5. had their link revoked.

A check is failed when a broken clip gets an OVL above 2, when an unannounced real clip gets an OVL or a REL below 3,
when a real clip under the caption of another one gets a REL above 2, when, of a real and a broken clip, the real one is
not the better, or when a broken clip's slider is not below the best. Clips of checks never count towards any system's
result.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO

import numpy as np

from milonga.core.ids import derive_seed
from milonga.core.records import Rating, Record
from milonga.listening_test.records import BROKEN

TONE_ITEMS = 6
TONES_NEEDED = 5  # right answers of TONE_ITEMS
RATE = 44100
HERTZ, SECONDS, RAMP, PAUSE = 200.0, 1.0, 0.1, 0.5
LEVEL, QUIETER = 0.15, 10 ** (-6 / 20)
MAX_BROKEN_OVL = 2
MIN_REFERENCE = 3  # of both scales
MAX_WRONG_REL = 2
MAX_FAILED_SHARE = 0.25  # of attention checks
MAX_FAILED_OF_KIND = 1
MAX_EARLY = 2  # answers: the page sends none, but a clock may jump


class Verdict(Record):
    """A rater's checks: tones right, attention checks answered and failed, answers that came before the clips could
    have been played, and why the rater is excluded (or empty)."""

    rater: str
    tones: int
    checks: int
    failed: int
    early: int
    excluded: str


def tone_kinds(seed: int, rater: int, item: int) -> list[str]:
    """The kinds of the three tones of a rater's item, in order: `quiet`, `opposite` and `plain`."""
    order = np.random.default_rng(derive_seed(seed, "tones", rater, item)).permutation(3)
    return [("quiet", "opposite", "plain")[place] for place in order]


def tone_answer(seed: int, rater: int, item: int) -> int:
    """The right answer to a rater's item: 1, 2 or 3."""
    return tone_kinds(seed, rater, item).index("quiet") + 1


def tone(kind: str) -> np.ndarray:
    """One tone, shape (samples, 2)."""
    time = np.arange(round(SECONDS * RATE)) / RATE
    ramp = np.clip(np.minimum(time, SECONDS - time) / RAMP, 0, 1)
    level = LEVEL * (QUIETER if kind == "quiet" else 1.0)
    left = level * np.sin(np.pi / 2 * ramp) ** 2 * np.sin(2 * np.pi * HERTZ * time)
    return np.stack([left, -left if kind == "opposite" else left], axis=1)


def tones(seed: int, rater: int, item: int) -> bytes:
    """The three tones of an item one after another, as a stereo FLAC file."""
    import soundfile

    pause = np.zeros((round(PAUSE * RATE), 2))
    parts = [part for kind in tone_kinds(seed, rater, item) for part in (tone(kind), pause)][:-1]
    buffer = BytesIO()
    soundfile.write(buffer, np.concatenate(parts), RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def failed(check: Sequence[Rating]) -> bool:
    """Whether the answer to an attention check shows that the rater did not listen.

    It is one rating, or with sliders one of each clip.
    """
    rating = check[0]
    if rating.kind == "mushra":
        scores = {own.a: own.score or 0 for own in check}
        return scores.pop(BROKEN) >= max(scores.values())
    if rating.kind == "compare":
        return rating.better != ("b" if rating.a == BROKEN else "a")
    ovl, rel = rating.ovl or 0, rating.rel or 0
    if rating.check == "broken":
        return ovl > MAX_BROKEN_OVL
    return rel > MAX_WRONG_REL if rating.check == "caption" else min(ovl, rel) < MIN_REFERENCE


def verdict(
    rater: str, ratings: Sequence[Rating], tones: int, checked: bool, early: int = 0, revoked: bool = False
) -> Verdict:
    """One rater's verdict from their ratings, right tones and answers that came too early.

    `checked`: whether the test has attention checks.
    """
    checks: dict[int, list[Rating]] = {}
    for rating in ratings:
        if rating.check:
            checks.setdefault(rating.place, []).append(rating)
    wrong = Counter((own[0].kind, own[0].check) for own in checks.values() if failed(own))
    reasons = []
    if tones < TONES_NEEDED:
        reasons.append(f"headphones: {tones} of {TONE_ITEMS} tones right")
    if wrong.total() > MAX_FAILED_SHARE * len(checks):
        reasons.append(f"attention: {wrong.total()} of {len(checks)} checks failed")
    elif max(wrong.values(), default=0) > MAX_FAILED_OF_KIND:
        kind, count = wrong.most_common(1)[0]
        reasons.append(f"attention: {count} checks of one kind failed ({kind[1]})")
    if checked and not checks:
        reasons.append("attention: no check answered yet")
    if early > MAX_EARLY:
        reasons.append(f"timing: {early} answers came before the clips could have been played")
    if revoked:
        reasons.append("revoked")
    return Verdict(
        rater=rater, tones=tones, checks=len(checks), failed=wrong.total(), early=early, excluded="; ".join(reasons)
    )


def verdicts(
    ratings: Sequence[Rating],
    tones: Mapping[str, int],
    checked: bool,
    early: Mapping[str, int] | None = None,
    revoked: Collection[str] = (),
) -> list[Verdict]:
    """The verdict of everyone who has judged anything or sent an answer too early.

    `tones` gives right answers and `early` the number of answers that came too early, both by rater.
    """
    early = early or {}
    by_rater: dict[str, list[Rating]] = {rating.rater: [] for rating in ratings}
    for rating in ratings:
        by_rater[rating.rater].append(rating)
    for rater, count in early.items():
        if count > MAX_EARLY:
            by_rater.setdefault(rater, [])
    return [
        verdict(rater, own, tones.get(rater, 0), checked, early.get(rater, 0), rater in revoked)
        for rater, own in by_rater.items()
    ]
