"""The sweep counts what the pairing rule would keep, and flips are counted where two scorers part."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.core.config import Threshold
from milonga.core.records import Candidate, Prompt, Request
from milonga.data.pairs import kept_pairs
from milonga.preference.pair import pair
from milonga.preference.sweep import OFF, Pool, flips, trials

PROMPTS = [Prompt.of(f"sound {n}", "test") for n in range(3)]
LIMITS = [
    Threshold(scorer="a", min_winner_score=0.3, min_loser_score=0.1, min_margin=0.05, max_margin=0.6),
    Threshold(scorer="b", min_winner_score=0.2, min_loser_score=-1.0, min_margin=0.0, max_margin=2.0),
]

scores = st.one_of(st.floats(-1, 1, width=16), st.sampled_from([0.1, 0.15, 0.3, 0.35, math.nan]))
rows = st.lists(st.tuples(st.sampled_from(PROMPTS), scores, scores, st.booleans()), min_size=2, max_size=12)


def candidates(found) -> list[Candidate]:
    made = []
    for number, (prompt, a, b, faithful) in enumerate(found):
        words = prompt.text if faithful else f"{prompt.text} wrong"
        request = Request.of(0, prompt, words, 4, 3.0, number, ("1", "2") if faithful else ("2",))
        made.append(Candidate(request=request, scores={"a": a, "b": b}))
    return made


@pytest.mark.slow
@settings(deadline=None)
@given(rows)
def test_every_trial_counts_what_pairing_with_that_bound_would_keep(found):
    pool = candidates(found)
    for trial in trials(pair(pool, LIMITS, "mean"), LIMITS):
        value = OFF[trial.bound] if trial.value is None else trial.value
        moved = [one.model_copy(update={trial.bound: value}) if one.scorer == trial.scorer else one for one in LIMITS]
        good = kept_pairs(pair(pool, moved, "mean"))
        assert trial.count == len(good)
        assert sum(trial.strategies.values()) == trial.count
        assert trial.strategies.get("2", 0) == sum(one.strategy == "2" for one in good)


@pytest.mark.slow
@settings(deadline=None)
@given(rows)
def test_each_bound_has_its_present_value_once_and_stricter_ones_keep_no_more(found):
    pairs = pair(candidates(found), LIMITS, "mean")
    for limit in LIMITS if pairs else ():
        for bound in OFF:
            own = [one for one in trials(pairs, LIMITS) if (one.scorer, one.bound) == (limit.scorer, bound)]
            assert own[0].value is None
            assert [one.count for one in own if one.present] == [len(kept_pairs(pairs))]
            counts = [one.count for one in own[1:]]
            assert counts == sorted(counts, reverse=bound != "max_margin")
            assert all(one.count <= own[0].count for one in own)


@settings(deadline=None)
@given(rows)
def test_flips_are_shares_and_symmetric_over_all_pairs(found):
    whole = {
        (one.scorer, one.other): one for one in flips(pair(candidates(found), LIMITS, "mean"), LIMITS) if not one.bound
    }
    if whole:
        one, other = whole["a", "b"], whole["b", "a"]
        assert (one.n, one.order, one.verdict) == (other.n, other.order, other.verdict)
        assert one.order is None or 0 <= one.order <= 1


def test_flips_near_a_threshold_are_those_of_its_nearest_pairs():
    # b turns the order round where a's difference is small, and nowhere else.
    found = [(Prompt.of(f"p{n}", "t"), 0.5 + 0.01 * n * own, 0.5 + (0.1 if n > 1 else -0.1) * own, own)
             for n in range(1, 21) for own in (True, False)]  # fmt: skip
    limits = [
        Threshold(scorer=name, min_winner_score=-1, min_loser_score=-1, min_margin=low, max_margin=2)
        for name, low in (("a", 0.01), ("b", -2))
    ]
    pairs = pair(candidates(found), limits, "a")
    assert len(pairs) == 20
    every, near, back = flips(pairs, limits)
    assert (every.n, every.bound, every.order) == (20, None, 1 / 20)
    assert (near.bound, near.value, near.n, near.order) == ("min_margin", 0.01, 2, 1 / 2)
    assert near.within == pytest.approx(0.01)
    assert (back.scorer, back.other, back.order) == ("b", "a", 1 / 20)


def test_nothing_to_sweep_is_nothing():
    assert trials([], LIMITS) == []
    assert flips([], LIMITS) == []
    assert len(Pool.of([]).beaten) == 0
