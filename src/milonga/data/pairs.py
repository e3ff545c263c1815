"""Preference pairs with their clips, wherever they are stored, and Table 2 of the paper over them.

`read_pairs` opens a run folder, a data set in Audio-alpaca's layout (a folder or file of Parquet), or a
`datasets.Dataset`; all of them give a `PairDataset`, which training, export and the Hub take.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milonga.core.audio import from_flac
from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.records import Pair, Prompt, Record, Request
from milonga.core.store import Run, read_manifest
from milonga.data.audio_alpaca import (
    Origin,
    PairedClips,
    alpaca_files,
    alpaca_table,
    count_pairs,
    paired_clips,
    read_alpaca,
)
from milonga.data.corrections import run_pairs

if TYPE_CHECKING:
    import pyarrow

RECENT = 4  # shards of clips that are kept in memory: winner and loser were planned near each other
# The conditions of a pair, in the order in which they are checked; a refused pair names the first that fails.
CONDITIONS = (
    "not a number", "order", "min_winner_score", "min_loser_score", "min_margin", "max_margin", "worst",
)  # fmt: skip


class Row(Record):
    """A row of Table 2: how many pairs were kept, and their mean scores by one scorer (None where there are none)."""

    strategy: str
    n: int
    winner: float | None
    loser: float | None
    delta: float | None


def kept_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs that were not refused."""
    return [pair for pair in pairs if not pair.refused]


def refusals(pairs: Iterable[Pair]) -> dict[str, int]:
    """How many pairs each of `CONDITIONS` refused; reasons of other kinds (votes) are counted after them."""
    counts: dict[str, int] = dict.fromkeys(CONDITIONS, 0)
    for pair in pairs:
        if pair.refused:
            condition = pair.refused.partition(":")[0]
            counts[condition] = counts.get(condition, 0) + 1
    return counts


def table2(pairs: Sequence[Pair], scorer: str) -> list[Row]:
    """Table 2 for the kept pairs: one row per strategy (also of those that kept none), then "Overall"."""
    kept_all = kept_pairs(pairs)
    rows = []
    for name in [*sorted({pair.strategy for pair in pairs}), "Overall"]:
        own = kept_all if name == "Overall" else [pair for pair in kept_all if pair.strategy == name]
        if not own:
            rows.append(Row(strategy=name, n=0, winner=None, loser=None, delta=None))
            continue
        winner = sum(pair.chosen_scores[scorer] for pair in own) / len(own)
        loser = sum(pair.rejected_scores[scorer] for pair in own) / len(own)
        rows.append(Row(strategy=name, n=len(own), winner=winner, loser=loser, delta=winner - loser))
    return rows


def score_gaps(pairs: Sequence[Pair]) -> list[float]:
    """By how much each winner beats its loser: the mean over scorers of the margin in units of their mean margin.

    A margin below zero, of a scorer that prefers the loser, counts as none; where all do, as in a pair that a person
    swapped, the gap is that of a typical pair. The mean over pairs is 1; a pair that no scorer scored has NaN.
    """
    margins = [
        {
            name: max(0.0, margin)
            for name in pair.chosen_scores.keys() & pair.rejected_scores.keys()
            if math.isfinite(margin := pair.chosen_scores[name] - pair.rejected_scores[name])
        }
        for pair in pairs
    ]
    typical = [own for own in margins if any(own.values())]
    means = {
        name: sum(own[name] for own in typical if name in own) / sum(name in own for own in typical)
        for name in {name for own in typical for name in own}
    }
    gaps = [
        (sum(own[name] / means[name] if means.get(name) else 0.0 for name in sorted(own)) / len(own) or 1.0)
        if own
        else math.nan
        for own in margins
    ]
    known = [gap for gap in gaps if not math.isnan(gap)]
    scale = sum(known) / len(known) if known else 1.0
    return [gap / scale for gap in gaps]


class PairDataset:
    """Preference pairs with their clips; `len` counts them, and iterating decodes their clips pair by pair.

    `refused` holds the pairs that were refused, each with its reason, where they are known. Damaged files raise
    StoreError or DataError when they are read.
    """

    run: Run | None = None
    refused: Sequence[Pair] = ()
    where: str = "the pairs"

    def __iter__(self) -> Iterator[PairedClips]:
        raise NotImplementedError

    def to_dataset(self) -> Any:
        """A `datasets.Dataset` in Audio-alpaca's layout (prompt, chosen, rejected, strategy, …), audio included.

        Raises RecipeError where the library `datasets` is not installed.
        """
        raise NotImplementedError

    @cached_property
    def pairs(self) -> list[Pair]:
        """The records of the pairs, in order, without their clips."""
        return [row.pair for row in self]

    def __len__(self) -> int:
        return len(self.pairs)

    def table2(self, scorer: str | None = None) -> list[Row]:
        """Table 2 of the paper by one scorer (None: the first by name): pairs, winner, loser and Δ per strategy.

        Raises DataError where the pairs have no score by it.
        """
        pairs = [*self.pairs, *self.refused]
        scorers = sorted(set.intersection(*(set(pair.chosen_scores) for pair in pairs))) if pairs else []
        if not scorers or (scorer or scorers[0]) not in scorers:
            known = ", ".join(scorers) or "none"
            raise DataError(f"{self.where}: there are no scores by {scorer or 'any scorer'} (scorers: {known})")
        return table2(pairs, scorer or scorers[0])


class RunPairs(PairDataset):
    """The kept pairs of a run folder, in the order of its plan, so that a pair's clips lie in few shards."""

    def __init__(self, run: Run) -> None:
        """Raises StoreError for a folder without pairs."""
        self.run, self.where, self._clips = run, str(run.path), ClipBytes(run)
        if not run.stage("pair").names():
            raise StoreError(f"{run.path} holds no pairs: run it until `pair`")
        stored = run_pairs(run)
        self._accepted, self.refused = kept_pairs(stored), [pair for pair in stored if pair.refused]

    @cached_property
    def places(self) -> "dict[str, Planned]":
        """Where each clip is, by its id."""
        return planned(self.run) if self.run else {}

    @cached_property
    def pairs(self) -> list[Pair]:
        """The records of the kept pairs, in the order of the plan."""
        return sorted(
            self._accepted, key=lambda pair: (self._at(pair.chosen_id).place, pair.strategy, pair.rejected_id)
        )

    @cached_property
    def origin(self) -> Origin:
        """The model and scorers that made the pairs, with the hashes of their weights (people's pairs: none)."""
        assert self.run is not None
        manifest = read_manifest(self.run)
        if manifest is None:
            return Origin(
                "", "", dict.fromkeys(sorted({name for pair in self.pairs for name in pair.chosen_scores}), "")
            )
        return origin_of(manifest)

    def __iter__(self) -> Iterator[PairedClips]:
        for pair in self.pairs:
            audio, _ = self._material([pair])
            yield PairedClips(pair, from_flac(audio[pair.chosen_id]), from_flac(audio[pair.rejected_id]))

    def table(self, pairs: Sequence[Pair]) -> "pyarrow.Table":
        """Some of the pairs as a table of Audio-alpaca's layout, with everything that made their clips."""
        return alpaca_table(pairs, *self._material(pairs), self.origin)

    def to_dataset(self) -> Any:
        """A `datasets.Dataset` of the kept pairs, held in memory; `milonga export` writes sets of any size to disk."""
        if not self.pairs:
            raise DataError(f"{self.where} holds no kept pair: loosen its thresholds by `milonga pair`")
        return _datasets().Dataset(self.table(self.pairs))

    def _material(self, pairs: Sequence[Pair]) -> tuple[dict[str, bytes], dict[str, float]]:
        """The FLAC bytes and the guidance of the pairs' clips, by clip id."""
        ids = dict.fromkeys(clip for pair in pairs for clip in (pair.chosen_id, pair.rejected_id))
        audio = {clip: self._clips.get(clip, self._at(clip).shard) for clip in ids}
        return audio, {clip: self.places[clip].guidance for clip in ids}

    def _at(self, clip: str) -> "Planned":
        if clip not in self.places:
            raise DataError(
                f"clip {clip} is in no shard of the plan: the run's pairs and its plan do not belong together"
            )
        return self.places[clip]


class FilePairs(PairDataset):
    """The pairs of Parquet files in Audio-alpaca's layout, read a few at a time."""

    def __init__(self, path: Path, split: str | None = None) -> None:
        """`split` takes the files whose names begin so (`train`). Raises DataError where there are none."""
        self.path, self.split, self.where = path, split, str(path)
        self.files = alpaca_files(path, split)

    def __len__(self) -> int:
        return count_pairs(self.files)

    def __iter__(self) -> Iterator[PairedClips]:
        return read_alpaca(self.path, self.split)

    def to_dataset(self) -> Any:
        """A `datasets.Dataset` of the files, mapped from disk."""
        return _datasets().Dataset.from_parquet([str(file) for file in self.files])


class LoadedPairs(PairDataset):
    """The rows of a `datasets.Dataset` in Audio-alpaca's layout."""

    def __init__(self, dataset: Any) -> None:
        """Raises DataError for a data set without the columns of pairs."""
        missing = sorted({"prompt", "chosen", "rejected"} - set(dataset.column_names))
        if missing:
            raise DataError(f"the data set has no column {', '.join(missing)}: it holds no pairs")
        self._dataset, self.where = dataset, "the data set"

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[PairedClips]:
        plain = self._dataset
        for side in ("chosen", "rejected"):
            plain = plain.cast_column(side, _datasets().Audio(decode=False))
        for number, row in enumerate(plain):
            yield paired_clips(row, f"{self.where}, row {number}")

    def to_dataset(self) -> Any:
        """The data set itself."""
        return self._dataset


def read_pairs(source: Any, split: str | None = None) -> PairDataset:
    """The pairs of a run folder, of Parquet in Audio-alpaca's layout (`split`: of that split's files), or of a
    `datasets.Dataset`; a `PairDataset` comes back as it is.

    Raises StoreError or DataError where `source` holds no pairs.
    """
    if isinstance(source, PairDataset):
        return source
    if isinstance(source, str | Path):
        if (Path(source) / "pair").is_dir():
            return RunPairs(Run(Path(source)))
        return FilePairs(Path(source), split)
    return LoadedPairs(source)


def origin_of(manifest: Mapping[str, Any]) -> Origin:
    """The model and scorers of a run's manifest."""
    try:
        hashes = manifest["fingerprints"]["models"]
        return Origin(manifest["recipe"]["models"]["model"], hashes["model"], hashes["scorers"])
    except KeyError as error:
        raise StoreError(f"the run's manifest.json does not say {error}: run it again with `milonga run`") from error


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise RecipeError("a datasets.Dataset needs its library: pip install 'milonga[data]'") from error
    return datasets


@dataclass(frozen=True)
class Planned:
    """Where a clip is: its place in the plan, the shard that holds it, and its guidance."""

    place: int
    shard: str
    guidance: float


class ClipBytes:
    """The FLAC bytes of a run's clips by id, read shard by shard; the last few shards stay in memory."""

    def __init__(self, run: Run) -> None:
        self._shards, self._recent = run.stage("generate"), OrderedDict[str, dict[str, bytes]]()

    def get(self, clip: str, shard: str) -> bytes:
        """One clip's file; DataError when its shard does not hold it."""
        if shard not in self._recent:
            rows = self._shards.read_table(shard, ["id", "audio"]).to_pylist()
            self._recent[shard] = {row["id"]: row["audio"]["bytes"] for row in rows}
        self._recent.move_to_end(shard)
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        if clip not in self._recent[shard]:
            raise DataError(f"{self._shards.path}: shard {shard} lacks clip {clip}; delete it and run again")
        return self._recent[shard][clip]


def planned(run: Run) -> dict[str, Planned]:
    """Where every clip of a run is, by its id: the shards of clips are named after the plan's.

    A folder of pairs that people chose has no plan; its clips are looked up, and their guidance is 0.
    """
    plan, clips = run.stage("plan"), run.stage("generate")
    places: dict[str, Planned] = {}
    for shard in plan.names() or clips.names():
        if plan.names():
            table = plan.read_table(shard, ["id", "guidance"])
            rows = zip(table["id"].to_pylist(), table["guidance"].to_pylist(), strict=True)
        else:
            rows = ((clip, 0.0) for clip in clips.read_table(shard, ["id"])["id"].to_pylist())
        for clip, guidance in rows:
            places[clip] = Planned(len(places), shard, guidance)
    return places


def evaluation_requests(run: Run) -> list[tuple[Prompt, Request]]:
    """The held-out prompts of an evaluated run, each with the requests, one after the other, that its systems answer.

    Raises StoreError when the folder is no run.
    """
    manifest = read_manifest(run)
    if manifest is None:
        raise StoreError(f"{run.path} is no run folder: make one with `milonga run RECIPE --out {run.path}`")
    recipe, prompts = manifest["recipe"], run.stage("evaluate/prompts").read_records(Prompt)
    steps, guidance = recipe["evaluate"]["steps"], recipe["evaluate"]["guidance"]
    numbers = range(recipe["evaluate"].get("noises", 1))
    return [
        (prompt, Request.of(recipe["seed"], prompt, prompt.text, steps, guidance, number))
        for number in numbers
        for prompt in prompts
    ]
