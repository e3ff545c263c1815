"""`milonga export RUN DIR --system NAME`: the trained pipeline, which Milonga and diffusers load, with its card."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import test_evaluation
from test_export import Hub, hub  # noqa: F401 (a fixture)
from tiny_parts import network_bytes
from typer.testing import CliRunner

import milonga
from milonga.cli.main import app
from milonga.core.errors import RecipeError, StoreError
from milonga.core.records import Comparison, Summary
from milonga.core.store import Run, read_json
from milonga.experiment import manifest
from milonga.experiment.recipe import System, parse_recipe
from milonga.experiment.registry import DEFAULT
from milonga.models.load import pipeline, system
from milonga.reports.cards import DATA
from milonga.reports.material import read_rows

run = test_evaluation.run  # the fixture: a whole run of tiny networks
WORDS = "a dog barks"


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("system") / "tuned"
    done = CliRunner().invoke(app, ["export", str(run.path), str(folder), "--system", "aligned"])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(folder)
    return folder


def test_a_card_tells_of_every_kind_of_data() -> None:
    assert DATA.keys() == set(get_args(System.model_fields["data"].annotation))


@pytest.mark.slow
def test_milonga_loads_what_was_trained(run: Run, exported: Path) -> None:
    whole = pipeline(read_json(run.path / "manifest.json")["recipe"]["models"]["model"])
    whole.unet = pipeline(str(exported)).unet
    clip = milonga.load(str(exported))(WORDS, seeds=[7]).audios[0]
    np.testing.assert_array_equal(clip, whole(WORDS, seeds=[7]).audios[0])
    assert network_bytes(exported) == network_bytes(run.path / "checkpoints/aligned")


def test_diffusers_loads_the_pipeline_and_stock_classes_its_parts(exported: Path) -> None:
    from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel

    whole = DiffusionPipeline.from_pretrained(exported, custom_pipeline=str(exported), trust_remote_code=True)
    assert type(whole).__name__ == "TangoPipeline"
    np.testing.assert_array_equal(
        whole(WORDS, seeds=[7]).audios[0], milonga.load(str(exported))(WORDS, seeds=[7]).audios[0]
    )
    assert UNet2DConditionModel.from_pretrained(exported, subfolder="unet").config.in_channels == 4
    assert AutoencoderKL.from_pretrained(exported, subfolder="vae").config.latent_channels == 4


@pytest.mark.slow
def test_an_adapter_alone_is_a_model_that_names_its_base(run: Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["export", str(run.path), str(tmp_path / "small"), "--system", "aligned", "--adapter", "64"]
    )
    assert done.exit_code == 0, done.output
    small, whole = pipeline(str(tmp_path / "small")).unet, pipeline(str(run.path / "aligned")).unet
    for name, weight in whole.named_parameters():
        if weight.dim() > 1:
            np.testing.assert_allclose(small.get_parameter(name).detach(), weight.detach(), atol=1e-3)
    assert not (tmp_path / "small" / "unet").exists()


def test_an_adapter_of_pairs_is_refused(run: Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(run.path), str(tmp_path / "small"), "--adapter", "4"])
    assert done.exit_code == 1
    assert "--system" in done.output


def test_the_card_has_recipe_data_numbers_and_licences(run: Run, exported: Path) -> None:
    text = (exported / "README.md").read_text()
    head, body = text.split("\n---\n", 1)
    assert "library_name: diffusers" in head
    assert "license:" not in head  # whoever publishes chooses it
    for title in ("## Results", "## Training", "## Data", "## Provenance", "## Licences", "## Limits"):
        assert title in body
    rows = read_rows(run.path / "metrics" / "summary.json", Summary)
    (clap,) = [r for r in rows if (r.system, r.split, r.metric) == ("aligned", "overall", "clap")]
    assert f"{clap.value:.3f} \\[{clap.low:.3f}, {clap.high:.3f}\\]".replace("-", "−") in body
    found = read_rows(run.path / "metrics" / "comparisons.json", Comparison)
    (gain,) = [r for r in found if (r.a, r.b, r.split, r.metric) == ("aligned", "base", "overall", "clap")]
    assert f"{gain.difference:+.3f}".replace("-", "−") in body
    first = next(row for row in rows if (row.system, row.split) == ("aligned", "overall"))
    assert f"Protocol of the first row: {first.protocol}." in body
    assert "| dpo | 1 epoch | 100 |" in body
    assert (exported / "recipe.toml").read_bytes() == (run.path / "recipe.toml").read_bytes()
    assert (exported / "metrics/summary.json").read_bytes() == (run.path / "metrics/summary.json").read_bytes()


def test_again_it_is_left_alone_and_something_else_is_not_written_over(
    run: Run, exported: Path, tmp_path: Path
) -> None:
    before = {file: file.stat().st_mtime_ns for file in exported.rglob("*")}
    words = ["export", str(run.path), str(exported), "--system"]
    assert CliRunner().invoke(app, [*words, "aligned"]).exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in exported.rglob("*")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for arguments, told in (
        ([*words, "sft"], "holds something else"),
        ([*words, "nobody"], "has no system 'nobody': it has sft, aligned"),
        (["export", str(run.path), str(tmp_path / "mine"), "--system", "sft"], "holds something else"),
        (["export", str(tmp_path), str(tmp_path / "x"), "--system", "sft"], "is no run folder"),
        ([*words, "sft", "--validation", "0.1"], "--validation splits pairs"),
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 1
        assert told in done.output
        assert done.output.count("\n") == 1
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_a_system_that_is_not_trained_yet_is_told(run: Run, tmp_path: Path) -> None:
    import shutil

    from milonga.experiment.export import export_system

    shutil.copytree(run.path, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "checkpoints" / "sft")
    with pytest.raises(RecipeError, match="has not trained sft yet"):
        export_system(tmp_path / "copy", tmp_path / "out", "sft")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="something else"):
        export_system(tmp_path / "copy", tmp_path / "file", "aligned")


def test_it_is_pushed_as_a_model(run: Run, exported: Path, hub) -> None:  # noqa: F811
    done = CliRunner().invoke(
        app, ["export", str(run.path), str(exported), "--system", "aligned", "--push", "me/tuned"]
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.split()[-1] == "https://huggingface.co/me/tuned"
    assert [what["repo_type"] for _, _, what in Hub.told] == ["model", "model"]


def test_a_recipe_may_measure_systems_of_other_runs_alone(run: Run) -> None:
    name = f"{run.path}/aligned"
    text = f"""
        name = "measured"
        [evaluate]
        prompts = ["world:test:2"]
        [[evaluate.models]]
        name = "other"
        model = "{name}"
    """
    recipe = parse_recipe(text, "a test")
    hashes = manifest.fingerprints(recipe, DEFAULT)["evaluate"]["models"]
    assert hashes == {"other": system(name).fingerprint()}
    assert hashes["other"] != DEFAULT.fingerprint(read_json(run.path / "manifest.json")["recipe"]["models"]["model"])
