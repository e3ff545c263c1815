"""Score (§4.1.2): how well each clip fits its prompt's own words, by every scorer."""

from collections.abc import Sequence

import numpy as np

from milonga.core.protocols import Scorer
from milonga.core.records import Clip


def score(clips: Sequence[Clip], texts: Sequence[str], scorers: Sequence[Scorer], batch: int) -> list[dict[str, float]]:
    """For each clip its similarity to its text by each scorer's name; NaN is kept, and refused when pairs are made."""
    rows: list[dict[str, float]] = [{} for _ in clips]
    for scorer in scorers:
        for first in range(0, len(clips), batch):
            part = slice(first, first + batch)
            for row, value in zip(rows[part], np.asarray(scorer.score(clips[part], texts[part])), strict=True):
                row[scorer.name] = float(value)
    return rows
