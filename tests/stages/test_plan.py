"""Planning: every clip once, whatever strategies it serves, and nothing lost without a reason."""

import pytest

from milonga.core.errors import DataError
from milonga.core.records import Prompt
from milonga.core.settings import Strategy
from milonga.stages.plan import plan

STRATEGIES = [
    Strategy(name="1.1", steps=(5, 25, 50, 100), guidance=3.0),
    Strategy(name="1.2", steps=(50, 50, 50, 50), guidance=3.0),
    Strategy(name="2", steps=(50,), guidance=3.0, words="perturbed", count=5),
    Strategy(name="3", steps=(50,), guidance=3.0, words="temporal", count=5),
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


def test_two_strategies_of_one_name_are_refused():
    with pytest.raises(DataError, match="same name"):
        plan([PLAIN], [STRATEGIES[0], STRATEGIES[0]], Numbering(), run_seed=7)
