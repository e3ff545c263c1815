"""The command `export`: a run's kept pairs as a data set that `datasets` loads, with a card, and on the Hub if asked.

The folder is a data set of the Hub's form: `README.md`, `data/SPLIT-*.parquet`, `figures/`, the run's `recipe.toml`.
Shards are whole or absent, and README.md comes last: a folder with it is finished, and what was stopped goes on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from milonga.core.errors import DataError, RecipeError, ServiceError, StoreError, brief
from milonga.core.ids import content_id
from milonga.core.progress import tracked
from milonga.core.records import Pair
from milonga.core.store import Run, Shards, cut, read_json, read_manifest, write_json, write_text
from milonga.data.pairs import RunPairs, origin_of

ROWS = 250  # pairs in a shard: two clips of ten seconds each make it about 150 MB
NOTE = "export.json"


def export(path: Path, folder: Path, validation: float = 0.05) -> Path:
    """Writes a run's kept pairs into `folder`, and gives it back; a folder that is finished is left alone.

    `validation` is the share of captions (0 … 1, not 1) whose pairs form that split: a caption's hash decides, so it
    stays in its split whatever else is exported. Raises StoreError for what is no run, or a folder that holds
    something else; DataError when no pair was kept; RecipeError for a share out of range.
    """
    from milonga.reports.material import read_material

    if not 0.0 <= validation < 1.0:
        raise RecipeError(f"validation is a share of the captions from 0 to below 1, not {validation:g}")
    manifest = read_manifest(Run(path))
    if manifest is None:
        raise StoreError(f"{path} is no run folder: make one with `milonga run RECIPE --out {path}`")
    material = read_material(path)
    if not material.accepted:
        raise DataError(f"{path} holds no kept pair: run it until `pair`, or loosen pair.thresholds by `milonga pair`")
    dataset = RunPairs(Run(path))
    splits = split_pairs(dataset.pairs, validation)
    made = content_id([pair.id for pair in material.accepted], manifest["fingerprints"], validation)
    if _claimed(folder, made):
        return folder
    _write_shards(dataset, splits, folder)
    _write_card(material, {name: len(pairs) for name, pairs in splits.items()}, manifest, folder)
    return folder


def split_pairs(pairs: Sequence[Pair], validation: float) -> dict[str, list[Pair]]:
    """The pairs as `train` and `validation`, by the hash of their caption's id; an empty split is left out."""
    splits: dict[str, list[Pair]] = {"train": [], "validation": []}
    for pair in pairs:
        held_out = int(content_id("validation", pair.prompt_id), 16) < validation * 2**64
        splits["validation" if held_out else "train"].append(pair)
    return {name: found for name, found in splits.items() if found}


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


def _claimed(folder: Path, made: str) -> bool:
    """Whether the folder is finished; marks an empty one as begun, and StoreError when it holds something else."""
    note = folder / NOTE
    if folder.is_file() or (folder.exists() and any(folder.iterdir()) and not note.exists()):
        raise StoreError(f"{folder} is not empty and no export: choose another folder")
    if note.exists():
        if read_json(note).get("made") != made:
            raise StoreError(f"{folder} holds an export of other pairs: choose another folder, or delete it")
        return (folder / "README.md").exists()
    write_json(note, {"made": made})
    return False


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


def _write_card(material: Any, splits: Mapping[str, int], manifest: Mapping[str, Any], folder: Path) -> None:
    from milonga.reports.cards import data_card, data_card_figures

    for name, svg in data_card_figures(material).items():
        write_text(folder / "figures" / name, svg)
    write_text(folder / "recipe.toml", material.recipe)
    write_text(folder / "README.md", data_card(material, splits, made_by(manifest)))


def made_by(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What made a run, as (what, value): model, scorers, seed, commit and versions."""
    origin = origin_of(manifest)
    scorers = [("scorer", f"{name}, weights {digest}") for name, digest in origin.scorer_hashes.items()]
    return [("model", f"{origin.model}, weights {origin.model_hash}"), *scorers, *facts(manifest)]


def facts(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The seed, commit and versions of what made something, as (what, value)."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items() if version)
    return [("seed", str(made["seed"])), ("commit", made["commit"] or "unknown"), ("versions", versions)]
