"""The pairing rule and its four conditions, as laws over any scores."""

import math

import pytest
import synthetic_run
from hypothesis import given
from hypothesis import strategies as st

from milonga.core.config import Threshold
from milonga.core.errors import DataError
from milonga.core.records import Candidate, Prompt, Request
from milonga.data.pairs import kept_pairs, refusals, score_gaps, table2
from milonga.preference.pair import pair, unfiltered

PROMPT = Prompt.of("A dog barks then a bell rings", "test")
PAPER = [
    Threshold(scorer="a", min_winner_score=0.45, min_loser_score=0.40, min_margin=0.05, max_margin=0.35),
    Threshold(scorer="b", min_winner_score=0.60, min_loser_score=0.0, min_margin=0.08, max_margin=0.70),
]
OPEN = [Threshold(scorer="a", min_winner_score=-1, min_loser_score=-1, min_margin=-2, max_margin=2)]


def candidate(a: float, b: float = 0.9, words: str = PROMPT.text, number: int = 0, strategies=("1",)) -> Candidate:
    request = Request.of(1, PROMPT, words, steps=50, guidance=3.0, number=number, strategies=strategies)
    return Candidate(request=request, scores={"a": a, "b": b})


def two(winner: tuple[float, float], loser: tuple[float, float], thresholds=PAPER) -> str:
    """Why strategy 2 refuses this winner and loser; empty where it keeps them."""
    made = [candidate(*winner, strategies=("2",)), candidate(*loser, words="A cat meows", strategies=("2",))]
    (only,) = pair(made, thresholds, rank_by="a")
    return only.refused


score = st.one_of(st.floats(-1, 1, width=16), st.sampled_from([0.4, 0.45, 0.5, math.nan]))
words = st.sampled_from([PROMPT.text, "A cat meows"])
served = st.sampled_from([("1",), ("2",), ("1", "2")])
rows = st.lists(st.tuples(score, score, words, served), min_size=1, max_size=8)
pools = rows.map(lambda found: [candidate(a, b, said, n, names) for n, (a, b, said, names) in enumerate(found)])


@pytest.mark.slow
@given(pools, st.sampled_from(["a", "b", "mean"]))
def test_the_winner_is_faithful_and_every_other_candidate_is_kept_or_refused(pool, rank_by):
    pairs = pair(pool, PAPER, rank_by)
    by_id = {one.request.id: one for one in pool}
    for name in ("1", "2"):
        members = [one for one in pool if name in one.request.strategies]
        own = [made for made in pairs if made.strategy == name]
        if not any(one.request.faithful for one in members):
            assert own == []
            continue
        winners = {made.chosen_id for made in own}
        assert len(winners) == min(1, len(members) - 1)
        assert all(by_id[winner].request.faithful for winner in winners)
        assert {made.rejected_id for made in own} | winners >= {one.request.id for one in members if len(members) > 1}
        assert len(own) == len(members) - 1
    assert len({made.id for made in pairs}) == len(pairs)
    assert len(kept_pairs(pairs)) + sum(refusals(pairs).values()) == len(pairs)


@given(pools)
def test_what_is_kept_meets_all_conditions_by_both_scorers(pool):
    for made in kept_pairs(pair(pool, PAPER, "a")):
        for limit in PAPER:
            high, low = made.chosen_scores[limit.scorer], made.rejected_scores[limit.scorer]
            assert high > low
            assert high >= limit.min_winner_score - 1e-8
            assert low >= limit.min_loser_score - 1e-8
            assert limit.min_margin - 1e-8 <= high - low <= limit.max_margin + 1e-8


@pytest.mark.slow
@given(pools, st.floats(0, 0.3), st.sampled_from(["min_winner_score", "min_loser_score", "min_margin", "max_margin"]))
def test_a_stricter_threshold_never_keeps_more(pool, by, which):
    limit = PAPER[0]
    change = -by if which == "max_margin" else by
    stricter = limit.model_copy(update={which: getattr(limit, which) + change})
    loose = {made.id for made in kept_pairs(pair(pool, [limit], "a"))}
    assert {made.id for made in kept_pairs(pair(pool, [stricter], "a"))} <= loose
    assert {made.id for made in kept_pairs(pair(pool, PAPER, "a"))} <= loose


@pytest.mark.slow
@given(pools, st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(pool, random):
    shuffled = random.sample(pool, len(pool))
    assert repr(pair(pool, PAPER, "mean")) == repr(pair(shuffled, PAPER, "mean"))


def test_strategy_1_pairs_the_best_with_the_rest():
    pairs = pair([candidate(a, number=n) for n, a in enumerate((0.5, 0.7, 0.6, 0.4))], OPEN, "a")
    assert [made.chosen_scores["a"] for made in pairs] == [0.7, 0.7, 0.7]
    assert sorted(made.rejected_scores["a"] for made in pairs) == [0.4, 0.5, 0.6]
    assert kept_pairs(pairs) == pairs


def test_where_only_the_worst_may_lose_the_others_say_so_whatever_the_thresholds():
    pool = [candidate(a, number=number) for number, a in enumerate((0.9, 0.5, 0.7, math.nan))]
    made = pair(pool, [], "a", losers="worst")
    told = {one.rejected_id: one.refused.partition(":")[0] for one in made}
    assert told == {pool[1].request.id: "", pool[2].request.id: "worst", pool[3].request.id: "not a number"}
    strict = pair(
        pool,
        [Threshold(scorer="a", min_winner_score=0.95, min_loser_score=0, min_margin=0, max_margin=1)],
        "a",
        losers="worst",
    )
    assert {one.rejected_id: one.refused.partition(":")[0] for one in strict} == told | {
        pool[1].request.id: "min_winner_score"
    }
    assert refusals(made)["worst"] == 1


def test_a_perturbed_clip_never_wins():
    assert two((0.5, 0.9), (0.6, 0.1)) == "order: a 0.5 <= 0.6"


@pytest.mark.parametrize(
    ("winner", "loser", "refused"),
    [
        ((0.60, 0.80), (0.45, 0.50), ""),
        ((0.45, 0.60), (0.40, 0.52), ""),  # all at their lower bounds
        ((0.75, 0.70), (0.40, 0.00), ""),  # both differences at their upper bounds
        ((0.44, 0.80), (0.40, 0.50), "min_winner_score: a 0.44 < 0.45"),
        ((0.60, 0.59), (0.45, 0.50), "min_winner_score: b 0.59 < 0.6"),
        ((0.60, 0.80), (0.39, 0.50), "min_loser_score: a 0.39 < 0.4"),
        ((0.60, 0.65), (0.45, -0.01), "min_loser_score: b -0.01 < 0"),
        ((0.60, 0.80), (0.56, 0.50), "min_margin: a 0.04 < 0.05"),
        ((0.80, 0.80), (0.44, 0.50), "max_margin: a 0.36 > 0.35"),
        ((0.60, 0.80), (0.45, 0.73), "min_margin: b 0.07 < 0.08"),
        ((0.60, 0.80), (0.45, 0.80), "order: b 0.8 <= 0.8"),
        ((0.60, 0.80), (0.60, 0.50), "order: a 0.6 <= 0.6"),
        ((0.60, math.nan), (0.45, 0.50), "not a number: b"),
        ((0.60, 0.80), (math.nan, 0.50), "not a number: a"),
    ],
)
def test_each_condition_names_itself(winner, loser, refused):
    assert two(winner, loser) == refused


def test_ties_among_the_faithful_go_to_the_smallest_id_and_are_not_beaten():
    pool = [candidate(0.5, number=n) for n in range(3)]
    pairs = pair(pool, OPEN, "a")
    assert {made.chosen_id for made in pairs} == {min(one.request.id for one in pool)}
    assert {made.refused for made in pairs} == {"order: a 0.5 <= 0.5"}


def test_a_clip_that_cannot_be_judged_does_not_win_and_is_refused():
    (made,) = pair([candidate(math.nan, number=0), candidate(0.1, number=1)], OPEN, "a")
    assert made.chosen_scores["a"] == 0.1
    assert made.refused == "not a number: a"


def test_mean_ranks_by_the_thresholds_scorers():
    pool = [candidate(0.9, 0.1, number=0), candidate(0.6, 0.6, number=1)]
    (made,) = pair(pool, PAPER, "mean")
    assert made.chosen_scores == {"a": 0.6, "b": 0.6}
    (made,) = pair(pool, OPEN, "mean")
    assert made.chosen_scores == {"a": 0.9, "b": 0.1}


def test_a_shared_clip_serves_all_its_strategies():
    shared = candidate(0.7, strategies=("1", "2"))
    pairs = pair([shared, candidate(0.5, number=1), candidate(0.4, words="x", strategies=("2",))], OPEN, "a")
    assert [(made.strategy, made.chosen_id) for made in pairs] == [("1", shared.request.id), ("2", shared.request.id)]


def test_missing_scorers_and_repeated_candidates_are_told():
    with pytest.raises(DataError, match=r"no score by 'c' \(it has: a, b\)"):
        pair([candidate(0.5)], OPEN, "c")
    with pytest.raises(DataError, match="comes twice"):
        pair([candidate(0.5), candidate(0.5)], OPEN, "a")


def test_table_2_counts_what_is_kept_and_averages_by_one_scorer():
    pool = [candidate(a, number=n) for n, a in enumerate((0.5, 0.7, 0.68))]
    pool += [candidate(0.5, words="x", strategies=("2",)), candidate(0.4, number=9, strategies=("2",))]
    one, nothing, overall = table2(pair(pool, PAPER, "a"), "a")
    assert (one.strategy, nothing.strategy, overall.strategy) == ("1", "2", "Overall")
    assert (one.n, nothing.n, overall.n) == (0, 0, 0)
    one, nothing, overall = table2(pair(pool, [PAPER[0]], "a"), "a")
    assert (one.n, nothing.n, nothing.winner) == (1, 0, None)
    assert (one.winner, one.loser) == (0.7, 0.5)
    assert one.delta == pytest.approx(0.2)
    assert overall.model_copy(update={"strategy": "1"}) == one


def test_figure_2_shows_the_pool_before_the_thresholds():
    pool = [candidate(a, number=n) for n, a in enumerate((0.3, 0.2, 0.3, math.nan))]
    (shown,) = unfiltered(pair(pool, PAPER, "a"), "a")
    assert shown.winners == (0.3,)
    assert shown.deltas == pytest.approx((0.1,))


def test_gaps_are_margins_in_units_of_their_mean_and_have_mean_one() -> None:
    rows = [({"a": 0.6, "b": 9.0}, {"a": 0.2, "b": 5.0}), ({"a": 0.3, "b": 4.0}, {"a": 0.1, "b": 6.0}), ({}, {})]
    gaps = score_gaps([synthetic_run.make_pair(number, *row) for number, row in enumerate(rows)])
    # a: margins .4 and .2, mean .3; b: 4 and none (its loser is better), mean 2
    raw = [(4 / 3 + 2) / 2, (2 / 3 + 0) / 2]
    assert gaps[:2] == pytest.approx([2 * value / sum(raw) for value in raw])
    assert math.isnan(gaps[2])
