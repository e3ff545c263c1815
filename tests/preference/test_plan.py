"""Planning: every clip once, whatever strategies it serves, and nothing lost without a reason."""

import time
from threading import Event

import pytest

from milonga.core.config import Strategy
from milonga.core.errors import DataError, ServiceError
from milonga.core.records import Prompt
from milonga.preference.plan import plan

STRATEGIES = [
    Strategy(name="1.1", steps=(5, 25, 50, 100), guidance=3.0),
    Strategy(name="1.2", steps=(50, 50, 50, 50), guidance=3.0),
    Strategy(name="2", steps=(50,), guidance=3.0, negatives="perturbed", num_negatives=5),
    Strategy(name="3", steps=(50,), guidance=3.0, negatives="temporal", num_negatives=5),
]
IN_TIME = Prompt.of("A dog barks then a bell rings", "test")
PLAIN = Prompt.of("Rain falls", "test")


class Numbering:
    """A perturber that numbers its wrong captions; it gives `most` at most."""

    name = "numbering"

    def __init__(self, most: int = 99) -> None:
        self.most = most
        self.seeds: list[int] = []

    def perturb(self, prompt, count, temporal, seed):
        self.seeds.append(seed)
        kind = "late" if temporal else "wrong"
        return [f"{kind} {i} {prompt.text}" for i in range(min(count, self.most))]


class Saying:
    name = "saying"

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def perturb(self, prompt, count, temporal, seed):
        return list(self.texts)


def test_the_papers_strategies_share_their_common_clip():
    requests, refused = plan([IN_TIME], STRATEGIES, Numbering(), run_seed=7)
    assert not refused
    assert len(requests) == 4 + 3 + 5 + 5
    (common,) = [r for r in requests if r.faithful and r.steps == 50 and r.number == 0]
    assert common.strategies == ("1.1", "1.2", "2", "3")
    assert sorted((r.steps, r.number) for r in requests if "1.2" in r.strategies) == [(50, n) for n in range(4)]
    assert len({r.id for r in requests}) == len({r.seed for r in requests}) == len(requests)
    for name in ("2", "3"):
        assert sum(r.faithful for r in requests if name in r.strategies) == 1


def test_strategy_3_is_for_temporal_prompts_only():
    requests, refused = plan([PLAIN], STRATEGIES, Numbering(), run_seed=7)
    assert not refused
    assert not any("3" in r.strategies for r in requests)


def test_a_prompt_that_is_only_temporal_serves_strategy_3_alone():
    """τ2 is taken of all captions, τ1 is not: such a caption's x_τ is made for strategy 3 (§4.1.1)."""
    beside = IN_TIME.model_copy(update={"diverse": False})
    requests, refused = plan([beside], STRATEGIES, Numbering(), run_seed=7)
    assert not refused
    assert len(requests) == 1 + 5
    assert {r.strategies for r in requests} == {("3",)}
    within, _ = plan([IN_TIME], STRATEGIES, Numbering(), run_seed=7)
    assert {r.id: r.seed for r in requests}.items() <= {r.id: r.seed for r in within}.items()


def test_a_request_does_not_depend_on_its_neighbours():
    together, _ = plan([PLAIN, IN_TIME], STRATEGIES, Numbering(), run_seed=7)
    alone, _ = plan([IN_TIME], STRATEGIES, Numbering(), run_seed=7)
    assert [r for r in together if r.prompt_id == IN_TIME.id] == alone
    assert plan([IN_TIME], STRATEGIES, Numbering(), run_seed=8)[0][0].seed != alone[0].seed


def test_too_few_wrong_captions_are_recorded_and_used():
    requests, refused = plan([PLAIN], STRATEGIES[2:3], Numbering(most=2), run_seed=7)
    assert [r.words for r in requests] == ["Rain falls", "wrong 0 Rain falls", "wrong 1 Rain falls"]
    assert [(r.stage, r.id) for r in refused] == [("plan", PLAIN.id)]
    assert refused[0].reason == "2: perturber 'numbering' gave 2 of 5 wrong captions"


def test_without_a_wrong_caption_there_is_nothing_to_make():
    requests, refused = plan([PLAIN], STRATEGIES[2:3], Numbering(most=0), run_seed=7)
    assert requests == []
    assert len(refused) == 1


def test_wrong_captions_are_distinct_never_the_caption_and_no_more_than_asked():
    perturber = Saying(" rain  falls.", "Hail falls", "hail falls. ", "", *(f"Snow {i}" for i in range(9)))
    requests, refused = plan([PLAIN], STRATEGIES[2:3], perturber, run_seed=7)
    assert [r.words for r in requests] == ["Rain falls", "Hail falls", "Snow 0", "Snow 1", "Snow 2", "Snow 3"]
    assert not refused


def test_the_perturber_is_seeded_by_prompt_kind_and_run():
    seeds = Numbering()
    plan([PLAIN, IN_TIME], STRATEGIES, seeds, run_seed=7)
    plan([PLAIN], STRATEGIES, seeds, run_seed=8)
    assert len(set(seeds.seeds)) == len(seeds.seeds) == 4


class Slow(Numbering):
    """Numbers its captions from several threads, the first prompts last; `bad` is refused, `broken` stops it all."""

    concurrency = 4

    def __init__(self, bad: str = "", broken: str = "") -> None:
        super().__init__()
        self.bad, self.broken, self.stopped, self.asked = bad, broken, Event(), 0

    def perturb(self, prompt, count, temporal, seed):
        self.asked += 1
        place = int(prompt.text.split()[1])
        time.sleep(0.002 * (20 - place))
        if self.broken and place > 5:
            self.stopped.wait(10)
        if prompt.text == self.bad:
            raise DataError("not this one")
        if prompt.text == self.broken:
            raise ServiceError("nobody there")
        return super().perturb(prompt, count, temporal, seed)

    def stop(self):
        self.stopped.set()


MANY = [Prompt.of(f"Sound {i} then silence", "test") for i in range(20)]


def test_a_perturber_that_works_at_once_changes_no_result():
    told: list[int] = []
    slow = Slow()
    assert plan(MANY, STRATEGIES, slow, 7, told.append) == plan(MANY, STRATEGIES, Numbering(), 7)
    assert told == [1] * 20
    assert not slow.stopped.is_set()


def test_a_refused_caption_keeps_its_reason_and_costs_no_other():
    requests, refused = plan(MANY, STRATEGIES[2:3], Slow(bad=MANY[3].text), run_seed=7)
    assert [(one.id, one.reason) for one in refused] == [(MANY[3].id, "2: not this one")]
    assert {request.prompt_id for request in requests} == {prompt.id for prompt in MANY} - {MANY[3].id}


def test_an_error_that_is_no_refusal_stops_what_is_under_way_and_begins_nothing_more():
    slow = Slow(broken=MANY[2].text)
    with pytest.raises(ServiceError, match="nobody there"):
        plan(MANY, STRATEGIES[2:3], slow, run_seed=7)
    assert slow.stopped.is_set()
    assert slow.asked <= 6 + slow.concurrency


def test_two_strategies_of_one_name_are_refused():
    with pytest.raises(DataError, match="same name"):
        plan([PLAIN], [STRATEGIES[0], STRATEGIES[0]], Numbering(), run_seed=7)
