"""Every part of a run by its name in the recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from milonga.core.config import Asking
from milonga.core.errors import DataError, RecipeError
from milonga.core.protocols import Perturber, TextEmbedder
from milonga.core.records import Pair
from milonga.core.store import Run
from milonga.core.weights import SHIPPED as SHIPPED
from milonga.core.weights import folder_of as folder_of
from milonga.core.weights import weights_of as weights_of
from milonga.data.captions import prompt_source as prompt_source
from milonga.data.captions import reference, world_prompts
from milonga.models.load import load as load
from milonga.models.load import pipeline
from milonga.models.load import playable as playable
from milonga.models.load import sampling as sampling
from milonga.models.load import tuned as tuned
from milonga.scorers.load import fingerprint as fingerprint
from milonga.scorers.load import scorer as scorer
from milonga.scorers.load import tagger as tagger

if TYPE_CHECKING:
    from milonga.data.examples import PairExamples
    from milonga.models.tango import TangoPipeline
    from milonga.training.denoise import Trainable


def text_embedder(name: str) -> TextEmbedder:
    """A sentence embedder by name: `tfidf-svd`, which needs no download, or `sentence-transformers:MODEL`.

    Raises RecipeError for another name, or where the latter's library is missing; CheckpointError for no such model.
    """
    from milonga.preference.select import TfidfEmbedder
    from milonga.preference.sentences import PREFIX, SentenceEmbedder

    if name == TfidfEmbedder.name:
        return TfidfEmbedder()
    if not name.removeprefix(PREFIX) or not name.startswith(PREFIX):
        raise RecipeError(f"unknown text embedder {name!r}: choose {TfidfEmbedder.name} or {PREFIX}MODEL")
    return SentenceEmbedder(name.removeprefix(PREFIX))


def perturber(name: str, asking: Asking | None = None) -> Perturber:
    """A perturber by name: `rules`, or a language model as `llm:MODEL@URL`, asked as `asking` says.

    Raises RecipeError for another name, and where a language model lacks the `openai` client.
    """
    from milonga.perturbers.rules import RulePerturber

    if name == RulePerturber.name:
        return RulePerturber()
    if not name.startswith("llm:"):
        raise RecipeError(f"unknown perturber {name!r}: choose {RulePerturber.name} or llm:MODEL@URL")
    from milonga.perturbers.llm import named

    return named(name, asking)


def trainable(name: str, unet: Path | None = None) -> "Trainable":
    """A model's U-Net (or one from another folder) and schedule with fresh weights, for the trainer."""
    from milonga.models.schedulers import forward_process
    from milonga.training.denoise import Trainable

    whole = pipeline(name, unet)
    return Trainable(whole.unet, *forward_process(whole.scheduler), *whole.encode_prompt([""]))


def examples(name: str, run: Run, pairs: Sequence[Pair], anchors: int = 0) -> "PairExamples":
    """The pairs' latents as they were sampled, with their encoded captions; and as many real clips for anchors."""
    from milonga.data.codec import packed_size, unpacked
    from milonga.data.examples import PairExamples

    whole = pipeline(name)
    shape = whole.latent_shape(whole.config["seconds"])
    packed = _latents(run, {one for pair in pairs for one in (pair.chosen_id, pair.rejected_id)})
    for clip, latents in packed.items():
        if len(latents) != packed_size(shape):
            raise DataError(f"{run.path}: clip {clip} has latents of another model than {name}: pairs need one model")

    winners = unpacked([packed[pair.chosen_id] for pair in pairs], shape)
    losers = unpacked([packed[pair.rejected_id] for pair in pairs], shape)
    states, mask = whole.encode_prompt([pair.prompt for pair in pairs])
    real, strategies = anchor_clips(whole, anchors) if anchors else None, [pair.strategy for pair in pairs]
    return PairExamples(winners, losers, states, mask, real, groups=strategies)


def _latents(run: Run, wanted: set[str]) -> dict[str, bytes]:
    """The stored latents of the clips with these ids.

    Raises DataError when a clip has none: its model is no latent diffusion model.
    """
    from milonga.data.codec import stored_latents

    found = stored_latents(run, wanted)
    missing = sorted(wanted - set(found))
    if missing:
        raise DataError(f"{run.path}: clip {missing[0]} has no stored latents, so it cannot be trained on")
    return found


def anchor_clips(whole: "TangoPipeline", count: int) -> "PairExamples":
    """Real clips of the world's training captions, through the VAE, with their encoded captions."""
    from milonga.data.codec import moments, wave_for
    from milonga.data.examples import Moments, PairExamples

    prompts = world_prompts("train", count)
    mean, logvar = moments(whole, [wave_for(whole, reference(prompt)) for prompt in prompts])
    states, mask = whole.encode_prompt([prompt.text for prompt in prompts])
    return PairExamples(Moments(mean, logvar, whole.vae.config.scaling_factor), None, states, mask)
