"""Voices and animals of the world, each different every time it is called; `sounds` says how they are called."""

from collections.abc import Callable

import numpy as np

from milonga.nano.synthesis import buzz, fade, glide, noise, place, resonate, seconds, tone

Sound = Callable[[np.random.Generator, int, int | None], np.ndarray]

VOWELS = (
    (730, 1090, 2440),
    (270, 2290, 3010),
    (300, 870, 2240),
    (530, 1840, 2480),
    (570, 840, 2410),
    (440, 1020, 2240),
)


def repeat(
    rng: np.random.Generator,
    samples: int,
    count: int | None,
    gap: tuple[float, float],
    single: Callable[[], np.ndarray],
) -> np.ndarray:
    """Places `single()` again and again, `gap` seconds from start to start, `count` times or until the room is used.

    A count that would not fit is squeezed: the gap shrinks so that every one of them is there to be heard.
    """
    canvas = np.zeros(samples)
    step = seconds(rng.uniform(*gap))
    if count is not None:
        step = min(step, samples // count)
    limit = count if count is not None else 1 + max(0, samples - seconds(gap[0])) // step
    for number in range(limit):
        place(canvas, single() * rng.uniform(0.75, 1.0), int(number * step * rng.uniform(0.96, 1.04)))
    return canvas


def speech(low: float, high: float, scale: float) -> Sound:
    """A babble of voiced syllables with moving formants: pitch between `low` and `high` Hz, formants times `scale`."""

    def syllable(rng: np.random.Generator, pitch: float) -> np.ndarray:
        length = seconds(rng.uniform(0.11, 0.24))
        source = buzz(
            rng, glide([pitch, pitch * rng.uniform(0.9, 1.25), pitch * rng.uniform(0.8, 1.0)], length), length
        )
        vowel = VOWELS[rng.integers(len(VOWELS))]
        voice = sum(
            (resonate(source, hertz * scale, 60 + 40 * place_) / (1 + place_) for place_, hertz in enumerate(vowel)),
            np.zeros(length),
        )
        return fade(voice, 0.02, 0.05)

    def speak(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
        canvas, start, pitch = np.zeros(samples), 0, rng.uniform(low, high)
        while start < samples:
            sound = syllable(rng, pitch * rng.uniform(0.92, 1.12))
            place(canvas, sound / (np.abs(sound).max() + 1e-9) * rng.uniform(0.5, 1.0), start)
            if rng.random() < 0.35:
                hiss = fade(noise(rng, seconds(0.05), 2800 * scale**0.5, 6500)) * 0.12
                place(canvas, hiss, start + len(sound))
            start += len(sound) + seconds(rng.uniform(0.01, 0.05) if rng.random() < 0.8 else rng.uniform(0.1, 0.2))
        return canvas

    return speak


def dog(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Barks: short, hoarse, rising and falling."""
    pitch, body = rng.uniform(260, 520), rng.uniform(700, 1300)

    def bark() -> np.ndarray:
        length = seconds(rng.uniform(0.13, 0.22))
        voice = buzz(rng, glide([pitch * 0.8, pitch * 1.5, pitch * 0.7], length), length)
        voice = voice + 0.35 * rng.standard_normal(length)
        return fade(resonate(voice, body, 250) + 0.5 * resonate(voice, body * 2.1, 400), 0.008, 0.08)

    return repeat(rng, samples, count, (0.28, 0.5), bark)


def cat(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Meows: a long nasal glide whose vowel opens and closes."""
    pitch = rng.uniform(480, 720)

    def meow() -> np.ndarray:
        length = seconds(rng.uniform(0.5, 0.8))
        contour = glide([pitch * 0.85, pitch * 1.2, pitch * 1.1, pitch * 0.75], length)
        voice = tone(contour, length, (0.5, 1.0, 0.9, 0.6, 0.5, 0.3, 0.2, 0.1))
        closed, opened = resonate(voice, 900, 300), resonate(voice, 2300, 500)
        blend = np.sin(np.pi * np.linspace(0, 1, length)) ** 2
        return fade((1 - blend) * closed + 1.4 * blend * opened, 0.06, 0.15)

    return repeat(rng, samples, count, (0.85, 1.15), meow)


def bird(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Chirps: quick pure sweeps high up, in little phrases."""
    base, canvas, start = rng.uniform(2800, 4600), np.zeros(samples), 0
    shape = rng.uniform(0.7, 1.4, 3)
    while start < samples:
        for _ in range(rng.integers(2, 6)):
            length = seconds(rng.uniform(0.04, 0.1))
            chirp = fade(
                tone(glide(list(base * shape * rng.uniform(0.95, 1.05)), length), length, (1.0, 0.1)), 0.01, 0.02
            )
            place(canvas, chirp * rng.uniform(0.6, 1.0), start)
            start += length + seconds(rng.uniform(0.02, 0.05))
        start += seconds(rng.uniform(0.1, 0.3))
    return canvas


def rooster(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """A crow: two short calls, then a long shrill one that sinks at the end."""
    pitch = rng.uniform(620, 840)

    def crow() -> np.ndarray:
        calls = []
        for length, points in (
            (0.12, [0.8, 1.0]),
            (0.14, [0.9, 1.1]),
            (rng.uniform(0.45, 0.65), [1.1, 1.35, 1.3, 0.8]),
        ):
            size = seconds(length)
            voice = tone(glide([pitch * point for point in points], size), size, (0.6, 1.0, 0.9, 0.7, 0.5, 0.3))
            calls.append(fade(voice + 0.25 * noise(rng, size, 1500, 4500), 0.015, 0.04))
            calls.append(np.zeros(seconds(0.03)))
        return np.concatenate(calls)

    return repeat(rng, samples, count, (1.05, 1.4), crow)


def frog(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Croaks: a low, dry rattle of pulses."""
    pulses, body = rng.uniform(28, 48), rng.uniform(380, 650)

    def croak() -> np.ndarray:
        length = seconds(rng.uniform(0.2, 0.34))
        clicks = np.zeros(length)
        clicks[:: seconds(1 / pulses)] = 1.0
        rattle = resonate(clicks, body, 120) + 0.6 * resonate(clicks, body * 2.4, 200)
        return fade(rattle, 0.03, 0.05)

    return repeat(rng, samples, count, (0.42, 0.6), croak)
