"""Session plans: which clips a rater judges, in which order, with attention checks in between.

A session takes some of the test's prompts and presents each of them under every condition: under each system (`rate`),
each pair of systems without the reference (`compare`), or once with all systems side by side (`mushra`). It proceeds in
rounds. Each round has every prompt once, and its condition is a column of a Williams square. So clips of one prompt are
far apart, a session that is broken off is still balanced over systems, and over sessions every system appears in every
round, and after every other system, equally often.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from milonga.core.errors import DataError
from milonga.core.ids import derive_seed
from milonga.core.records import Prompt
from milonga.listening_test.records import ANCHOR, BROKEN, Kind, Test, Trial

WRONG_CAPTIONS = 2  # for each clip of an attention check


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
    """The conditions of every prompt: one system each, two where they are compared, one of all with sliders."""
    if kind == "rate":
        return [(system, "") for system in test.systems]
    if kind == "mushra":
        return [("", "")]
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
            if kind == "mushra":
                order_on_page = tuple(_shuffled(rng, [*test.systems, ANCHOR]))
                trials.append(Trial(kind=kind, check="", prompt_id=prompt_id, sliders=order_on_page))
            else:
                trials.append(_trial(kind, prompt_id, pairs[which], swapped=(offset[prompt_id] + which) % 2 == 1))
    checks = attention_checks(test, kind, rng)
    stretch = len(trials) / max(1, len(checks))
    places = [int((number + rng.uniform(0.2, 0.8)) * stretch) for number in range(len(checks))]
    for place, check in sorted(zip(places, checks, strict=True), key=lambda row: row[0], reverse=True):
        trials.insert(place, check)
    return trials


def attention_checks(test: Test, kind: Kind, rng: np.random.Generator) -> list[Trial]:
    """The attention checks of one kind in random order.

    To rate: broken clips, recordings, and recordings under the caption of other ones. To compare: a broken clip and a
    recording. With sliders: a broken clip among the systems. Without a reference a system's clip stands for the
    recording, but is not rated under its own caption, because it may be bad.
    """
    intact, trials = test.reference or test.systems[0], []
    for place, prompt in enumerate(test.check_prompts):
        if kind == "compare":
            trials.append(_trial(kind, prompt.id, (intact, BROKEN), swapped=place % 2 == 1, check="pair"))
        elif kind == "mushra":
            sliders = tuple(_shuffled(rng, [*test.systems, ANCHOR, BROKEN]))
            trials.append(Trial(kind=kind, check="broken", prompt_id=prompt.id, sliders=sliders))
        else:
            trials.append(Trial(kind=kind, check="broken", prompt_id=prompt.id, a=BROKEN))
            if test.reference:
                trials.append(Trial(kind=kind, check="reference", prompt_id=prompt.id, a=test.reference))
            for other in other_captions(test, prompt):
                trials.append(Trial(kind=kind, check="caption", prompt_id=prompt.id, a=intact, shown_id=other))
    return _shuffled(rng, trials)


def other_captions(test: Test, prompt: Prompt) -> list[str]:
    """The ids of the prompts that share the smallest part of their words with this one, fewest first."""

    def words(text: str) -> set[str]:
        return set(re.findall(r"\w+", text.lower()))

    own = words(prompt.text)

    def overlap(other: Prompt) -> float:
        return len(own & words(other.text)) / max(1, len(own | words(other.text)))

    others = sorted(test.prompts, key=lambda other: (overlap(other), other.id))
    return [other.id for other in others[:WRONG_CAPTIONS] if other.text != prompt.text]


def _trial(kind: Kind, prompt_id: str, pair: tuple[str, str], swapped: bool, check: str = "") -> Trial:
    a, b = pair if not (swapped and pair[1]) else pair[::-1]
    return Trial.model_validate({"kind": kind, "check": check, "prompt_id": prompt_id, "a": a, "b": b})


def _shuffled(rng: np.random.Generator, items: Sequence) -> list:
    return [items[place] for place in rng.permutation(len(items))]
