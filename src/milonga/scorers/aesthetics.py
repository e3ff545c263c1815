"""Audiobox-Aesthetics (Tjandra et al. 2025): how good a clip sounds by itself, through its authors' own package.

Four axes from 1 to 10, learnt from 97,000 rated clips: production quality (PQ), production complexity (PC), content
enjoyment (CE), content usefulness (CU). The text plays no part, so it is no judge of relevance.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from milonga.core.errors import RecipeError
from milonga.core.records import Clip

AXES = ("PQ", "PC", "CE", "CU")
BATCH = 8  # clips at once


class AestheticsScorer:
    """A `Scorer` of one axis, `audiobox-aesthetics[:AXIS]`, PQ where none is named.

    The package (`pip install audiobox-aesthetics`) downloads its weights when it is first used. Raises RecipeError
    for an unknown axis or where the package is not installed.
    """

    def __init__(self, name: str) -> None:
        axis = name.partition(":")[2] or AXES[0]
        if axis not in AXES:
            raise RecipeError(f"{name!r}: no axis {axis!r}; there are {', '.join(AXES)}")
        try:
            from audiobox_aesthetics.infer import initialize_predictor  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise RecipeError(f"{name} needs its package: pip install audiobox-aesthetics") from None
        self.name, self.axis = name, axis
        self._predictor: Any = initialize_predictor()

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """The axis of each clip, shape (N,); `texts` play no part. NaN for an empty clip."""
        import torch

        scores = np.full(len(clips), np.nan)
        sounding = [place for place, clip in enumerate(clips) if len(clip.waveform)]
        for first in range(0, len(sounding), BATCH):
            part = sounding[first : first + BATCH]
            waves = [torch.from_numpy(np.asarray(clips[place].waveform, dtype=np.float32))[None] for place in part]
            rows = [{"path": wave, "sample_rate": clips[place].rate} for wave, place in zip(waves, part, strict=True)]
            scores[part] = [row[self.axis] for row in self._predictor.forward(rows)]
        return scores
