"""The stages label and reward: which clips of a run are good, and a model that has learnt to say so of any clip."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from milonga.core.audio import clips_of
from milonga.core.errors import DataError, RecipeError
from milonga.core.protocols import Embedder
from milonga.core.records import Clip, Label, Prompt, Request
from milonga.core.store import Run, Shards, complete, write_json
from milonga.experiment.recipe import TAGGER
from milonga.experiment.registry import Context
from milonga.preference.build import needed

if TYPE_CHECKING:
    import pyarrow
    from torch.nn import Module


def label(context: Context) -> None:
    """The tagger's yes or no to every clip whose prompt's scene is known, in label/."""
    from milonga.preference.candidates import label_clips

    clips, batch = needed(context.run, "generate"), context.recipe.score.batch_size
    prompts = {one.id: one for one in needed(context.run, "prompts").read_records(Prompt)}
    asked = {one.id: prompts[one.prompt_id] for one in needed(context.run, "plan").read_records(Request)}

    def work(shard: str) -> int:
        heard = clips_of(clips.read_table(shard, ["id", "audio"]))
        tagger = context.parts.tagger(context.recipe.models.tagger)
        found = label_clips(list(heard), [asked[one] for one in heard], list(heard.values()), tagger, batch)
        context.run.stage("label").write_records(shard, found, Label)
        return len(heard)

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
    network = _taught(context, embedder)
    planned = {one.id: one for one in needed(context.run, "plan").read_records(Request)}
    for shard, ids, rows in _embedded(context):
        texts = [planned[one].prompt for one in ids]
        found = predict_rewards(network, reward_features(rows, embedder.embed_texts(texts))) if ids else []
        records = [
            Reward(id=one, prompt_id=planned[one].prompt_id, reward=float(value))
            for one, value in zip(ids, found, strict=True)
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
    found = Run(folder).stage("label").read_records(Label) if folder.is_dir() else []
    if not found:
        raise DataError(f"{folder} holds no labels: make them by `milonga listen export TEST {folder} --as labels`")
    return found


def clips_by_id(shards: Shards, wanted: set[str]) -> dict[str, Clip]:
    """Those clips of a folder's shards whose ids are wanted; DataError when one is not there."""
    found: dict[str, Clip] = {}
    for shard in shards.names():
        found |= {
            one: clip for one, clip in clips_of(shards.read_table(shard, ["id", "audio"])).items() if one in wanted
        }
    if wanted - set(found):
        raise DataError(
            f"{shards.path} lacks clip {min(wanted - set(found))}: it and its labels do not belong together"
        )
    return found


def _taught(context: Context, embedder: Embedder) -> "Module":
    """The network taught from all labels; its report goes to metrics/reward.json."""
    from milonga.preference.reward import fit_reward, predict_rewards, reward_features, reward_report

    table, labels, clips = context.recipe.reward, *_labelled(context, embedder)
    texts = embedder.embed_texts([one.prompt for one in labels])
    network = fit_reward(reward_features(clips, texts), labels, table, context.recipe.seed)
    found = predict_rewards(network, reward_features(clips, texts))
    report = reward_report(found, (clips * texts).sum(axis=1), labels, table, embedder.name)
    write_json(context.run.path / "metrics" / "reward.json", report.model_dump(mode="json"))
    return network


def _labelled(context: Context, embedder: Embedder) -> tuple[list[Label], np.ndarray]:
    """All labels, and the embeddings (N, D) of their clips."""
    labels: list[Label] = []
    rows: list[np.ndarray] = []
    for source in context.recipe.label.sources:
        if source == TAGGER:
            own = needed(context.run, "label").read_records(Label)
            known = {one: row for _, ids, part in _embedded(context) for one, row in zip(ids, part, strict=True)}
        else:
            own = labels_in(Path(source))
            clips = clips_by_id(Run(Path(source)).stage("generate"), {one.id for one in own})
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
        heard = clips_of(clips.read_table(shard, ["id", "audio"]))
        rows = _in_batches(embedder_of(context), list(heard.values()), batch)
        context.run.stage("embed").write_table(shard, _table(list(heard), rows))
        return len(heard)

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
