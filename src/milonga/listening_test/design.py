"""Session plans: which clips a rater judges, in which order, with attention checks in between.

A session takes some of the test's prompts and presents each of them under every condition: under each system (`rate`),
or each pair of systems without the reference (`compare`). It proceeds in rounds. Each round has every prompt once, and
its condition is a column of a Williams square. So clips of one prompt are far apart, a session that is broken off is
still balanced over systems, and over sessions every system appears in every round, and after every other system,
equally often.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from milonga.core.errors import DataError
from milonga.core.ids import derive_seed
from milonga.listening_test.records import BROKEN, Kind, Test, Trial


def williams(conditions: int) -> np.ndarray:
    """Williams's (1949) square, shape (rows, conditions): each row is an order in which to present the conditions.

    Over the rows every condition stands in every place equally often and follows every other one equally often, so
    that neither fatigue nor the previous clip favours a system. An even number has as many rows, an odd one (except 1)
    twice as many. Raises DataError below one condition.
    """
    if conditions < 1:
        raise DataError("a square needs at least one condition")
    zigzag = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(conditions)]
    square = (np.array(zigzag) + np.arange(conditions)[:, None]) % conditions
    return square if conditions % 2 == 0 or conditions == 1 else np.concatenate([square, square[:, ::-1]])


def conditions(test: Test, kind: Kind) -> list[tuple[str, str]]:
    """The conditions of every prompt: one system each, or two where they are compared."""
    if kind == "rate":
        return [(system, "") for system in test.systems]
    return list(combinations([system for system in test.systems if system != test.reference], 2))


def choose_prompts(test: Test, rater: int, covered: Mapping[str, int]) -> list[str]:
    """Ids of a new session's prompts: those with the fewest raters, ties broken at random.

    `covered` gives the number of raters per prompt id; prompts without raters may be missing.
    """
    draws = np.random.default_rng(derive_seed(test.seed, "prompts", rater)).uniform(size=len(test.prompts))
    ranked = sorted(zip(test.prompts, draws, strict=True), key=lambda row: (covered.get(row[0].id, 0), row[1]))
    return [prompt.id for prompt, _ in ranked[: test.per_rater]]


def plan_session(test: Test, rater: int, turns: Mapping[str, int]) -> list[Trial]:
    """All trials of a rater's session in order, one kind after the other.

    `turns` maps the session's prompt ids to the number of earlier sessions with that prompt.
    """
    return [trial for kind in test.kinds for trial in _part(test, kind, rater, turns)]


def _part(test: Test, kind: Kind, rater: int, turns: Mapping[str, int]) -> list[Trial]:
    """The trials of one kind, with the attention checks spread evenly at unpredictable places."""
    rng = np.random.default_rng(derive_seed(test.seed, "order", kind, rater))
    pairs = conditions(test, kind)
    square = williams(len(pairs))
    offset = {prompt.id: place + turns.get(prompt.id, 0) for place, prompt in enumerate(test.prompts)}
    trials: list[Trial] = []
    for round_ in range(len(pairs)):
        order = _shuffled(rng, list(turns))
        if trials and order[0] == trials[-1].prompt_id:  # the same prompt twice in a row would invite a comparison
            order = [*order[1:], order[0]]
        for prompt_id in order:
            which = int(square[offset[prompt_id] % len(square), round_])
            trials.append(_trial(kind, prompt_id, pairs[which], swapped=(offset[prompt_id] + which) % 2 == 1))
    checks = attention_checks(test, kind, rng)
    stretch = len(trials) / max(1, len(checks))
    places = [int((number + rng.uniform(0.2, 0.8)) * stretch) for number in range(len(checks))]
    for place, check in sorted(zip(places, checks, strict=True), key=lambda row: row[0], reverse=True):
        trials.insert(place, check)
    return trials


def attention_checks(test: Test, kind: Kind, rng: np.random.Generator) -> list[Trial]:
    """The attention checks of one kind in random order: broken clips and real ones to rate, or one of each to compare.

    Without a reference a system's clip stands for the real one, and only in comparisons.
    """
    intact, trials = test.reference or test.systems[0], []
    for place, prompt in enumerate(test.check_prompts):
        if kind == "compare":
            trials.append(_trial(kind, prompt.id, (intact, BROKEN), swapped=place % 2 == 1, check="pair"))
            continue
        trials.append(Trial(kind=kind, check="broken", prompt_id=prompt.id, a=BROKEN))
        if test.reference:
            trials.append(Trial(kind=kind, check="reference", prompt_id=prompt.id, a=test.reference))
    return _shuffled(rng, trials)


def _trial(kind: Kind, prompt_id: str, pair: tuple[str, str], swapped: bool, check: str = "") -> Trial:
    a, b = pair if not (swapped and pair[1]) else pair[::-1]
    return Trial.model_validate({"kind": kind, "check": check, "prompt_id": prompt_id, "a": a, "b": b})


def _shuffled(rng: np.random.Generator, items: Sequence) -> list:
    return [items[place] for place in rng.permutation(len(items))]
