"""Export of people's judgements in a folder of a listening test, a studio or both: tables, preference pairs, labels."""

from dataclasses import dataclass, field
from pathlib import Path

from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.records import Label, Pair, Prompt
from milonga.core.store import Run
from milonga.listening_test.database import FILE
from milonga.listening_test.export import labels, pairs, screened, write_labels, write_pairs, write_table
from milonga.listening_test.records import ScreenedRating
from milonga.listening_test.sessions import Sessions
from milonga.studio.clips import Take, Takes
from milonga.studio.preferences import studio_labels, studio_pairs, studio_prompts
from milonga.studio.studio import shard_of

FORMS = ("table", "takes", "pairs", "labels")


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
        sessions = Sessions(folder)
        ratings, verdicts = sessions.ratings.ratings(sessions.test), sessions.verdicts()
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
    store = Takes(folder / FILE)
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
