"""What the decisions of a studio teach: preference pairs, and labels of single clips."""

from collections.abc import Mapping, Sequence
from itertools import combinations

from milonga.core.ids import content_id
from milonga.core.records import Label, Pair, Prompt
from milonga.listening_test.records import STUDIO, Choice, Take


def studio_prompts(takes: Sequence[Take]) -> list[Prompt]:
    """The prompts of takes, each once."""
    return list({one.prompt_id: Prompt.of(one.prompt, STUDIO) for one in takes}.values())


def studio_labels(takes: Sequence[Take]) -> list[Label]:
    """A label for each take that was decided on: desirable where it was kept. One person's word is enough here."""
    return [
        Label(
            id=one.id, prompt_id=one.prompt_id, prompt=one.prompt, system=one.system, desirable=one.kept, opinion=None,
            raters=1,
        )
        for one in takes if one.kept is not None
    ]  # fmt: skip


def studio_pairs(takes: Sequence[Take], choices: Sequence[Choice]) -> list[Pair]:
    """A pair for every two takes of a prompt of which one was preferred; without a word on the two, a kept take is
    preferred to a discarded one.

    Refused with that as its reason: two of which neither was better, and a choice that keeping and discarding
    contradict. Scores are the share of votes (`listeners`), which is one person's.
    """
    chosen = {(one.a, one.b): one.better for one in choices}
    by_prompt: dict[str, list[Take]] = {}
    for one in sorted(takes, key=lambda take: take.id):
        by_prompt.setdefault(one.prompt_id, []).append(one)
    twos = [two for group in by_prompt.values() for two in combinations(group, 2)]
    found = [_pair(a, b, chosen) for a, b in twos]
    return [one for one in found if one is not None]


def _pair(a: Take, b: Take, chosen: Mapping[tuple[str, str], str]) -> Pair | None:
    kept = {one.id for one in (a, b) if one.kept}
    decided = {a.kept, b.kept} == {True, False}
    said = chosen.get((a.id, b.id))
    if said is None and not decided:
        return None
    better = said if said is not None else next(iter(kept))
    refused = "order: neither was better" if not better else ""
    if better and decided and better not in kept:
        refused = "contradiction: the one that was preferred was discarded, the other kept"
    winner, loser = (b, a) if better == b.id else (a, b)
    return _made(winner, loser, refused)


def _made(chosen: Take, rejected: Take, refused: str) -> Pair:
    first, second = chosen.request(), rejected.request()
    share = 0.5 if refused.startswith("order") else 1.0
    return Pair(
        id=content_id(STUDIO, chosen.id, rejected.id),
        prompt_id=chosen.prompt_id,
        prompt=chosen.prompt,
        strategy=STUDIO,
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        chosen_words=first.words,
        rejected_words=second.words,
        chosen_steps=chosen.steps,
        rejected_steps=rejected.steps,
        chosen_seed=first.seed,
        rejected_seed=second.seed,
        chosen_scores={"listeners": share},
        rejected_scores={"listeners": 1.0 - share},
        refused=refused,
    )
