"""Who hears what: balance over systems, places, neighbours and sides; coverage; checks where nobody expects them."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_raters import plan, sessions

from milonga.core.records import Prompt
from milonga.listening_test.design import choose_prompts, conditions, other_captions, plan_session
from milonga.listening_test.records import ANCHOR, BROKEN


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 6), st.integers(3, 12), st.integers(1, 8), st.booleans(), st.integers(0, 99))
def test_a_session_has_every_prompt_under_every_condition_once(systems, prompts, per_rater, reference, rater):
    test = plan(systems, prompts, per_rater, reference)
    picked = choose_prompts(test, rater, {})
    trials = plan_session(test, rater, dict.fromkeys(picked, rater))
    for kind in test.kinds:
        own = [one for one in trials if one.kind == kind and not one.check]
        heard = Counter((one.prompt_id, frozenset({one.a, one.b} - {""})) for one in own)
        expected = {(p, frozenset({a, b} - {""})) for p in picked for a, b in conditions(test, kind)}
        assert set(heard) == expected
        assert set(heard.values()) == {1}
    assert [one.kind for one in trials] == sorted((one.kind for one in trials), reverse=True)  # rate, then compare
    assert plan_session(test, rater, dict.fromkeys(picked, rater)) == trials


def test_every_prompt_gets_the_raters_aimed_at_and_none_is_far_ahead():
    test = plan()
    heard = Counter(
        prompt for trials in sessions(test, 8) for prompt in {one.prompt_id for one in trials if not one.check}
    )
    assert set(heard.values()) == {4}  # 8 raters × 6 prompts = 12 prompts × 4 raters


def test_over_sessions_every_system_is_heard_in_every_round_and_after_every_other_equally_often():
    test = plan(systems=4, prompts=12, per_rater=6)
    rounds: Counter[tuple[str, str, int]] = Counter()
    neighbours: Counter[tuple[str, str]] = Counter()
    for trials in sessions(test, 8):
        for prompt in {one.prompt_id for one in trials if not one.check}:
            own = [one.a for one in trials if one.kind == "rate" and one.prompt_id == prompt]
            rounds.update((prompt, system, place) for place, system in enumerate(own))
            neighbours.update(pairwise(own))
    assert set(rounds.values()) == {1}
    assert len(rounds) == 12 * 4 * 4
    assert len(neighbours) == 12
    assert len(set(neighbours.values())) == 1


def test_every_two_systems_are_heard_on_both_sides_equally_often():
    sides = Counter(
        (one.prompt_id, one.a, one.b) for trials in sessions(plan(), 8) for one in trials if one.b and not one.check
    )
    assert set(sides.values()) == {2}
    assert all(sides[prompt, a, b] == sides[prompt, b, a] for prompt, a, b in sides)
    assert not any("s0" in key for key in sides)  # a real clip is rated, never compared


def test_a_session_that_is_broken_off_is_balanced_so_far():
    for trials in sessions(plan(per_rater=8), 6):
        own = [one.a for one in trials if one.kind == "rate" and not one.check][:16]
        assert max(Counter(own).values()) - min(Counter(own).values()) <= 2


def test_a_prompt_is_not_heard_twice_running():
    for trials in sessions(plan(), 10):
        for kind in ("rate", "compare"):
            own = [one.prompt_id for one in trials if one.kind == kind and not one.check]
            assert all(one != other for one, other in pairwise(own))


def test_checks_are_of_their_own_prompts_spread_out_and_elsewhere_for_everyone():
    test = plan()
    places = []
    for trials in sessions(test, 6):
        extra = [place for place, one in enumerate(trials) if one.check]
        places.append(tuple(extra))
        assert Counter(trials[place].check for place in extra) == {
            "broken": 2, "reference": 2, "caption": 4, "pair": 2,
        }  # fmt: skip
        assert {trials[place].prompt_id for place in extra} == {one.id for one in test.check_prompts}
        assert all(one != other - 1 for one, other in pairwise(extra))
        for place in extra:
            trial = trials[place]
            heard = {"broken": {BROKEN, ""}, "reference": {"s0", ""}, "caption": {"s0", ""}, "pair": {"s0", BROKEN}}[
                trial.check
            ]
            assert {trial.a, trial.b} == heard
            assert (trial.shown_id in {prompt.id for prompt in test.prompts}) == (trial.check == "caption")
    assert len(set(places)) == 6


def test_without_a_reference_only_broken_clips_check():
    trials = plan_session(plan(reference=False), 1, {})
    assert Counter(one.check for one in trials) == {"broken": 2, "caption": 4, "pair": 2}
    assert all("s0" in (one.a, one.b) for one in trials if one.check == "pair")


@pytest.mark.parametrize("covered", [{}, {"unknown": 3}])
def test_prompts_with_the_fewest_raters_come_first(covered):
    test = plan()
    busy = {one.id: 5 for one in test.prompts[:6]} | covered
    assert set(choose_prompts(test, 1, busy)) == {one.id for one in test.prompts[6:]}


def test_the_wrong_caption_shares_the_fewest_words():
    texts = ["a dog barks loudly", "a dog barks", "rain on a roof", "the dog barks loudly"]
    prompts = [Prompt.of(text, "design") for text in texts]
    test = plan().model_copy(update={"prompts": tuple(prompts[1:])})
    assert other_captions(test, prompts[0])[0] == prompts[2].id
    assert len(other_captions(test, prompts[0])) == 2


def test_sliders_hold_every_system_and_the_anchor_in_an_order_of_their_own():
    test = plan().model_copy(update={"kinds": ("mushra",)})
    trials = plan_session(test, 1, {prompt.id: 0 for prompt in test.prompts[:6]})
    own = [trial for trial in trials if not trial.check]
    assert len(own) == 6
    assert all(set(trial.sliders) == {*test.systems, ANCHOR} for trial in own)
    assert len({trial.sliders for trial in own}) > 3
    assert [set(trial.sliders) for trial in trials if trial.check] == [{*test.systems, ANCHOR, BROKEN}] * 2
