"""The world: random scenes, rendered to 4.096 s clips at 16 kHz with ground truth of events and times.

A scene is a `Scene` (groups of classes in order of time). A clip has one to three events: one alone, two or three in
sequence, or two together, also beside a third. Loudness, position, length and the details of every sound are random.
"""

from dataclasses import dataclass

import numpy as np

from milonga.core.ids import derive_seed
from milonga.core.records import Clip, Event, Scene
from milonga.nano.sounds import COUNTABLE, SOUNDS
from milonga.nano.synthesis import RATE, fade

CLASSES = tuple(SOUNDS)
SAMPLES = 65536
SECONDS = SAMPLES / RATE

# Probabilities of scene shapes: group sizes in order of time. About half are sequences.
SHAPES: dict[tuple[int, ...], float] = {
    (1,): 0.24,
    (1, 1): 0.38,
    (2,): 0.22,
    (1, 1, 1): 0.06,
    (2, 1): 0.05,
    (1, 2): 0.05,
}


@dataclass(frozen=True)
class Sounding:
    """A rendered scene: the clip, its events with onset and offset in seconds, and the counts of countable sounds."""

    scene: Scene
    clip: Clip
    events: tuple[Event, ...]
    counts: dict[str, int]


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene of one to three different classes, its shape drawn from `SHAPES`."""
    shapes = list(SHAPES)
    shape = shapes[rng.choice(len(shapes), p=np.array(list(SHAPES.values())))]
    names = iter(rng.permutation(len(CLASSES)))
    return tuple(tuple(CLASSES[next(names)] for _ in range(size)) for size in shape)


def draw_counts(scene: Scene, rng: np.random.Generator) -> dict[str, int]:
    """Counts (1 to 3) of some countable sounds of a scene; the others are left to chance."""
    labels = [label for group in scene for label in group if label in COUNTABLE]
    return {label: int(rng.integers(1, 4)) for label in labels if rng.random() < 0.3}


def slots(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Start and end of each group in seconds; groups follow each other with a short gap."""
    lengths = rng.uniform(0.8, 1.2, len(scene))
    lead, tail = rng.uniform(0.0, 0.25), rng.uniform(0.0, 0.3)
    edges = lead + np.concatenate([[0.0], np.cumsum(lengths / lengths.sum())]) * (SECONDS - lead - tail)
    gaps = rng.uniform(0.02, 0.12, len(scene))
    return [(float(edges[i]), float(edges[i + 1] - gaps[i])) for i in range(len(scene))]


def level(wave: np.ndarray, loudness: float) -> np.ndarray:
    """Scales a wave to an RMS of `loudness` in its active part and compresses its peaks."""
    active = wave[np.abs(wave) > 0.02 * (np.abs(wave).max() + 1e-9)]
    wave = wave * (loudness / (np.sqrt(np.mean(active**2)) + 1e-9))
    return 0.8 * np.tanh(wave / 0.8)


def render(scene: Scene, seed: int, counts: dict[str, int] | None = None) -> Sounding:
    """Renders a scene; the same (scene, seed, counts) gives the same samples.

    Raises KeyError for a class that the world does not have.
    """
    rng = np.random.default_rng(derive_seed(seed, "render", scene))
    counts = counts or {}
    canvas = 10 ** rng.uniform(-3.4, -2.6) * rng.standard_normal(SAMPLES)
    events = []
    for group, (begin, end) in zip(scene, slots(scene, rng), strict=True):
        for place_, label in enumerate(group):
            onset = begin + (rng.uniform(0.0, 0.12) if place_ else 0.0)
            start, stop = int(onset * RATE), int(end * RATE)
            wave = SOUNDS[label](rng, stop - start, counts.get(label))
            canvas[start:stop] += fade(level(wave, 0.12 * 10 ** rng.uniform(-0.25, 0.2)), 0.004, 0.03)
            events.append(Event(label=label, onset=onset, offset=end))
    waveform = (canvas / max(1.0, np.abs(canvas).max())).astype(np.float32)
    return Sounding(scene, Clip(waveform, RATE), tuple(events), counts)
