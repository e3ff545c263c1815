"""Weights by name: which folder holds them, which files of a hub repository they need, and how a file is read.

Files are read without running anything in them, and mapped into memory where they allow it.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from milonga.core.cache import once
from milonga.core.errors import CheckpointError, RecipeError, brief
from milonga.core.hub import as_repository, fetch
from milonga.core.ids import content_id, file_hash

if TYPE_CHECKING:
    from torch import Tensor, nn

# The weights that ship with the package, each a folder under nano/weights.
SHIPPED = {
    "nano": "tango",
    "nano-2": "tango-2",  # an adapter of nano, aligned by recipes/nano.toml
    "nano-clap-a": "clap-a",
    "nano-clap-b": "clap-b",
    "nano-judge": "clap-judge",
    "nano-tagger": "tagger",
    "nano-tagger-b": "tagger-b",
}
# The scorers that rank nano's clips where none are named, in pairs and in a search.
RANKERS = ("nano-clap-a", "nano-clap-b")
SELECTORS = (*RANKERS, "nano-events")
WEIGHTS = (".safetensors", ".bin")
# An adapter's files: diffusers' name of its weights, PEFT's of its settings.
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "pytorch_lora_weights.safetensors", "adapter_config.json"
POINTER = b"version https://git-lfs"
WRAPPER = "module."  # DataParallel's and DistributedDataParallel's prefix

# The files of the original Tango's weights: as published, and as its training saved them.
MAIN, VAE = "pytorch_model_main.bin", "pytorch_model_vae.bin"
# accelerate numbers networks in the order in which they were prepared: VAE, front end, main.
TRAINED_MAIN = ("model_2.safetensors", "pytorch_model_2.bin")
TRAINED_VAE = (VAE, "model.safetensors", "pytorch_model.bin")

# The files of TangoFlux's weights, as published.
TANGOFLUX = ("tangoflux.safetensors", "vae.safetensors", "config.json")

# Weights of a component without a variant (`model.fp16.safetensors`), in one file or in numbered parts.
_WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d{5}-of-\d{5})?\.(safetensors|bin)")
_PARTS = (
    "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "projection_model", "language_model",
    "feature_extractor", "unet", "transformer", "vae", "vocoder",
)  # fmt: skip
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
HEAD = "head.safetensors"  # of a CLAP that reads events
_SCORER = ("config.json", "front_end.json", "preprocessor_config.json", "vocab.json", "merges.txt", HEAD)
# The front end's weights (pytorch_model_stft.bin) are constants, and config.json is main_config.json again.
_CONFIGS = ("main_config.json", "vae_config.json", "stft_config.json", "summary.jsonl")


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
    return fetch_model(name, revision)


def weights_of(name: str, revision: str | None = None) -> Path:
    """The folder of a part's weights, which exists.

    Raises RecipeError for an unknown name, CheckpointError saying how to make weights that should ship and do not.
    """
    folder = folder_of(name, revision)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing: make {name} with `milonga nano train --out {folder.parent}`")
    return folder


def fingerprint(name: str) -> str:
    """A hash of all weights in a part's folder, without loading them.

    Raises CheckpointError when there are none.
    """
    folder = weights_of(name)
    weights = sorted(path for path in folder.rglob("*") if path.suffix in WEIGHTS)
    if not weights:
        raise CheckpointError(f"{folder} holds no {' or '.join(WEIGHTS)} weights")
    own = [[str(path.relative_to(folder)), file_hash(path)] for path in weights]
    base = adapted(folder)
    return content_id(own) if base is None else content_id(fingerprint(base), own)


def adapted(folder: Path) -> str | None:
    """The name of the model that the adapter in a folder changes; None for a folder that is no adapter alone.

    Raises CheckpointError for an adapter that names no model.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file() or (folder / "model_index.json").is_file():
        return None
    try:
        base = json.loads(path.read_text())["base_model_name_or_path"]
        if not isinstance(base, str) or not base:
            raise ValueError("it names no base model")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: no base_model_name_or_path ({brief(error)}): name its base") from None
    return base


def fetch_model(name: str, revision: str | None = None, tell: Callable[[str], object] | None = None) -> Path:
    """The folder of a repository's files (`user/name` or `user/name@revision`) that a model is loaded from.

    Raises CheckpointError when it cannot be fetched or holds no model of these layouts.
    """
    repository, named = as_repository(name) or (name, None)

    def choose(names: Sequence[str]) -> list[str]:
        chosen = needed(names)
        if not chosen:
            raise CheckpointError(f"{repository} holds neither model_index.json nor main_config.json: no Tango model")
        return chosen

    return fetch(repository, revision or named, choose, tell)


def fetch_tokenizer(name: str) -> Path:
    """The folder of a repository's tokenizer, without its weights; raises CheckpointError as `fetch_model` does."""
    repository, revision = as_repository(name) or (name, None)

    def choose(names: Sequence[str]) -> list[str]:
        if "tokenizer.json" not in names:
            raise CheckpointError(f"{repository} holds no tokenizer.json")
        return [name for name in _TOKENIZER if name in names]

    return fetch(repository, revision, choose, tell=lambda _: None)


def needed(names: Sequence[str]) -> list[str]:
    """The files of a repository that a pipeline or a scorer is loaded from; none where it holds no model."""
    if TANGOFLUX[0] in names:
        return [name for name in names if name in TANGOFLUX or name.startswith("tokenizer/")]
    if "model_index.json" in names:
        return ["model_index.json", *(file for part in _PARTS for file in _component(names, part))]
    trained = MAIN not in names
    main = next((name for name in (TRAINED_MAIN if trained else (MAIN,)) if name in names), None)
    vae = next((name for name in (TRAINED_VAE if trained else (VAE,)) if name in names), None)
    if main is None and "main_config.json" not in names:
        return _scorer(names)
    tokenizer = [name for name in names if name.startswith("tokenizer/") or name in _TOKENIZER]
    return [*(name for name in _CONFIGS if name in names), *tokenizer, *(name for name in (main, vae) if name)]


def _scorer(names: Sequence[str]) -> list[str]:
    """The files of a CLAP or a tagger: one network in transformers' layout; none where there is none."""
    weights = [name for name in names if _WEIGHTS.fullmatch(name) or name == "pytorch_model.bin"]
    if "config.json" not in names or not weights:
        return []
    safe = [name for name in weights if name.endswith(".safetensors")]
    return [name for name in names if name in (*_SCORER, *_TOKENIZER)] + (safe or weights)


def _component(names: Sequence[str], part: str) -> list[str]:
    """A component's configs and tokenizer, and its weights: the safetensors where there are both."""
    own = {name.removeprefix(f"{part}/"): name for name in names if name.startswith(f"{part}/")}
    weights = [name for name in own if _WEIGHTS.fullmatch(name)]
    safe = [name for name in weights if name.endswith(".safetensors")]
    indexes = (".safetensors.index.json",) if safe else (".bin.index.json",)
    others = [
        name
        for name in own
        if name.endswith((".json", ".txt", ".model")) and (".index." not in name or name.endswith(indexes))
    ]
    return [own[name] for name in [*others, *(safe or weights)]]


def read_weights(path: Path, container: str | None = None) -> dict[str, Any]:
    """What a file of weights holds by name: a `.safetensors`, or a pickle of tensors, there under the key `container`
    where one is named.

    They are on the CPU, without the `module.` of networks that were saved inside a wrapper for several devices. A
    pickle may also hold what a training stores there, numbers (NumPy's too) and lists of them: `check_tensors` says
    whether all are the tensors of a network. Raises CheckpointError naming the file, which is missing, truncated, not
    what its suffix says, asks to run code, holds nothing by name, or has no `container`.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: give the path of the weights' file")
    held = _load(path)
    if container is not None and path.suffix != ".safetensors":
        if not isinstance(held, Mapping) or container not in held:
            raise CheckpointError(f"{path} has no {container!r}, under which its weights should be")
        held = held[container]
    if not isinstance(held, Mapping):
        raise CheckpointError(f"{path} must hold tensors by their names: it is a {type(held).__name__}")
    wrapped = bool(held) and all(str(key).startswith(WRAPPER) for key in held)
    return {key.removeprefix(WRAPPER) if wrapped else key: value for key, value in held.items()}


def check_tensors(
    path: Path, tensors: Mapping[str, Any], wanted: "Mapping[str, Tensor]", optional: Collection[str] = ()
) -> None:
    """Checks that a file holds exactly the `wanted` tensors, by name, shape and kind; `optional` ones may be missing.

    Tensors of `wanted` may be on the meta device. Any floating-point type serves where one is wanted. Raises
    CheckpointError naming the file and the first key that is missing, unknown, no plain tensor, of another shape or
    type, or not finite.
    """
    import torch

    floats = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    missing = [key for key in wanted if key not in tensors and key not in optional]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{path} lacks {missing[0]}{others}: it is incomplete or another network's file")
    unknown = [key for key in tensors if key not in wanted]
    if unknown:
        raise CheckpointError(f"{path} holds {unknown[0]}, which is no tensor of this network")
    for key, value in tensors.items():
        own = wanted[key]
        plain = isinstance(value, torch.Tensor) and value.layout is torch.strided
        if not plain or value.is_meta or value.is_quantized:
            raise CheckpointError(f"{path}: {key} is no plain tensor")
        if value.shape != own.shape:
            raise CheckpointError(f"{path}: {key} has shape {tuple(value.shape)}, not {tuple(own.shape)}")
        if value.dtype not in (floats if own.is_floating_point() else (own.dtype,)):
            raise CheckpointError(f"{path}: {key} is {value.dtype}, not {own.dtype}")
        used = value.float() if value.dtype == torch.float64 else value  # a double may be too large for what is used
        if not all_finite(used):
            raise CheckpointError(f"{path}: {key} has NaN or infinite values")


def all_finite(values: "Tensor") -> bool:
    """Whether a tensor holds neither NaN nor infinity, by its extremes: a fifteenth of the time of `isfinite`."""
    return not values.numel() or all(bool(bound.isfinite()) for bound in values.aminmax())


def fill(network: "nn.Module", tensors: Mapping[str, Any], path: Path) -> None:
    """Gives a network, built on the meta device, the tensors of a file, as float32 where it has floats.

    Buffers that the network has computed for itself (those not on meta) may be missing from the file; where they are
    there they must be equal up to half precision. Raises CheckpointError as `check_tensors` does.
    """

    own = network.state_dict()
    check_tensors(path, tensors, own, [key for key, value in own.items() if not value.is_meta])
    given = {key: value.to(own[key].dtype) for key, value in tensors.items()}
    for key, value in given.items():
        if not own[key].is_meta and (value - own[key]).abs().max() > 1e-3 * own[key].abs().max():
            raise CheckpointError(f"{path}: {key} is of another front end")
    network.load_state_dict({**own, **given}, assign=True)


def _load(path: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise CheckpointError(f"{path} is a git-lfs pointer, not the weights: fetch them with git lfs pull")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_numbers()):
            # Files from before torch 1.6 are no zip archives and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    # A parser fed with arbitrary bytes may raise anything; whatever it is, these bytes are no weights.
    except Exception as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise CheckpointError(
                f"{path} asks to run {code[1]}: it is no file of weights, unsafe to read, and was not run"
            ) from None
        reason = "" if "Weights only" in str(error) else f" ({brief(error).split('. ')[0]})"
        raise CheckpointError(
            f"{path} is truncated or no file of weights, or was renamed{reason}: fetch it again"
        ) from None


def _numbers() -> list[Any]:
    """What a pickle is made of that holds NumPy's numbers, by the names of NumPy 1 and 2; none of it runs anything."""
    import codecs

    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, *kinds, (codecs.encode, "_codecs.encode")]
