"""The test of all systems, preferences' p, ICC, sizes of a test, and the forms in which results are printed."""

import csv
import json
from io import StringIO

import numpy as np
import pytest
from scipy.stats import f_oneway
from simulated_raters import MEANS, plan, simulated_results

from milonga.core.errors import DataError, RecipeError
from milonga.evaluation.opinions import Components, components, intraclass, omnibus, opinion_difference, raters_needed
from milonga.evaluation.ordinal import fit_ordinal
from milonga.listening_test.formatting import FORMATS, format_p, format_results, plan_text
from milonga.listening_test.results import compute_results
from milonga.listening_test.screening import Verdict


@pytest.fixture(scope="module")
def results():
    return simulated_results(plan(prompts=12, per_rater=6), 10, 3)


def crossed(rater: float, clip: float, rest: float, raters: int, clips: int, seed: int):
    rng = np.random.default_rng(seed)
    i, j = (grid.ravel() for grid in np.meshgrid(np.arange(raters), np.arange(clips), indexing="ij"))
    values = rng.normal(0, rater, raters)[i] + rng.normal(0, clip, clips)[j] + rng.normal(0, rest, len(i))
    return values, i, j


def test_two_systems_give_the_square_of_the_difference_s_t():
    values, raters, prompts = crossed(0.5, 0.4, 0.7, 9, 12, 1)
    other = values + 0.4 + np.random.default_rng(2).normal(0, 0.5, len(values))
    both = np.concatenate([values, other])
    systems = np.repeat(["a", "b"], len(values))
    result = omnibus(both, systems, np.tile(raters, 2), np.tile(prompts, 2))
    pair = opinion_difference(other - values, raters, prompts)
    spread = components(other - values, raters, prompts)
    assert result.f == pytest.approx((pair.value / spread.error) ** 2)
    assert (result.between, result.within) == (pytest.approx(1), pytest.approx(spread.freedom))
    assert result.p == pytest.approx(pair.p)


def test_without_shared_effects_it_is_near_the_analysis_of_variance():
    """Independent cells of equal variance: F of the one-way ANOVA, which the ratio of squares must come near."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (4, 20, 20)) + np.array([0.0, 0.05, 0.1, 0.15])[:, None, None]
    grids = np.meshgrid(list("abcd"), np.arange(20), np.arange(20), indexing="ij")
    systems, raters, prompts = (grid.ravel() for grid in grids)
    result = omnibus(values.ravel(), systems, raters, prompts)
    assert result.f == pytest.approx(f_oneway(*values.reshape(4, -1)).statistic, rel=0.25)
    assert result.between == pytest.approx(3, abs=0.3)


def test_one_system_or_one_rater_is_not_tested():
    values, raters, prompts = crossed(1, 1, 1, 4, 4, 0)
    assert np.isnan(omnibus(values, np.full(16, "a"), raters, prompts).p)
    assert np.isnan(omnibus(np.tile(values, 2), np.repeat(["a", "b"], 16), np.zeros(32), np.tile(prompts, 2)).p)


def test_unanimous_votes_are_as_sure_as_the_raters_are_many():
    raters, prompts = np.repeat(np.arange(5), 8), np.tile(np.arange(8), 5)
    assert opinion_difference(np.full(40, 0.5), raters, prompts).p == pytest.approx(2 * 0.5**5)
    assert opinion_difference(np.zeros(40), raters, prompts).p == 1


def test_icc_is_that_of_the_two_way_analysis_of_variance():
    values, raters, clips = crossed(0.4, 0.8, 0.6, 8, 40, 5)
    table = values.reshape(8, 40)
    mean = table.mean()
    rows = 40 * np.square(table.mean(1) - mean).sum() / 7
    columns = 8 * np.square(table.mean(0) - mean).sum() / 39
    rest = np.square(table - table.mean(0) - table.mean(1)[:, None] + mean).sum() / (7 * 39)
    expected = (columns - rest) / (columns + 7 * rest + 8 * (rows - rest) / 40)  # McGraw & Wong's ICC(A,1)
    result = intraclass(values, raters, clips, seed=1)
    assert result.value == pytest.approx(expected, rel=1e-6)
    assert result.low < expected < result.high
    assert result.n == 40


def test_the_size_of_a_test_gives_the_width_it_promises():
    spread = Components(0.25, 0.16, 0.5, 0.0, 0.0)
    count = raters_needed(0.25, spread, 60, 10)
    assert count is not None
    widths = []
    for seed in range(40):
        values, raters, prompts = crossed(0.5, 0.4, 0.5**0.5, count, 60, seed)
        rng = np.random.default_rng(seed)
        chosen = np.concatenate([np.flatnonzero(raters == r)[rng.permutation(60)[:10]] for r in range(count)])
        mean = components(values[chosen], raters[chosen], prompts[chosen])
        widths.append(2 * mean.error)
    assert np.median(widths) == pytest.approx(0.25, rel=0.15)
    assert raters_needed(0.05, spread, 20, 10) is None  # twenty prompts can never say it that exactly


def test_the_plan_has_typical_spreads_or_a_pilot_s(tmp_path):
    text = plan_text(None, 0.3, 8)
    assert "more prompts needed" in text
    assert "typical" in text
    with pytest.raises(RecipeError, match="above 0"):
        plan_text(None, 0.0, 8)


def test_a_pilot_without_ratings_says_so(tmp_path):
    from small_test import small_test

    small_test(tmp_path / "test", seconds=0.05)
    with pytest.raises(DataError, match="too few ratings"):
        plan_text(tmp_path / "test", 0.3, 8)


def test_the_better_system_is_first_and_carries_raters_prompts_and_effect(results):
    assert all(row.difference > -0.2 for row in results.comparisons)
    first = results.comparisons[0]
    assert (first.a, first.raters, first.prompts) == ("s0", 10, 12)
    assert 0.3 < first.effect < 3
    assert all(row.rate >= 0.5 and 0 <= row.p <= 1 for row in results.preferences)
    assert {row.scale for row in results.tests} == {"ovl", "rel"}
    assert results.tests[0].p < 0.01


def test_means_by_tag_and_under_other_rules():
    base = plan(prompts=12, per_rater=6)
    tagged = tuple(
        prompt.model_copy(update={"tags": ("temporal",) if place % 2 else ()})
        for place, prompt in enumerate(base.prompts)
    )
    test = base.model_copy(update={"prompts": tagged})
    result = simulated_results(test, 8, 1)
    assert {row.split for row in result.summary} == {"overall", "temporal", "non-temporal"}
    rows = {(row.system, row.split): row for row in result.summary if row.metric == "ovl"}
    assert rows["s1", "temporal"].prompts == 6
    assert rows["s1", "temporal"].n + rows["s1", "non-temporal"].n == rows["s1", "overall"].n
    assert result.robustness == ()
    ratings = ratings_of(test, 8, 1)
    out = Verdict(rater="r0", tones=1, checks=4, failed=0, early=0, excluded="headphones: 1 of 6 tones right")
    slip = Verdict(rater="r1", tones=6, checks=8, failed=1, early=0, excluded="")
    result = compute_results(test, ratings, [out, slip])
    counts = {row.split: row.raters for row in result.robustness if (row.system, row.metric) == ("s1", "ovl")}
    assert (result.raters, counts) == (7, {"all raters": 8, "no failed check": 6})


def ratings_of(test, raters: int, seed: int) -> list:
    from simulated_raters import World, sessions

    world = World(test, raters, seed, MEANS)
    return [
        world.rating(rater, place, trial)
        for rater, trials in enumerate(sessions(test, raters))
        for place, trial in enumerate(trials) if not trial.check
    ]  # fmt: skip


@pytest.mark.parametrize(("p", "text"), [(0.00004, "< 0.0001"), (0.0, "< 0.0001"), (0.0321, "0.0321"), (np.nan, "-")])
def test_a_small_p_is_never_zero(p, text):
    assert format_p(p) == text


def test_every_form_holds_every_table(results):
    forms = {form: format_results(results, form) for form in FORMATS}
    value = next(row for row in results.summary if (row.system, row.metric) == ("s1", "ovl")).value
    for form in ("text", "markdown", "latex", "csv"):
        assert f"{value:.2f}" in forms[form]
        for title in ("mean opinion", "agreement", "difference", "preferred", "all systems alike?"):
            assert title in forms[form]
        assert "0.0000" not in forms[form]
    assert "10 raters listened to" in forms["text"]
    assert json.loads(forms["json"])["tests"][0]["scale"] == "ovl"
    rows = [row for row in csv.reader(StringIO(forms["csv"])) if row]
    assert {"s0", "s1", "s2", "s3"} <= {row[0] for row in rows}
    assert forms["latex"].count(r"\begin{tabular}") == forms["latex"].count(r"\end{tabular}") == 6
    small = results.model_copy(update={"tests": (results.tests[0].model_copy(update={"p": 0.0}),)})
    assert "$<$ 0.0001" in format_results(small, "latex")
    assert "p < 0.0001 (ANOVA" in format_results(small, "text")
    with pytest.raises(RecipeError, match="markdown"):
        format_results(results, "docx")


@pytest.mark.slow
def test_the_ordinal_model_finds_the_effects_and_spreads_of_its_own_kind():
    """Marks drawn from the model itself: ten raters, sixteen prompts, three systems, every cell."""
    rng, truth = np.random.default_rng(4), np.array([0.0, 0.8, -0.6])
    systems, raters, prompts = (
        grid.ravel() for grid in np.meshgrid(np.arange(3), np.arange(10), np.arange(16), indexing="ij")
    )
    rater, prompt = rng.normal(0, 0.9, 10), rng.normal(0, 0.7, 16)
    latent = truth[systems] + rater[raters] + prompt[prompts] + rng.logistic(size=len(systems))
    marks = 1 + (latent[:, None] > np.array([-2.0, -0.7, 0.7, 2.0])).sum(1)
    fit = fit_ordinal(marks, systems, raters, prompts)
    for a, b in ((1, 0), (2, 0), (1, 2)):
        value, error, p = fit.difference(a, b)
        assert abs(value - (truth[a] - truth[b])) < 3 * error
        assert 0.1 < error < 0.6
        assert p < 0.05
    assert fit.deviations[0] == pytest.approx(rater.std(), rel=0.4)
    assert fit.deviations[1] == pytest.approx(prompt.std(), rel=0.4)
    assert max(fit.deviations[2:]) < 0.4  # there is no taste in these marks


def test_marks_that_do_not_overlap_have_no_error_and_no_p_in_the_ordinal_model():
    systems, raters, prompts = (
        grid.ravel() for grid in np.meshgrid(np.arange(2), np.arange(6), np.arange(6), indexing="ij")
    )
    value, error, p = fit_ordinal(np.where(systems == 1, 5, 1), systems, raters, prompts).difference(1, 0)
    assert value > 10
    assert np.isnan([error, p]).all()


def test_a_system_whose_marks_do_not_overlap_the_others_is_told_when_the_ordinal_model_is_asked_for():
    base = plan(prompts=4, per_rater=4)
    rated = [rating for rating in ratings_of(base, 4, 1) if rating.kind != "compare"]
    best = rated[0].a
    apart = [one.model_copy(update={"ovl": 5 if one.a == best else 1 + n % 3}) for n, one in enumerate(rated)]
    with pytest.raises(DataError, match="ovl: the marks of some system do not overlap"):
        compute_results(base, apart, [], ordinal=True)
    assert compute_results(base, apart, []).comparisons


def test_scales_with_one_mark_alone_are_left_out_of_the_ordinal_model():
    base = plan(prompts=4, per_rater=4)
    rated = [rating for rating in ratings_of(base, 4, 1) if rating.kind != "compare"]
    alike = [rating.model_copy(update={"ovl": 4, "rel": 3}) for rating in rated]
    result = compute_results(base, alike, [], ordinal=True)
    assert {row.metric for row in result.comparisons} == {"ovl", "rel"}
    assert result.ordinal == ()


def test_the_interval_of_a_preference_lies_within_zero_and_one_where_raters_contradict_each_other():
    base = plan(systems=2, prompts=4, per_rater=4, reference=False)
    compared = [rating for rating in ratings_of(base, 4, 1) if rating.kind == "compare"]
    wins = {rater: "s1" if rater == "r0" else "s0" for rater in ("r0", "r1", "r2", "r3")}
    votes = [one.model_copy(update={"better": "a" if one.a == wins[one.rater] else "b"}) for one in compared]
    (row,) = compute_results(base, votes, []).preferences
    assert (row.a, row.rate, row.high) == ("s0", 0.75, 1.0)
    assert 0 <= row.low < 0.75
