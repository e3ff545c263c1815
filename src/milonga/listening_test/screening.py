"""Screening of raters: the headphone check, the attention checks, and the rule that excludes raters.

The headphone check is that of Woods, Siegel, Traer & McDermott (2017): which of three tones is the quietest? One tone
is 6 dB quieter; another is as loud as the third, but its two channels have opposite sign. In headphones the quieter one
is obvious; from loudspeakers the opposite one cancels in the air and is mistaken for it.

A rater is excluded who

1. got fewer than 5 of the 6 tones of the headphone check right, or
2. failed more than a quarter of the attention checks answered so far, or
3. has judged clips but answered no attention check yet, where the test has them.

A check is failed when a broken clip gets an OVL above 2, when an unannounced real clip gets an OVL below 3, or when,
of a real and a broken clip, the real one is not the better. Clips of checks never count towards any system's result.
"""

from collections.abc import Mapping, Sequence
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
MIN_REFERENCE_OVL = 3
MAX_FAILED_SHARE = 0.25  # of attention checks


class Verdict(Record):
    """A rater's checks: tones right, attention checks answered and failed, and why they are excluded (or empty)."""

    rater: str
    tones: int
    checks: int
    failed: int
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


def failed(rating: Rating) -> bool:
    """Whether an answer to an attention check shows that the rater did not listen."""
    if rating.kind == "compare":
        return rating.better != ("b" if rating.a == BROKEN else "a")
    ovl = rating.ovl or 0
    return ovl > MAX_BROKEN_OVL if rating.check == "broken" else ovl < MIN_REFERENCE_OVL


def verdict(rater: str, ratings: Sequence[Rating], tones: int, checked: bool) -> Verdict:
    """One rater's verdict from their ratings and right tones; `checked`: whether the test has attention checks."""
    checks = [rating for rating in ratings if rating.check]
    wrong = sum(map(failed, checks))
    reasons = []
    if tones < TONES_NEEDED:
        reasons.append(f"headphones: {tones} of {TONE_ITEMS} tones right")
    if wrong > MAX_FAILED_SHARE * len(checks):
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
