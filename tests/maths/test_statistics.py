"""Error bars: closed forms, laws, agreement with scipy's exact tests, and real coverage over simulations."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm, permutation_test

from milonga.core.errors import DataError
from milonga.maths.bootstrap import counts, frechet_draws
from milonga.maths.metrics import frechet_distance
from milonga.maths.statistics import (
    Difference,
    bootstrap,
    difference_of,
    draw_clips,
    expected_best,
    holm,
    interval_of,
    mean_z_scores,
    paired,
    proportion,
)

values_of_clips = st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=30).map(np.array)
seeds = st.integers(0, 2**63 - 1)
NAN = float("nan")


def set_draws(statistic, rows, seed: int, resamples: int) -> np.ndarray:
    """A statistic of whole sets in each draw of clips, one draw for all arrays."""
    indices = draw_clips(len(rows[0]), seed, resamples)
    return np.array([statistic(*(array[index] for array in rows)) for index in indices])


def covers(hits: int, trials: int, level: float = 0.95) -> bool:
    """Whether `hits` of `trials` intervals is what a true coverage of `level` gives, but for one chance in 1000."""
    return bool(binom.ppf(0.0005, trials, level) <= hits <= binom.ppf(0.9995, trials, level))


def holds(hits: int, trials: int) -> bool:
    """Whether 95 % intervals held the truth in 93 to 97 % of the trials."""
    return 0.93 <= hits / trials <= 0.97


def spread(rows: np.ndarray) -> float:
    return float(rows.std(ddof=1))


# -- intervals of one system


@settings(deadline=None, max_examples=50)
@given(values_of_clips, seeds)
def test_an_interval_is_finite_around_its_value_and_repeats_with_its_seed(values: np.ndarray, seed: int) -> None:
    interval = bootstrap(values, seed, resamples=200)
    assert interval.low <= interval.value <= interval.high
    assert values.min() <= interval.low
    assert interval.high <= values.max()
    assert interval.value == pytest.approx(values.mean())
    assert bootstrap(values, seed, resamples=200) == interval


def test_the_interval_of_a_normal_mean_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    interval = bootstrap(values, 1, resamples=5000)
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.08 * half)


def test_values_that_were_not_measured_are_left_out_and_counted() -> None:
    values = np.array([0.2, NAN, 0.4, 0.9, NAN])
    assert bootstrap(values, 3) == bootstrap(values[[0, 2, 3]], 3)
    assert bootstrap(values, 3).n == 3
    with pytest.raises(DataError, match="4 of 5 are NaN"):
        bootstrap(np.array([NAN, NAN, 1.0, NAN, NAN]), 3)


@pytest.mark.parametrize("bad", [np.zeros((3, 2)), np.array([1.0, np.inf, 2.0])])
def test_values_that_are_no_vector_or_not_finite_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(DataError, match="one finite number"):
        bootstrap(bad, 0)


def test_values_all_alike_give_a_point_but_a_proportion_keeps_its_width() -> None:
    always = np.ones(400)
    assert (bootstrap(always, 0).low, bootstrap(always, 0).high) == (1.0, 1.0)
    share = proportion(always)
    assert share.value == share.high == 1.0
    assert share.low == pytest.approx(400 / (400 + 1.96**2), abs=1e-4)  # Wilson's closed form at n of n


@pytest.mark.parametrize("places", [7, 40])
def test_values_alike_but_for_rounding_give_a_point_and_never_nan(places: int) -> None:
    a, b = 0.6 + 0.01 * np.arange(places), 0.4 + 0.01 * np.arange(places)
    assert np.ptp(a - b) > 0
    found = paired(a, b, 0, 200)
    assert found.low == found.value == found.high == pytest.approx(0.2)
    assert (found.better(), found.better(higher=False)) == ("a", "b")


def test_an_interval_that_is_no_number_is_no_verdict() -> None:
    for higher in (True, False):
        assert Difference(0.2, NAN, NAN, 0.5, 9).better(higher) == "neither"


def test_a_proportion_is_wilsons_interval() -> None:
    n, yes, z = 50, 37, norm.ppf(0.975)
    share = proportion(np.array([1.0] * yes + [0.0] * (n - yes) + [NAN]))
    centre = (yes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(yes * (n - yes) / n + z * z / 4)
    assert (share.low, share.high) == (pytest.approx(centre - half), pytest.approx(centre + half))
    assert share.n == n
    with pytest.raises(DataError, match="0 and 1 only"):
        proportion(np.array([0.0, 0.5]))


def test_a_set_interval_of_the_mean_agrees_with_the_interval_by_clip() -> None:
    values = np.random.default_rng(5).normal(size=200)
    by_set = interval_of(values.mean(), set_draws(np.mean, (values,), 1, 2000), len(values))
    by_clip = bootstrap(values, 2)
    assert by_set.value == by_clip.value
    assert by_set.low == pytest.approx(by_clip.low, abs=0.02)
    assert by_set.high == pytest.approx(by_clip.high, abs=0.02)


def test_a_set_interval_holds_its_value_although_resampling_raises_the_distance() -> None:
    generator = np.random.default_rng(6)
    generated, reference = generator.normal(size=(60, 12)), generator.normal(size=(60, 12))
    draws = set_draws(frechet_distance, (generated, reference), 1, 200)
    interval = interval_of(frechet_distance(generated, reference), draws, 60)
    assert interval.low < interval.value < interval.high
    index = generator.integers(60, size=60)
    assert (
        frechet_distance(generated[index], reference[index]) > interval.high
    )  # a plain percentile interval would fail


# -- differences


@settings(deadline=None, max_examples=50)
@given(values_of_clips, seeds)
def test_a_difference_changes_sign_with_the_systems(values: np.ndarray, seed: int) -> None:
    other = values[::-1] * 0.5
    forth, back = paired(values, other, seed, resamples=100), paired(other, values, seed, resamples=100)
    assert forth.value == pytest.approx(-back.value)
    assert forth.p == back.p
    assert 0 < forth.p <= 1
    assert forth.low <= forth.value <= forth.high


def test_no_difference_is_no_difference() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert paired(values, values, 0) == Difference(0.0, 0.0, 0.0, 1.0, 30)
    draws = set_draws(spread, (values,), 0, 50)
    same = difference_of(0.0, draws - draws, 30)
    assert same == Difference(0.0, 0.0, 0.0, 1.0, 30)
    assert same.better() == "neither"


@pytest.mark.parametrize("seed", range(5))
def test_sign_flips_agree_with_the_exact_permutation_test(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.integers(0, 3, (2, 9)).astype(float)  # integers: many ties
    exact = permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", vectorized=False).pvalue
    assert paired(a, b, seed, resamples=40_000).p == pytest.approx(exact, abs=0.012)


def test_pairs_are_dropped_together() -> None:
    a, b = np.array([1.0, NAN, 3.0, 4.0, 2.0]), np.array([0.5, 1.0, NAN, 1.0, 1.0])
    kept = [0, 3, 4]
    assert paired(a, b, 1) == paired(a[kept], b[kept], 1)
    assert paired(a, b, 1).n == 3
    with pytest.raises(DataError, match="same prompts"):
        paired(a, b[:3], 1)


def test_pairing_by_prompt_sees_what_two_separate_intervals_hide() -> None:
    generator = np.random.default_rng(8)
    hard = generator.normal(size=200)  # how hard each prompt is: common to both systems
    a, b = hard + 0.05 + generator.normal(0, 0.1, 200), hard + generator.normal(0, 0.1, 200)
    assert bootstrap(a, 0).low < bootstrap(b, 0).high
    assert paired(a, b, 0).better() == "a"
    assert paired(a, b, 0).better(higher=False) == "b"
    assert paired(a, b, 0).p < 0.001


@pytest.mark.parametrize(
    ("difference", "higher", "lower"),
    [((0.3, 0.1, 0.5), "a", "b"), ((-0.3, -0.5, -0.1), "b", "a"), ((0.1, -0.1, 0.3), "neither", "neither")],
)
def test_better_follows_the_interval_where_p_agrees(difference: tuple, higher: str, lower: str) -> None:
    for p in (0.01, 0.05, NAN):
        result = Difference(*difference, p=p, n=10)
        assert (result.better(), result.better(higher=False)) == (higher, lower)
    assert Difference(*difference, p=0.051, n=10).better() == "neither"


def test_four_changes_to_yes_among_many_clips_are_no_finding() -> None:
    before = np.zeros(180)
    after = before + (np.arange(180) < 4)
    found = paired(after, before, 0)
    assert found.low > 0
    assert found.p == pytest.approx(2 * 0.5**4, abs=0.02)
    assert found.better() == "neither"


# -- many comparisons


@pytest.mark.parametrize("systems", [4, 12])
def test_a_certain_difference_among_many_systems_survives_holm(systems: int) -> None:
    generator = np.random.default_rng(systems)
    scores = generator.normal(0.5, 0.1, (systems, 200))
    scores[-1] = scores[0] + 0.1 + generator.normal(0, 0.05, 200)  # one of them is better than all on most prompts
    pairs = [(a, b) for b in range(systems) for a in range(b + 1, systems)]
    others = 10 if systems == 12 else 9  # as many metrics of a family without any difference
    p = [paired(scores[a], scores[b], 0, resamples=100).p for a, b in pairs] + [0.5] * (others * len(pairs))
    adjusted = holm(p)
    assert adjusted[pairs.index((systems - 1, 0))] <= 0.05


@given(st.integers(0, 99), st.floats(0.1, 3))
@settings(deadline=None, max_examples=20)
def test_a_p_beyond_the_flips_is_never_below_the_exact_one(seed: int, shift: float) -> None:
    differences = np.random.default_rng(seed).exponential(size=12) * np.array([1.0] * 11 + [shift])
    signs = 1 - 2 * ((np.arange(2**12)[:, None] >> np.arange(12)) & 1)
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) * (1 - 1e-12))
    assert paired(differences, np.zeros(12), seed, resamples=100).p >= exact * 0.2


def test_holm_is_the_step_down_of_the_textbook() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])
    assert holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_holm_lies_between_no_correction_and_bonferroni_in_any_order(p: list[float], random) -> None:
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-12).all()
    order = list(range(len(p)))
    random.shuffle(order)
    np.testing.assert_array_equal(holm([p[i] for i in order]), adjusted[order])


@pytest.mark.parametrize("bad", [[0.1, NAN], [1.2], [-0.1]])
def test_holm_refuses_what_is_no_probability(bad: list[float]) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        holm(bad)


# -- do the intervals hold what they promise?


@pytest.mark.slow
def test_intervals_by_clip_cover_the_truth_on_skewed_scores() -> None:
    generator = np.random.default_rng(42)
    hits = 0
    for trial in range(500):
        interval = bootstrap(generator.beta(6, 2, 100), trial, resamples=500)
        hits += interval.low <= 0.75 <= interval.high
    assert holds(hits, 500), hits


@pytest.mark.slow
def test_intervals_of_shares_cover_the_truth() -> None:
    for share in (0.1, 0.5, 0.8):
        drawn = np.random.default_rng(7).random((500, 80)) < share
        found = [proportion(yes.astype(float)) for yes in drawn]
        hits = sum(one.low <= share <= one.high for one in found)
        assert holds(hits, 500), (share, hits)


@pytest.mark.slow
def test_paired_intervals_cover_the_truth_and_p_is_uniform_without_a_difference() -> None:
    generator = np.random.default_rng(43)
    hits, false_alarms = 0, 0
    for trial in range(500):
        hard = generator.normal(size=60)
        a, b = hard + generator.normal(0, 0.5, 60), hard + generator.normal(0, 0.5, 60)
        result = paired(a, b, trial, resamples=400)
        hits += result.low <= 0 <= result.high
        false_alarms += result.p < 0.05
    assert holds(hits, 500), hits
    assert covers(500 - false_alarms, 500), false_alarms


@pytest.mark.slow
def test_intervals_of_a_frechet_difference_cover_the_truth() -> None:
    generator = np.random.default_rng(44)

    def sets() -> list[np.ndarray]:
        """Features of two systems and a reference over the same 100 clips; system a is the farther one."""
        clip = generator.normal(size=(100, 8))
        near, far = (clip * 0.7 + 0.7 * generator.normal(size=(100, 8)) for _ in range(2))
        return [far * 1.3 + 0.2, near, clip]

    def difference(a: np.ndarray, b: np.ndarray, reference: np.ndarray) -> float:
        return frechet_distance(a, reference) - frechet_distance(b, reference)

    truth = np.mean([difference(*sets()) for _ in range(4000)])
    hits = 0
    for trial in range(500):
        a, b, reference = sets()
        times = counts(draw_clips(100, trial, 200), 100)
        draws = frechet_draws(a, reference, times, times) - frechet_draws(b, reference, times, times)
        result = difference_of(difference(a, b, reference), draws, 100)
        hits += result.low <= truth <= result.high
    assert holds(hits, 500), hits


# -- the best of N

pools = st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5, width=32)), min_size=1, max_size=7).map(np.array)


@pytest.mark.slow
@given(pools)
def test_the_expected_best_is_the_mean_over_all_subsets(pool):
    ranking, values = pool.T
    for size, expected in enumerate(expected_best(ranking, values), 1):
        chosen = []
        for subset in map(list, combinations(range(len(pool)), size)):
            ties = ranking[subset] == ranking[subset].max()
            chosen.append(values[subset][ties].mean())
        assert expected == pytest.approx(np.mean(chosen), abs=1e-9)


@given(pools)
def test_the_best_of_one_is_the_mean_and_of_all_the_value_of_the_best_ranked(pool):
    ranking, values = pool.T
    curve = expected_best(ranking, values)
    assert curve[0] == pytest.approx(values.mean(), abs=1e-9)
    assert curve[-1] == pytest.approx(values[ranking == ranking.max()].mean(), abs=1e-9)
    by_itself = expected_best(values, values)
    assert by_itself[-1] == values.max()
    assert (np.diff(by_itself) >= -1e-12).all()


@given(pools, st.randoms(use_true_random=False))
def test_the_order_of_a_pool_does_not_matter(pool, random):
    order = list(range(len(pool)))
    random.shuffle(order)
    np.testing.assert_allclose(expected_best(*pool.T), expected_best(*pool[order].T), atol=1e-12)


def test_a_clip_without_a_rank_comes_last_and_one_without_a_value_leaves_none():
    assert expected_best(np.array([NAN, 1.0]), np.array([5.0, 3.0])).tolist() == [4.0, 3.0]
    assert np.isnan(expected_best(np.array([0.0, 1.0]), np.array([NAN, 3.0]))).all()
    with pytest.raises(DataError, match="one rank and one value a clip"):
        expected_best(np.zeros(2), np.zeros(3))


def test_a_large_pool_loses_no_digits():
    values = np.arange(200.0)
    curve = expected_best(values, values)
    np.testing.assert_allclose(curve, [n * 201 / (n + 1) - 1 for n in range(1, 201)], rtol=1e-12)  # uniform order


def test_the_estimate_from_a_pool_is_unbiased_for_fresh_clips():
    generator = np.random.default_rng(0)
    ranking = generator.normal(size=(4000, 6))
    values = ranking + generator.normal(size=ranking.shape)
    estimate = np.mean([expected_best(*row)[2] for row in zip(ranking, values, strict=True)])
    fresh = generator.normal(size=(200_000, 3)).max(axis=1).mean()
    assert estimate == pytest.approx(fresh, abs=0.04)


def test_scores_are_standardised_within_the_clips_and_averaged():
    scores = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    np.testing.assert_allclose(mean_z_scores(scores), np.array([-1, 0, 1]) * np.sqrt(1.5) / 2)
    two = np.array([[0.1, 300.0], [0.2, 100.0], [0.4, 200.0]])
    np.testing.assert_allclose(mean_z_scores(two), mean_z_scores(two * [50, 0.01] + [7, -3]), atol=1e-12)


def test_rounding_decides_no_rank_and_an_unscored_clip_leaves_no_trace():
    noise = np.array([[0.7 + 1e-9, 1.0], [0.7, 2.0], [0.7 - 1e-9, 3.0]])
    assert np.argmax(mean_z_scores(noise)) == 2
    assert mean_z_scores(noise)[1] == 0.0
    with_gap = np.array([[1.0], [NAN], [3.0]])
    assert mean_z_scores(with_gap)[[0, 2]].tolist() == [-1.0, 1.0]
    assert np.isnan(mean_z_scores(with_gap)[1])
    assert np.isnan(mean_z_scores(np.full((2, 1), NAN))).all()
    assert mean_z_scores(np.array([[1.0, NAN], [3.0, NAN]])).tolist() == [-1.0, 1.0]  # a scorer without an opinion
    assert mean_z_scores(np.array([[4.0]])).tolist() == [0.0]
