"""Every part of a run by its name in the recipe."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from milonga.core.errors import DataError
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
from milonga.perturbers.load import perturber as perturber
from milonga.preference.select import text_embedder as text_embedder
from milonga.scorers.load import fingerprint as fingerprint
from milonga.scorers.load import scorer as scorer
from milonga.scorers.load import tagger as tagger

if TYPE_CHECKING:
    from milonga.data.examples import PairExamples
    from milonga.models.denoiser import Denoiser


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
