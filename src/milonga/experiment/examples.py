"""What a system of a recipe is trained on, as the trainer's examples; and the stages label and reward, which make some.

A clip's latents are those stored beside it, where they have the size that the model's have; else it passes the VAE.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from milonga.core.audio import clips_of
from milonga.core.errors import DataError, RecipeError
from milonga.core.ids import content_id, file_hash
from milonga.core.protocols import Embedder
from milonga.core.records import Candidate, Clip, Label, Prompt, Request
from milonga.core.store import Run, complete, write_json
from milonga.data.corrections import run_pairs
from milonga.data.pairs import kept_pairs
from milonga.data.recordings import fingerprint
from milonga.experiment.recipe import OWN, TAGGER, Recipe, System
from milonga.experiment.registry import Context
from milonga.maths.devices import working_on
from milonga.preference.build import needed

if TYPE_CHECKING:
    import pyarrow
    from torch.nn import Module

    from milonga.data.examples import Examples, PairExamples
    from milonga.models.denoiser import Denoiser


def examples_of(context: Context, system: System, prior: int = 0) -> "Examples":
    """The examples of one system, with `prior` real clips for the prior-preservation term.

    Raises DataError where there is nothing to train on, or a source holds nothing of the kind.
    """
    from milonga.data.examples import ConcatExamples, filter_by_strategy, with_prior_data

    kinds = {
        "pairs": _pairs,
        "groups": partial(_groups, system),
        "clips": _real_clips,
        "rewards": _rewards,
        "labels": _labels,
        "captions": partial(_captions, system),
    }
    parts = kinds[system.data](context, prior)
    examples = parts[0] if len(parts) == 1 else ConcatExamples(parts)
    if system.strategies and system.data == "pairs":
        examples = filter_by_strategy(examples, system.strategies)
    if not prior or examples.num_prior or system.data == "clips":
        return examples
    return with_prior_data(examples, *_real_clips(context, prior))


@contextmanager
def encoder(context: Context) -> "Iterator[Denoiser]":
    """The run's model to encode data with: its encoders on the run's device, its network not loaded."""
    from milonga.models.load import ENCODERS

    denoiser = context.parts.load_denoiser(context.recipe.models.model, parts=ENCODERS)
    with working_on(denoiser.others, context.parts.device):
        yield denoiser


def hashes(recipe: Recipe) -> dict[str, Any]:
    """The hash of the contents of all data that a recipe's systems learn from, where the recipe names it.

    Raises RecipeError for what is no folder or file.
    """
    pairs = [one for one in recipe.train.pairs if one != OWN and recipe.trains_on("pairs")]
    labels = [one for one in recipe.label.sources if one != TAGGER and recipe.trains_on("rewards", "labels")]
    hashes_of: dict[str, Any] = {"train": {"pairs": {one: _hash("train.pairs", one) for one in pairs}}}
    if recipe.train.clips is not None and recipe.train.systems:
        hashes_of["train"]["clips"] = {recipe.train.clips: fingerprint(recipe.train.clips)}
    return hashes_of | {"label": {"sources": {one: _hash("label.sources", one) for one in labels}}}


def _hash(key: str, source: str) -> str:
    path = Path(source)
    if not path.exists():
        raise RecipeError(f"{key}: {source} is neither a folder nor a Parquet file")
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    return content_id([[str(file.relative_to(path)), file_hash(file)] for file in files])


def _pairs(context: Context, _: int) -> "list[Examples]":
    """A part for each of train.pairs: this run's, those of a run folder, or a data set in Audio-alpaca's layout."""
    from milonga.data.encode import encode_run_pairs, pair_examples

    parts, work = list["Examples"](), context.run.path / "encoded"
    for source in context.recipe.train.pairs:
        if source == OWN:
            needed(context.run, "pair")
            pairs = kept_pairs(run_pairs(context.run))
            if pairs:
                with encoder(context) as denoiser:
                    parts.append(pair_examples(denoiser, context.run, pairs, work))
        elif (Path(source) / "pair").is_dir():
            with encoder(context) as denoiser:
                parts.append(encode_run_pairs(denoiser, Run(Path(source)), work))
        else:
            parts.append(_data_set(context, Path(source)))
    if not parts:
        raise DataError(
            f"{context.run.path}: no pair was kept, so there is nothing to train on; loosen pair.thresholds"
        )
    return parts


def _groups(system: System, context: Context, _: int) -> "list[Examples]":
    """All clips of each caption that were sampled from its own words, rewarded by the run's scorers.

    A clip's reward is the mean of its scorers' z-scores within the caption. Groups have one size: captions with fewer
    clips than most are left out, of more the first by id are taken.
    """
    import torch

    from milonga.data.encode import run_conditioning, run_latents
    from milonga.data.examples import GroupExamples
    from milonga.maths.group_losses import advantages
    from milonga.models.denoiser import Posterior

    groups: dict[str, dict[str, Candidate]] = {}
    for candidate in needed(context.run, "score").read_records(Candidate):
        request = candidate.request
        measured = all(map(math.isfinite, candidate.scores.values()))
        if (
            measured
            and request.faithful
            and (not system.strategies or set(system.strategies) & set(request.strategies))
        ):
            groups.setdefault(request.prompt_id, {})[request.id] = candidate
    sizes = Counter(map(len, groups.values()))
    size = max(sizes, key=lambda length: (sizes[length], length), default=0)
    if size < 2:
        raise DataError(f"{context.run.path}: no caption has two clips of its own words: plan several steps or noises")
    # In an order of their own: the clips' order in shards depends on how these are cut.
    chosen = [sorted(group.items())[:size] for _, group in sorted(groups.items()) if len(group) >= size]
    names = sorted(chosen[0][0][1].scores)
    scores = torch.tensor([[[clip.scores[name] for name in names] for _, clip in group] for group in chosen])
    rewards = advantages(scores.transpose(1, 2)).mean(1)
    with encoder(context) as denoiser:
        latents = run_latents(denoiser, context.run, [clip for group in chosen for clip, _ in group])
        firsts, captions = zip(*((group[0][0], group[0][1].request.prompt) for group in chosen), strict=True)
        conditioning = run_conditioning(denoiser, context.run, context.run.path / "encoded", firsts, captions)
    plain = latents.mean * latents.scale if isinstance(latents, Posterior) else latents
    examples = GroupExamples(plain.unflatten(0, (len(chosen), size)), rewards, conditioning)
    left_out = len(groups) - len(chosen)
    print(
        f"train {system.name}: {len(examples)} groups of {size} clips; left out: {left_out} with fewer clips, "
        f"{examples.num_flat} with equal rewards",
        file=sys.stderr,
    )
    return [examples]


def _captions(system: System, context: Context, _: int) -> "list[Examples]":
    """The captions of the system's sources, or else of the run, whose clips the trainer samples itself."""
    from milonga.data.encode import encode_captions
    from milonga.data.examples import CaptionExamples

    if system.sources:
        prompts = [prompt for source in system.sources for prompt in context.parts.prompt_source(source)]
    else:
        prompts = needed(context.run, "prompts").read_records(Prompt)
    texts = sorted({prompt.text for prompt in prompts})
    with encoder(context) as denoiser:
        encoded = Run(context.run.path / "encoded" / denoiser.fingerprint)
        conditioning = encode_captions(denoiser, encoded, texts).rows(texts)
    return [CaptionExamples(texts, conditioning, denoiser.latent_shape, context.recipe.seed)]


def _data_set(context: Context, path: Path) -> "PairExamples":
    """A data set's pairs, encoded once and kept in the run's encoded/."""
    from milonga.data.encode import encode_pairs

    recipe, train, work = context.recipe, context.recipe.train, context.run.path / "encoded"
    with encoder(context) as denoiser:
        return encode_pairs(denoiser, path, work, train.split, recipe.seed, train.allow_missing)[1]


def _real_clips(context: Context, prior: int) -> "list[Examples]":
    """The clips of train.clips (without: `prior` of the small world) with captions, stored in the run's encoded/."""
    from milonga.data.encode import encode_clips

    recipe, train = context.recipe, context.recipe.train
    source = train.clips or f"world:train:{prior}"
    phases = [system.phases for system in train.systems]
    epochs = [train.mix_epochs if any(p.steps for p in some) else sum(p.epochs for p in some) for some in phases]
    settings = (train.mix_ratio, train.legacy, recipe.seed, train.allow_missing, min(train.mix_epochs, max(epochs)))
    with encoder(context) as denoiser:
        return [encode_clips(denoiser, source, context.run.path / "encoded", *settings)]


def _rewards(context: Context, _: int) -> "list[Examples]":
    """Every clip of the run that has a reward, weighted by it."""
    from milonga.preference.reward import Reward

    rows = {one.id: one.reward for one in needed(context.run, "reward").read_records(Reward)}
    planned = {one.id: one.prompt for one in needed(context.run, "plan").read_records(Request) if one.id in rows}
    weights = [rows[one] for one in planned]
    return [_clips(context, context.run, planned, weights=weights)]


def _labels(context: Context, _: int) -> "list[Examples]":
    """A part for each of label.sources: clips one by one, liked or disliked."""
    parts: list[Examples] = []
    for source in context.recipe.label.sources:
        run = context.run if source == TAGGER else Run(Path(source))
        rows = needed(context.run, "label").read_records(Label) if source == TAGGER else labels_in(Path(source))
        liked, texts = [one.desirable for one in rows], {one.id: one.prompt for one in rows}
        parts += [_clips(context, run, texts, desirable=liked)] if rows else []
    if not parts:
        raise DataError(f"{context.run.path}: no clip could be labelled, because no prompt's scene is known")
    return parts


def _clips(
    context: Context,
    run: Run,
    texts: Mapping[str, str],
    weights: Sequence[float] | None = None,
    desirable: Sequence[bool] | None = None,
) -> "PairExamples":
    """Clips of a folder one by one, by id with their prompts, each with its weight or its label."""
    import torch

    from milonga.data.encode import run_conditioning, run_latents
    from milonga.data.examples import PairExamples

    with encoder(context) as denoiser:
        latents = run_latents(denoiser, run, list(texts))
        work = context.run.path / "encoded"
        conditioning = run_conditioning(denoiser, run, work, list(texts), list(texts.values()))
    scale = None if weights is None else torch.tensor(weights, dtype=torch.float32)
    liked = None if desirable is None else torch.tensor(desirable)
    return PairExamples(latents, None, conditioning, weights=scale, desirable=liked)


def label(context: Context) -> None:
    """The tagger's yes or no to every clip whose prompt's scene is known, in label/."""
    from milonga.preference.candidates import label_clips

    clips, batch = needed(context.run, "generate"), context.recipe.score.batch_size
    prompts = {one.id: one for one in needed(context.run, "prompts").read_records(Prompt)}
    prompt_of = {one.id: prompts[one.prompt_id] for one in needed(context.run, "plan").read_records(Request)}

    def work(shard: str) -> int:
        own = clips_of(clips.read_table(shard, ["id", "audio"]))
        tagger = context.parts.tagger(context.recipe.models.tagger)
        labels = label_clips(list(own), [prompt_of[one] for one in own], list(own.values()), tagger, batch)
        context.run.stage("label").write_records(shard, labels, Label)
        return len(own)

    context.over_shards("label", {shard: clips.rows(shard) for shard in clips.names()}, work)


def reward(context: Context) -> None:
    """A reward for every clip of the run, in reward/, by a model taught from all labels; metrics/reward.json says how
    right it is on labels that were held out.
    """
    from milonga.preference.reward import Reward, predict_rewards, reward_features

    shards, embedder = context.run.stage("reward"), embedder_of(context)
    if complete(shards) and (context.run.path / "metrics" / "reward.json").exists():
        return
    _embed(context)
    network = _fit_network(context, embedder)
    planned = {one.id: one for one in needed(context.run, "plan").read_records(Request)}
    for shard, ids, rows in _embedded(context):
        texts = [planned[one].prompt for one in ids]
        values = predict_rewards(network, reward_features(rows, embedder.embed_texts(texts))) if ids else []
        records = [
            Reward(id=one, prompt_id=planned[one].prompt_id, reward=float(value))
            for one, value in zip(ids, values, strict=True)
        ]
        shards.write_records(shard, records, Reward)


def embedder_of(context: Context) -> Embedder:
    """The CLAP whose features the reward model sees; RecipeError for a scorer that has none."""
    name = context.recipe.reward.scorer or context.recipe.models.scorers[0]
    scorer = context.parts.scorer(name)
    if not isinstance(scorer, Embedder):
        raise RecipeError(f"reward.scorer: {name} embeds neither clips nor texts: name a CLAP")
    return scorer


def labels_in(folder: Path) -> list[Label]:
    """The labels that `milonga listen export --as labels` wrote; DataError where there are none."""
    labels = Run(folder).stage("label").read_records(Label) if folder.is_dir() else []
    if not labels:
        raise DataError(f"{folder} holds no labels: make them by `milonga listen export TEST {folder} --as labels`")
    return labels


def _fit_network(context: Context, embedder: Embedder) -> "Module":
    """The network taught from all labels; its report goes to metrics/reward.json."""
    from milonga.preference.reward import fit_reward, predict_rewards, reward_features, reward_report

    table, labels, clips = context.recipe.reward, *_labelled(context, embedder)
    texts = embedder.embed_texts([one.prompt for one in labels])
    network = fit_reward(reward_features(clips, texts), labels, table, context.recipe.seed)
    predicted = predict_rewards(network, reward_features(clips, texts))
    report = reward_report(predicted, (clips * texts).sum(axis=1), labels, table, embedder.name)
    write_json(context.run.path / "metrics" / "reward.json", report.model_dump(mode="json"))
    return network


def _labelled(context: Context, embedder: Embedder) -> tuple[list[Label], np.ndarray]:
    """All labels, and the embeddings (N, D) of their clips."""
    from milonga.data.encode import run_clips

    labels: list[Label] = []
    rows: list[np.ndarray] = []
    for source in context.recipe.label.sources:
        if source == TAGGER:
            own = needed(context.run, "label").read_records(Label)
            known = {one: row for _, ids, part in _embedded(context) for one, row in zip(ids, part, strict=True)}
        else:
            own = labels_in(Path(source))
            clips = run_clips(Run(Path(source)), {one.id for one in own})
            known = dict(
                zip(clips, _in_batches(embedder, list(clips.values()), context.recipe.score.batch_size), strict=True)
            )
        labels += own
        rows += [known[one.id] for one in own]
    if not labels:
        raise DataError(f"{context.run.path}: no clip could be labelled, because no prompt's scene is known")
    return labels, np.stack(rows)


def _embed(context: Context) -> None:
    """The embedding of every clip of the run, in embed/."""
    clips, batch = needed(context.run, "generate"), context.recipe.score.batch_size

    def work(shard: str) -> int:
        own = clips_of(clips.read_table(shard, ["id", "audio"]))
        rows = _in_batches(embedder_of(context), list(own.values()), batch)
        context.run.stage("embed").write_table(shard, _table(list(own), rows))
        return len(own)

    context.over_shards("embed", {shard: clips.rows(shard) for shard in clips.names()}, work)


def _in_batches(embedder: Embedder, clips: Sequence[Clip], batch: int) -> np.ndarray:
    """Embeddings (N, D) of N clips."""
    parts = [embedder.embed_clips(clips[first : first + batch]) for first in range(0, len(clips), batch)]
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def _table(ids: Sequence[str], rows: np.ndarray) -> "pyarrow.Table":
    import pyarrow as pa

    return pa.table({"id": pa.array(ids, pa.string()), "row": pa.array(rows.tolist(), pa.list_(pa.float32()))})


def _embedded(context: Context) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """(shard, ids, rows (n, D)) of every shard of embed/."""
    shards = context.run.stage("embed")
    for shard in shards.names():
        table = shards.read_table(shard)
        yield shard, table["id"].to_pylist(), np.array(table["row"].to_pylist(), dtype=np.float32)
