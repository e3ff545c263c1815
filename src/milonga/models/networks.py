"""Networks and pipelines from folders: diffusers' layout, of one variant or in parts, checked as they are read."""

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from milonga.core.deferred import LOADING, deferred_imports
from milonga.core.errors import CheckpointError, brief
from milonga.core.weights import WRAPPER, adapted, all_finite, read_weights, weights_of
from milonga.maths.devices import out_of_memory

# The classes that a folder's model_index.json names, and the denoisers that generate with them and train them.
BACKBONES = {
    "StableAudioPipeline": "milonga.models.stable_audio:StableAudioDenoiser",
    "TangoFluxPipeline": "milonga.models.tangoflux:TangoFluxDenoiser",
    "AudioLDMPipeline": "milonga.models.audioldm:AudioLDMDenoiser",
    "AudioLDM2Pipeline": "milonga.models.audioldm:AudioLDM2Denoiser",
}
# AudioLDM 2 as published names GPT-2 without the head that current diffusers asks for; the weights are the same.
RENAMED = {"GPT2Model": "GPT2LMHeadModel"}
PUBLISHED = {"tangoflux.safetensors": "TangoFluxPipeline"}  # layouts of their own, by a file of theirs
# A network's weights: of one variant (fp16) or none, in one file or in parts.
NETWORK_FILE = re.compile(r"(?:\w+_)?model(?:\.(?P<variant>\w+))??(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)")
CUSTOM = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*):([A-Za-z_]\w*)@(.+)")  # package.module:Class@FOLDER


def backbone_class(folder: Path) -> Any:
    """The denoiser of `BACKBONES` for a folder's pipeline, or for the one that its adapter changes; None for others."""
    if base := adapted(folder):
        return None if CUSTOM.fullmatch(base) else backbone_class(weights_of(base))
    try:
        return backbone_named(json.loads((folder / "model_index.json").read_text())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        kinds = [kind for file, kind in PUBLISHED.items() if (folder / file).is_file()]
        return backbone_named(kinds[0]) if kinds else None


def is_tango(name: str, revision: str | None = None) -> bool:
    """Whether a model is neither a custom backbone nor of the stock ones: a Tango, or no model at all."""
    return CUSTOM.fullmatch(name) is None and backbone_class(weights_of(name, revision)) is None


def backbone_named(kind: str) -> Any:
    """The denoiser of `BACKBONES` for a pipeline's class; None for others."""
    if kind not in BACKBONES:
        return None
    module, name = BACKBONES[kind].split(":")
    return getattr(importlib.import_module(module), name)


def stock_pipeline(folder: Path, backbone: Any, places: Mapping[str, Path], dtype: Any) -> Any:
    """The pipeline in a folder of diffusers' layout; networks in `places` come from there. Raises as `read`."""
    import diffusers
    import torch
    import transformers

    dtype = dtype or torch.float32
    index = json.loads((folder / "model_index.json").read_text())
    rooms, parts = (diffusers, transformers, importlib.import_module(backbone.__module__)), {}
    for part, entry in index.items():
        name = RENAMED.get(entry[1], str(entry[1])) if isinstance(entry, list) else ""
        kind = next((getattr(room, name) for room in rooms if hasattr(room, name)), None)
        if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
            place = places.get(part, folder / part)
            parts[part] = checked(place, lambda kind=kind, place=place: read(kind, place, dtype))
    kind = next(getattr(room, index["_class_name"]) for room in rooms if hasattr(room, index["_class_name"]))
    with _quiet():  # it does not know its own projection model
        return kind.from_pretrained(folder, local_files_only=True, **parts)


def no_progress_bars() -> None:
    """Loading takes a second or two: the libraries' own progress bars would only get in the way of ours."""
    for library in _libraries():
        library.disable_progress_bar()


def _libraries() -> tuple[Any, Any]:
    """The logging modules of diffusers and transformers."""
    with deferred_imports():
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

    return diffusers_logging, transformers_logging


def checked(place: Path, loader: Callable[[], Any]) -> Any:
    """What `loader` gives; CheckpointError naming `place` where it holds nothing usable."""
    from safetensors import SafetensorError

    try:
        with deferred_imports(LOADING):
            return loader()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        if out_of_memory(error):
            raise
        raise CheckpointError(f"{place} holds no usable model: {brief(error)}") from error


def read(kind: Any, folder: Path, dtype: Any) -> Any:
    """A network of class `kind`, from weights of a variant (`model.fp16.safetensors`) where there are no others, and
    without `module.` before all names. ValueError where files are missing, or tensors, which the libraries fill with
    random numbers, or are not finite.
    """
    names = sorted(file.name for file in folder.glob("*"))
    weights = [match for name in names if (match := NETWORK_FILE.fullmatch(name))]
    if "config.json" not in names or not weights:
        lacking = "weights (.safetensors or .bin)" if "config.json" in names else "config.json"
        raise ValueError(f"it has no {lacking}" if names else "there is no such folder")
    variant = None if any(match["variant"] is None for match in weights) else weights[0]["variant"]
    with _quiet(), _nothing_drawn():  # they would list all keys that do not fit, thirty kilobytes of them
        network, info = kind.from_pretrained(
            folder, dtype=dtype, local_files_only=True, variant=variant, output_loading_info=True
        )
        unexpected = info["unexpected_keys"]
        if unexpected and all(key.startswith(WRAPPER) for key in unexpected):
            own = [match[0] for match in weights if match["variant"] == variant]
            files = [name for name in own if name.endswith(".safetensors")] or own  # all parts, of one format
            read = (item for name in files for item in read_weights(folder / name).items())
            tensors = {key: value.to(dtype) for key, value in read}
            missing = network.load_state_dict(tensors, strict=False, assign=True).missing_keys
            tied = getattr(network, "_tied_weights_keys", None) or ()  # T5's embedding, of which files hold one name
            if tied:
                network.tie_weights()
            info["missing_keys"] = set(missing) - set(tied)
    if info["missing_keys"]:
        raise ValueError(f"its weights lack {min(info['missing_keys'])}")
    damaged = [name for name, value in network.state_dict().items() if not all_finite(value)]
    if damaged:
        raise ValueError(f"{damaged[0]} has NaN or infinite values")
    return network.eval()


def read_shapes(kind: Any, folder: Path, dtype: Any) -> Any:
    """A network of class `kind` without weights, on the `meta` device: its config and its shapes."""
    import torch

    with torch.device("meta"):
        if hasattr(kind, "load_config"):  # diffusers' classes have it, those of transformers have not
            network: Any = kind.from_config(kind.load_config(folder, local_files_only=True))
        else:
            network = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    return torch.nn.Module.to(network, dtype=dtype).eval()  # diffusers' own `to` warns


@contextmanager
def _nothing_drawn() -> Iterator[None]:
    """Without random numbers for what has no memory yet (torch's `meta` device), in this thread.

    Nothing would come of them, but torch imports its symbolic mathematics for them, a second of CPU.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is torch.nn.init.normal_:  # what an embedding draws
                tensor = kwargs.get("tensor", args[0] if args else None)
                if tensor is not None and tensor.is_meta:
                    return tensor
            return func(*args, **kwargs)

    with Undrawn():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' warnings on loading."""
    levels = [(library, library.get_verbosity()) for library in _libraries()]
    for library, _ in levels:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
