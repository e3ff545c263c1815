"""From data to tensors: pairs, captioned clips and captions, each encoded once by a model and stored.

The original Tango encodes every clip again in every step of every epoch. Here each clip and mix passes it once;
what is stored is its posterior, from which every epoch samples anew, as the original does. Encoding goes shard by
shard and resumes where it was stopped.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milonga.core.audio import clips_of
from milonga.core.errors import DataError
from milonga.core.ids import content_id, derive_seed, file_hash
from milonga.core.progress import tracked
from milonga.core.records import Clip, Pair, Refusal
from milonga.core.store import Run, cut, read_manifest, shard_name
from milonga.data.audio_alpaca import alpaca_files, checked_pairs, clips_by_path, count_pairs
from milonga.data.corrections import run_pairs
from milonga.data.pairs import kept_pairs, score_gaps
from milonga.data.recordings import (
    Recording,
    clip_entries,
    count_entries,
    decoded,
    file_hashes,
    fingerprint,
    report_left_out,
)

if TYPE_CHECKING:
    import pyarrow
    import torch

    from milonga.data.examples import CaptionedClips, Latents, PairExamples
    from milonga.models.denoiser import Conditioning, ConditioningRows, Denoiser, Posterior

SHARD = 64  # rows of a source in a shard: what is encoded again after a stop
MIXES = "mixes/{:03d}"  # the stage of an epoch's mixes; the first epoch's are beside the clips
LONGEST = 300.0  # seconds of a recording that are decoded at most: no model is trained on more
CAPTION_SHARD = 256  # captions in a shard
SECONDS = "clip_seconds"  # of `Conditioning`: the length of a clip, for models that are told it


def encode_pairs(
    denoiser: "Denoiser", data: Path, work: Path, split: str | None = None, seed: int = 0, allow_missing: bool = False
) -> "tuple[list[Pair], PairExamples]":
    """The pairs of a data set in Audio-alpaca's layout and, in the same order, the training examples of them.

    Encoded shards are stored in `work`, in a folder named by the hashes of the model and of the data. Clips are
    resampled to the model's rate, brought to a peak of 0.5 and cut or padded to its length, as in the original. Pairs
    that cannot be used are left out and reported. Raises DataError as `checked_pairs` and `report_left_out` do.
    """
    from milonga.data.examples import PairExamples

    files = alpaca_files(data, split)
    total, rows = count_pairs(files), checked_pairs(data, split, LONGEST)
    if not total:
        raise DataError(f"{data} holds no pairs")
    clips = clips_by_path(files)
    known = [[file.name, file_hash(file)] for file in files]
    places = [os.path.relpath(clip, files[0].parent) for clip in clips]
    known += [[place, digest] for place, digest in zip(places, file_hashes(clips), strict=True)]
    run = Run(work / content_id(denoiser.fingerprint, known))
    names = [shard_name(place, -(-total // SHARD)) for place in range(-(-total // SHARD))]
    shards = run.stage("encode")
    with run.lock():
        if not all(shards.has(name) for name in names):
            with tracked("encode", total) as advance:
                for name in names:
                    part = list(islice(rows, SHARD))
                    if not shards.has(name):  # the posteriors come last and vouch for the rest
                        usable = [row for row in part if not isinstance(row, Refusal)]
                        refused = [row for row in part if isinstance(row, Refusal)]
                        run.stage("pair").write_records(name, [row.pair for row in usable], Pair)
                        run.stage("refused/encode").write_records(name, refused, Refusal)
                        winners = _posteriors(denoiser, [row.chosen for row in usable], "winner_")
                        losers = _posteriors(denoiser, [row.rejected for row in usable], "loser_")
                        table = _table(winners | losers)
                        shards.write_table(name, _add_seconds(denoiser, table, [row.chosen for row in usable]))
                    advance(len(part))
    report_left_out(_refused(run), total, run.path / "refused", allow_missing, "pairs", str(data))
    pairs = run.stage("pair").read_records(Pair, names)
    winner, loser = (_read_posteriors(denoiser, run, names, prefix) for prefix in ("winner_", "loser_"))
    captions = [pair.prompt for pair in pairs]
    seconds = _read_seconds(denoiser, run, names)
    conditioning = encode_captions(denoiser, run, captions).rows(captions).with_seconds(seconds)
    gaps, strategies, regions = score_gaps(pairs), [pair.strategy for pair in pairs], region_rows(denoiser, pairs)
    return pairs, PairExamples(winner, loser, conditioning, seed=seed, groups=strategies, gaps=gaps, regions=regions)


def region_rows(denoiser: "Denoiser", pairs: Sequence[Pair]) -> "torch.Tensor | None":
    """The rows of latents (N, rows) bool that pairs' regions touch, all of a pair without one; None where none has one.

    Raises DataError for a region after the model's length.
    """
    import torch

    from milonga.models.editing import samples_per_row

    if not any(pair.region for pair in pairs):
        return None
    count, row = denoiser.latent_shape[denoiser.time_axis], samples_per_row(denoiser) / denoiser.sampling_rate
    regions = torch.ones(len(pairs), count, dtype=torch.bool)
    places = torch.arange(count)
    for inside, pair in zip(regions, pairs, strict=True):
        if pair.region:
            inside &= (places >= math.floor(pair.region[0] / row)) & (places < math.ceil(pair.region[1] / row))
        if not inside.any():
            raise DataError(f"pair {pair.id} differs after {count * row:g} s, which this model does not see: drop it")
    return regions


def encode_run_pairs(denoiser: "Denoiser", run: Run, work: Path) -> "PairExamples":
    """The kept pairs of a run folder as training examples.

    The clips' latents as they were sampled are used where the run's model is the denoiser's; else the clips pass the
    autoencoder. Raises DataError where no pair was kept.
    """
    pairs = kept_pairs(run_pairs(run))
    if not pairs:
        raise DataError(f"{run.path} holds no kept pair: loosen its thresholds by `milonga pair`")
    ids = [pair.chosen_id for pair in pairs] + [pair.rejected_id for pair in pairs]
    manifest = read_manifest(run)
    made_by = manifest["fingerprints"]["models"]["model"] if manifest else denoiser.fingerprint
    latents_of = run_latents if made_by == denoiser.fingerprint else _encoded_clips
    return pair_examples(denoiser, run, pairs, work, latents_of(denoiser, run, ids))


def pair_examples(
    denoiser: "Denoiser", run: Run, pairs: Sequence[Pair], work: Path, latents: "Latents | None" = None
) -> "PairExamples":
    """Pairs of a run's clips with encoded captions, and `latents` of all winners and then all losers.

    None are those that they were sampled with; where a clip has none, as an edit has none, all clips pass the
    autoencoder, and DataError is raised where a clip has latents of another model.
    """
    from milonga.data.examples import PairExamples

    winners, losers = ([getattr(pair, name) for pair in pairs] for name in ("chosen_id", "rejected_id"))
    if latents is None:
        latents = run_latents(denoiser, run, winners + losers, one_model=True)
    captions, strategies = ([getattr(pair, name) for pair in pairs] for name in ("prompt", "strategy"))
    return PairExamples(
        latents[: len(pairs)], latents[len(pairs) :], run_conditioning(denoiser, run, work, winners, captions),
        groups=strategies, captions=captions, gaps=score_gaps(pairs), regions=region_rows(denoiser, pairs),
    )  # fmt: skip


def run_conditioning(
    denoiser: "Denoiser", run: Run, work: Path, ids: Sequence[str], captions: Sequence[str]
) -> "ConditioningRows":
    """The captions of N clips of a run, each encoded once and stored in `work`; with the clips' own lengths, where the
    model is told lengths."""
    conditioning = encode_captions(denoiser, Run(work / denoiser.fingerprint), captions).rows(captions)
    if not captions or SECONDS not in conditioning.parts[0]:
        return conditioning
    lengths = _run_seconds(run, set(ids))
    return conditioning.with_seconds([lengths[clip] for clip in ids])


def encode_clips(
    denoiser: "Denoiser",
    source: str,
    work: Path,
    mix_ratio: float = 0.0,
    legacy: bool = False,
    seed: int = 0,
    allow_missing: bool = False,
    mix_epochs: int = 1,
) -> "CaptionedClips":
    """The clips of a source (`recordings.clip_entries`) as examples for the losses that need no loser (Eq. 4, §3.2).

    `mix_ratio` adds that many mixes of two clips (Eqs. 9-10) for each real clip, drawn by `seed` within a shard, as the
    original mixes within a batch; silent clips take no part. `mix_epochs` epochs have mixes of their own, which depend
    on `seed` and the epoch alone; later epochs take theirs in turn. `legacy` takes the original's data path: first
    channel, its resampler, one peak for all mixes of a shard. Encoded shards are stored in `work`, in a folder named by
    the hashes of model, data and settings, with the refused clips and why. A clip with several captions is trained on
    one of them, drawn for each epoch. Clips that cannot be used are left out and reported. Raises RecipeError and
    DataError as `clip_entries` and `report_left_out` do.
    """
    key = content_id(denoiser.fingerprint, fingerprint(source), mix_ratio, legacy, seed if mix_ratio else 0)
    run = Run(work / key)
    stages = [MIXES.format(epoch) if epoch else "encode" for epoch in range(mix_epochs if mix_ratio else 1)]
    names, entries, total = list[str](), clip_entries(source), 0
    with run.lock(), tracked("encode", count_entries(source)) as advance:
        while part := list(islice(entries, SHARD)):
            name = f"{len(names):05d}"
            missing = [epoch for epoch, stage in enumerate(stages) if not run.stage(stage).has(name)]
            if missing:
                refused: list[Refusal] = []
                recordings = decoded(part, refused.append, "first" if legacy else "all", LONGEST)
                seeds = {epoch: derive_seed(seed, "mixed", name, *([epoch] if epoch else [])) for epoch in missing}
                for epoch, table in _clips_tables(denoiser, recordings, mix_ratio, legacy, seeds):
                    run.stage("refused/encode").write_records(name, refused, Refusal)
                    run.stage(stages[epoch]).write_table(name, table)
            names.append(name)
            total += len(part)
            advance(len(part))
    if not total:
        raise DataError(f"{source} holds no clips with captions")
    report_left_out(_refused(run), total, run.path / "refused", allow_missing, source=source)
    return _read_clips(denoiser, run, names, stages, seed)


def _read_clips(
    denoiser: "Denoiser", run: Run, names: Sequence[str], stages: Sequence[str], seed: int
) -> "CaptionedClips":
    """Encoded clips and their mixes of all epochs; the first of `stages` has the clips, and after them its mixes."""
    import torch

    from milonga.data.examples import CaptionedClips
    from milonga.models.denoiser import Posterior

    sizes = [[run.stage(stage).rows(name) for name in names] for stage in stages]
    if not any(sizes[-1]):  # no two clips that could be mixed
        sizes, stages = sizes[:1], stages[:1]
    parts = [_read_posteriors(denoiser, run, names, stage=stage) for stage in stages]
    mean, logvar = (torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "logvar"))
    posterior = Posterior(mean, logvar, denoiser.latent_scale)
    tables = [run.stage(stage).read_table(name, ["captions"]) for stage in stages for name in names]
    captions = [row for table in tables for row in table["captions"].to_pylist()]
    encode_text = encode_captions(denoiser, run, [text for texts in captions for text in texts])
    seconds = [length for stage in stages for length in _read_seconds(denoiser, run, names, stage)]
    # The rows of each example: a clip has one, a mix one of each epoch.
    rows, further = list[list[int]](), [sum(map(sum, sizes[:number])) for number in range(1, len(stages))]
    for place, size in enumerate(sizes[0]):
        mixed = sizes[1][place] if further else 0
        rows += [[len(rows) + number] for number in range(size)]
        for number in range(mixed):
            rows[number - mixed] += [start + number for start in further]
        further = [start + mixed for start in further]
    return CaptionedClips(posterior, captions, encode_text, seed, seconds, rows)


class EncodedCaptions:
    """A function from some of the captions that it knows to their conditioning, padded to the longest of them."""

    def __init__(self, known: "dict[str, Conditioning]") -> None:
        self._known = known

    def __call__(self, texts: Sequence[str]) -> "Conditioning":
        """The conditioning of these captions, in this order."""
        return self.rows(texts).take(range(len(texts)))

    def rows(self, texts: Sequence[str]) -> "ConditioningRows":
        """The same caption by caption, without padding; a caption that comes several times is there once."""
        from milonga.models.denoiser import ConditioningRows

        return ConditioningRows([self._known[text] for text in texts])


def encode_captions(denoiser: "Denoiser", run: Run, captions: Sequence[str]) -> EncodedCaptions:
    """What gives some of these captions their conditioning, float32.

    Each caption is encoded alone, so its conditioning depends on nothing else, and stored in `run`, in shards named by
    the captions. A run belongs to one model.
    """
    unique = sorted(set(captions))
    shards = run.stage(f"texts/{content_id(unique)}")
    parts = cut(unique, CAPTION_SHARD)
    missing = [name for name in parts if not shards.has(name)]
    if missing:
        with tracked("encode captions", sum(len(parts[name]) for name in missing)) as advance:
            for name in missing:
                shards.write_table(name, _captions_table(denoiser, parts[name]))
                advance(len(parts[name]))
    rows = [row for name in parts for row in shards.read_table(name).to_pylist()]
    known = {text: _read_conditioning(row) for text, row in zip(unique, rows, strict=True)}
    return EncodedCaptions(known)


def stored_latents(run: Run, wanted: set[str]) -> dict[str, bytes]:
    """The packed latents that a run's clips with these ids were sampled with; clips without latents are left out."""
    shards, latents = run.stage("generate"), {}
    for shard in shards.names():
        table = shards.read_table(shard, ["id", "latents"])
        rows = zip(table["id"].to_pylist(), table["latents"].to_pylist(), strict=True)
        latents |= {clip: packed for clip, packed in rows if clip in wanted and packed is not None}
    return latents


def run_latents(denoiser: "Denoiser", run: Run, ids: Sequence[str], one_model: bool = False) -> "Latents":
    """The latents that a run's clips were sampled with, float16 (N, *latent shape).

    Where a clip has none of the denoiser's size, all of them pass the autoencoder; where all are to be of `one_model`,
    DataError is raised for those of another size. Raises DataError as `run_clips` does.
    """
    packed, size = stored_latents(run, set(ids)), packed_size(denoiser.latent_shape)
    foreign = next((clip for clip, row in packed.items() if len(row) != size), None)
    if one_model and foreign is not None:
        raise DataError(f"{run.path}: clip {foreign} has latents of another model: all pairs need one model")
    if all(len(packed.get(clip, b"")) == size for clip in ids):
        return unpack_latents([packed[clip] for clip in ids], denoiser.latent_shape)
    return _encoded_clips(denoiser, run, ids)


def _encoded_clips(denoiser: "Denoiser", run: Run, ids: Sequence[str]) -> "Posterior":
    """The clips of a run with these ids, through the autoencoder."""
    clips = run_clips(run, set(ids))
    return denoiser.encode_audio([denoiser.prepare_waveform(clips[clip]) for clip in ids])


def run_clips(run: Run, wanted: set[str]) -> dict[str, Clip]:
    """The clips of a run with these ids, in the order of its shards; DataError when one is not there."""
    shards, clips = run.stage("generate"), dict[str, Clip]()
    for shard in shards.names():
        table = clips_of(shards.read_table(shard, ["id", "audio"]))
        clips |= {name: clip for name, clip in table.items() if name in wanted}
    if missing := wanted - clips.keys():
        raise DataError(
            f"{run.path} lacks clip {min(missing)}: its clips and the pairs or labels that name them do not belong "
            "together"
        )
    return clips


def unpack_latents(rows: Sequence[bytes], shape: Sequence[int]) -> "torch.Tensor":
    """Packed latents of one shape as float16 (N, *shape)."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.frombuffer(row, dtype=np.float16).reshape(shape) for row in rows]))


def packed_size(shape: Sequence[int]) -> int:
    """The bytes of packed latents of this shape, float16."""
    return 2 * math.prod(shape)


def _refused(run: Run) -> list[Refusal]:
    return run.stage("refused/encode").read_records(Refusal)


def _posteriors(denoiser: "Denoiser", clips: Sequence[Clip], prefix: str) -> "dict[str, torch.Tensor]":
    import torch

    if not clips:
        return {f"{prefix}{name}": torch.empty(0, *denoiser.latent_shape) for name in ("mean", "logvar")}
    posterior = denoiser.encode_audio([denoiser.prepare_waveform(clip) for clip in clips])
    return {f"{prefix}mean": posterior.mean, f"{prefix}logvar": posterior.logvar}


def _table(columns: "dict[str, torch.Tensor]") -> "pyarrow.Table":
    """Each row of each tensor as its raw float16 bytes."""
    import pyarrow as pa

    packed = {name: [row.half().numpy().tobytes() for row in value] for name, value in columns.items()}
    return pa.table({name: pa.array(rows, pa.binary()) for name, rows in packed.items()})


def _add_seconds(denoiser: "Denoiser", table: "pyarrow.Table", clips: "Sequence[Clip | float]") -> "pyarrow.Table":
    """The table with the seconds of each row's clip, for a model that is told them."""
    import pyarrow as pa

    if SECONDS not in denoiser.empty:
        return table
    lengths = [clip.seconds if isinstance(clip, Clip) else clip for clip in clips]
    return table.append_column(SECONDS, pa.array(lengths, pa.float32()))


def _read_seconds(denoiser: "Denoiser", run: Run, names: Sequence[str], stage: str = "encode") -> list[float]:
    """The seconds of all rows; none for a model that is not told them."""
    if SECONDS not in denoiser.empty:
        return []
    shards = run.stage(stage)
    return [length for name in names for length in shards.read_table(name, [SECONDS])[SECONDS].to_pylist()]


def _run_seconds(run: Run, wanted: set[str]) -> dict[str, float]:
    """The lengths of a run's clips with these ids, from the heads of their files."""
    import soundfile

    shards, lengths = run.stage("generate"), dict[str, float]()
    for shard in shards.names():
        for row in shards.read_table(shard, ["id", "audio"]).to_pylist():
            if row["id"] in wanted and row["audio"] is not None:
                lengths[row["id"]] = soundfile.info(BytesIO(row["audio"]["bytes"])).duration
    return lengths


def _read_posteriors(
    denoiser: "Denoiser", run: Run, names: Sequence[str], prefix: str = "", stage: str = "encode"
) -> "Posterior":
    from milonga.models.denoiser import Posterior

    shards, columns = run.stage(stage), [f"{prefix}mean", f"{prefix}logvar"]
    tables = [shards.read_table(name, columns) for name in names]
    mean, logvar = (
        unpack_latents([row for table in tables for row in table[column].to_pylist()], denoiser.latent_shape)
        for column in columns
    )
    return Posterior(mean, logvar, denoiser.latent_scale)


def _clips_tables(
    denoiser: "Denoiser", recordings: Iterable[Recording], mix_ratio: float, legacy: bool, seeds: dict[int, int]
) -> Iterator[tuple[int, "pyarrow.Table"]]:
    """Captions and posteriors for each epoch of `seeds`: its mixes of some recordings; before the first epoch's, these.

    One recording is in memory at once.
    """
    waves, captions, seconds = [], [], list[float]()
    for recording in recordings:
        waves.append(denoiser.prepare_waveform(recording.clip, legacy))
        captions.append(list(recording.captions))
        seconds.append(recording.clip.seconds)
    for epoch, seed in seeds.items():
        rows = (waves, captions, seconds) if epoch == 0 else ([], [], [])
        if mix_ratio:
            count = round(mix_ratio * len(waves))
            pairs, mixed, joined = _mixes(waves, captions, count, denoiser.sampling_rate, legacy, seed)
            rows = (
                rows[0] + mixed,
                rows[1] + joined,
                rows[2] + [max(seconds[first], seconds[other]) for first, other in pairs],
            )
        yield epoch, _clips_table(denoiser, *rows)


def _clips_table(
    denoiser: "Denoiser", waves: "list[torch.Tensor]", captions: list[list[str]], seconds: list[float]
) -> "pyarrow.Table":
    import pyarrow as pa

    table = pa.table({name: pa.array([], pa.binary()) for name in ("mean", "logvar")})
    if waves:
        posterior = denoiser.encode_audio(waves)
        table = _table({"mean": posterior.mean, "logvar": posterior.logvar})
    table = table.add_column(0, "captions", pa.array(captions, pa.list_(pa.string())))
    return _add_seconds(denoiser, table, seconds)


def _mixes(
    waves: "Sequence[torch.Tensor]", captions: Sequence[list[str]], count: int, rate: int, legacy: bool, seed: int
) -> "tuple[list[tuple[int, int]], list[torch.Tensor], list[list[str]]]":
    """Up to `count` mixes: the places of their clips, their waveforms and their joined captions.

    Silent clips take no part.
    """
    import numpy as np
    import torch

    from milonga.maths.mixing import audible_pairs, joined, mixes

    rng = np.random.default_rng(seed)
    arrays = [np.nan_to_num(wave.numpy()) for wave in waves]
    pairs = audible_pairs(arrays, count, rng)
    mixed = [torch.from_numpy(wave) for wave in mixes(arrays, pairs, rate, legacy)]
    drawn = [[captions[place][rng.integers(len(captions[place]))] for place in pair] for pair in pairs]
    return pairs, mixed, [[joined(*two)] for two in drawn]


def _captions_table(denoiser: "Denoiser", captions: Sequence[str]) -> "pyarrow.Table":
    """The conditioning of each caption, a column of raw bytes and one of shapes for each of its tensors."""
    import pyarrow as pa

    encoded = [denoiser.encode_text([caption]).float() for caption in captions]
    columns = {}
    for name in encoded[0]:
        arrays = [row[name][0].cpu().numpy() for row in encoded]
        columns[name] = pa.array([array.tobytes() for array in arrays], pa.binary())
        columns[f"{name}.shape"] = pa.array([list(array.shape) for array in arrays], pa.list_(pa.int64()))
        columns[f"{name}.dtype"] = pa.array([str(array.dtype) for array in arrays])
    return pa.table(columns)


def _read_conditioning(row: dict[str, Any]) -> "Conditioning":
    import numpy as np
    import torch

    from milonga.models.denoiser import Conditioning

    tensors = Conditioning()
    for name in (column for column in row if f"{column}.shape" in row):
        array = np.frombuffer(row[name], dtype=row[f"{name}.dtype"]).reshape(row[f"{name}.shape"])
        tensors[name] = torch.from_numpy(array.copy())[None]
    return tensors
