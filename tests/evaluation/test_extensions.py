"""A metric and a scorer of a user's own: one file outside the package, and they appear wherever numbers do."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import milonga
from milonga.cli.main import app
from milonga.core.audio import write_audio
from milonga.core.errors import RecipeError
from milonga.core.records import Clip
from milonga.evaluation import metrics
from milonga.evaluation.metrics import Metric, register
from milonga.scorers import load

SCORE = "score own_scorers:Loudness"
OWN_SCORER = """
import numpy as np

class Loudness:
    name = "loudness"

    def score(self, clips, texts):
        return np.array([np.sqrt(np.mean(clip.waveform**2)) for clip in clips])
"""
spread = Metric(
    "spread", "Spread", lambda rows, real: float(rows.values.std()), "embedding", "set", "of {classifier} features"
)
near = Metric(
    "near",
    "Near",
    lambda clip, real, prompt: float(np.abs(clip.waveform - real.waveform).mean()),
    "audio",
    reference=True,
    higher=False,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two systems and real clips of 24 captions."""
    root, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for number in range(24):
        real = 0.2 * np.sin(np.arange(4000) * (0.05 + 0.01 * number))
        for name, noise in (("real", 0.0), ("near", 0.01), ("far", 0.1)):
            wave = (real + noise * rng.normal(size=4000)).astype(np.float32)
            write_audio(root / name / f"{number}.wav", Clip(wave, 16000))
    lines = [f"{number}.wav,a dog barks {number}" for number in range(24)]
    (root / "captions.csv").write_text("\n".join(["clip,caption", *lines]) + "\n")
    return root


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_REGISTRY", dict(metrics._REGISTRY))


def test_metrics_as_objects_are_in_table_json_and_page(root: Path, tmp_path: Path) -> None:
    sides = {"reference": root / "real", "resamples": 100, "cache": False}
    result = milonga.evaluate(root / "far", root / "near", **sides, weights="nano", metrics=[spread, near, "kl"])
    rows = {(row.system, row.metric): row for row in result.summaries}
    assert {metric for _, metric in rows} == {"spread", "near", "kl"}
    assert rows["near", "near"].value == pytest.approx(0.008, abs=0.001)
    assert rows["far", "spread"].low < rows["far", "spread"].value < rows["far", "spread"].high
    assert {row.metric: row.better for row in result.comparisons}["near"] == "near"
    assert "Spread ↑" in str(result)
    page = result.save(tmp_path).read_text()
    assert "of nano-tagger’s features" in page
    assert "Near" in page


def test_a_registered_metric_is_computed_by_the_command_too(root: Path) -> None:
    register(near)
    words = ["evaluate", str(root / "far"), str(root / "real"), "--weights", "nano", "--json", "--no-cache"]
    done = CliRunner().invoke(app, [*words, "--resamples", "100"])
    assert done.exit_code == 0, done.output
    assert {"near", "fd", "kl", "silent"} <= {row["metric"] for row in json.loads(done.stdout)["summary"]}


def test_a_set_metric_of_audio_is_refused() -> None:
    with pytest.raises(RecipeError, match="needs a feature, not the audio itself"):
        Metric("x", "X", kind="set", needs="audio")


def test_a_scorer_class_outside_the_package_enters_an_evaluation(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_scorers.py").write_text(OWN_SCORER)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["evaluate", str(root / "far"), str(root / "real"), "--captions", str(root / "captions.csv"), "--json"]
    done = CliRunner().invoke(app, [*words, "--scorer", "own_scorers:Loudness", "--no-cache", "--resamples", "100"])
    assert done.exit_code == 0, done.output
    rows = {(row["system"], row["metric"]): row for row in json.loads(done.stdout)["summary"]}
    assert rows["far", SCORE]["value"] > rows["reference", SCORE]["value"] > 0.1
    assert load.fingerprint("own_scorers:Loudness") == load.fingerprint("own_scorers:Loudness")
    with pytest.raises(RecipeError, match="cannot be made"):
        load.scorer("own_scorers:Quietness")
    with pytest.raises(RecipeError, match="is no scorer: it needs"):
        load.scorer("collections:OrderedDict")


def test_a_scorer_object_leads_to_a_column_of_its_name(root: Path) -> None:
    class Length:
        name = "length"

        def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
            return np.array([len(text) for text in texts], float)

    result = milonga.evaluate(
        root / "near", reference=root / "real", captions=root / "captions.csv", claps=[Length()], cache=False
    )
    assert {row.metric for row in result.summaries} == {"score length", "silent", "clipped"}
    with pytest.raises(RecipeError, match="is no scorer: give a name, or an object"):
        milonga.evaluate(root / "near", captions=root / "captions.csv", scorers=[3], cache=False)
