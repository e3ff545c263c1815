"""A person's corrections of a run's automatic pairs, stored beside them and applied wherever they are trained on."""

from datetime import UTC, datetime

from milonga.core.errors import RecipeError
from milonga.core.records import Pair, Record
from milonga.core.store import Run

ACTIONS = ("swap", "drop", "keep")
DROPPED = "corrected: dropped by a person"


class Correction(Record):
    """What a person says of an automatic pair, by the pair's id: an action of `ACTIONS`, and when (UTC)."""

    id: str
    action: str
    time: str


def correct_pair(run: Run, pair_id: str, action: str) -> None:
    """Stores a correction of a run's pair (`swap`, `drop` or `keep`; empty: as the thresholds have it) in
    `corrections/`; it is on the disk once this returns. Raises RecipeError for another action.
    """
    if action not in ("", *ACTIONS):
        raise RecipeError(f"a correction is one of {', '.join(ACTIONS)}, or empty, not {action!r}")
    time = datetime.now(UTC).isoformat(timespec="seconds")
    run.stage("corrections").write_records(pair_id, [Correction(id=pair_id, action=action, time=time)], Correction)


def corrections(run: Run) -> dict[str, str]:
    """The action of each corrected pair of a run, by the pair's id."""
    stored = run.stage("corrections").read_records(Correction)
    return {correction.id: correction.action for correction in stored if correction.action}


def corrected(pair: Pair, action: str) -> Pair:
    """A pair after a correction: `swap` exchanges winner and loser and keeps it, `keep` keeps it, `drop` refuses it.

    Its id stays, so a correction finds it again.
    """
    if action == "drop":
        return pair.model_copy(update={"refused": DROPPED})
    if action == "swap":
        sides = ("id", "words", "steps", "seed", "scores")
        swapped = {f"chosen_{name}": getattr(pair, f"rejected_{name}") for name in sides}
        return pair.model_copy(
            update=swapped | {f"rejected_{name}": getattr(pair, f"chosen_{name}") for name in sides} | {"refused": ""}
        )
    return pair.model_copy(update={"refused": ""}) if action == "keep" else pair


def run_pairs(run: Run) -> list[Pair]:
    """All pairs of a run after people's corrections: those that are kept, then those that are refused."""
    stored = [*run.stage("pair").read_records(Pair), *run.stage("refused").read_records(Pair)]
    actions = corrections(run)
    pairs = [corrected(pair, actions.get(pair.id, "")) for pair in stored] if actions else stored
    return sorted(pairs, key=lambda pair: bool(pair.refused))
