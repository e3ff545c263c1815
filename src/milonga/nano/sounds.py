"""The sounds of the world: one function per AudioSet-like class, each different every time it is called.

Every function has the signature `(rng, samples, count) -> wave` and fills `samples` samples at 16 kHz. `count` is the
number of strikes, barks or honks of a countable sound; None leaves the number to chance and to the space available.
"""

import numpy as np

from milonga.nano.synthesis import (
    Sound,
    buzz,
    decay,
    fade,
    glide,
    noise,
    place,
    repeat,
    resonate,
    scatter,
    seconds,
    speech,
    tone,
)  # fmt: skip


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


def rain(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """A steady bright hiss with single drops in it."""
    hiss = noise(rng, samples, rng.uniform(1800, 2800), 8000, tilt=1.0)
    drop = noise(rng, seconds(0.004), 2500, 7500) * decay(seconds(0.004), 0.0015)
    return hiss + rng.uniform(0.8, 1.6) * scatter(rng, samples, rng.uniform(60, 160), drop)


def thunder(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """A crack, then a rumble that rolls away far below."""
    rumble = noise(rng, samples, 35, rng.uniform(110, 180), tilt=-2)
    rolling = np.abs(np.interp(np.arange(samples), np.linspace(0, samples, 12), rng.uniform(0.25, 1.0, 12)))
    envelope = np.minimum(1.0, np.arange(samples) / seconds(0.06)) * (0.25 + decay(samples, rng.uniform(0.6, 1.2)))
    crack = seconds(rng.uniform(0.15, 0.3))
    wave = rumble * rolling * envelope
    place(wave, 0.35 * noise(rng, crack, 120, 900) * decay(crack, 0.07), seconds(rng.uniform(0.0, 0.06)))
    return wave


def wind(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Gusts: a hollow whistle of noise that swells and wanders."""
    centre = rng.uniform(350, 750)
    source = rng.standard_normal(samples)
    gusts = np.interp(np.arange(samples), np.linspace(0, samples, 9), rng.uniform(0.0, 1.0, 9))
    low, high = resonate(source, centre * 0.75, 90), resonate(source, centre * 1.3, 110)
    return ((1 - gusts) * low + gusts * high) * (0.35 + gusts)


def water(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Pouring and trickling: a swarm of bubbles, each a short rising chirp."""
    canvas, start = 0.06 * noise(rng, samples, 600, 4000), 0
    while start < samples:
        length, pitch = seconds(rng.uniform(0.02, 0.06)), rng.uniform(450, 2000)
        bubble = tone(glide([pitch, pitch * rng.uniform(1.15, 1.6)], length), length) * decay(length, 0.014)
        place(canvas, bubble * rng.uniform(0.2, 1.0), start)
        start += seconds(rng.exponential(0.011) + 0.002)
    return canvas


def waves(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Surf: broad noise that swells, brightens as it breaks, and draws back."""
    period = rng.uniform(1.0, 1.9)
    swing = (1 - np.cos(2 * np.pi * np.arange(samples) / (period * 16000))) / 2
    deep, bright = noise(rng, samples, 120, 900, tilt=-1), noise(rng, samples, 900, 6000, tilt=-3)
    return (0.15 + swing) * deep * 0.8 + swing**2.5 * bright * 1.3


def engine(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """A motor: deep pulses, idling or revving."""
    pitch = rng.uniform(38, 75)
    contour = glide([pitch, pitch * rng.uniform(0.9, 1.9), pitch * rng.uniform(0.9, 1.5)], samples)
    motor = buzz(rng, contour, samples)
    return resonate(motor, rng.uniform(110, 220), 90) + 0.5 * resonate(motor, rng.uniform(350, 600), 200)


def car_horn(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Honks: two steady reedy tones a third apart."""
    pitch, ratio, length = rng.uniform(340, 460), rng.uniform(1.18, 1.28), rng.uniform(0.28, 0.55)
    colour = tuple(rng.uniform(0.4, 1.0, 9))

    def honk() -> np.ndarray:
        size = seconds(length)
        return fade(tone(pitch, size, colour) + tone(pitch * ratio, size, colour), 0.01, 0.03)

    return repeat(rng, samples, count, (length + 0.1, length + 0.3), honk)


def siren(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """A wail that climbs and falls over more than an octave."""
    centre, swing, speed = rng.uniform(800, 1150), rng.uniform(0.3, 0.5), rng.uniform(0.9, 2.6)
    phase = 2 * np.pi * (speed * np.arange(samples) / 16000 + rng.random())
    return tone(centre * np.exp(swing * np.sin(phase)), samples, (1.0, 0.25, 0.12))


def train(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Wheels over rail joints, two clacks at a time, above a rolling rumble."""
    rumble = 0.35 * noise(rng, samples, 70, 420, tilt=-2)
    period, size = rng.uniform(0.32, 0.5), seconds(0.07)
    for beat in range(int(samples / 16000 / period) + 1):
        for offset in (0.0, 0.11):
            clack = resonate(rng.standard_normal(size) * decay(size, 0.008), rng.uniform(900, 1300), 200)
            place(rumble, 12 * clack * decay(size, 0.02), seconds(beat * period + offset + 0.01))
    return rumble


def helicopter(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Rotor blades: dull noise chopped a dozen times a second."""
    speed = rng.uniform(11, 17)
    chop = ((speed * np.arange(samples) / 16000 + rng.random()) % 1.0) ** 2
    return noise(rng, samples, 60, rng.uniform(500, 900), tilt=-2) * (1.0 - chop) ** 2


def bell(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Strikes of a bell: inharmonic partials that ring on."""
    pitch = rng.uniform(480, 980)
    partials = ((0.5, 0.5), (1.0, 1.0), (1.19, 0.6), (1.5, 0.4), (2.0, 0.8), (2.74, 0.5), (3.76, 0.3))

    def strike() -> np.ndarray:
        size = seconds(1.3)
        ring = sum((a * tone(pitch * r, size) * decay(size, 0.45 / r**0.7) for r, a in partials), np.zeros(size))
        return fade(ring, 0.002, 0.2)

    return repeat(rng, samples, count, (0.55, 0.95), strike)


def telephone(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Rings: a fast trill of two high tones, on and off."""
    low = rng.uniform(1250, 1650)
    high, trill, length = low * rng.uniform(1.2, 1.35), rng.uniform(16, 24), rng.uniform(0.38, 0.6)

    def ring() -> np.ndarray:
        size = seconds(length)
        gate = (np.arange(size) / 16000 * trill) % 1.0 < 0.5
        return fade(np.where(gate, tone(low, size, (1, 0.3, 0.2)), tone(high, size, (1, 0.3, 0.2))), 0.005, 0.02)

    return repeat(rng, samples, count, (length + 0.14, length + 0.3), ring)


def clock(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Ticking: thin, exactly even clicks, tick a little higher than tock."""
    canvas, period, size = np.zeros(samples), rng.uniform(0.22, 0.36), seconds(0.03)
    pitch = rng.uniform(3200, 4600)
    for beat in range(int(samples / 16000 / period) + 1):
        click = resonate(rng.standard_normal(size) * decay(size, 0.001), pitch * (1.0 if beat % 2 else 0.82), 250)
        place(canvas, click * decay(size, 0.008), seconds(beat * period + 0.01))
    return canvas


def keyboard(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Typing: uneven little clatters, each a key going down and coming up."""
    canvas, start, size = np.zeros(samples), seconds(0.01), seconds(0.05)
    while start < samples:
        key = resonate(rng.standard_normal(size) * decay(size, 0.004), rng.uniform(1500, 2600), 500)
        key += 0.9 * resonate(rng.standard_normal(size) * decay(size, 0.006), rng.uniform(350, 550), 250)
        place(canvas, key * decay(size, 0.012) * rng.uniform(0.5, 1.0), start)
        start += seconds(max(0.045, rng.normal(0.115, 0.045)))
    return canvas


def knock(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Knuckles on wood: quick, hollow, in groups."""
    body = rng.uniform(190, 330)

    def rap() -> np.ndarray:
        size = seconds(0.12)
        hit = rng.standard_normal(size) * decay(size, 0.003)
        return (resonate(hit, body, 60) + 0.5 * resonate(hit, body * 2.7, 130)) * decay(size, 0.035)

    return repeat(rng, samples, count, (0.16, 0.26), rap)


def footsteps(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Walking: a soft heel and a scrape of the sole, two a second."""
    canvas, period, size = np.zeros(samples), rng.uniform(0.36, 0.55), seconds(0.16)
    for beat in range(int(samples / 16000 / period) + 1):
        heel = 9 * resonate(rng.standard_normal(size) * decay(size, 0.005), rng.uniform(80, 120), 50)
        scrape = 0.5 * noise(rng, size, 1800, 5500) * np.sin(np.pi * np.linspace(0, 1, size)) ** 2
        step = heel * decay(size, 0.03)
        place(step, scrape, 0)
        place(canvas, step * rng.uniform(0.7, 1.0), seconds(beat * period + 0.01))
    return canvas


def gunshot(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """Shots: everything at once, then an echo."""
    length = rng.uniform(0.05, 0.11)

    def shot() -> np.ndarray:
        size = seconds(0.5)
        blast = noise(rng, size, 90, 7000, tilt=-1) * decay(size, length)
        place(blast, 0.25 * blast[: size // 2], seconds(0.13))
        return fade(blast, 0.001, 0.1)

    return repeat(rng, samples, count, (0.4, 0.8), shot)


def applause(rng: np.random.Generator, samples: int, count: int | None = None) -> np.ndarray:
    """A crowd clapping: grains of mid-band noise, too many to count."""
    size = seconds(0.025)
    canvas = np.zeros(samples)
    for _ in range(6):
        clap = resonate(rng.standard_normal(size), rng.uniform(900, 1900), 450) * decay(size, 0.006)
        canvas += scatter(rng, samples, rng.uniform(14, 26), clap)
    return canvas


SOUNDS: dict[str, Sound] = {
    "Man speaking": speech(85, 135, 1.0),
    "Woman speaking": speech(185, 250, 1.17),
    "Child speaking": speech(310, 420, 1.42),
    "Dog": dog,
    "Cat": cat,
    "Bird": bird,
    "Rooster": rooster,
    "Frog": frog,
    "Rain": rain,
    "Thunder": thunder,
    "Wind": wind,
    "Water": water,
    "Waves": waves,
    "Engine": engine,
    "Car horn": car_horn,
    "Siren": siren,
    "Train": train,
    "Helicopter": helicopter,
    "Bell": bell,
    "Telephone": telephone,
    "Clock": clock,
    "Keyboard": keyboard,
    "Knock": knock,
    "Footsteps": footsteps,
    "Gunshot": gunshot,
    "Applause": applause,
}

# Sounds whose repetitions a listener can count, and a caption may name ("twice", "three times").
COUNTABLE = ("Dog", "Cat", "Frog", "Car horn", "Bell", "Telephone", "Knock", "Gunshot")
