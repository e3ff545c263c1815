"""Listeners through their authors' own packages, which fetch their weights themselves when they are first used.

Audiobox-Aesthetics (Tjandra et al. 2025) says how good a clip sounds by itself, on four axes from 1 to 10 learnt from
97,000 rated clips: production quality (PQ), production complexity (PC), content enjoyment (CE), usefulness (CU).
The text plays no part, so it is no judge of relevance. PaSST (Koutini et al. 2022) is a transformer of AudioSet's
classes: an embedder and classifier in the place of PANNs.
"""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from milonga.core.errors import RecipeError
from milonga.core.records import Clip
from milonga.maths.devices import AUTO, placed, where
from milonga.scorers.panns import CLASSES
from milonga.scorers.waveform import map_by_length, metric_waveform

AXES = ("PQ", "PC", "CE", "CU")
BATCH = 8  # clips at once
PASST, PASST_RATE = "passt", 32000


def imported(module: str, name: str, package: str) -> Any:
    """A module of an optional package. Raises RecipeError saying what `name` needs where it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise RecipeError(f"{name} needs its package: pip install {package}") from None


class AestheticsScorer:
    """A `Scorer` of one axis, `audiobox-aesthetics[:AXIS]`, PQ where none is named (package `audiobox-aesthetics`).

    Raises RecipeError for an unknown axis or where the package is not installed.
    """

    def __init__(self, name: str) -> None:
        axis = name.partition(":")[2] or AXES[0]
        if axis not in AXES:
            raise RecipeError(f"{name!r}: no axis {axis!r}; there are {', '.join(AXES)}")
        self.name, self.axis = name, axis
        self._predictor = imported("audiobox_aesthetics.infer", name, "audiobox-aesthetics").initialize_predictor()

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """The axis of each clip, shape (N,); `texts` play no part. NaN for an empty clip."""
        scores = np.full(len(clips), np.nan)
        sounding = [place for place, clip in enumerate(clips) if len(clip.waveform)]
        for first in range(0, len(sounding), BATCH):
            part = sounding[first : first + BATCH]
            waves = [torch.from_numpy(np.asarray(clips[place].waveform, dtype=np.float32))[None] for place in part]
            rows = [{"path": wave, "sample_rate": clips[place].rate} for wave, place in zip(waves, part, strict=True)]
            scores[part] = [row[self.axis] for row in self._predictor.forward(rows)]
        return scores


class PasstEmbedder:
    """Embeddings and class logits of clips by PaSST at 32 kHz (package `hear21passt`), in the place of PANNs'.

    Clips above ten seconds get the mean over windows of ten, as the package has it. Raises RecipeError where it is not
    installed.
    """

    name, rate = PASST, PASST_RATE

    def __init__(self, device: Any = AUTO) -> None:
        with redirect_stdout(sys.stderr):  # it prints its layers
            model = imported("hear21passt.base", PASST, "hear21passt").get_basic_model(mode="all")
        try:
            self.weights = f"hear21passt {version('hear21passt')}"
        except PackageNotFoundError:  # a source tree on the path
            self.weights = "hear21passt"
        self.network = placed(model.eval().requires_grad_(False), device)

    @torch.no_grad()
    def features(self, clips: Sequence[Clip]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (N, D) and class logits (N, 527) of N clips, each as it is alone. AudioError as PANNs'."""
        waves = [metric_waveform(clip, self.rate) for clip in clips]
        with redirect_stdout(sys.stderr):
            embed = self.network.get_scene_embeddings
            rows = map_by_length(lambda batch: list(embed(batch).float()), waves, BATCH, device=where(self.network))
        table = torch.stack(rows).cpu().numpy()
        return table[:, CLASSES:], table[:, :CLASSES]
