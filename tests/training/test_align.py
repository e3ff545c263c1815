"""`AlignTrainer` on every kind of data set, and its output folder as a whole model."""

from pathlib import Path

import numpy as np
import pytest
import small_networks
import torch
from pydantic import ValidationError
from tiny_parts import parts_folder

import milonga
from milonga import AlignConfig, AlignTrainer
from milonga.core.config import Phase, Strategy
from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.data.examples import PairExamples
from milonga.data.pairs import PairDataset, read_pairs
from milonga.models.load import load_denoiser
from milonga.preference.build import build_pairs


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts_folder(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def pairs(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> PairDataset:
    strategies = [Strategy.same_prompt(steps=[2, 2])]
    return build_pairs(
        list(small_networks.WORDS[:3]), model=str(parts / "tango"), scorers=[str(parts / "one")],
        out=tmp_path_factory.mktemp("run") / "mine", strategies=strategies, thresholds=[],
    )  # fmt: skip


def config(folder: Path, **changes) -> AlignConfig:
    settings = {"batch_size": 2, "learning_rate": 1e-3, "phases": ["sft:1", "dpo:1"], "beta": 200}
    return AlignConfig(output_dir=folder, **settings | changes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "folder", "dataset"])
def test_every_kind_of_data_set_trains_a_model_that_is_loaded_again(
    kind: str, parts: Path, pairs: PairDataset, tmp_path: Path
) -> None:
    data = {"pairs": lambda: pairs, "folder": lambda: str(pairs.run.path), "dataset": pairs.to_dataset}[kind]()
    trainer = AlignTrainer(str(parts / "tango"), data, config(tmp_path / "tuned"))
    trainer.train(resume_from_checkpoint=True)  # nothing to resume: begins
    tuned, base = milonga.load(str(tmp_path / "tuned")), milonga.load(str(parts / "tango"))
    assert not torch.equal(tuned.unet.conv_in.weight, base.unet.conv_in.weight)
    assert torch.equal(tuned.vae.encoder.conv_in.weight, base.vae.encoder.conv_in.weight)
    audio = tuned(small_networks.WORDS[0], seeds=7, num_inference_steps=2).audios[0]
    assert np.isfinite(audio).all()
    assert "TangoPipeline" in (tmp_path / "tuned" / "pipeline.py").read_text()
    saved = trainer.save_model(tmp_path / "saved")
    assert torch.equal(milonga.load(str(saved)).unet.conv_in.weight, tuned.unet.conv_in.weight)


def test_a_runs_own_latents_are_used_and_those_of_another_model_are_not(
    parts: Path, pairs: PairDataset, tmp_path: Path
) -> None:
    own, _ = AlignTrainer(str(parts / "tango"), pairs, config(tmp_path / "own")).examples()
    assert isinstance(own.winners, torch.Tensor)
    other, _ = AlignTrainer(small_networks.pipeline(seed=4), pairs, config(tmp_path / "other")).examples()
    assert not isinstance(other.winners, torch.Tensor)
    assert len(own) == len(other) == len(pairs)


def test_a_pipeline_is_trained_in_place(pairs: PairDataset, tmp_path: Path) -> None:
    pipe = small_networks.pipeline()
    before = pipe.unet.conv_in.weight.detach().clone()
    AlignTrainer(pipe, pairs, config(tmp_path / "tuned")).train()
    assert not torch.equal(pipe.unet.conv_in.weight, before)
    assert torch.equal(milonga.load(str(tmp_path / "tuned")).unet.conv_in.weight, pipe.unet.conv_in.weight)


def test_a_training_that_is_begun_again_starts_from_the_model_as_it_was(
    parts: Path, pairs: PairDataset, tmp_path: Path
) -> None:
    trainer = AlignTrainer(str(parts / "tango"), pairs, config(tmp_path / "tuned"))
    first = milonga.load(str(trainer.train())).unet.state_dict()
    again = milonga.load(str(trainer.train(resume_from_checkpoint=False))).unet.state_dict()
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_a_training_that_was_interrupted_goes_on_in_the_same_process(
    parts: Path, pairs: PairDataset, tmp_path: Path
) -> None:
    class Stops(milonga.TrainerCallback):
        def on_step(self, row: dict) -> None:
            if row["step"] == 2 and not stopped:
                stopped.append(2)
                raise KeyboardInterrupt

    stopped: list[int] = []
    settings = {"checkpoint_every": 1}
    trainer = AlignTrainer(str(parts / "tango"), pairs, config(tmp_path / "cut", **settings), callbacks=[Stops()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    cut = milonga.load(str(trainer.train())).unet.state_dict()
    AlignTrainer(str(parts / "tango"), pairs, config(tmp_path / "whole", **settings)).train()
    whole = milonga.load(str(tmp_path / "whole")).unet.state_dict()
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


def test_an_object_that_was_trained_in_place_is_not_trained_again_as_if_it_were_new(
    pairs: PairDataset, tmp_path: Path
) -> None:
    trainer = AlignTrainer(small_networks.pipeline(), pairs, config(tmp_path / "tuned"))
    trainer.train()
    trainer.train()  # it has finished: nothing to do
    with pytest.raises(RecipeError, match="this TangoPipeline has been trained in place: load it again"):
        trainer.train(resume_from_checkpoint=False)
    assert (tmp_path / "tuned" / "finished.json").is_file()


@pytest.mark.slow
def test_a_finished_training_is_not_taken_for_another(parts: Path, pairs: PairDataset, tmp_path: Path) -> None:
    model, folder = str(parts / "tango"), tmp_path / "tuned"
    AlignTrainer(model, pairs, config(folder)).train()
    weights = (folder / "training" / "model" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    AlignTrainer(model, pairs, config(folder)).train()
    assert (folder / "training" / "model" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == weights
    with pytest.raises(StoreError, match="seed = 0, not 7"):
        AlignTrainer(model, pairs, config(folder, seed=7)).train()
    with pytest.raises(StoreError, match=r"settings\.learning_rate = 0\.001, not 0\.002"):
        AlignTrainer(model, pairs, config(folder, learning_rate=2e-3)).train()
    examples, _ = AlignTrainer(model, pairs, config(tmp_path / "other")).examples()
    turned = PairExamples(examples.losers, examples.winners, examples.conditioning)  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match=r"data contents = \w+, not \w+"):
        AlignTrainer(model, turned, config(folder)).train()
    AlignTrainer(model, turned, config(folder)).train(resume_from_checkpoint=False)
    assert (folder / "training" / "model" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns != weights


def test_before_the_end_there_is_nothing_to_save_and_without_a_token_nothing_is_pushed(
    pairs: PairDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    trainer = AlignTrainer(small_networks.pipeline(), pairs, config(tmp_path))
    with pytest.raises(RecipeError, match=r"call train\(\) first"):
        trainer.save_model(tmp_path / "saved")
    with pytest.raises(RecipeError, match="no Hugging Face token"):
        trainer.push_to_hub("me/tuned")


def test_a_model_is_saved_into_a_new_or_an_empty_folder_and_never_over_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = AlignTrainer(small_networks.pipeline(), str(tmp_path), config(tmp_path / "tuned"))
    monkeypatch.setattr(trainer, "_save_to", lambda part: (part / "model_index.json").write_text("{}"))
    full, empty = tmp_path / "full", tmp_path / "empty"
    (full / "training").mkdir(parents=True)
    (full / "training" / "step").write_text("checkpoint")
    empty.mkdir()
    with pytest.raises(RecipeError, match="full holds files already: name a new folder"):
        trainer.save_model(full)
    assert [path.name for path in sorted(full.rglob("*"))] == ["training", "step"]
    assert (full / "training" / "step").read_text() == "checkpoint"
    for folder in (empty, tmp_path / "new"):
        assert trainer.save_model(folder) == folder
        assert [path.name for path in folder.iterdir()] == ["model_index.json"]


def test_a_push_uploads_the_model_and_no_checkpoints(
    pairs: PairDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    uploads: list[set[str]] = []

    class Api:
        def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
            assert (name, private, exist_ok) == ("me/tuned", True, True)

        def upload_folder(self, repo_id: str, folder_path: Path) -> None:
            uploads.append({path.name for path in Path(folder_path).iterdir()})

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    trainer = AlignTrainer(small_networks.pipeline(), pairs, config(tmp_path))
    trainer.train()
    assert trainer.push_to_hub("me/tuned") == "https://huggingface.co/me/tuned"
    assert uploads[0] >= {"model_index.json", "unet", "vae", "vocoder", "text_encoder", "pipeline.py"}
    assert not uploads[0] & {"training", "encoded", "finished.json"}


def test_phases_are_written_short_and_take_the_configs_beta() -> None:
    phases = config(Path("x"), phases=["sft:1", "dpo:4", "ipo:2:30", Phase(loss="dpo", epochs=1, beta=5)]).phases
    assert [(phase.loss, phase.epochs, phase.beta) for phase in phases] == [
        ("sft", 1, 0.0), ("dpo", 4, 200.0), ("ipo", 2, 30.0), ("dpo", 1, 5.0)
    ]  # fmt: skip
    with pytest.raises(ValidationError, match="write loss:epochs"):
        config(Path("x"), phases=["dpo"])
    with pytest.raises(RecipeError, match="no loss is called 'dpoo'"):
        config(Path("x"), phases=["dpoo:1"])


def test_what_is_no_model_and_no_data_is_refused_in_one_line(pairs: PairDataset, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a dict cannot be trained"):
        AlignTrainer({}, pairs, config(tmp_path)).train()
    with pytest.raises(DataError):
        AlignTrainer(small_networks.pipeline(), str(tmp_path), config(tmp_path)).train()


@pytest.mark.slow
def test_a_run_system_is_a_model_by_name(parts: Path, pairs: PairDataset) -> None:
    run = pairs.run
    assert run is not None
    folder = run.path / "checkpoints" / "aligned"
    AlignTrainer(str(parts / "tango"), read_pairs(run.path), config(folder, save_whole_model=False)).train()
    name = f"{run.path}/aligned"
    network = load_denoiser(str(parts / "tango"), folder / "model").module.conv_in.weight
    assert torch.equal(milonga.load(name).unet.conv_in.weight, network)
    with pytest.raises(RecipeError, match="has trained no system 'other' yet"):
        milonga.load(f"{run.path}/other")
