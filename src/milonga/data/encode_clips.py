"""Real clips with captions as the trainer's examples, for pre-training and fine-tuning (Eq. 4, §3.2).

As with pairs (`encode`) each clip passes the VAE once, its posterior is kept, and encoding stopped goes on. Mixes of
two clips (Eqs. 9-10) are made within a shard, as the original makes them within a batch, and are examples like others.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milonga.core.errors import DataError
from milonga.core.ids import content_id, derive_seed
from milonga.core.progress import tracked
from milonga.core.records import Refusal
from milonga.core.store import Run
from milonga.core.weights import fingerprint as weights_fingerprint
from milonga.data.codec import moments, wave_for
from milonga.data.recordings import Recording, clip_entries, count_entries, decoded, fingerprint
from milonga.data.texts import kept_texts
from milonga.models.load import pipeline

if TYPE_CHECKING:
    import pyarrow
    import torch

    from milonga.data.examples import CaptionedClips
    from milonga.models.tango import TangoPipeline

SHARD = 64  # rows of a source in a shard, which is what a stop may cost


def encoded_clips(
    model: str, source: str, work: Path, mixed: float = 0.0, compat: bool = False, seed: int = 0
) -> "CaptionedClips":
    """The clips of a source (`clip_sources`) as examples for the losses that need no loser.

    `mixed` asks for so many mixes for each real clip, drawn by `seed`; silent clips take no part in them. `compat` has
    the original's data path: first channel, its resampler, one peak for all mixes of a shard. `work` keeps what was
    encoded, in a folder named by the hashes of model, data and settings, with what was refused and why. A clip with
    several captions goes by one of them, drawn for each epoch. Raises RecipeError and DataError as `clip_entries` does,
    and DataError where no clip could be used.
    """
    key = content_id(weights_fingerprint(model), fingerprint(source), mixed, compat, seed if mixed else 0)
    run, whole = Run(work / key), pipeline(model)
    with run.lock():
        names = _encode(whole, source, run, mixed, compat, seed)
    return _examples(whole, run, names, seed)


def _encode(whole: "TangoPipeline", source: str, run: Run, mixed: float, compat: bool, seed: int) -> list[str]:
    """Every shard of captions and moments, those that are there left alone; their names, in order."""
    shards, names, rows = run.stage("encode"), [], clip_entries(source)
    with tracked("encode", count_entries(source)) as advance:
        while part := list(islice(rows, SHARD)):
            names.append(f"{len(names):05d}")
            if not shards.has(names[-1]):
                refused: list[Refusal] = []
                found = list(decoded(part, refused.append, "first" if compat else "mean"))
                table = _table(whole, found, mixed, compat, derive_seed(seed, "mixed", names[-1]))
                run.stage("refused/encode").write_records(names[-1], refused, Refusal)
                shards.write_table(names[-1], table)
            advance(len(part))
    return names


def _table(
    whole: "TangoPipeline", found: Sequence[Recording], mixed: float, compat: bool, seed: int
) -> "pyarrow.Table":
    """Captions and raw float16 moments of some recordings, and after them of their mixes."""
    import pyarrow as pa

    waves = [wave_for(whole, one.clip, compat) for one in found]
    captions = [list(one.captions) for one in found]
    if mixed:
        more, said = _mixes(whole, waves, captions, round(mixed * len(found)), compat, seed)
        waves, captions = waves + more, captions + said
    mean, logvar = moments(whole, waves) if waves else ((), ())
    packed = [pa.array([row.half().numpy().tobytes() for row in rows], pa.binary()) for rows in (mean, logvar)]
    return pa.table([pa.array(captions, pa.list_(pa.string())), *packed], names=["captions", "mean", "logvar"])


def _mixes(
    whole: "TangoPipeline", waves: Sequence[Any], captions: Sequence[list[str]], count: int, compat: bool, seed: int
) -> "tuple[list[torch.Tensor], list[list[str]]]":
    """Up to `count` mixes with their joined captions; with `compat` silence may not take part either."""
    import numpy as np
    import torch

    from milonga.maths.mixing import audible_pairs, joined, mixes

    rng = np.random.default_rng(seed)
    heard = [np.nan_to_num(wave.numpy()) for wave in waves]
    pairs = audible_pairs(heard, count, rng)
    made = [torch.from_numpy(wave) for wave in mixes(heard, pairs, whole.rate, compat)]
    drawn = [[captions[place][rng.integers(len(captions[place]))] for place in pair] for pair in pairs]
    return made, [[joined(*two)] for two in drawn]


def _examples(whole: "TangoPipeline", run: Run, names: Sequence[str], seed: int) -> "CaptionedClips":
    import numpy as np
    import torch

    from milonga.data.examples import CaptionedClips, Moments

    shape, shards = whole.latent_shape(whole.config["seconds"]), run.stage("encode")
    columns: dict[str, list[Any]] = {"captions": [], "mean": [], "logvar": []}
    for name in names:
        for column, values in shards.read_table(name, list(columns)).to_pydict().items():
            columns[column] += values
    if not columns["captions"]:
        reasons = run.stage("refused/encode").read_records(Refusal)
        raise DataError(f"none of {len(reasons)} clips could be used; the first: {reasons[0].reason}")
    mean, logvar = (
        torch.from_numpy(np.stack([np.frombuffer(row, np.float16).reshape(shape) for row in columns[column]]))
        for column in ("mean", "logvar")
    )

    def say(index: int, epoch: int) -> str:
        said = columns["captions"][index]
        return said[derive_seed(seed, "caption", index, epoch) % len(said)]

    encode = kept_texts(whole, run, [text for said in columns["captions"] for text in said])
    return CaptionedClips(Moments(mean, logvar, whole.vae.config.scaling_factor), say, encode, seed)
