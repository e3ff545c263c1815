"""What people said in a folder, of a listening test or a studio or both, as tables, preference pairs and KTO labels."""

from dataclasses import dataclass, field
from pathlib import Path

from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.records import Label, Pair, Prompt
from milonga.core.store import Run
from milonga.listening_test import export as exports
from milonga.listening_test.database import FILE
from milonga.listening_test.records import ScreenedRating, Take
from milonga.listening_test.sessions import Sessions
from milonga.studio.clips import Takes
from milonga.studio.preferences import studio_labels, studio_pairs, studio_prompts
from milonga.studio.studio import shard_of

FORMS = ("table", "takes", "pairs", "labels")


@dataclass
class Said:
    """What was judged, and what it teaches; `shards` of `generate` hold the clips."""

    prompts: list[Prompt] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    ratings: list[ScreenedRating] | None = None
    takes: list[Take] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)


def export(folder: Path, out: Path, form: str) -> Path:
    """Ratings or takes as a table, or what they teach as pairs or labels, at `out`.

    Raises RecipeError for another form, StoreError for a folder where nobody was asked anything, DataError where there
    is nothing yet of what was asked for.
    """
    if form not in FORMS:
        raise RecipeError(f"no form {form!r} of export: there are {', '.join(FORMS[:-1])} and {FORMS[-1]}")
    said = read(folder)
    if form == "table":
        if said.ratings is None:
            raise DataError(f"{folder} is a studio without a listening test: its takes are a table by --as takes")
        return exports.write_table(said.ratings, ScreenedRating, out)
    if form == "takes":
        return exports.write_table(said.takes, Take, out)
    source = Run(folder).stage("generate")
    if form == "pairs":
        return exports.write_pairs(source, said.shards, said.prompts, said.pairs, out)
    return exports.write_labels(source, said.shards, said.prompts, said.labels, out)


def read(folder: Path) -> Said:
    """Everything that was said in a folder. Raises StoreError where it is of neither kind."""
    said = Said()
    if (folder / "test.json").exists():
        _read_test(folder, said)
    elif not (folder / FILE).exists():
        raise StoreError(
            f"{folder} holds no listening test and no studio: see `milonga listen make` and `milonga studio`"
        )
    _read_studio(folder, said)
    said.prompts = list({one.id: one for one in said.prompts}.values())
    return said


def _read_test(folder: Path, said: Said) -> None:
    sessions = Sessions(folder)
    test, every, verdicts = sessions.test, sessions.ratings.ratings(sessions.test), sessions.verdicts()
    excluded = {one.rater for one in verdicts if one.excluded}
    counted = [one for one in every if not one.check and one.rater not in excluded]
    said.ratings = exports.screened(every, verdicts)
    said.prompts += test.prompts
    said.shards += [name for name in Run(folder).stage("generate").names() if not name.startswith("take-")]
    said.pairs += exports.pairs(test, counted)
    said.labels += exports.labels(test, counted)


def _read_studio(folder: Path, said: Said) -> None:
    store = Takes(folder / FILE)
    said.takes = store.every()
    pairs, labels = studio_pairs(said.takes, store.choices()), studio_labels(said.takes)
    used = {one for pair in pairs for one in (pair.chosen_id, pair.rejected_id)} | {one.id for one in labels}
    said.prompts += studio_prompts([one for one in said.takes if one.id in used])
    said.shards += [shard_of(one) for one in said.takes if one.id in used]
    said.pairs += pairs
    said.labels += labels
