"""The command `export`: a run's kept pairs as a data set, or a trained system as a model, each with its card.

A data set's folder has the Hub's form: `README.md`, `data/SPLIT-*.parquet`, `figures/`, the run's `recipe.toml`. Its
shards are finished once they exist, and README.md comes last: a stopped export resumes, a finished one is left alone.
A model's folder holds the base's parts beside the trained network, `README.md`, the run's `recipe.toml` and `metrics/`,
and a `pipeline.py` by which diffusers finds the pipeline's class; it is written aside and renamed. With LoRA its
`adapter` is a small model by itself, which names its base.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from milonga.core.errors import DataError, RecipeError, ServiceError, StoreError, brief
from milonga.core.ids import content_id, file_hash
from milonga.core.progress import tracked
from milonga.core.records import Pair
from milonga.core.store import Run, Shards, atomic_dir, cut, read_json, read_manifest, write_json, write_text
from milonga.data.pairs import RunPairs, origin_of
from milonga.experiment.recipe import stored_recipe

ROWS = 250  # pairs in a shard: two clips of ten seconds each make it about 150 MB
VALIDATION = 0.05  # share of the captions whose pairs form that split
NOTE = "export.json"


def export_any(
    path: Path,
    folder: Path,
    system: str | None,
    validation: float | None,
    adapter: int | None,
    hub: str | None,
    public: bool,
) -> Iterator[str]:
    """The command: exports a run's pairs, or one `system`, whole or as an `adapter` of that rank, and where `hub` names
    a repository uploads it; says where each is. Raises RecipeError for a `validation` share beside a system or an
    adapter of none, and as the exports and `push` do.
    """
    if adapter is not None and system is None:
        raise RecipeError("--adapter exports a trained system: name it by --system")
    if system is not None and validation is not None:
        raise RecipeError("--validation splits pairs, and --system exports a model: leave one of them out")
    if hub:
        check_credentials()
    share = VALIDATION if validation is None else validation
    yield str(export(path, folder, share) if system is None else export_system(path, folder, system, adapter))
    if hub:
        yield push(folder, hub, not public, "dataset" if system is None else "model")


def export(path: Path, folder: Path, validation: float = VALIDATION) -> Path:
    """Writes a run's kept pairs into `folder`, and gives it back; a finished folder is left alone.

    `validation` is the share of captions (0 … 1, not 1) whose pairs form that split: a caption's hash decides, so it
    stays in its split whatever else is exported. Raises StoreError for what is no run, or a folder that holds
    something else; DataError when no pair was kept; RecipeError for a share out of range.
    """
    from milonga.reports.cards import data_card, data_card_figures
    from milonga.reports.material import read_material

    if not 0.0 <= validation < 1.0:
        raise RecipeError(f"validation is a share of the captions from 0 to below 1, not {validation:g}")
    manifest, material = _manifest(path), read_material(path)
    if not material.accepted:
        raise DataError(f"{path} holds no kept pair: run it until `pair`, or loosen pair.thresholds by `milonga pair`")
    content = content_id([pair.id for pair in material.accepted], manifest["fingerprints"], validation)
    note = folder / NOTE
    if folder.is_file() or (folder.exists() and any(folder.iterdir()) and not note.exists()):
        raise StoreError(f"{folder} is not empty and no export: choose another folder")
    if not note.exists():
        write_json(note, {"content": content})
    elif read_json(note).get("content") != content:
        raise StoreError(f"{folder} holds an export of other pairs: choose another folder, or delete it")
    elif (folder / "README.md").exists():
        return folder

    dataset = RunPairs(Run(path))
    splits = split_pairs(dataset.pairs, validation)
    _write_shards(dataset, splits, folder)
    for name, svg in data_card_figures(material).items():
        write_text(folder / "figures" / name, svg)
    write_text(folder / "recipe.toml", material.recipe)
    sizes = {name: len(pairs) for name, pairs in splits.items()}
    write_text(folder / "README.md", data_card(material, sizes, provenance(manifest)))
    return folder


def split_pairs(pairs: Sequence[Pair], validation: float) -> dict[str, list[Pair]]:
    """The pairs as `train` and `validation`, by the hash of their caption's id; an empty split is left out."""
    splits: dict[str, list[Pair]] = {"train": [], "validation": []}
    for pair in pairs:
        held_out = int(content_id("validation", pair.prompt_id), 16) < validation * 2**64
        splits["validation" if held_out else "train"].append(pair)
    return {name: own for name, own in splits.items() if own}


def _write_shards(dataset: RunPairs, splits: Mapping[str, Sequence[Pair]], folder: Path) -> None:
    shards, parts = Shards(folder / "data"), {}
    for split, pairs in splits.items():
        parts |= {f"{split}-{name}": part for name, part in cut(pairs, ROWS).items()}
    done = sum(len(part) for name, part in parts.items() if shards.has(name))
    with tracked("export", sum(map(len, parts.values())), done) as advance:
        for name, part in parts.items():
            if not shards.has(name):
                shards.write_table(name, dataset.table(part))
                advance(len(part))


def export_system(path: Path, folder: Path, system: str, rank: int | None = None) -> Path:
    """Writes a trained system of a run into `folder`, and gives it back; a folder that already holds it is left alone.

    With a `rank` it is a LoRA adapter of that rank in the place of the whole model, which names its base. Raises
    StoreError for what is no run, or a folder that holds something else; RecipeError for a system that the run does not
    have, or has not trained yet.
    """
    from milonga.models.adapter import extract_adapter, name_base
    from milonga.models.load import load_denoiser, resolved
    from milonga.reports.cards import model_card
    from milonga.reports.material import read_material

    manifest = _manifest(path)
    recipe = stored_recipe(manifest["recipe"]).model_dump(mode="json")
    tables = {table["name"]: table for table in recipe["train"]["systems"]}
    trained, adapter = (path / "checkpoints" / system / part for part in ("model", "adapter"))
    if system not in tables:
        raise RecipeError(f"{path} has no system {system!r}: it has {', '.join(tables) or 'none'}")
    if not trained.exists():
        raise RecipeError(f"{path} has not trained {system} yet: run it until `train`")

    numbers = sorted((path / "metrics").glob("*.json"))
    weights = [file_hash(file) for file in sorted(trained.iterdir())]
    content = content_id(
        weights, [file_hash(file) for file in numbers], manifest["fingerprints"], *([rank] if rank else [])
    )
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        note = folder / NOTE
        if not folder.is_dir() or not note.exists() or read_json(note).get("content") != content:
            raise StoreError(f"{folder} is not empty and holds something else: choose another folder, or delete it")
        return folder
    if folder.exists():
        folder.rmdir()
    with atomic_dir(folder) as part:
        base = recipe["models"]["model"]
        denoiser = load_denoiser(base, trained)
        if rank is None:
            denoiser.save_model(part)
        else:
            root, _ = resolved(base)  # what is cut is all that was trained, also by runs before
            extract_adapter(load_denoiser(root).module, denoiser.module, rank, part, root)
        if adapter.is_dir() and rank is None and not tables[system]["start"]:  # else it is no change of the base
            shutil.copytree(adapter, part / "adapter")
            name_base(part / "adapter", base)
        shutil.copy(path / "recipe.toml", part)
        for file in numbers:
            (part / "metrics").mkdir(exist_ok=True)
            shutil.copy(file, part / "metrics")
        index = read_json(part / "model_index.json") if (part / "model_index.json").is_file() else {}
        lines, network = provenance(manifest), getattr(denoiser, "network", "network")
        beside = (part / "adapter").is_dir()
        card = model_card(read_material(path), tables[system], recipe, lines, index, network, beside)
        write_text(part / "README.md", card)
        write_json(part / NOTE, {"content": content})
    return folder


def _manifest(path: Path) -> dict[str, Any]:
    manifest = read_manifest(Run(path))
    if manifest is None:
        raise StoreError(f"{path} is no run folder: make one with `milonga run RECIPE --out {path}`")
    return manifest


def provenance(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What made a run, as (what, value): model, scorers, seed, commit and versions."""
    origin = origin_of(manifest)
    scorers = [("scorer", f"{name}, weights {digest}") for name, digest in origin.scorer_hashes.items()]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items() if version)
    software = [("seed", str(manifest["seed"])), ("commit", manifest["commit"] or "unknown"), ("versions", versions)]
    return [("model", f"{origin.model}, weights {origin.model_hash}"), *scorers, *software]


def push(folder: Path, name: str, private: bool = True, kind: Literal["dataset", "model"] = "dataset") -> str:
    """Uploads an exported folder to the Hub as the data set or model `name` (`USER/NAME`), and gives its address.

    Raises RecipeError where there are no credentials, ServiceError when the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api, address = HfApi(), f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
    check_credentials()
    try:
        api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, repo_type=kind, ignore_patterns=["*.part"])
    except Exception as error:  # the Hub's client raises its own, its transport's and the system's errors
        raise ServiceError(f"{address} did not take {folder}: {brief(error)}; the same command tries again") from error
    return address


def check_credentials() -> None:
    """RecipeError where the Hub's client has no token."""
    from huggingface_hub import get_token

    if not get_token():
        raise RecipeError("there is no Hugging Face token: log in by `hf auth login`, or set HF_TOKEN")
