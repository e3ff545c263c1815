"""Which files of a model's repository on the hub are needed, and no others."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from milonga.core.errors import CheckpointError
from milonga.core.hub import as_repository, fetch

# The files of the original Tango's weights: as published, and as its training saved them.
MAIN, VAE = "pytorch_model_main.bin", "pytorch_model_vae.bin"
# accelerate numbers networks in the order in which they were prepared: VAE, front end, main.
TRAINED_MAIN = ("model_2.safetensors", "pytorch_model_2.bin")
TRAINED_VAE = (VAE, "model.safetensors", "pytorch_model.bin")

# Weights of a component without a variant (`model.fp16.safetensors`), whole or in numbered parts.
_WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d{5}-of-\d{5})?\.(safetensors|bin)")
_PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae", "vocoder")
_WORDS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_LISTENER = ("config.json", "front_end.json", "preprocessor_config.json", "vocab.json", "merges.txt")
# The front end's weights (pytorch_model_stft.bin) are constants, and config.json is main_config.json again.
_CONFIGS = ("main_config.json", "vae_config.json", "stft_config.json", "summary.jsonl")


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
        return [one for one in _WORDS if one in names]

    return fetch(repository, revision, choose, tell=lambda _: None)


def needed(names: Sequence[str]) -> list[str]:
    """The files that a pipeline or a listener is loaded from, of those that a repository holds; none for no model."""
    if "model_index.json" in names:
        return ["model_index.json", *(one for part in _PARTS for one in _component(names, part))]
    trained = MAIN not in names
    main = next((one for one in (TRAINED_MAIN if trained else (MAIN,)) if one in names), None)
    vae = next((one for one in (TRAINED_VAE if trained else (VAE,)) if one in names), None)
    if main is None and "main_config.json" not in names:
        return _listener(names)
    words = [one for one in names if one.startswith("tokenizer/") or one in _WORDS]
    return [*(one for one in _CONFIGS if one in names), *words, *(one for one in (main, vae) if one)]


def _listener(names: Sequence[str]) -> list[str]:
    """What a CLAP or a tagger is loaded from: one network in transformers' layout; none where there is none."""
    weights = [one for one in names if _WEIGHTS.fullmatch(one) or one == "pytorch_model.bin"]
    if "config.json" not in names or not weights:
        return []
    safe = [one for one in weights if one.endswith(".safetensors")]
    return [one for one in names if one in (*_LISTENER, *_WORDS)] + (safe or weights)


def _component(names: Sequence[str], part: str) -> list[str]:
    """A component's configs and words, and its weights: the safe ones where there are both."""
    own = {one.removeprefix(f"{part}/"): one for one in names if one.startswith(f"{part}/")}
    weights = [name for name in own if _WEIGHTS.fullmatch(name)]
    safe = [name for name in weights if name.endswith(".safetensors")]
    indexes = (".safetensors.index.json",) if safe else (".bin.index.json",)
    others = [
        name
        for name in own
        if name.endswith((".json", ".txt", ".model")) and (".index." not in name or name.endswith(indexes))
    ]
    return [own[name] for name in [*others, *(safe or weights)]]
