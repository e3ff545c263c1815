"""Audiobox-Aesthetics through its own package, of which a stand-in with the same interface is imported here."""

import sys
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from milonga.core.errors import RecipeError
from milonga.core.records import Clip
from milonga.scorers.aesthetics import BATCH
from milonga.scorers.load import fingerprint, scorer


class Predictor:
    """The package's predictor: a list of {path: waveform (1, samples), sample_rate} in, four axes a clip out."""

    sizes: ClassVar[list[int]] = []

    def forward(self, rows: list[dict[str, Any]]) -> list[dict[str, float]]:
        self.sizes.append(len(rows))
        assert all(row["path"].ndim == 2 for row in rows)
        return [{"PQ": float(row["path"].abs().max()), "PC": row["sample_rate"] / 1000, "CE": 1.0, "CU": 2.0}
                for row in rows]  # fmt: skip


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    inner: Any = ModuleType("audiobox_aesthetics.infer")
    inner.initialize_predictor = Predictor
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics", ModuleType("audiobox_aesthetics"))
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics.infer", inner)


def test_an_axis_is_a_scorer_by_name(package: None):
    clips = [Clip(np.full(100, level, np.float32), 16000) for level in np.linspace(0.1, 0.9, BATCH + 2)]
    clips.insert(1, Clip(np.empty(0, np.float32), 16000))
    scores = scorer("audiobox-aesthetics").score(clips, [""] * len(clips))
    assert np.isnan(scores[1])
    np.testing.assert_allclose(np.delete(scores, 1), np.linspace(0.1, 0.9, BATCH + 2), rtol=1e-6)
    assert Predictor.sizes == [BATCH, 2]
    np.testing.assert_array_equal(scorer("audiobox-aesthetics:PC").score(clips[:1], [""]), [16.0])
    assert fingerprint("audiobox-aesthetics:PC") != fingerprint("audiobox-aesthetics:CE")
    with pytest.raises(RecipeError, match="no axis 'XX'; there are PQ, PC, CE, CU"):
        scorer("audiobox-aesthetics:XX")


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics", None)
    with pytest.raises(RecipeError, match="pip install audiobox-aesthetics"):
        scorer("audiobox-aesthetics:CU")
