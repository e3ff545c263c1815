"""`milonga studio` on a real run of tiny networks: its systems by name, and what is kept there trains."""

import json
import shutil

import numpy as np
import pytest
import test_evaluation
from small_studio import until
from typer.testing import CliRunner

from milonga.cli.judge import studio_systems
from milonga.cli.main import app
from milonga.core.audio import read_audio
from milonga.core.errors import DataError, RecipeError
from milonga.core.records import Label, Pair
from milonga.core.store import Run
from milonga.experiment import run as pipeline
from milonga.experiment.recipe import parse_recipe
from milonga.models.editing import SPLICE
from milonga.models.load import system, systems
from milonga.studio.orders import Order
from milonga.studio.studio import Studio

pytestmark = pytest.mark.slow

run = test_evaluation.run  # the fixture: a whole run of tiny networks


@pytest.fixture(scope="module")
def studio(run, tmp_path_factory) -> Studio:
    """A studio in which two systems of the run made two takes each; two were decided on."""
    studio = Studio(tmp_path_factory.mktemp("studio") / "s", studio_systems([str(run.path)]))
    base, aligned = next(iter(studio.systems)), f"{run.path}/aligned"
    studio.order(Order(prompt="a dog barks", systems=(base, aligned), count=2, steps=2, seed=5))
    for take in studio.takes.queue(list(studio.systems)):
        [clip] = studio.systems[take.system].load(None).generate([take.request()])
        studio.save(take, clip)
    takes = studio.takes.all_generated()
    studio.decide(takes[0].id, True)
    studio.decide(takes[1].id, False)
    studio.choose(takes[2].id, takes[3].id, "b")
    return studio


def test_a_run_stands_for_its_base_and_all_that_it_trained(run):
    names = [one.name for one in systems([str(run.path), f"{run.path}/sft"])]
    assert names[1:] == [f"{run.path}/aligned", f"{run.path}/sft"]
    assert len({one.fingerprint() for one in systems([str(run.path)])}) == 3
    assert system(f"{run.path}/sft").trained == run.path / "checkpoints" / "sft" / "model"
    with pytest.raises(RecipeError, match="name one, such as"):
        system(str(run.path))
    with pytest.raises(RecipeError, match="has trained no system 'zebra'"):
        system(f"{run.path}/zebra")
    with pytest.raises(RecipeError, match="neither a folder nor one of"):
        systems(["nobody"])


def test_a_take_is_the_clip_that_generate_makes(run, studio, tmp_path):
    take = studio.takes.all_generated()[3]
    words = ["generate", take.prompt, "--model", take.system, "--steps", "2", "--seed", "5", "-n", "2"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (tmp_path / "take.wav").write_bytes(studio.original(take.id)[1])
    made, kept = read_audio(*tmp_path.glob("a-dog-barks-5-1-*.wav")), read_audio(tmp_path / "take.wav")
    assert np.abs(made.waveform - kept.waveform).max() <= 1 / 32768


def test_a_region_is_edited_by_the_model_and_the_rest_is_bit_equal(run, studio, tmp_path):
    shutil.copytree(studio.folder, tmp_path / "s")
    copy = Studio(tmp_path / "s", list(studio.systems.values()))
    take = copy.takes.all_generated()[0]
    length = copy.view(take.id)["seconds"]
    start, stop = 0.4 * length, 0.7 * length
    copy.order(Order(source=take.id, edit="region", start=start, stop=stop, words="a bell", steps=2, scheduler="ddim"))
    copy.order(
        Order(prompt="a dog barks", systems=(take.system,), seconds=2 * length, negative="rain", steps=2, seed=5)
    )
    copy.worker.start()
    until(lambda: copy.takes.num_waiting() == 0)
    copy.worker.stop()
    edited, longer = (one for one in copy.takes.of_prompt(take.prompt_id)[-2:])
    assert (edited.trouble, longer.trouble) == ("", "")
    clip, old = copy.sounds.clip(edited), copy.sounds.clip(take)
    margin = SPLICE + 1 / clip.rate
    first, last = int((start - margin) * clip.rate), int((stop + margin) * clip.rate) + 1
    assert (clip.waveform[: max(0, first)] == old.waveform[: max(0, first)]).all()
    assert (clip.waveform[last:] == old.waveform[last:]).all()
    assert (clip.waveform != old.waveform).any()
    assert len(copy.sounds.clip(longer).waveform) == 2 * len(old.waveform)


def test_what_is_kept_is_exported_and_trains(run, studio, tmp_path):
    def export(out: str, form: str):
        words = ["listen", "export", str(studio.folder), str(tmp_path / out), "--as", form]
        return CliRunner().invoke(app, words)

    for out, form in (("pairs", "pairs"), ("labels", "labels"), ("takes.csv", "takes"), ("takes.parquet", "takes")):
        done = export(out, form)
        assert done.exit_code == 0, done.output
    assert export("table.csv", "table").output.endswith("a studio without a listening test: use --as takes\n")
    takes = studio.takes.all_generated()
    pairs = Run(tmp_path / "pairs").stage("pair").read_records(Pair)
    assert {(one.chosen_id, one.rejected_id) for one in pairs} == {
        (takes[0].id, takes[1].id), (takes[3].id, takes[2].id),
    }  # fmt: skip
    labels = Run(tmp_path / "labels").stage("label").read_records(Label)
    assert [(one.id, one.desirable) for one in labels] == [(takes[0].id, True), (takes[1].id, False)]
    assert len((tmp_path / "takes.csv").read_text().splitlines()) == 5
    recipe = test_evaluation.RECIPE.format(folder=run.path.parent).replace('"sft", phases', '"people", phases')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("milonga.experiment.stages.PRIOR_CLIPS", 4)
        trained = pipeline.run(parse_recipe(recipe, "people.toml"), tmp_path / "pairs", only="train")
    rows = (trained.path / "metrics/training/aligned.jsonl").read_text().splitlines()
    assert np.isfinite([json.loads(one)["loss"] for one in rows]).all()


def test_latents_of_another_model_are_told_before_training(run, studio, tmp_path, monkeypatch):
    from milonga.data.encode import pair_examples
    from milonga.models.load import load_denoiser

    monkeypatch.setattr("milonga.data.encode.stored_latents", lambda run, wanted: dict.fromkeys(wanted, b"\0" * 6))
    recipe = parse_recipe(test_evaluation.RECIPE.format(folder=run.path.parent), "people.toml")
    pairs = run.stage("pair").read_records(Pair)
    with pytest.raises(DataError, match="latents of another model"):
        pair_examples(load_denoiser(recipe.models.model), run, pairs, tmp_path)
