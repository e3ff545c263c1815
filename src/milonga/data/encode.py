"""A data set in Audio-alpaca's layout as the trainer's examples: encoded once by a model's VAE, and kept.

The original encodes every clip again in every step of every epoch. Here each clip passes the VAE once; what is kept
are the moments of its posterior, from which every epoch samples anew, as the original does. Encoding goes shard by
shard: stopped, it goes on.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milonga.core.ids import content_id, file_hash
from milonga.core.progress import tracked
from milonga.core.records import Pair
from milonga.core.store import Run, shard_name
from milonga.core.weights import fingerprint
from milonga.data.audio_alpaca import PairedClips, alpaca_files, count_pairs, read_alpaca
from milonga.data.codec import moments, wave_for
from milonga.data.texts import kept_texts
from milonga.models.load import pipeline

if TYPE_CHECKING:
    import pyarrow

    from milonga.data.examples import PairExamples
    from milonga.models.tango import TangoPipeline

SHARD = 64  # pairs in a shard, which is what a stop may cost
MOMENTS = ("winner_mean", "winner_logvar", "loser_mean", "loser_logvar")


def encoded_pairs(
    model: str, data: Path, work: Path, split: str | None = None, seed: int = 0
) -> "tuple[list[Pair], PairExamples]":
    """The pairs of a data set and, in the same order, what the trainer takes of them.

    `model` is a name or folder as in a recipe. `work` keeps what was encoded, in a folder named by the hashes of the
    model and of the data, so that neither can be mistaken for others. Clips are resampled to the model's rate, brought
    to a peak of 0.5 and cut or padded to its length, as the original does. Raises DataError as `read_alpaca` does.
    """
    files = alpaca_files(data, split)
    key = content_id(fingerprint(model), [[file.name, file_hash(file)] for file in files])
    run, total = Run(work / key), count_pairs(files)
    names = [shard_name(place, -(-total // SHARD)) for place in range(-(-total // SHARD))]
    whole = pipeline(model)
    with run.lock():
        _encode(whole, _chunks(read_alpaca(data, split)), run, names, total)
    pairs = run.stage("pair").read_records(Pair, names)
    captions, groups = [pair.prompt for pair in pairs], [pair.strategy for pair in pairs]
    return pairs, _examples(whole, run, names, captions, groups, seed)


def _chunks(pairs: Iterator[PairedClips]) -> Iterator[list[PairedClips]]:
    while part := list(islice(pairs, SHARD)):
        yield part


def _encode(
    whole: "TangoPipeline", chunks: Iterator[list[PairedClips]], run: Run, names: Sequence[str], total: int
) -> None:
    """Every chunk's pairs and moments, those that are there left alone; the moments come last and vouch for both."""
    shards = run.stage("encode")
    if all(shards.has(name) for name in names):
        return
    with tracked("encode", total) as advance:
        for name, part in zip(names, chunks, strict=True):
            if not shards.has(name):
                run.stage("pair").write_records(name, [one.pair for one in part], Pair)
                shards.write_table(name, _moments(whole, part))
            advance(len(part))


def _moments(whole: "TangoPipeline", part: Sequence[PairedClips]) -> "pyarrow.Table":
    """A table of MOMENTS, each row the raw float16 of an array of the model's latent shape."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for role, clips in (("winner", [one.chosen for one in part]), ("loser", [one.rejected for one in part])):
        found = moments(whole, [wave_for(whole, clip) for clip in clips])
        for name, rows in zip(("mean", "logvar"), found, strict=True):
            columns[f"{role}_{name}"] = pa.array([row.half().numpy().tobytes() for row in rows], pa.binary())
    return pa.table(columns)


def _examples(
    whole: "TangoPipeline", run: Run, names: Sequence[str], captions: Sequence[str], groups: Sequence[str], seed: int
) -> "PairExamples":
    import numpy as np
    import torch

    from milonga.data.examples import Moments, PairExamples

    shape, shards = whole.latent_shape(whole.config["seconds"]), run.stage("encode")
    held: dict[str, list[Any]] = {name: [] for name in MOMENTS}
    for name in names:
        for column, values in shards.read_table(name, list(MOMENTS)).to_pydict().items():
            held[column] += [np.frombuffer(row, dtype=np.float16).reshape(shape) for row in values]
    packed = {column: torch.from_numpy(np.stack(rows)) for column, rows in held.items()}
    winners, losers = (
        Moments(packed[f"{role}_mean"], packed[f"{role}_logvar"], whole.vae.config.scaling_factor)
        for role in ("winner", "loser")
    )
    return PairExamples(winners, losers, *kept_texts(whole, run, captions)(captions), seed=seed, groups=groups)
