"""What a system of a recipe is trained on, as the trainer's examples: pairs, rewarded clips or labelled clips.

A clip's latents are those stored beside it, where they have the size that the model's have; else it passes the VAE.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milonga.core.errors import DataError, RecipeError
from milonga.core.ids import content_id, file_hash
from milonga.core.records import Label, Pair, Request
from milonga.core.store import Run
from milonga.experiment.context import Context, needed
from milonga.experiment.recipe import Recipe
from milonga.experiment.recipe_tables import System
from milonga.experiment.reward import TRUTH, clips_by_id, labels_in

if TYPE_CHECKING:
    from torch import Tensor

    from milonga.data.examples import Examples, Latents, PairExamples
    from milonga.models.tango import TangoPipeline

OWN = "run"


def examples_of(context: Context, system: System, anchors: int = 0) -> "Examples":
    """The examples of one system, with as many real clips for the anchor term as `anchors` says.

    Raises DataError where there is nothing to train on, or a source holds nothing of the kind.
    """
    from milonga.data.examples import of_groups, with_anchors
    from milonga.data.joined import JoinedExamples
    from milonga.experiment.registry import anchor_clips, pipeline

    parts = {"pairs": _pairs, "rewards": _rewards, "labels": _labels}[system.data](context, anchors)
    examples = parts[0] if len(parts) == 1 else JoinedExamples(parts)
    examples = of_groups(examples, system.strategies) if system.strategies else examples
    if anchors and not examples.anchors:
        return with_anchors(examples, anchor_clips(pipeline(context.recipe.models.model), anchors))
    return examples


def hashes(recipe: Recipe) -> dict[str, Any]:
    """The hash of every folder that a recipe's systems learn from, where the recipe names it.

    Raises RecipeError for what is no folder or file.
    """
    pairs = [one for one in recipe.train.pairs if one != OWN and recipe.trains_on("pairs")]
    labels = [one for one in recipe.label.sources if one != TRUTH and recipe.trains_on("rewards", "labels")]
    found: dict[str, Any] = {"train": {"pairs": {one: _hash("train.pairs", one) for one in pairs}}}
    return found | {"label": {"sources": {one: _hash("label.sources", one) for one in labels}}}


def _hash(key: str, source: str) -> str:
    path = Path(source)
    if not path.exists():
        raise RecipeError(f"{key}: {source} is neither a folder nor a Parquet file")
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    return content_id([[str(file.relative_to(path)), file_hash(file)] for file in files])


def _pairs(context: Context, anchors: int) -> "list[Examples]":
    """A part for each of train.pairs: this run's, those of a run folder, or a data set in Audio-alpaca's layout."""
    model, parts = context.recipe.models.model, []
    for source in context.recipe.train.pairs:
        if source == OWN:
            pairs = needed(context, "pair").read_records(Pair)
            parts += [context.parts.examples(model, context.run, pairs, anchors)] if pairs else []
        elif (Path(source) / "pair").is_dir():
            parts.append(_folder_of_pairs(context, Run(Path(source))))
        else:
            parts.append(_data_set(context, Path(source)))
    if not parts:
        raise DataError(
            f"{context.run.path}: no pair was kept, so there is nothing to train on; loosen pair.thresholds"
        )
    return parts


def _folder_of_pairs(context: Context, run: Run) -> "PairExamples":
    """The kept pairs of another run folder, such as `milonga listen export --as pairs` writes."""
    from milonga.data.examples import PairExamples
    from milonga.experiment.registry import pipeline

    pairs, whole = run.stage("pair").read_records(Pair), pipeline(context.recipe.models.model)
    if not pairs:
        raise DataError(f"{run.path} holds no kept pair, so there is nothing in it to train on")
    winners, losers = ([getattr(one, side) for one in pairs] for side in ("chosen_id", "rejected_id"))
    latents = _latents(whole, run, [*winners, *losers])
    middle, states = len(pairs), _states(context, whole, [one.prompt for one in pairs])
    halves = _part(latents, slice(0, middle)), _part(latents, slice(middle, None))
    return PairExamples(*halves, *states, groups=[one.strategy for one in pairs])


def _data_set(context: Context, path: Path) -> "PairExamples":
    """A data set's pairs, encoded once and kept in the run's encoded/."""
    from milonga.data.encode import encoded_pairs

    recipe = context.recipe
    return encoded_pairs(recipe.models.model, path, context.run.path / "encoded", seed=recipe.seed)[1]


def _rewards(context: Context, _: int) -> "list[Examples]":
    """Every clip of the run that has a reward, weighted by it."""
    from milonga.preference.reward import Reward

    rows = {one.id: one.reward for one in needed(context, "reward").read_records(Reward)}
    planned = {one.id: one.prompt for one in needed(context, "plan").read_records(Request) if one.id in rows}
    weights = [rows[one] for one in planned]
    return [_clips(context, context.run, planned, weights=weights)]


def _labels(context: Context, _: int) -> "list[Examples]":
    """A part for each of label.sources: clips one by one, liked or disliked."""
    parts: list[Examples] = []
    for source in context.recipe.label.sources:
        run = context.run if source == TRUTH else Run(Path(source))
        found = needed(context, "label").read_records(Label) if source == TRUTH else labels_in(Path(source))
        liked, texts = [one.desirable for one in found], {one.id: one.prompt for one in found}
        parts += [_clips(context, run, texts, desirable=liked)] if found else []
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

    from milonga.data.examples import PairExamples
    from milonga.experiment.registry import pipeline

    whole = pipeline(context.recipe.models.model)
    latents, states = _latents(whole, run, list(texts)), _states(context, whole, list(texts.values()))
    scale = None if weights is None else torch.tensor(weights, dtype=torch.float32)
    liked = None if desirable is None else torch.tensor(desirable)
    return PairExamples(latents, None, *states, weights=scale, desirable=liked)


def _states(context: Context, whole: "TangoPipeline", texts: Sequence[str]) -> "tuple[Tensor, Tensor]":
    """Encoded captions and their mask; each is encoded once for the run and kept in encoded/, by the model's hash."""
    from milonga.data.texts import kept_texts

    kept = Run(context.run.path / "encoded" / context.parts.fingerprint(context.recipe.models.model))
    return kept_texts(whole, kept, texts)(texts)


def _latents(whole: "TangoPipeline", run: Run, ids: Sequence[str]) -> "Latents":
    """The clips' latents as they were sampled, float16 (N, C, H, W); their VAE's moments where some have none."""
    from milonga.data.codec import packed_size, stored_latents, unpacked

    shape, packed = whole.latent_shape(whole.config["seconds"]), stored_latents(run, set(ids))
    if any(len(packed.get(one, b"")) != packed_size(shape) for one in ids):
        return _moments(whole, run, ids)
    return unpacked([packed[one] for one in ids], shape)


def _moments(whole: "TangoPipeline", run: Run, ids: Sequence[str]) -> "Latents":
    from milonga.data.codec import moments, wave_for
    from milonga.data.examples import Moments

    clips = clips_by_id(run.stage("generate"), set(ids))
    mean, logvar = moments(whole, [wave_for(whole, clips[one]) for one in ids])
    return Moments(mean, logvar, whole.vae.config.scaling_factor)


def _part(latents: "Latents", rows: slice) -> "Latents":
    from milonga.data.examples import Moments

    if isinstance(latents, Moments):
        return Moments(latents.mean[rows], latents.logvar[rows], latents.scale)
    return latents[rows]
