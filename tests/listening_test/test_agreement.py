"""Krippendorff's alpha: the worked example of its author, closed forms, laws, and what simulated raters give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from milonga.core.errors import DataError
from milonga.evaluation.opinions import alpha_interval, krippendorff_alpha

N = np.nan
# Krippendorff 2011, example C: four observers, twelve units, five values, some missing.
WORKED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
    ]
)
shapes = st.tuples(st.integers(2, 5), st.integers(2, 9))
tables = arrays(np.float64, shapes, elements=st.sampled_from([1, 2, 3, 4, 5, N]))


@pytest.mark.parametrize(("scale", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_the_published_example(scale, published):
    assert krippendorff_alpha(WORKED, scale) == pytest.approx(published, abs=5e-4)


def test_full_agreement_is_one_and_two_who_always_differ_are_below_chance():
    assert krippendorff_alpha(np.array([[1, 2, 5], [1, 2, 5]])) == 1
    # Eight pairs, all of them apart, where 2 · 4 · 4 / 7 would be by chance.
    assert krippendorff_alpha(np.array([[1, 1, 2, 2], [2, 2, 1, 1]]), "nominal") == pytest.approx(1 - 8 / (32 / 7))


@pytest.mark.parametrize("table", [np.full((3, 4), 2.0), np.array([[1, N], [N, 2]]), np.full((2, 2), N)])
def test_where_nothing_could_disagree_it_is_not_defined(table):
    assert np.isnan(krippendorff_alpha(table))
    assert np.isnan(alpha_interval(table, 0).low)


@settings(deadline=None, max_examples=60)
@given(tables, st.randoms(use_true_random=False))
def test_order_of_raters_and_units_and_lone_ratings_do_not_matter(table, random):
    alpha = krippendorff_alpha(table)
    rows, columns = random.sample(range(len(table)), len(table)), random.sample(range(table.shape[1]), table.shape[1])
    lone = np.full((len(table), 1), N)
    lone[0] = 3.0
    again = krippendorff_alpha(np.concatenate([table[rows][:, columns], lone], axis=1))
    assert again == pytest.approx(alpha, nan_ok=True)
    assert np.isnan(alpha) or alpha <= 1


@settings(deadline=None, max_examples=40)
@given(tables)
def test_an_interval_scale_does_not_mind_shift_and_unit_and_an_ordinal_one_only_order(table):
    for scale, changed in (("interval", 3 * table - 7), ("ordinal", table**3)):
        alpha = krippendorff_alpha(table, scale)
        assert krippendorff_alpha(changed, scale) == pytest.approx(alpha, abs=1e-9, nan_ok=True)


def test_simulated_raters_agree_as_much_as_their_noise_lets_them():
    """On an interval scale α estimates the share of the units' variance: 1/(1 + noise²)."""
    rng = np.random.default_rng(0)
    for noise, expected in ((0.0, 1.0), (0.5, 0.8), (1.0, 0.5), (9.0, 1 / 82)):
        table = 4 * rng.normal(size=(1, 600)) + 4 * noise * rng.normal(size=(6, 600))
        measured = krippendorff_alpha(np.round(table), "interval")
        assert measured == pytest.approx(expected, abs=0.06)


def test_the_interval_surrounds_the_value_repeats_and_narrows():
    found = alpha_interval(WORKED, 1)
    assert found.low < found.value < found.high
    assert found.n == 11
    assert alpha_interval(WORKED, 1) == found
    many = alpha_interval(np.tile(WORKED, 20), 1)
    assert many.high - many.low < 0.4 * (found.high - found.low)


def test_another_shape_is_refused():
    with pytest.raises(DataError, match="raters, units"):
        krippendorff_alpha(np.ones(4))
