"""LAION-CLAP by its name in a recipe: converted once, told apart by weights and windows, usable as scorer and judge."""

from pathlib import Path

import laion_file
import numpy as np
import pytest
from small_networks import WORDS
from typer.testing import CliRunner

from milonga.cli.main import app
from milonga.core.errors import CheckpointError, RecipeError
from milonga.core.hub import offline
from milonga.core.protocols import Scorer
from milonga.core.records import Clip
from milonga.experiment.registry import DEFAULT as registry
from milonga.scorers import laion_clap
from milonga.scorers import load as laion

CLIPS = [
    Clip((0.2 * np.sin(np.arange(8000) * (n + 1) / 9)).astype(np.float32), 16000) for n in range(2)
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laion_file.write(tmp_path_factory.mktemp("laion"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MILONGA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clap"


def test_a_pt_is_converted_once_and_scores_as_any_other(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer: Scorer = laion.scorer(f"laion-clap:{source}")
    scores = scorer.score(CLIPS, WORDS[:2])
    assert scores.shape == (2,)
    assert scorer.name == f"laion-clap:{source}"
    (folder,) = [path for path in cache.iterdir() if path.is_dir()]
    monkeypatch.setattr(laion_clap, "from_original", lambda *_: pytest.fail("converted again"))
    np.testing.assert_array_equal(laion.scorer(f"laion-clap:{source}").score(CLIPS, WORDS[:2]), scores)
    other = registry.scorer(f"laion-clap:{folder}@mean")
    np.testing.assert_allclose(other.score(CLIPS, WORDS[:2]), scores, atol=1e-5)


def test_weights_and_windows_have_a_fingerprint_each(source: Path, tmp_path: Path) -> None:
    twin = laion_file.write(tmp_path / "twin", seed=1)
    names = [f"laion-clap:{source}", f"laion-clap:{source}@mean", f"laion-clap:{source}@random:1", f"laion-clap:{twin}"]
    assert len({registry.fingerprint(name) for name in names}) == 4
    assert registry.fingerprint(f"laion-clap:{source}@first") == registry.fingerprint(names[0])


def test_convert_is_a_door_for_it_too(source: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "made")])
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "made"))
    assert sorted(path.name for path in (tmp_path / "made").glob("*.safetensors")) == [
        "model.safetensors", "unused.safetensors"
    ]  # fmt: skip
    again = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "made")])
    assert again.exit_code == 1
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    "name", ["laion-clap:", "laion-clap:nowhere.pt", "laion-clap:no/where.pt", "laion-clap:nowhere@last"]
)
def test_a_name_without_a_file_is_told_how_to_write_one(name: str) -> None:
    for door in (registry.scorer, registry.fingerprint):
        with pytest.raises(RecipeError, match=r"write laion-clap:FILE\.pt, laion-clap:FOLDER or laion-clap:user/name"):
            door(name)


def test_a_broken_file_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    path = laion_file.write(tmp_path / "broken")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"630k-best\.pt is truncated"):
        registry.scorer(f"laion-clap:{path}")
    assert not [one for one in cache.glob("*") if one.is_dir()]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors or \.bin weights"):
        registry.fingerprint(f"laion-clap:{tmp_path / 'empty'}")
    (path.parent / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no usable tokenizer"):
        registry.scorer(f"laion-clap:{path}")


def test_without_leave_to_fetch_the_tokenizer_is_not_fetched_either(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from transformers import AutoTokenizer

    asked: list[bool] = []
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda place, local_files_only: asked.append(local_files_only)
    )
    laion._tokenizer(tmp_path / "a.pt", None)
    with offline():
        laion._tokenizer(tmp_path / "a.pt", None)
    assert asked == [False, True]
