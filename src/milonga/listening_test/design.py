"""Who hears what, in which order: rounds of a Latin square, with attention checks in between.

A session takes some of the test's prompts and puts every one of them under every condition: under each system (`rate`),
or each two systems but for the reference (`compare`). It goes in rounds. Each round holds every prompt once, and which
condition it is heard under is a column of a Williams square, so that clips of one prompt lie far apart, a session that
is broken off is still balanced over systems, and over sessions every system is heard in every round, and after every
other, equally often.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from milonga.core.ids import derive_seed
from milonga.listening_test.latin import williams
from milonga.listening_test.records import BROKEN, Kind, Test, Trial


def conditions(test: Test, kind: Kind) -> list[tuple[str, str]]:
    """What every prompt is heard under: one system each, or two where they are compared."""
    if kind == "rate":
        return [(system, "") for system in test.systems]
    return list(combinations([system for system in test.systems if system != test.reference], 2))


def chosen(test: Test, rater: int, covered: Mapping[str, int]) -> list[str]:
    """The ids of the prompts that a new session takes: those with the fewest raters, chance among equals.

    `covered` says how many raters each prompt has, and may leave out those with none.
    """
    draws = np.random.default_rng(derive_seed(test.seed, "prompts", rater)).uniform(size=len(test.prompts))
    ranked = sorted(zip(test.prompts, draws, strict=True), key=lambda row: (covered.get(row[0].id, 0), row[1]))
    return [prompt.id for prompt, _ in ranked[: test.per_rater]]


def session(test: Test, rater: int, turns: Mapping[str, int]) -> list[Trial]:
    """All trials of a rater's session in their order, part by part; `turns` gives its prompts, and how many sessions
    each was in before.
    """
    return [trial for kind in test.kinds for trial in _part(test, kind, rater, turns)]


def _part(test: Test, kind: Kind, rater: int, turns: Mapping[str, int]) -> list[Trial]:
    rng = np.random.default_rng(derive_seed(test.seed, "order", kind, rater))
    pairs = conditions(test, kind)
    square = williams(len(pairs))
    offset = {prompt.id: place + turns.get(prompt.id, 0) for place, prompt in enumerate(test.prompts)}
    trials: list[Trial] = []
    for round_ in range(len(pairs)):
        order = _shuffled(rng, list(turns))
        if trials and order[0] == trials[-1].prompt_id:  # the same prompt twice running would invite a comparison
            order = [*order[1:], order[0]]
        for prompt_id in order:
            which = int(square[offset[prompt_id] % len(square), round_])
            trials.append(_trial(kind, prompt_id, pairs[which], turned=(offset[prompt_id] + which) % 2 == 1))
    return _with_checks(trials, checks(test, kind, rng), rng)


def checks(test: Test, kind: Kind, rng: np.random.Generator) -> list[Trial]:
    """The attention checks of one part, in chance order: broken clips and real ones to be rated, or one of each to be
    compared. Without a reference a system's clip stands for the real one, and only where it is compared.
    """
    whole, found = test.reference or test.systems[0], []
    for place, prompt in enumerate(test.check_prompts):
        if kind == "compare":
            found.append(_trial(kind, prompt.id, (whole, BROKEN), turned=place % 2 == 1, check="pair"))
            continue
        found.append(Trial(kind=kind, check="broken", prompt_id=prompt.id, a=BROKEN))
        if test.reference:
            found.append(Trial(kind=kind, check="reference", prompt_id=prompt.id, a=test.reference))
    return _shuffled(rng, found)


def _with_checks(trials: Sequence[Trial], extra: Sequence[Trial], rng: np.random.Generator) -> list[Trial]:
    """The checks spread evenly over the trials, each at a place of its stretch that cannot be foreseen."""
    stretch = len(trials) / max(1, len(extra))
    places = [int((number + rng.uniform(0.2, 0.8)) * stretch) for number in range(len(extra))]
    mixed = list(trials)
    for place, check in sorted(zip(places, extra, strict=True), key=lambda row: row[0], reverse=True):
        mixed.insert(place, check)
    return mixed


def _trial(kind: Kind, prompt_id: str, pair: tuple[str, str], turned: bool, check: str = "") -> Trial:
    a, b = pair if not (turned and pair[1]) else pair[::-1]
    return Trial.model_validate({"kind": kind, "check": check, "prompt_id": prompt_id, "a": a, "b": b})


def _shuffled(rng: np.random.Generator, items: Sequence) -> list:
    return [items[place] for place in rng.permutation(len(items))]
