"""A system that starts from another system of its recipe: the same as training that one's model further."""

from pathlib import Path

import pytest
from tiny_parts import parts_folder

from milonga.core.errors import RecipeError
from milonga.core.store import Run
from milonga.core.weights import adapted
from milonga.experiment import run as pipeline
from milonga.experiment.export import export_system
from milonga.experiment.recipe import parse_recipe
from milonga.models.denoiser import module_hash
from milonga.models.load import load_denoiser

RECIPE = """
name = "tiny"
seed = 5
[models]
model = "{model}"
scorers = ["{folder}/one"]
judge = "{folder}/judge"
tagger = "{folder}/tagger"
[train]
clips = "world:train:4"
batch_size = 2
learning_rate = 1e-2
systems = [{systems}]
"""
SYSTEM = '{{ name = "{}", {}data = "clips", phases = [{{ loss = "ldm", steps = {} }}] }}'
FIRST, SECOND, THIRD = (
    SYSTEM.format(*one) for one in (("first", "", 2), ("second", 'start = "first", ', 3), ("third", "", 1))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("start")
    parts_folder(place)
    return place


def train(folder: Path, out: str, *systems: str, model: str | None = None) -> Run:
    text = RECIPE.format(folder=folder, model=model or folder / "tango", systems=", ".join(systems))
    return pipeline.run(parse_recipe(text, "tiny.toml"), folder / out, until="train")


def network(run: Run, system: str) -> str:
    return module_hash(load_denoiser(f"{run.path}/{system}").module)


def saved_at(run: Run, system: str) -> int:
    return (run.path / "checkpoints" / system / "model" / "config.json").stat().st_mtime_ns


def test_it_is_the_training_of_that_systems_model_and_not_of_the_base(folder: Path) -> None:
    run = train(folder, "both", FIRST, SECOND)
    apart = train(folder, "apart", SECOND.replace('start = "first", ', ""), model=f"{run.path}/first")
    alone = train(folder, "alone", SECOND.replace('start = "first", ', ""))
    assert network(run, "second") == network(apart, "second") != network(alone, "second")


def test_a_change_of_the_first_trains_both_again_and_no_other(folder: Path) -> None:
    run = train(folder, "changed", FIRST, SECOND, THIRD)
    before = {name: saved_at(run, name) for name in ("first", "second", "third")}
    train(folder, "changed", FIRST, SECOND.replace("steps = 3", "steps = 2"), THIRD)
    after = {name: saved_at(run, name) for name in before}
    assert [name for name in before if after[name] != before[name]] == ["second"]
    train(folder, "changed", FIRST.replace("steps = 2", "steps = 1"), SECOND.replace("steps = 3", "steps = 2"), THIRD)
    assert [name for name in before if saved_at(run, name) != after[name]] == ["first", "second"]


def test_an_export_holds_both_trainings(folder: Path, tmp_path: Path) -> None:
    lora = SECOND.replace("}] }", "}], settings = { lora_rank = 2 } }")
    run = train(folder, "lora", FIRST, lora)
    whole = export_system(run.path, tmp_path / "whole", "second")
    assert module_hash(load_denoiser(str(whole)).module) == network(run, "second")
    assert not (whole / "adapter").exists()  # it would be a change of the first system's model, not of the base
    card = (whole / "README.md").read_text(encoding="utf-8")
    assert "from the system `first` of its recipe" in card
    assert "FOLDER/adapter" not in card
    widest = export_system(run.path, tmp_path / "adapter", "second", 64)
    assert "FOLDER/adapter" not in (widest / "README.md").read_text(encoding="utf-8")
    assert adapted(widest) == str(folder / "tango")
    base, cut, both = (load_denoiser(str(place)).module for place in (folder / "tango", widest, whole))
    for name, weight in both.named_parameters():
        change = weight - base.get_parameter(name)
        if weight.dim() > 1:  # an adapter has no biases
            lost = (weight - cut.get_parameter(name)).abs().max()
            assert lost <= 0.02 * change.abs().max()


@pytest.mark.slow
def test_a_student_is_refined_by_rewards_in_the_recipe_that_made_it(folder: Path) -> None:
    student = FIRST.replace('loss = "ldm"', 'loss = "distil-guidance"')
    rewards = 'data = "captions", sources = ["world:train:4"], phases = [{ loss = "draft", steps = 1 }]'
    settings = "settings = { train_guidance = 3.0, draft_steps = 2 }"
    refined = f'{{ name = "refined", start = "first", {rewards}, {settings} }}'
    run = train(folder, "student", student, refined)
    first, second = (load_denoiser(f"{run.path}/{name}").module for name in ("first", "refined"))
    assert second.config["time_cond_proj_dim"] == first.config["time_cond_proj_dim"] is not None
    assert network(run, "refined") != network(run, "first")


@pytest.mark.parametrize(
    ("systems", "told"),
    [
        ((SECOND, FIRST), 'second: start = "first": must be one of'),
        ((FIRST, SECOND.replace('"first"', '"second"')), 'second: start = "second": must be one of first'),
        ((FIRST, SECOND.replace('"clips"', '"online"')), "second is trained online, from models.model"),
    ],
)
def test_what_it_cannot_start_from_is_told(systems: tuple[str, ...], told: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(RECIPE.format(folder="f", model="m", systems=", ".join(systems)), "tiny.toml")
    assert told in str(error.value)
