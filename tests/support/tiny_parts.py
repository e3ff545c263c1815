"""The parts of a run as untrained networks of the real classes in one folder, and what a training left of them."""

from pathlib import Path

import small_networks

from milonga.scorers.clap import save_clap
from milonga.scorers.tagger import save_tagger


def parts_folder(folder: Path) -> Path:
    """`folder` with tango/, one/, two/, judge/ and tagger/ in it."""
    small_networks.pipeline().save_pretrained(folder / "tango")
    for seed, name in enumerate(("one", "two", "judge")):
        clap = small_networks.scorer(seed)
        save_clap(folder / name, clap.model, clap.tokenizer, clap.mel, clap.frames)
    save_tagger(folder / "tagger", small_networks.network(), small_networks.tagger_config())
    return folder


def network_bytes(folder: Path) -> bytes:
    """The trained weights in a checkpoint folder, or in an exported model."""
    network = next(path for path in (folder / "model", folder / "unet") if path.is_dir())
    return (network / "diffusion_pytorch_model.safetensors").read_bytes()
