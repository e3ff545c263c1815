"""Set metrics of many draws at once are the plain metrics of each draw."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.maths.bootstrap import counts, frechet_draws, inception_draws
from milonga.maths.metrics import frechet_distance, inception_score

DRAWS = 12
WIDE = pytest.mark.parametrize(
    ("n", "m", "width"), [(40, 40, 6), (12, 30, 25), (30, 12, 25), (20, 20, 60), (26, 26, 25), (9, 9, 8)]
)


def drawn(seed: int, n: int, draws: int = DRAWS) -> np.ndarray:
    return np.random.default_rng(seed).integers(n, size=(draws, n))


@WIDE
@pytest.mark.parametrize("spoilt", ["", "dead dimension", "alike twice", "far off"])
def test_the_distance_of_each_draw_is_the_plain_one(n: int, m: int, width: int, spoilt: str) -> None:
    generator = np.random.default_rng(n)
    a, b = generator.normal(size=(n, width)) * 2 + 0.5, generator.normal(size=(m, width))
    if spoilt == "dead dimension":
        b[:, 0] = 3
    if spoilt == "alike twice":
        a[1:3], b[1:3] = a[0], b[0]
    if spoilt == "far off":
        a, b = a + 1e4, b + 1e4
    in_a, in_b = drawn(1, n), drawn(2, m)
    plain = [frechet_distance(a[i], b[j]) for i, j in zip(in_a, in_b, strict=True)]
    found = frechet_draws(a, b, counts(in_a, n), counts(in_b, m))
    np.testing.assert_allclose(found, plain, rtol=2e-8)


def test_clips_of_several_rows_are_drawn_whole() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(15, 4, 5)), generator.normal(size=(15, 4, 5)) + 1
    index = drawn(4, 15)
    times = np.repeat(counts(index, 15), 4, axis=1)
    plain = [frechet_distance(a[i].reshape(-1, 5), b[i].reshape(-1, 5)) for i in index]
    np.testing.assert_allclose(frechet_draws(a.reshape(-1, 5), b.reshape(-1, 5), times, times), plain, rtol=1e-9)


def test_every_draw_is_told_of_once_and_in_order() -> None:
    rows, told = np.random.default_rng(0).normal(size=(10, 3)), []
    times = counts(drawn(0, 10, 50), 10)
    found = frechet_draws(rows, rows + 1, times, times, told.append)
    assert sum(told) == 50
    np.testing.assert_allclose(found, 3.0)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99), st.integers(10, 40), st.integers(2, 30), st.integers(1, 10))
def test_the_inception_score_of_each_draw_is_the_plain_one(seed: int, n: int, classes: int, splits: int) -> None:
    generator = np.random.default_rng(seed)
    made = generator.normal(size=(n, classes)) * 4
    index = drawn(seed, n)
    scores = [inception_score(made[one], splits)[0] for one in index]
    np.testing.assert_allclose(inception_draws(made, index, splits), scores, rtol=1e-10)
