"""Models by name: weights that ship, a run's systems, folders, classes of one's own, repositories on the Hub.

`nano` · `runs/demo/aligned` · a folder in diffusers' layout, an original Tango's or TangoFlux's ·
`package.module:Class@FOLDER` · `user/name[@revision]`.
"""

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milonga.core.cache import once
from milonga.core.errors import CheckpointError, RecipeError, brief
from milonga.core.ids import content_id
from milonga.core.protocols import Model
from milonga.core.store import atomic_dir, read_json
from milonga.core.weights import SHIPPED, adapted, weights_of
from milonga.core.weights import fingerprint as weights_fingerprint
from milonga.maths.devices import AUTO, device_of, placed
from milonga.models import networks

if TYPE_CHECKING:
    from milonga.models.denoiser import Denoiser
    from milonga.models.tango import TangoPipeline

NETWORKS = ("text_encoder", "unet", "vae", "vocoder")
ENCODERS, DENOISING = ("text_encoder", "vae"), ("text_encoder", "unet")  # what encoding needs, and what training does


@dataclass(frozen=True)
class System:
    """A model by name, and the folder of its trained network where a run trained one."""

    name: str
    model: str
    trained: Path | None = None

    def load(
        self, scheduler: str | None = None, seconds: float | None = None, device: Any = AUTO, precision: str = "fp32"
    ) -> Any:
        """The model, ready to generate, with its own scheduler and length or with these, in a precision; loaded once
        and cached.
        """
        if self.trained is None:
            return load(self.model, scheduler, seconds, device, precision)
        return tuned(self.model, self.trained, scheduler, seconds, device, precision)

    def sampling(self) -> tuple[int, float]:
        """The steps and the guidance that it is best sampled with."""
        from milonga.models.tango_denoiser import STUDENT_STEPS

        steps, guidance = sampling(self.model)
        config = None if self.trained is None else self.trained / "config.json"
        if config is not None and config.is_file() and json.loads(config.read_text()).get("time_cond_proj_dim"):
            return STUDENT_STEPS, guidance
        return steps, guidance

    def fingerprint(self) -> str:
        """A hash of its weights."""
        own = run_system(self.model)
        base = own.fingerprint() if own else weights_fingerprint(self.model)
        return base if self.trained is None else content_id(base, weights_fingerprint(str(self.trained)))


def system(name: str) -> System:
    """The one system of that name. Raises RecipeError for none, and for a run folder, which holds several."""
    chosen = systems([name])
    if len(chosen) > 1:
        raise RecipeError(f"{name} is a run with several systems: name one, such as {chosen[-1].name}")
    return chosen[0]


def systems(names: Sequence[str]) -> list[System]:
    """All systems of these names, each once; a run folder stands for its base and every system that it trained.

    Raises RecipeError for a name that is nothing of the kind.
    """
    chosen: dict[tuple[str, Path | None], System] = {}
    for name in names:
        path = Path(name)
        if _is_run(path):
            trained = [folder.parent.name for folder in sorted(path.glob("checkpoints/*/model"))]
            named = [System(_base(path), _base(path)), *(_trained_system(path, own) for own in trained)]
        elif name not in SHIPPED and _is_run(path.parent):
            named = [_trained_system(path.parent, path.name)]
        else:
            weights_of(name)
            named = [System(name, name)]
        chosen |= {(entry.model, entry.trained): entry for entry in named}
    return list(chosen.values())


def pipeline(
    name: str,
    trained: Path | None = None,
    revision: str | None = None,
    tokenizer: str | None = None,
    dtype: Any = None,
    parts: Sequence[str] = NETWORKS,
) -> "TangoPipeline":
    """A freshly loaded Tango pipeline on the CPU (float32 unless `dtype`), with a trained network from another folder
    if given.

    Of the `NETWORKS` only `parts` have weights; the others are shapes on torch's `meta` device. `name` may be a run's
    system. The folder is in diffusers' layout or in one of the original Tango's; `tokenizer` is the folder or
    repository of the tokenizer that the latter leave out. Nothing is filled with random numbers first. Raises
    CheckpointError naming the file or folder and what is wrong with it; RecipeError for another backbone.
    """
    import torch

    from milonga.models import tango
    from milonga.models.adapter import merge_adapter
    from milonga.models.original.layout import is_original
    from milonga.models.original.load import load_original

    networks.no_progress_bars()
    name, trained = resolved(name, trained)
    folder, dtype = weights_of(name, revision), dtype or torch.float32
    if backbone := networks.backbone_class(folder):
        raise RecipeError(f"{name} is no Tango but a model for {backbone.__name__}: load it by milonga.load")
    if base := adapted(folder):
        pipe = pipeline(base, trained, tokenizer=tokenizer, dtype=dtype, parts=parts)
        if trained is None and "unet" in parts:  # a trained network has the adapter in it already
            merge_adapter(pipe.unet, folder)
        return pipe
    folder_sampling(folder)  # a folder without an index is no model at all
    if is_original(folder):
        pipe = load_original(folder, tokenizer)
        if trained is not None:
            network = networks.checked(trained, lambda: networks.read(tango.UNet2DConditionModel, trained, dtype))
            pipe.register_modules(unet=network)
        unused = {part: getattr(pipe, part).to("meta") for part in sorted(set(NETWORKS) - set(parts))}
        pipe.register_modules(**unused)
        return _as_trained(pipe.to(dtype), trained)
    kinds = tango.T5EncoderModel, tango.UNet2DConditionModel, tango.AutoencoderKL, tango.SpeechT5HifiGan
    components = {}
    for part, kind in zip(NETWORKS, kinds, strict=True):
        place = trained if trained and part == "unet" else folder / part
        read = networks.read if part in parts else networks.read_shapes
        components[part] = networks.checked(place, lambda kind=kind, place=place, read=read: read(kind, place, dtype))
    loader = partial(tango.TangoPipeline.from_pretrained, folder, local_files_only=True, **components)
    return _as_trained(networks.checked(folder, loader), trained)


def _as_trained(pipe: "TangoPipeline", trained: Path | None) -> "TangoPipeline":
    """The pipeline; with a distilled network in it, its sampler and steps are a student's."""
    from milonga.models.tango_denoiser import as_student, takes_guidance

    if trained is not None and takes_guidance(pipe.unet):
        as_student(pipe)
    return pipe


def load_public(
    name: str,
    revision: str | None,
    scheduler: str | None,
    dtype: Any,
    device: Any,
    tokenizer: str | None,
    precision: str = "fp32",
) -> Any:
    """`milonga.load`: a pipeline, or a generator for what is not a Tango."""
    import torch

    from milonga.models.generator import generator_of
    from milonga.models.schedulers import check_scheduler

    check_scheduler(scheduler)
    device = device_of(device)
    if isinstance(dtype, str):
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise RecipeError(f"{dtype!r} is no torch dtype: use float32, float16 or bfloat16")
        dtype = getattr(torch, dtype)
    base, _ = resolved(name)
    _check_precision(name, base, precision, revision)
    if networks.CUSTOM.fullmatch(base) and (revision or tokenizer or dtype is not None):
        raise RecipeError(f"{name} is loaded by its own class: leave revision, tokenizer and dtype out")
    if not networks.is_tango(base, revision):
        denoiser = load_denoiser(name, None, revision, dtype, tokenizer)
        return generator_of(name, denoiser, device, scheduler=scheduler)
    pipe = pipeline(name, revision=revision, tokenizer=tokenizer, dtype=dtype)
    pipe = (pipe if scheduler is None else pipe.set_scheduler(scheduler)).to(device)
    return pipe if precision == "fp32" else pipe.set_precision(precision)


def choose_precision(name: str, device: Any = AUTO) -> str:
    """The precision, "fp32" or "bf16", in which a model's network was measured to be faster on this machine; "fp32" for
    a backbone that has no choice. Of the model only the network is loaded, and dropped again.
    """
    base, trained = resolved(name)
    if not networks.is_tango(base):
        return "fp32"
    pipe = pipeline(base, trained, parts=("unet",))
    placed(pipe.unet, device)
    return pipe.set_precision("auto").precision


def _check_precision(name: str, base: str, precision: str, revision: str | None = None) -> None:
    """Raises RecipeError for a precision that the model `base` cannot be sampled in."""
    if precision != "fp32" and not networks.is_tango(base, revision):
        raise RecipeError(f"{name} has no choice of precision: leave it out, or choose a dtype")


@once
def load(
    name: str, scheduler: str | None = None, seconds: float | None = None, device: Any = AUTO, precision: str = "fp32"
) -> Model:
    """A model ready to generate on a device, with its own scheduler and length or with these, in a precision; loaded
    once and cached.

    Raises RecipeError for an unknown scheduler or precision, and for any with a model that has no choice.
    """
    from milonga.models.generator import TangoModel, generator_of
    from milonga.models.schedulers import check_scheduler

    check_scheduler(scheduler)
    networks.no_progress_bars()
    if own := run_system(name):
        return own.load(scheduler, seconds, device, precision)
    _check_precision(name, name, precision)
    if not networks.is_tango(name):
        return generator_of(name, load_denoiser(name), device, seconds, scheduler)
    return TangoModel(name, pipeline(name), scheduler, seconds, device, precision)


def load_denoiser(
    name: str,
    trained: Path | None = None,
    revision: str | None = None,
    dtype: Any = None,
    tokenizer: str | None = None,
    parts: Sequence[str] = NETWORKS,
) -> "Denoiser":
    """A model to encode data with and to train, freshly loaded on the CPU, with a trained network from another folder
    if given.

    What is done with a Tango may need some `parts` only, the text encoder always: `ENCODERS` to encode data,
    `DENOISING` to train on encoded data. `package.module:Class@FOLDER` is `Class.load_model(FOLDER)`. Raises
    RecipeError for a class that is not there, CheckpointError as `pipeline` does.
    """
    import torch

    from milonga.models.adapter import merge_adapter
    from milonga.models.tango_denoiser import TangoDenoiser

    name, trained = resolved(name, trained)
    custom = networks.CUSTOM.fullmatch(name)
    if custom is None and (backbone := networks.backbone_class(weights_of(name, revision))):
        folder, part = weights_of(name, revision), backbone.network
        if base := adapted(folder):
            whole: Any = load_denoiser(base, trained, dtype=dtype, tokenizer=tokenizer)
            if trained is None:  # a trained network has the adapter in it already
                merge_adapter(whole.module, folder)
            return type(whole).of(whole.pipe, name)
        places = {} if trained is None else {part: trained}
        if (folder / "model_index.json").is_file():
            pipe = networks.checked(folder, lambda: networks.stock_pipeline(folder, backbone, places, dtype))
            return backbone.of(pipe, name)
        read: Any = backbone.of(backbone.read_published(folder, tokenizer), name)
        read.pipe.to(dtype or torch.float32)
        if trained is not None:
            networks.checked(trained, lambda: read.load(trained))
        return read
    if custom is None:
        return TangoDenoiser.of(pipeline(name, trained, revision, tokenizer, dtype, parts), name)
    module, kind, folder = custom.groups()
    try:
        denoiser_class = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"{name}: there is no class {kind} in {module}: {brief(error)}") from error
    denoiser: Denoiser = denoiser_class.load_model(Path(folder))
    if trained is not None:
        denoiser.load(trained)
    return denoiser


def convert(source: Path, destination: Path, tokenizer: str | None = None) -> Path:
    """Writes a published checkpoint in a layout of its own (Tango's, TangoFlux's) as a pipeline in diffusers' layout,
    or TangoFlux's pipeline in its published one, atomically; gives `destination`.

    Raises CheckpointError when `source` cannot be used, RecipeError when `destination` exists already.
    """
    from milonga.models.original.load import convert as convert_tango

    backbone = networks.backbone_class(source)
    published = backbone is not None and not (source / "model_index.json").is_file()
    if not published and not hasattr(backbone, "write_published"):
        return convert_tango(source, destination, tokenizer)
    if destination.exists():
        raise RecipeError(f"{destination} exists already: name a new folder")
    denoiser: Any = load_denoiser(str(source), tokenizer=tokenizer)
    with atomic_dir(destination) as part:
        (denoiser.save_model if published else denoiser.write_published)(part)
    return destination


def as_denoiser(model: Any) -> "Denoiser":
    """The denoiser of a name, a pipeline, a denoiser or a model around one; RecipeError for anything else."""
    from milonga.models.denoiser import Denoiser
    from milonga.models.tango import TangoPipeline
    from milonga.models.tango_denoiser import TangoDenoiser

    if isinstance(model, str | Path):
        return load_denoiser(str(model))
    if isinstance(model, TangoPipeline):
        return TangoDenoiser.of(model)
    model = getattr(model, "denoiser", model)
    if isinstance(model, Denoiser):
        return model
    if backbone := networks.backbone_named(type(model).__name__):
        return backbone.of(model)
    raise RecipeError(f"a {type(model).__name__} cannot be trained: give a model's name, a pipeline or a Denoiser")


def as_model(model: Any, scheduler: str | None = None, device: Any = AUTO, seconds: float | None = None) -> Model:
    """A model ready to generate from a name, a loaded pipeline, a denoiser, or an object that is a model already.

    What has a name is loaded on `device`; an object stays where it is. `seconds` are the clips' length, but for an
    object that is a model already; None for the model's own.
    """
    from milonga.models.denoiser import Denoiser
    from milonga.models.generator import TangoModel, generator_of
    from milonga.models.tango import TangoPipeline

    if isinstance(model, str | Path):
        return load(str(model), scheduler, seconds, device)
    if isinstance(model, TangoPipeline):
        name = str(model.config.get("_name_or_path") or "pipeline")
        return TangoModel(name, model, scheduler, seconds, model.device)
    name = type(model).__name__
    if networks.backbone_named(name) or isinstance(model, Denoiser):
        return generator_of(name, as_denoiser(model), None, seconds, scheduler)
    return model


def object_fingerprint(model: Any) -> str:
    """A hash that tells one object's weights from another's: its own `fingerprint`, else of all networks inside it.

    An object without networks is known by its class and its name.
    """
    from torch import nn

    from milonga.models.denoiser import Denoiser, module_hash

    given: Any = getattr(model, "fingerprint", None)
    if isinstance(model, Denoiser):
        return content_id(model.fingerprint, module_hash(model.module))
    if given is not None:
        return str(given() if callable(given) else given)
    whole = getattr(model, "pipeline", model)
    components = getattr(whole, "components", None) or {"": whole}
    hashes = [[k, module_hash(part)] for k, part in sorted(components.items()) if isinstance(part, nn.Module)]
    return content_id(hashes or [type(model).__qualname__, getattr(model, "name", "")])


def tuned(
    name: str,
    trained: Path,
    scheduler: str | None = None,
    seconds: float | None = None,
    device: Any = AUTO,
    precision: str = "fp32",
) -> Model:
    """A model with a trained network from the folder `trained`; loaded again where that has been replaced since."""
    written = max(path.stat().st_mtime_ns for path in trained.iterdir())
    return _tuned(name, trained, scheduler, seconds, device, precision, written)


@once
def _tuned(
    name: str, trained: Path, scheduler: str | None, seconds: float | None, device: Any, precision: str, _written: int
) -> Model:
    from milonga.models.generator import TangoModel, generator_of

    base, _ = resolved(name)
    _check_precision(name, base, precision)
    if not networks.is_tango(base):
        return generator_of(trained.parent.name, load_denoiser(name, trained), device, seconds, scheduler)
    return TangoModel(trained.parent.name, pipeline(name, trained), scheduler, seconds, device, precision)


def sampling(name: Any) -> tuple[int, float]:
    """The steps and the guidance that a model (a name, or a loaded pipeline) is best sampled with, from its config.

    Raises CheckpointError when there is no readable config, RecipeError for an object without one.
    """
    if not isinstance(name, str):
        config = getattr(getattr(name, "pipeline", name), "config", {})
        if not {"steps", "guidance"} <= set(config):
            if own := getattr(getattr(name, "denoiser", name), "sampling", None):
                return own
            raise RecipeError(f"a {type(name).__name__} has no steps and guidance of its own: give both")
        return config["steps"], config["guidance"]
    if own := run_system(name):
        return own.sampling()
    if custom := networks.CUSTOM.fullmatch(name):
        return folder_sampling(Path(custom[3])) if (Path(custom[3]) / "model_index.json").is_file() else (50, 3.0)
    folder = weights_of(name)
    if backbone := networks.backbone_class(folder):
        return backbone.sampling
    if base := adapted(folder):
        return sampling(base)
    return folder_sampling(folder)


def folder_sampling(folder: Path) -> tuple[int, float]:
    """The steps and the guidance in a folder's config (200 and 3 where it has none); CheckpointError for no config."""
    from milonga.models.original.layout import is_original

    path = folder / "model_index.json"
    try:
        config = {} if is_original(folder) else json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("no object")
    except (OSError, ValueError):
        raise CheckpointError(f"{path} is missing or no JSON: {folder} holds no model") from None
    return config.get("steps", 200), config.get("guidance", 3.0)


def run_system(name: str) -> System | None:
    """The system of a run that a name such as `runs/demo/aligned` stands for; None for any other. Fetches nothing."""
    path = Path(name)
    if name in SHIPPED or (path / "model_index.json").is_file() or not (_is_run(path) or _is_run(path.parent)):
        return None
    return system(name)


def resolved(name: str, trained: Path | None = None) -> tuple[str, Path | None]:
    """The model below the runs that a name leads to, and the network that was trained last, `trained` before theirs."""
    while own := run_system(name):
        name, trained = own.model, trained or own.trained
    return name, trained


def _is_run(path: Path) -> bool:
    return (path / "recipe.toml").is_file() and (path / "manifest.json").is_file()


def _base(run: Path) -> str:
    return read_json(run / "manifest.json")["recipe"]["models"]["model"]


def _trained_system(run: Path, name: str) -> System:
    trained = run / "checkpoints" / name / "model"
    if not trained.is_dir():
        raise RecipeError(f"{run} has trained no system {name!r} yet: see `milonga status {run}`")
    return System(f"{run}/{name}", _base(run), trained)
