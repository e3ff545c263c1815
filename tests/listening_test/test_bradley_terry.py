"""Bradley-Terry: closed forms, laws, and coverage over simulated raters and prompts with known preferences."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.evaluation.opinions import bradley_terry, mean_opinion

SIMULATIONS = 500


def games(wins: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Comparisons (first, second, won, rater, prompt) in which i beat j wins[i, j] times."""
    rows = [(i, j) for i in range(len(wins)) for j in range(len(wins)) for _ in range(int(wins[i, j]))]
    first, second = np.array(rows).T
    place = np.arange(len(rows))
    return first, second, np.ones(len(rows)), place % 3, place % 5


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 30), st.integers(1, 30))
def test_two_systems_in_closed_form(won, lost):
    a, b = bradley_terry(*games(np.array([[0, won], [lost, 0]])), systems=2)
    assert a.value - b.value == pytest.approx(np.log((won + 0.5) / (lost + 0.5)), abs=1e-8)
    assert a.value + b.value == pytest.approx(0, abs=1e-8)
    assert a.n == b.n == won + lost


def test_strengths_that_made_the_wins_are_found_again():
    true = np.array([1.0, 0.2, -0.4, -0.8])
    chance = 1 / (1 + np.exp(true[None] - true[:, None]))
    found = bradley_terry(*games(np.rint(4000 * chance)), systems=4)
    assert [one.value for one in found] == pytest.approx(true, abs=2e-3)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=6, max_size=6), st.permutations(range(3)))
def test_names_and_sides_do_not_matter_and_who_never_lost_is_finite(counts, order):
    wins = np.zeros((3, 3))
    wins[np.where(~np.eye(3, dtype=bool))] = np.array(counts) + np.array([1, 1, 0, 1, 0, 0])
    first, second, won, raters, prompts = games(wins)
    plain = bradley_terry(first, second, won, raters, prompts, 3)
    turned = bradley_terry(second, first, 1 - won, raters, prompts, 3)
    place = np.array(order)
    renamed = bradley_terry(place[first], place[second], won, raters, prompts, 3)
    assert np.isfinite([one.value for one in plain]).all()
    assert [one.value for one in turned] == pytest.approx([one.value for one in plain], abs=1e-7)
    assert [renamed[new].value for new in place] == pytest.approx([one.value for one in plain], abs=1e-7)


def test_systems_that_nothing_links_have_no_strength():
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[2, 3] = 3
    assert all(np.isnan(one.value) for one in bradley_terry(*games(wins), systems=4))


def test_one_rater_has_a_strength_without_an_interval():
    first, second, won, _, prompts = games(np.array([[0, 4], [2, 0]]))
    found = bradley_terry(first, second, won, np.zeros(6), prompts, 2)[0]
    assert found.value > 0
    assert np.isnan(found.low)


def votes(rng: np.random.Generator, true: np.ndarray, raters: int, prompts: int, each: int) -> tuple[np.ndarray, ...]:
    """Every rater compares every two systems on `each` prompts; raters and prompts have favourites of their own."""
    liking = 0.35 * rng.normal(size=(raters, len(true)))
    suiting = 0.35 * rng.normal(size=(prompts, len(true)))
    rows = [
        (a, b, rater, (rater * each + k) % prompts)
        for rater in range(raters) for k in range(each) for a, b in combinations(range(len(true)), 2)
    ]  # fmt: skip
    a, b, rater, prompt = np.array(rows).T
    gap = true[a] - true[b] + liking[rater, a] - liking[rater, b] + suiting[prompt, a] - suiting[prompt, b]
    return a, b, (rng.uniform(size=len(rows)) < 1 / (1 + np.exp(-gap))).astype(float), rater, prompt


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say():
    """The truth is what raters and prompts without end would give: favourites flatten the strengths a little."""
    true = np.array([0.6, 0.0, -0.6])
    endless = bradley_terry(*votes(np.random.default_rng(10**6), true, 4000, 4000, 25), systems=3)
    hits, rates = np.zeros(3), 0
    truth = float(np.mean(endless_rate(true)))
    for seed in range(SIMULATIONS):
        a, b, won, rater, prompt = votes(np.random.default_rng(seed), true, 20, 20, 8)
        found = bradley_terry(a, b, won, rater, prompt, 3)
        hits += [one.low <= real.value <= one.high for one, real in zip(found, endless, strict=True)]
        both = (a == 0) & (b == 2)
        rate = mean_opinion(won[both], rater[both], prompt[both])
        rates += rate.low <= truth <= rate.high
    assert (hits / SIMULATIONS >= 0.93).all()
    assert (hits / SIMULATIONS <= 0.97).all()
    assert 0.93 <= rates / SIMULATIONS <= 0.97


def endless_rate(true: np.ndarray) -> np.ndarray:
    """Chances that the first system beats the last, over a great many raters and prompts."""
    gap = true[0] - true[-1] + 0.35 * 2 * np.random.default_rng(7).normal(size=2_000_000)
    return 1 / (1 + np.exp(-gap))
