"""Ratings for others: as a table, as preference pairs, as KTO labels. Excluded raters are in the table alone."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from milonga.core.arrow import rows_to_table
from milonga.core.errors import DataError, StoreError
from milonga.core.ids import content_id
from milonga.core.records import Label, Pair, Prompt, Rating, Record
from milonga.core.store import Run, Shards, write_bytes
from milonga.listening_test.records import ScreenedRating, Test
from milonga.listening_test.screening import Verdict

STRATEGY = "listening"
ONE = "00000-of-00001"
FEWEST = 2  # votes for a pair, raters for a label: one person's word is not enough
DESIRABLE, UNDESIRABLE = 3.5, 2.5  # mean of OVL and REL from which, and up to which, a clip gets a label


def screened(ratings: Sequence[Rating], verdicts: Sequence[Verdict]) -> list[ScreenedRating]:
    """Every rating with the reason why its rater is excluded."""
    reasons = {one.rater: one.excluded for one in verdicts}
    return [ScreenedRating(**one.model_dump(), excluded=reasons.get(one.rater, "")) for one in ratings]


def as_csv(rows: Sequence[Record], kind: type[Record]) -> str:
    """Records as CSV with a header; what was not asked is empty, text that a spreadsheet would run is quoted."""
    out = StringIO()
    writer = csv.DictWriter(out, list(kind.model_fields), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _harmless(value) for name, value in row.model_dump().items()})
    return out.getvalue()


def write_table(rows: Sequence[Record], kind: type[Record], out: Path) -> Path:
    """Writes records of one kind as `.csv` or `.parquet`, by the suffix; DataError for another."""
    if out.suffix == ".csv":
        write_bytes(out, as_csv(rows, kind).encode())
    elif out.suffix == ".parquet":
        write_bytes(out, _parquet(rows, kind))
    else:
        raise DataError(f"{out}: a table is written as .csv or .parquet")
    return out


def pairs(test: Test, ratings: Sequence[Rating]) -> list[Pair]:
    """A pair for each prompt and two systems that were compared: the one with more votes won.

    Ties are no votes. With fewer than two votes, or as many for either, the pair is refused with that as its reason.
    Scores are the share of votes (`listeners`). Pass ratings that count: no checks, nobody excluded.
    """
    votes: dict[tuple[str, str, str], list[int]] = {}
    for one in ratings:
        if one.kind == "compare":
            low, high = sorted((one.a, one.b))
            count = votes.setdefault((one.prompt_id, low, high), [0, 0])
            if one.better != "same":
                count[int((one.a if one.better == "a" else one.b) == high)] += 1
    return [_pair(test, *key, *count) for key, count in sorted(votes.items())]


def labels(test: Test, ratings: Sequence[Rating]) -> list[Label]:
    """A label for each clip that two raters or more rated clearly: desirable where the mean of OVL and REL is at least
    3.5, undesirable where it is at most 2.5; clips between are left out. Pass ratings that count, as for `pairs`.
    """
    heard: dict[tuple[str, str], list[float]] = {}
    for one in ratings:
        if one.ovl is not None and one.rel is not None:
            heard.setdefault((one.prompt_id, one.a), []).append((one.ovl + one.rel) / 2)
    found = []
    for (prompt_id, system), opinions in sorted(heard.items()):
        opinion, prompt = sum(opinions) / len(opinions), test.prompt(prompt_id)
        if len(opinions) >= FEWEST and not UNDESIRABLE < opinion < DESIRABLE:
            found.append(Label(
                id=test.clip(prompt_id, system).id, prompt_id=prompt_id, prompt=prompt.text, system=system,
                desirable=opinion >= DESIRABLE, opinion=opinion, raters=len(opinions),
            ))  # fmt: skip
    return found


def write_pairs(
    source: Shards, shards: Sequence[str], prompts: Sequence[Prompt], found: Sequence[Pair], out: Path
) -> Path:
    """A run folder with `prompts`, `generate`, `pair` and `refused`, which training goes on from; clips are those of
    the named shards. DataError where every pair is refused.
    """
    if not any(not one.refused for one in found):
        raise DataError("no clip is preferred to another by two votes or more, nor kept in the studio: ask on")
    run = _begun(source, shards, prompts, out)
    run.stage("refused").write_records(ONE, [one for one in found if one.refused], Pair)
    run.stage("pair").write_records(ONE, [one for one in found if not one.refused], Pair)
    return out


def write_labels(
    source: Shards, shards: Sequence[str], prompts: Sequence[Prompt], found: Sequence[Label], out: Path
) -> Path:
    """A run folder with `prompts`, `generate` and `label`, one label a clip. DataError where there is no label."""
    if not found:
        raise DataError("no clip is clearly good or bad by two raters or more, nor decided on in the studio: ask on")
    _begun(source, shards, prompts, out).stage("label").write_records(ONE, found, Label)
    return out


def _begun(source: Shards, shards: Sequence[str], prompts: Sequence[Prompt], out: Path) -> Run:
    """A new run folder with the prompts and the clips as they came, latents included."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StoreError(f"{out} is not empty: choose another folder")
    run = Run(out)
    run.stage("prompts").write_records(ONE, prompts, Prompt)
    for shard in shards:
        run.stage("generate").write_table(shard, source.read_table(shard))
    return run


def _pair(test: Test, prompt_id: str, low: str, high: str, for_low: int, for_high: int) -> Pair:
    systems, counts = ((low, high), (for_low, for_high)) if for_low >= for_high else ((high, low), (for_high, for_low))
    chosen, rejected = (test.clip(prompt_id, system) for system in systems)
    total, words = sum(counts), test.prompt(prompt_id).text
    reason = f"votes: {total} < {FEWEST}" if total < FEWEST else "order: as many votes for either"
    return Pair(
        id=content_id(STRATEGY, chosen.id, rejected.id),
        prompt_id=prompt_id,
        prompt=words,
        strategy=STRATEGY,
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        chosen_words=words,
        rejected_words=words,
        chosen_steps=chosen.steps,
        rejected_steps=rejected.steps,
        chosen_seed=chosen.seed,
        rejected_seed=rejected.seed,
        chosen_scores={"listeners": counts[0] / max(1, total)},
        rejected_scores={"listeners": counts[1] / max(1, total)},
        refused=reason if total < FEWEST or counts[0] == counts[1] else "",
    )


def _harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def _parquet(rows: Sequence[Record], kind: type[Record]) -> bytes:
    from io import BytesIO

    import pyarrow.parquet as pq

    buffer = BytesIO()
    pq.write_table(rows_to_table([row.model_dump() for row in rows], kind), buffer, compression="zstd")
    return buffer.getvalue()
