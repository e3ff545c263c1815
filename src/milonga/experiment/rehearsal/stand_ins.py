"""Parts of full size with random weights, and data of noise, in the place of what is not on this machine."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.audio import flac_bytes, write_audio
from milonga.core.errors import MilongaError
from milonga.core.records import Clip
from milonga.core.store import atomic_dir, write_text
from milonga.core.weights import weights_of
from milonga.models.load import resolved

SECONDS, RATE = 10.24, 16000  # of a clip of noise
LAION_SECONDS = 10.0


def stand_in_model(name: str, folder: Path, texts: Sequence[str]) -> str:
    """The model of that name where it can be had; else a Tango of the published sizes, random, in `folder`."""
    try:
        weights_of(resolved(name)[0])
    except MilongaError:
        if not folder.exists():
            with atomic_dir(folder) as part:
                random_tango(texts).save_pretrained(part)
        return str(folder)
    return name


def random_tango(texts: Sequence[str], seed: int = 0) -> Any:
    """A Tango of the published sizes (866 M of U-Net, FLAN-T5-large) with random weights, float32, on the CPU.

    Its tokenizer knows the letters of `texts`.
    """
    from milonga.models.original import layout
    from milonga.models.original.load import blank
    from milonga.models.schedulers import scheduler_named
    from milonga.models.tango import TangoPipeline
    from milonga.nano.build.text import fit_tokenizer

    networks = {name: _filled(network, seed) for name, network in blank(layout.published()).items()}
    words = fit_tokenizer(iter(texts), "<pad>", "<unk>", "", "</s>")
    words.model_max_length = 512
    return TangoPipeline(words, scheduler=scheduler_named("ddpm", layout.SCHEDULE), **networks)


def random_scorer(name: str, texts: Sequence[str], device: Any) -> Any:
    """A random scorer of the published size: LAION's CLAP (HTSAT-tiny, RoBERTa-base), or events by PANNs' Cnn14."""
    import torch
    from transformers import ClapConfig, ClapModel

    from milonga.maths.devices import placed
    from milonga.maths.mel import MelSettings
    from milonga.nano.build.text import fit_tokenizer
    from milonga.scorers.audioset import KIN, AudioSetTagger, read_sounds
    from milonga.scorers.events import EventScorer
    from milonga.scorers.laion_clap import LaionClap
    from milonga.scorers.load import EVENTS
    from milonga.scorers.panns import FRONT_ENDS, Cnn14, PannsEmbedder

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name.startswith(EVENTS):
            panns = PannsEmbedder("random", placed(Cnn14(FRONT_ENDS[RATE]), device))
            return EventScorer(name, AudioSetTagger(panns), read_sounds, KIN)
        model = placed(ClapModel(ClapConfig()), device)
    words = fit_tokenizer(iter(texts), "<pad>", "<unk>", "<s>", "</s>")
    mel = MelSettings(48000, 1024, 480, 64, 50.0, 14000.0, power=2.0, floor=1e-10, decibels=True, tango=False)
    return LaionClap(name, model, words, mel, LAION_SECONDS)


def _filled(network: Any, seed: int) -> Any:
    """A network of shapes with random weights whose outputs are neither zero nor beyond floats."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    network = network.to_empty(device="cpu")
    with torch.no_grad():
        for name, value in (*network.named_parameters(), *network.named_buffers()):
            if not value.is_floating_point():
                continue
            if value.dim() > 1:
                bound = 1 / math.sqrt(value[0].numel())
                value.uniform_(-bound, bound, generator=generator)
            else:
                value.fill_(1.0 if name.endswith(("weight", "scale")) else 0.0)
    if hasattr(network, "tie_weights"):
        network.tie_weights()
    return network.eval()


def noise_pairs(folder: Path, texts: Sequence[str], count: int) -> str:
    """`count` pairs of noise in Audio-alpaca's layout; gives the folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not folder.exists():
        clips = [{"bytes": flac_bytes(_noise(seed)), "path": f"{seed}.flac"} for seed in range(2 * count)]
        columns = {"prompt": [texts[place % len(texts)] for place in range(count)], "strategy": ["rehearsal"] * count}
        table = pa.table(columns | {"chosen": clips[:count], "rejected": clips[count:]})
        with atomic_dir(folder) as part:
            pq.write_table(table, part / "train-00000-of-00001.parquet")
    return str(folder)


def noise_clips(folder: Path, texts: Sequence[str], count: int) -> str:
    """A source of `count` captioned clips of noise."""
    if not folder.exists():
        with atomic_dir(folder) as part:
            for place in range(count):
                write_audio(part / f"{place}.wav", _noise(place))
            rows = [f'{place}.wav,"{texts[place % len(texts)]}"\n' for place in range(count)]
            write_text(part / "metadata.csv", "file_name,caption\n" + "".join(rows))
    return f"clips:{folder}"


def _noise(seed: int) -> Clip:
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, round(SECONDS * RATE))
    return Clip(samples.astype(np.float32), RATE)
