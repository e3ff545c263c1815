"""Preference data from the decisions in a studio: pairs of takes, and labels of single takes."""

from collections.abc import Mapping, Sequence
from itertools import combinations

from milonga.core.records import Candidate, Label, Pair, Prompt
from milonga.listening_test.export import HUMAN_PREFERENCE
from milonga.studio.clips import STUDIO, Choice, Take


def studio_prompts(takes: Sequence[Take]) -> list[Prompt]:
    """The prompts of takes, each once."""
    return list({take.prompt_id: Prompt.of(take.prompt, STUDIO) for take in takes}.values())


def studio_labels(takes: Sequence[Take]) -> list[Label]:
    """A label for each decided take: desirable where it was kept. One person's decision is enough here."""
    return [
        Label(
            id=take.id, prompt_id=take.prompt_id, prompt=take.prompt, system=take.system, desirable=take.keep,
            opinion=None, raters=1,
        )
        for take in takes if take.keep is not None
    ]  # fmt: skip


def studio_pairs(takes: Sequence[Take], choices: Sequence[Choice]) -> list[Pair]:
    """A pair for every two takes of a prompt of which one was preferred; without a comparison of the two, a kept take
    is preferred to a discarded one.

    A pair is refused with its reason where neither take was better, and where the comparison contradicts keeping and
    discarding. The score `human_preference` is the share of votes of this one person.
    """
    better = {(choice.a, choice.b): choice.better for choice in choices}
    by_prompt: dict[str, list[Take]] = {}
    for take in sorted(takes, key=lambda take: take.id):
        by_prompt.setdefault(take.prompt_id, []).append(take)
    twos = [two for own in by_prompt.values() for two in combinations(own, 2)]
    pairs = [_pair(a, b, better) for a, b in twos]
    return [pair for pair in pairs if pair is not None]


def _pair(a: Take, b: Take, better: Mapping[tuple[str, str], str]) -> Pair | None:
    keepers = {take.id for take in (a, b) if take.keep}
    decided = {a.keep, b.keep} == {True, False}
    preferred = better.get((a.id, b.id), next(iter(keepers)) if decided else None)
    if preferred is None:
        return None
    refused = "order: neither was better" if not preferred else ""
    if preferred and decided and preferred not in keepers:
        refused = "contradiction: the preferred take was discarded and the other kept"
    chosen, rejected = (b, a) if preferred == b.id else (a, b)
    share = 1.0 if preferred else 0.5
    winner, loser = (
        Candidate(request=take.request().model_copy(update={"id": take.id}), scores={HUMAN_PREFERENCE: votes})
        for take, votes in ((chosen, share), (rejected, 1.0 - share))
    )
    return Pair.of(winner, loser, STUDIO, refused)
