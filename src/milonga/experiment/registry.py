"""Every part of a run by its name in the recipe."""

from collections.abc import Sequence
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
from milonga.models.load import generator_of as generator_of
from milonga.models.load import load as load
from milonga.models.load import load_denoiser as load_denoiser
from milonga.models.load import sampling as sampling
from milonga.models.load import tuned as tuned
from milonga.scorers.load import fingerprint as fingerprint
from milonga.scorers.load import scorer as scorer
from milonga.scorers.load import tagger as tagger

if TYPE_CHECKING:
    from milonga.data.examples import PairExamples
    from milonga.models.denoiser import Denoiser


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


def examples(name: str, run: Run, pairs: Sequence[Pair], prior: int = 0) -> "PairExamples":
    """The pairs' latents as they were sampled, with their encoded captions; and `prior` real clips."""
    from milonga.data.encode import packed_size, stored_latents, unpack_latents
    from milonga.data.examples import PairExamples

    denoiser = load_denoiser(name)
    wanted = {clip for pair in pairs for clip in (pair.chosen_id, pair.rejected_id)}
    packed, shape = stored_latents(run, wanted), denoiser.latent_shape
    missing = sorted(wanted - set(packed))
    if missing:
        raise DataError(f"{run.path}: clip {missing[0]} has no stored latents, so it cannot be trained on")
    for clip, latents in packed.items():
        if len(latents) != packed_size(shape):
            raise DataError(f"{run.path}: clip {clip} has latents of another model than {name}: pairs need one model")
    winners = unpack_latents([packed[pair.chosen_id] for pair in pairs], shape)
    losers = unpack_latents([packed[pair.rejected_id] for pair in pairs], shape)
    conditioning, real = denoiser.encode_text([pair.prompt for pair in pairs]), None
    if prior:
        real = prior_clips(denoiser, prior)
    return PairExamples(winners, losers, conditioning, real, groups=[pair.strategy for pair in pairs])


def prior_clips(denoiser: "Denoiser", count: int) -> "PairExamples":
    """Real clips of the world's training captions, through the autoencoder, with their encoded captions."""
    from milonga.data.examples import PairExamples

    prompts = world_prompts("train", count)
    posterior = denoiser.encode_audio([denoiser.prepare_waveform(reference(prompt)) for prompt in prompts])
    return PairExamples(posterior, None, denoiser.encode_text([prompt.text for prompt in prompts]))
