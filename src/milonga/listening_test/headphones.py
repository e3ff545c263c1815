"""The headphone check of Woods, Siegel, Traer & McDermott (2017): which of three tones is the quietest?

One tone is 6 dB quieter; another is as loud as the third, but its two ears are of opposite sign. In headphones the
quieter one is plain; from loudspeakers the opposite one cancels in the air and is taken for it.
"""

from io import BytesIO

import numpy as np

from milonga.core.ids import derive_seed

ITEMS = 6
NEEDED = 5  # right answers of ITEMS
RATE = 44100
HERTZ, SECONDS, RAMP, PAUSE = 200.0, 1.0, 0.1, 0.5
LEVEL, QUIETER = 0.15, 10 ** (-6 / 20)


def kinds(seed: int, rater: int, item: int) -> list[str]:
    """Which of the three tones is `quiet`, which `opposite` and which `plain`, for a rater's item."""
    order = np.random.default_rng(derive_seed(seed, "tones", rater, item)).permutation(3)
    return [("quiet", "opposite", "plain")[place] for place in order]


def answer(seed: int, rater: int, item: int) -> int:
    """The right answer: 1, 2 or 3."""
    return kinds(seed, rater, item).index("quiet") + 1


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
    parts = [part for kind in kinds(seed, rater, item) for part in (tone(kind), pause)][:-1]
    buffer = BytesIO()
    soundfile.write(buffer, np.concatenate(parts), RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
