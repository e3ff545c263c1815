"""Models by name: the weights that ship, a folder, a repository on the hub. Loaded once and kept."""

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milonga.core.cache import once
from milonga.core.errors import RecipeError
from milonga.core.ids import content_id
from milonga.core.protocols import Model
from milonga.core.weights import weights_of

if TYPE_CHECKING:
    from milonga.models.denoiser import Denoiser
    from milonga.models.tango import TangoPipeline


def pipeline(
    name: str, trained: Path | None = None, revision: str | None = None, tokenizer: str | None = None, dtype: Any = None
) -> "TangoPipeline":
    """A freshly loaded pipeline on the CPU (float32 unless `dtype`), with a trained network from another folder if
    given.

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
    return load_pipeline(folder, trained, tokenizer, dtype or torch.float32)


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
    from milonga.models.generator import TangoModel
    from milonga.models.schedulers import check_scheduler

    check_scheduler(scheduler)
    _quiet()
    if kind := baseline_class(weights_of(name)):
        if scheduler is not None:
            raise RecipeError(f"{name} is a {kind}, which runs by its own scheduler: leave --scheduler out")
        return load_baseline(name, weights_of(name), seconds)
    return TangoModel(name, pipeline(name), scheduler, seconds)


def load_denoiser(name: str, trained: Path | None = None) -> "Denoiser":
    """A model to encode data with and to train, freshly loaded, with a trained network from another folder if given."""
    from milonga.models.tango_denoiser import TangoDenoiser

    return TangoDenoiser.of(pipeline(name, trained), name)


def generator_of(name: str, denoiser: "Denoiser") -> Model:
    """A model that generates with the weights that a denoiser has at the moment of each call."""
    from milonga.models.generator import TangoModel

    return TangoModel(name, denoiser.pipe)  # pyright: ignore[reportAttributeAccessIssue]


def tuned(name: str, trained: Path, scheduler: str | None = None, seconds: float | None = None) -> Model:
    """A model with a trained network from the folder `trained`; loaded again where that has been replaced since."""
    return _tuned(name, trained, scheduler, seconds, max(path.stat().st_mtime_ns for path in trained.iterdir()))


@once
def _tuned(name: str, trained: Path, scheduler: str | None, seconds: float | None, _written: int) -> Model:
    from milonga.models.generator import TangoModel

    return TangoModel(trained.parent.name, pipeline(name, trained), scheduler, seconds)


def sampling(name: str) -> tuple[int, float]:
    """The steps and the guidance that a model is best sampled with, read from its config.

    Raises CheckpointError when there is no readable config.
    """
    from milonga.models import loading
    from milonga.models.baselines import baseline_class, own_sampling

    folder = weights_of(name)
    kind = baseline_class(folder)
    return own_sampling(kind) if kind else loading.sampling(folder)


def as_model(model: Any, scheduler: str | None = None) -> Model:
    """A model ready to generate from a name, a pipeline that is loaded already, or an object that is one already."""
    from milonga.models.generator import TangoModel
    from milonga.models.tango import TangoPipeline

    if isinstance(model, str | Path):
        return load(str(model), scheduler)
    if isinstance(model, TangoPipeline):
        return TangoModel(str(model.config.get("_name_or_path") or "pipeline"), model, scheduler)
    return model


def object_fingerprint(model: Any) -> str:
    """A hash that tells one object's weights from another's: its own `fingerprint`, else of all tensors inside it.

    An object without tensors is known by its class and its name.
    """
    import torch

    given = getattr(model, "fingerprint", None)
    if given is not None:
        return given() if callable(given) else str(given)
    components = getattr(model, "components", None) or {"": getattr(model, "pipeline", model)}
    if hasattr(components.get(""), "components"):
        components = components[""].components
    parts = {name: part for name, part in components.items() if isinstance(part, torch.nn.Module)}
    hashes = [
        [name, key, sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()]
        for name, part in sorted(parts.items())
        for key, tensor in part.state_dict().items()
    ]
    return content_id(hashes or [type(model).__qualname__, getattr(model, "name", "")])
