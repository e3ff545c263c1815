"""Listeners through their own packages, of which stand-ins with the same interface are imported here."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import milonga
from milonga.core.audio import write_audio
from milonga.core.errors import RecipeError
from milonga.core.records import Clip
from milonga.scorers.load import fingerprint, scorer
from milonga.scorers.packaged import BATCH, PasstEmbedder
from milonga.scorers.panns import CLASSES


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


class Passt(torch.nn.Module):
    """The package's wrapper in small: 527 logits and behind them an embedding, of sounds at 32 kHz."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(64, CLASSES + 8)

    def get_scene_embeddings(self, audio: torch.Tensor) -> torch.Tensor:
        assert audio.ndim == 2
        assert not self.training
        print("x torch.Size([1, 768, 12, 99])")
        return self.net(audio[:, : 64 * (audio.shape[1] // 64)].unflatten(1, (64, -1)).square().mean(2).sqrt())


@pytest.fixture
def passt(monkeypatch: pytest.MonkeyPatch) -> None:
    inner: Any = ModuleType("hear21passt.base")
    inner.get_basic_model = lambda mode: Passt() if mode == "all" else None
    monkeypatch.setitem(sys.modules, "hear21passt", ModuleType("hear21passt"))
    monkeypatch.setitem(sys.modules, "hear21passt.base", inner)


def clip(seed: int, seconds: float) -> Clip:
    rng = np.random.default_rng(seed)
    return Clip((rng.uniform(0.1, 0.5) * rng.normal(size=round(16000 * seconds))).astype(np.float32), 16000)


def test_passt_takes_the_place_of_panns_in_distances(passt: None, tmp_path: Path, capsys: pytest.CaptureFixture):
    embedder = PasstEmbedder("cpu")
    clips = [clip(0, 2.5), clip(1, 1.0), clip(2, 2.5)]
    embeddings, logits = embedder.features(clips)
    assert (embeddings.shape, logits.shape) == ((3, 8), (3, CLASSES))
    alone = embedder.features(clips[1:2])
    np.testing.assert_allclose(embeddings[1], alone[0][0], rtol=1e-4)
    np.testing.assert_allclose(logits[1], alone[1][0], rtol=1e-4)
    for side in ("ours", "real"):
        (tmp_path / side).mkdir()
        for number in range(4):
            write_audio(tmp_path / side / f"{number}.wav", clip(number + 10 * (side == "ours"), 0.5))
    folders = [tmp_path / side for side in ("ours", "real")]
    result = milonga.evaluate(*folders, panns="passt", cache=False, metrics=["fd", "kad", "kl"], resamples=100)
    assert {row.metric for row in result.summaries} == {"fd", "kad", "kl"}
    assert all(np.isfinite(row.value) for row in result.summaries)
    assert "passt@hear21passt; mean of channels, mean removed, soxr HQ to 32 kHz" in result.summaries[0].protocol
    assert capsys.readouterr().out == ""
    with pytest.raises(RecipeError, match="passt takes 32000 Hz, and --protocol tango gives 16000 Hz"):
        milonga.evaluate(*folders, panns="passt", protocol="tango")


def test_without_passts_package_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "hear21passt", None)
    with pytest.raises(RecipeError, match="passt needs its package: pip install hear21passt"):
        PasstEmbedder()
