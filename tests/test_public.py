"""The public names: listed, there, and free until they are used."""

import inspect
import json
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest

import milonga
from milonga.core.audio import write_audio
from milonga.core.errors import RecipeError, StoreError
from milonga.core.records import Clip
from milonga.experiment.recipe import parse_recipe

RECIPE = """
name = "public"
[prompts]
sources = ["world:train:3"]
[plan]
strategies = [{ name = "1.1", steps = [2], guidance = 1.0 }]
"""


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)


def test_the_public_names_are_these():
    assert milonga.__all__ == sorted(milonga.__all__)
    wanted = {
        "AlignConfig",
        "AlignTrainer",
        "TrainerCallback",
        "Recipe",
        "Strategy",
        "TangoPipeline",
        "Threshold",
        "build_pairs",
        "evaluate",
        "load",
        "read_pairs",
        "run",
    }
    assert wanted <= set(milonga.__all__)
    assert all(getattr(milonga, name) is not None for name in milonga.__all__)
    assert set(milonga.__all__) <= set(dir(milonga))


def test_importing_the_package_loads_nothing_heavy():
    heavy = ("torch", "numpy", "pyarrow", "diffusers", "transformers", "sklearn", "scipy", "pydantic", "typer")
    script = f"import milonga, sys, json; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    done = python("-c", script)
    assert json.loads(done.stdout) == []


def test_the_version_is_the_installed_one():
    assert milonga.__version__ == version("milonga")


def test_the_pipeline_is_the_class_that_models_define():
    from milonga.models.tango import TangoPipeline

    assert milonga.TangoPipeline is TangoPipeline


def test_every_public_function_says_what_it_does():
    for name in ("build_pairs", "evaluate", "load", "read_pairs", "run"):
        function = getattr(milonga, name)
        assert inspect.getdoc(function)
        assert all(one.annotation is not one.empty for one in inspect.signature(function).parameters.values())


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'dance'"):
        milonga.dance  # noqa: B018


@pytest.mark.parametrize("device", ["cuda:99", "gramophone"])
def test_load_refuses_a_device_that_is_not_there(device: str):
    with pytest.raises(RecipeError, match=f"nothing can be computed on device '{device}' here"):
        milonga.load(device=device)


def test_load_refuses_a_name_that_is_no_model():
    with pytest.raises(RecipeError, match=r"'tangoo' is neither a folder nor one of .*nano"):
        milonga.load("tangoo")


def test_run_takes_a_file_and_changes_and_gives_the_run_folder(tmp_path, monkeypatch):
    from milonga.experiment import run as pipeline

    asked = {}
    monkeypatch.setattr(pipeline, "run", lambda recipe, out, *rest: asked.update(recipe=recipe, out=out, rest=rest))
    file = tmp_path / "public.toml"
    file.write_text(RECIPE)
    milonga.run(file, tmp_path / "run", until="plan", changes=["seed=7"])
    assert (asked["recipe"].seed, asked["out"], asked["rest"][:2]) == (7, tmp_path / "run", ("plan", None))


def test_run_does_not_drop_changes_of_a_recipe_that_is_already_made():
    with pytest.raises(RecipeError, match="model_copy"):
        milonga.run(parse_recipe(RECIPE, "public.toml"), changes=["seed=7"])


def test_run_refuses_a_stage_that_does_not_exist(tmp_path):
    with pytest.raises(RecipeError, match="no stage 'dance'"):
        milonga.run(parse_recipe(RECIPE, "public.toml"), tmp_path, only="dance")


def test_the_module_is_the_command():
    assert python("-m", "milonga", "--version").stdout.strip() == milonga.__version__


def test_evaluate_computes_as_the_command_does_and_both_take_the_options_of_one_declaration(tmp_path):
    from dataclasses import fields

    from milonga.cli.judge import evaluate as command
    from milonga.evaluation import EvalConfig

    own = {"sources", "reference", "captions", "out", "audio", "as_json"}
    assert {one.name for one in fields(EvalConfig)} == set(inspect.signature(command).parameters) - own
    waves = np.random.default_rng(0).normal(0, 0.1, (2, 12, 8000)).astype(np.float32)
    for name, wave_set in zip(("made", "real"), waves, strict=True):
        for number, wave in enumerate(wave_set):
            write_audio(tmp_path / name / f"{number}.wav", Clip(wave, 16000))
    sides = {"reference": tmp_path / "real", "resamples": 100, "cache": False}
    result = milonga.evaluate(tmp_path / "made", **sides, weights="nano", out=tmp_path / "out")
    rows = {row.metric: row for row in result.summaries if row.system == "made"}
    assert {"fd", "kl", "is", "silent"} <= rows.keys()
    assert rows["kl"].low < rows["kl"].value < rows["kl"].high
    assert json.loads((tmp_path / "out" / "summary.json").read_text())[0]["protocol"] == result.summaries[0].protocol
    assert (tmp_path / "out" / "leaderboard.html").exists()
    assert str(result).startswith("overall (N 12)")
    with pytest.raises(RecipeError, match="no weights are named"):
        milonga.evaluate(tmp_path / "made", **sides)
    with pytest.raises(RecipeError, match="evaluate has no option 'weigths'"):
        milonga.evaluate(tmp_path / "made", **sides, weigths="nano")
    with pytest.raises(StoreError, match="is not there"):
        milonga.evaluate(tmp_path / "nowhere")
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(RecipeError, match="pip install pandas"):
            result.to_frame()
    else:
        assert set(result.to_frame()["metric"]) == {row.metric for row in result.summaries}
