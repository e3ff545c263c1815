"""Export of people's judgements in a folder of a listening test, a studio or both: tables, preference pairs, labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.records import Candidate, Label, Pair, Prompt
from milonga.core.store import Run
from milonga.listening_test.database import FILE
from milonga.listening_test.export import (
    HUMAN_PREFERENCE,
    labels,
    pairs,
    screened,
    write_labels,
    write_pairs,
    write_table,
)
from milonga.listening_test.records import RaterRow, ScreenedRating
from milonga.listening_test.sessions import Sessions
from milonga.studio.clips import STUDIO, Choice, Take, Takes
from milonga.studio.sounds import shard_of

FORMS = ("table", "history", "raters", "takes", "pairs", "labels")


@dataclass
class Judgements:
    """The judgements of a folder and the preference data from them; `shards` of `generate` hold the clips."""

    prompts: list[Prompt] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    ratings: list[ScreenedRating] | None = None
    takes: list[Take] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)


def export(folder: Path, out: Path, form: str) -> Path:
    """Writes ratings or takes as a table, or preference pairs or labels with their clips, and returns `out`.

    Raises RecipeError for an unknown form, StoreError for a folder of another kind, DataError where there are no
    judgements of that form yet.
    """
    if form not in FORMS:
        raise RecipeError(f"unknown form of export {form!r}: there are {', '.join(FORMS[:-1])} and {FORMS[-1]}")
    if form in ("history", "raters"):
        sessions = Sessions(folder, archive=True)
        if form == "raters":
            return write_table(sessions.rater_rows(), RaterRow, out)
        every = sessions.ratings.ratings(sessions.test, history=True)
        return write_table(screened(every, sessions.verdicts()), ScreenedRating, out)
    judgements = read_judgements(folder)
    if form == "table":
        if judgements.ratings is None:
            raise DataError(f"{folder} is a studio without a listening test: use --as takes")
        return write_table(judgements.ratings, ScreenedRating, out)
    if form == "takes":
        return write_table(judgements.takes, Take, out)
    source = Run(folder).stage("generate")
    if form == "pairs":
        return write_pairs(source, judgements.shards, judgements.prompts, judgements.pairs, out)
    return write_labels(source, judgements.shards, judgements.prompts, judgements.labels, out)


def read_judgements(folder: Path) -> Judgements:
    """All judgements of a folder. Raises StoreError where it is neither a listening test nor a studio."""
    judgements = Judgements()
    if (folder / "test.json").exists():
        sessions = Sessions(folder, archive=True)
        ratings, verdicts = sessions.judgements()
        excluded = {verdict.rater for verdict in verdicts if verdict.excluded}
        counted = [rating for rating in ratings if not rating.check and rating.rater not in excluded]
        stored = Run(folder).stage("generate").names()
        judgements = Judgements(
            prompts=list(sessions.test.prompts),
            shards=[name for name in stored if not name.startswith("take-")],
            ratings=screened(ratings, verdicts),
            pairs=pairs(sessions.test, counted),
            labels=labels(sessions.test, counted),
        )
    elif not (folder / FILE).exists():
        raise StoreError(
            f"{folder} has neither a listening test nor a studio: see `milonga listen make` and `milonga studio`"
        )
    store = Takes(folder / FILE, archive=True)
    judgements.takes = store.all_generated()
    own_pairs = studio_pairs(judgements.takes, store.choices())
    own_labels = studio_labels(judgements.takes)
    used = {name for pair in own_pairs for name in (pair.chosen_id, pair.rejected_id)}
    used |= {label.id for label in own_labels}
    takes = [take for take in judgements.takes if take.id in used]
    prompts = [*judgements.prompts, *studio_prompts(takes)]
    judgements.prompts = list({prompt.id: prompt for prompt in prompts}.values())
    judgements.shards += [shard_of(take) for take in takes]
    judgements.pairs += own_pairs
    judgements.labels += own_labels
    return judgements


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

    A pair is refused with its reason where neither take was better, where the comparison contradicts keeping and
    discarding, and where a take has a length of its own. The score `human_preference` is the share of votes of this one
    person.
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
    if any(take.seconds is not None for take in (a, b)):
        refused = refused or "length: a take has another one than the model was trained on"
    if preferred and decided and preferred not in keepers:
        refused = "contradiction: the preferred take was discarded and the other kept"
    chosen, rejected = (b, a) if preferred == b.id else (a, b)
    share = 1.0 if preferred else 0.5
    winner, loser = (
        Candidate(request=take.request().model_copy(update={"id": take.id}), scores={HUMAN_PREFERENCE: votes})
        for take, votes in ((chosen, share), (rejected, 1.0 - share))
    )
    return Pair.of(winner, loser, STUDIO, refused)
