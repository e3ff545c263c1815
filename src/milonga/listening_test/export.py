"""Ratings as a table, as preference pairs, as KTO labels. Excluded raters appear in the table only."""

import csv
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path

from milonga.core.arrow import rows_to_table
from milonga.core.errors import DataError, StoreError
from milonga.core.records import Candidate, Label, Pair, Prompt, Rating, Record, Request
from milonga.core.store import Run, Shards, write_bytes
from milonga.listening_test.records import ScreenedRating, Test
from milonga.listening_test.screening import Verdict

STRATEGY = "listening"
HUMAN_PREFERENCE = "human_preference"  # the score of pairs that people judged: a share of votes
RISKY = tuple("=+-@\t\r")  # first letters with which a spreadsheet would run a cell
ONE = "00000-of-00001"
MIN_VOTES = 2  # votes for a pair, raters for a label: one opinion is not enough
DESIRABLE, UNDESIRABLE = 3.5, 2.5  # mean of OVL and REL: the lowest desirable, the highest undesirable


def screened(ratings: Sequence[Rating], verdicts: Sequence[Verdict]) -> list[ScreenedRating]:
    """Every rating with the reason why its rater is excluded."""
    reasons = {verdict.rater: verdict.excluded for verdict in verdicts}
    return [ScreenedRating(**rating.model_dump(), excluded=reasons.get(rating.rater, "")) for rating in ratings]


def as_csv(rows: Sequence[Record], kind: type[Record]) -> str:
    """Records as CSV with a header; None is empty, and text that a spreadsheet would execute is quoted."""
    out = StringIO()
    writer = csv.DictWriter(out, list(kind.model_fields), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = row.model_dump()
        risky = [name for name, value in values.items() if isinstance(value, str) and value.startswith(RISKY)]
        writer.writerow(values | {name: f"'{values[name]}" for name in risky})
    return out.getvalue()


def write_table(rows: Sequence[Record], kind: type[Record], out: Path) -> Path:
    """Writes records of one kind as `.csv` or `.parquet`, by the suffix of `out`; DataError for another suffix."""
    if out.suffix == ".csv":
        write_bytes(out, as_csv(rows, kind).encode())
    elif out.suffix == ".parquet":
        import pyarrow.parquet as pq

        buffer = BytesIO()
        pq.write_table(rows_to_table([row.model_dump() for row in rows], kind), buffer, compression="zstd")
        write_bytes(out, buffer.getvalue())
    else:
        raise DataError(f"{out}: a table is written as .csv or .parquet")
    return out


def pairs(test: Test, ratings: Sequence[Rating]) -> list[Pair]:
    """A pair for each prompt and two systems that were compared: the one with more votes wins.

    Ties are not votes. With fewer than two votes, or as many for either, the pair is refused with that reason. The
    score `human_preference` is the share of votes. Pass only ratings that count: no checks, no excluded raters.
    """
    votes: dict[tuple[str, str, str], list[int]] = {}
    for rating in ratings:
        if rating.kind == "compare":
            low, high = sorted((rating.a, rating.b))
            count = votes.setdefault((rating.prompt_id, low, high), [0, 0])
            if rating.better != "same":
                count[int((rating.a if rating.better == "a" else rating.b) == high)] += 1
    return [_pair(test, *key, *count) for key, count in sorted(votes.items())]


def labels(test: Test, ratings: Sequence[Rating]) -> list[Label]:
    """A label for each clip with a clear opinion of two raters or more.

    A clip is desirable where the mean of OVL and REL is at least 3.5, undesirable where it is at most 2.5; clips
    between get no label. Pass only ratings that count, as for `pairs`.
    """
    by_clip: dict[tuple[str, str], list[float]] = {}
    for rating in ratings:
        if rating.ovl is not None and rating.rel is not None:
            by_clip.setdefault((rating.prompt_id, rating.a), []).append((rating.ovl + rating.rel) / 2)
    rows = []
    for (prompt_id, system), opinions in sorted(by_clip.items()):
        opinion, prompt = sum(opinions) / len(opinions), test.prompt(prompt_id)
        if len(opinions) >= MIN_VOTES and not UNDESIRABLE < opinion < DESIRABLE:
            rows.append(Label(
                id=test.clip(prompt_id, system).id, prompt_id=prompt_id, prompt=prompt.text, system=system,
                desirable=opinion >= DESIRABLE, opinion=opinion, raters=len(opinions),
            ))  # fmt: skip
    return rows


def write_pairs(
    source: Shards, shards: Sequence[str], prompts: Sequence[Prompt], pairs: Sequence[Pair], out: Path
) -> Path:
    """Writes a run folder with `prompts`, `generate`, `pair` and `refused`, from which training can start.

    The clips are those of the named shards. DataError where every pair is refused.
    """
    if all(pair.refused for pair in pairs):
        raise DataError("no clip is preferred to another by two votes or more, or kept in the studio: collect more")
    run = _new_run(source, shards, prompts, out)
    run.stage("refused").write_records(ONE, [pair for pair in pairs if pair.refused], Pair)
    run.stage("pair").write_records(ONE, [pair for pair in pairs if not pair.refused], Pair)
    return out


def write_labels(
    source: Shards, shards: Sequence[str], prompts: Sequence[Prompt], labels: Sequence[Label], out: Path
) -> Path:
    """Writes a run folder with `prompts`, `generate` and `label`, one label per clip. DataError without a label."""
    if not labels:
        raise DataError("no clip is clearly good or bad by two raters or more, or decided in the studio: collect more")
    _new_run(source, shards, prompts, out).stage("label").write_records(ONE, labels, Label)
    return out


def _new_run(source: Shards, shards: Sequence[str], prompts: Sequence[Prompt], out: Path) -> Run:
    """A new run folder with the prompts and the original clips, latents included."""
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
    total, prompt = sum(counts), test.prompt(prompt_id)
    refused = ""
    if total < MIN_VOTES:
        refused = f"votes: {total} < {MIN_VOTES}"
    elif counts[0] == counts[1]:
        refused = "order: as many votes for either"
    winner, loser = (
        Candidate(
            request=Request(
                id=clip.id, prompt_id=prompt_id, prompt=prompt.text, words=prompt.text, strategies=(STRATEGY,),
                steps=clip.steps, guidance=0.0, number=0, seed=clip.seed,
            ),
            scores={HUMAN_PREFERENCE: votes / max(1, total)},
        )
        for clip, votes in ((chosen, counts[0]), (rejected, counts[1]))
    )  # fmt: skip
    return Pair.of(winner, loser, STRATEGY, refused)
