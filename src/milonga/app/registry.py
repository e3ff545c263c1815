"""Every part by its name: the weights that ship, or a folder that holds the same layout.

Models and listeners are loaded once and kept; a model that is to be trained is loaded anew each time.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from milonga.app import laion
from milonga.app.sources import prompt_source as prompt_source
from milonga.app.sources import reference, world_prompts
from milonga.core.errors import CheckpointError, DataError, RecipeError
from milonga.core.hub import as_repository
from milonga.core.ids import content_id, file_hash
from milonga.core.parts import Model, Perturber, Tagger, TextEmbedder
from milonga.core.records import Pair
from milonga.core.settings import Asking
from milonga.core.store import Run

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from milonga.listeners.clap import ClapScorer
    from milonga.models.tango import TangoPipeline
    from milonga.stages.denoise import Trainable
    from milonga.stages.latents import PairExamples

# The weights that ship with the package, each a folder under nano/weights.
SHIPPED = {
    "nano": "tango",
    "nano-clap-a": "clap-a",
    "nano-clap-b": "clap-b",
    "nano-judge": "clap-judge",
    "nano-tagger": "tagger",
}
WEIGHTS = (".safetensors", ".bin")
P = ParamSpec("P")
T = TypeVar("T")


def once(loader: Callable[P, T]) -> Callable[P, T]:
    """Keeps the last four things a loader gave; threads that ask at the same time wait for one loading."""
    kept, lock = lru_cache(maxsize=4)(loader), Lock()

    @wraps(loader)
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with lock:
            return kept(*args, **kwargs)

    return locked


def folder_of(name: str, revision: str | None = None) -> Path:
    """The folder of a part's weights: a name that ships, a path, or a model's repository (`user/name[@revision]`).

    A repository's files are fetched into the hub's cache. Raises RecipeError naming the known names when it is none of
    these, CheckpointError when it cannot be fetched.
    """
    if name in SHIPPED or (name and Path(name).is_dir()):
        if revision is not None:
            raise RecipeError(f"{name} is no repository on the hub, so it has no revision {revision!r}")
        return Path(str(files("milonga.nano"))) / "weights" / SHIPPED[name] if name in SHIPPED else Path(name)
    if as_repository(name):
        return _fetched(name, revision)
    raise RecipeError(f"{name!r} is neither a folder nor one of {', '.join(SHIPPED)}, nor user/name on the hub")


@once
def _fetched(name: str, revision: str | None) -> Path:
    from milonga.models.repository import fetch_model

    return fetch_model(name, revision)


def weights_of(name: str, revision: str | None = None) -> Path:
    """The folder of a part's weights, which is there.

    Raises RecipeError for an unknown name, CheckpointError saying how to make weights that should ship and do not.
    """
    folder = folder_of(name, revision)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing: make {name} by `milonga nano train --out {folder.parent}`")
    return folder


def fingerprint(name: str) -> str:
    """A hash of all weights in a part's folder, without loading them.

    Raises CheckpointError when there are none.
    """
    if name.startswith(laion.PREFIX):
        return laion.fingerprint(name)
    folder = weights_of(name)
    weights = sorted(path for path in folder.rglob("*") if path.suffix in WEIGHTS)
    if not weights:
        raise CheckpointError(f"{folder} holds no {' or '.join(WEIGHTS)} weights")
    return content_id([[str(path.relative_to(folder)), file_hash(path)] for path in weights])


def pipeline(
    name: str, unet: Path | None = None, revision: str | None = None, tokenizer: str | None = None, dtype: Any = None
) -> "TangoPipeline":
    """A freshly loaded pipeline on the CPU (float32 unless `dtype`), its U-Net from another folder where one is given.

    It is in diffusers' layout or in one of the original Tango's; `tokenizer` is for the latter, which leave it out.
    Raises CheckpointError naming the folder and what is wrong with it.
    """
    import torch

    from milonga.models.baselines import baseline_class
    from milonga.models.loading import load_pipeline

    _quiet()
    folder = weights_of(name, revision)
    if kind := baseline_class(folder):
        raise RecipeError(f"{name} is a {kind}: it makes clips to compare with, and cannot be trained")
    return load_pipeline(folder, unet, tokenizer, dtype or torch.float32)


def _quiet() -> None:
    """Loading takes a second or two: the libraries' own progress bars would only get in the way of ours."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()


@once
def load(name: str, scheduler: str | None = None, seconds: float | None = None) -> Model:
    """A model ready to generate, with its own scheduler and length or with these: a Tango by its name, folder or
    repository, or one of the baselines of `models.baselines`.

    Raises RecipeError for a scheduler that is none, and for any with a baseline, which has its own.
    """
    from milonga.models.baselines import baseline_class, load_baseline
    from milonga.models.schedules import check_scheduler
    from milonga.models.tango_model import TangoModel

    check_scheduler(scheduler)
    _quiet()
    if kind := baseline_class(weights_of(name)):
        if scheduler is not None:
            raise RecipeError(f"{name} is a {kind}, which runs by its own scheduler: leave --scheduler out")
        return load_baseline(name, weights_of(name), seconds)
    return TangoModel(name, pipeline(name), scheduler, seconds)


def playable(name: str, unet: "UNet2DConditionModel") -> Model:
    """A model around a U-Net that is being trained: it plays with the weights of the moment."""
    from milonga.models.tango_model import TangoModel

    whole = pipeline(name)
    whole.unet = unet
    return TangoModel(name, whole)


def tuned(name: str, unet: Path, scheduler: str | None = None, seconds: float | None = None) -> Model:
    """A model with its U-Net replaced by a trained one; loaded anew where another training has replaced that since."""
    return _tuned(name, unet, scheduler, seconds, max(path.stat().st_mtime_ns for path in unet.iterdir()))


@once
def _tuned(name: str, unet: Path, scheduler: str | None, seconds: float | None, written: int) -> Model:
    """`written` tells one training's weights from the next one's in the same folder."""
    from milonga.models.tango_model import TangoModel

    return TangoModel(unet.parent.name, pipeline(name, unet), scheduler, seconds)


def sampling(name: str) -> tuple[int, float]:
    """The steps and the guidance that a model is best sampled with, read from its config.

    Raises CheckpointError when there is no readable config.
    """
    from milonga.models import loading
    from milonga.models.baselines import baseline_class, own_sampling

    folder = weights_of(name)
    kind = baseline_class(folder)
    return own_sampling(kind) if kind else loading.sampling(folder)


@once
def scorer(name: str) -> "ClapScorer":
    """A CLAP by its name or folder, or LAION's as `laion-clap:PATH[@WINDOWS]`."""
    from milonga.listeners.clap import load_clap

    _quiet()
    if name.startswith(laion.PREFIX):
        return laion.scorer(name)
    return load_clap(weights_of(name), name)


@once
def tagger(name: str) -> Tagger:
    """A tagger by its name or folder."""
    from milonga.listeners.tagger import load_tagger

    return load_tagger(weights_of(name), name)


def text_embedder(name: str) -> TextEmbedder:
    """A sentence embedder by name: `tfidf-svd`, which needs no download, or `sentence-transformers:MODEL`.

    Raises RecipeError for another name, or where the latter's library is missing; CheckpointError for no such model.
    """
    from milonga.stages.prompts import TfidfEmbedder
    from milonga.stages.sentences import PREFIX, SentenceEmbedder

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
    from milonga.models.schedules import forward_process
    from milonga.stages.denoise import Trainable

    whole = pipeline(name, unet)
    return Trainable(whole.unet, *forward_process(whole.scheduler), *whole.encode_prompt([""]))


def examples(name: str, run: Run, pairs: Sequence[Pair], anchors: int = 0) -> "PairExamples":
    """The pairs' latents as they were sampled, with their encoded captions; and as many real clips for anchors."""
    from milonga.app.codec import packed_size, unpacked
    from milonga.stages.latents import PairExamples

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
    from milonga.app.codec import stored_latents

    found = stored_latents(run, wanted)
    missing = sorted(wanted - set(found))
    if missing:
        raise DataError(f"{run.path}: clip {missing[0]} has no stored latents, so it cannot be trained on")
    return found


def anchor_clips(whole: "TangoPipeline", count: int) -> "PairExamples":
    """Real clips of the world's training captions, through the VAE, with their encoded captions."""
    from milonga.app.codec import moments, wave_for
    from milonga.stages.latents import Moments, PairExamples

    prompts = world_prompts("train", count)
    mean, logvar = moments(whole, [wave_for(whole, reference(prompt)) for prompt in prompts])
    states, mask = whole.encode_prompt([prompt.text for prompt in prompts])
    return PairExamples(Moments(mean, logvar, whole.vae.config.scaling_factor), None, states, mask)
