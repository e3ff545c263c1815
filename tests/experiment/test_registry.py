"""Parts by name: what is found, what is told when it is not or is broken, and what the trainer is given."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_backbones
import small_networks
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file

from milonga.core import weights
from milonga.core.audio import clip_table
from milonga.core.errors import CheckpointError, DataError, RecipeError
from milonga.core.records import Clip, Pair, Prompt, Request
from milonga.core.store import Run
from milonga.core.weights import SHIPPED, folder_of
from milonga.data.encode import encode_clips, pair_examples
from milonga.data.examples import with_prior_data
from milonga.experiment.registry import DEFAULT as registry
from milonga.experiment.registry import Registry
from milonga.models.generator import TangoModel
from milonga.models.load import as_denoiser, as_model, pipeline
from milonga.models.tango_denoiser import TangoDenoiser
from milonga.scorers.clap import ClapScorer, save_clap
from milonga.scorers.tagger import EventTagger, save_tagger


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pipeline, CLAP and tagger in the layouts that ship."""
    folder = tmp_path_factory.mktemp("parts")
    small_networks.pipeline().save_pretrained(folder / "tango")
    clap = small_networks.scorer()
    save_clap(folder / "clap", clap.model, clap.tokenizer, clap.mel, clap.frames)
    save_tagger(folder / "tagger", small_networks.network(), small_networks.tagger_config())
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny pipeline's folder of one's own, to spoil."""
    small_networks.pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# -- names and folders


@pytest.mark.parametrize("name", ["nanno", "", "no/such/folder", "clap-a"])
def test_a_name_that_is_none_lists_those_there_are(name: str) -> None:
    with pytest.raises(RecipeError, match=f"'{name}' is neither a folder nor one of nano, nano-2, nano-clap-a"):
        folder_of(name)


def test_a_part_is_a_shipped_name_or_a_folder(tmp_path: Path) -> None:
    assert folder_of(str(tmp_path)) == tmp_path
    found = {folder_of(name) for name in SHIPPED}
    assert len(found) == 7
    assert {folder.parent.name for folder in found} == {"weights"}


def test_a_fingerprint_changes_with_any_weight_and_with_nothing_else(model: Path) -> None:
    first = registry.fingerprint(str(model))
    (model / "notes.txt").write_text("loud")
    assert registry.fingerprint(str(model)) == first
    path = model / "vocoder" / "model.safetensors"
    stored = load_file(path)
    stored["conv_pre.bias"] = stored["conv_pre.bias"] + 1e-3
    save_file(stored, path)
    assert registry.fingerprint(str(model)) != first


def test_a_folder_without_weights_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors.* weights"):
        registry.fingerprint(str(tmp_path))


def test_sampling_is_read_from_the_models_config(saved: Path, tmp_path: Path) -> None:
    assert registry.sampling(str(saved / "tango")) == (3, 3.0)
    (tmp_path / "model_index.json").write_text("{}")
    assert registry.sampling(str(tmp_path)) == (200, 3.0)


@pytest.mark.parametrize("text", [None, "{", "[1]", "3"])
def test_a_config_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model_index\.json is missing or no JSON") as error:
        registry.sampling(str(tmp_path))
    assert "\n" not in str(error.value)


def test_parts_are_loaded_from_folders_and_kept(saved: Path) -> None:
    loaded = registry.load(str(saved / "tango"))
    assert isinstance(loaded, TangoModel)
    assert registry.load(str(saved / "tango")) is loaded
    assert isinstance(registry.scorer(str(saved / "clap")), ClapScorer)
    tagger = registry.tagger(str(saved / "tagger"))
    assert isinstance(tagger, EventTagger)
    assert tagger.name == str(saved / "tagger")


def test_a_tuned_model_has_the_other_network_and_the_folders_name(saved: Path, tmp_path: Path) -> None:
    other = small_networks.pipeline(seed=5).unet
    other.save_pretrained(tmp_path / "aligned" / "unet")
    prompt = Prompt.of("a dog barks", "test")
    asked = [Request.of(1, prompt, prompt.text, 2, 3.0)]
    base, tuned = registry.load(str(saved / "tango")), registry.tuned(str(saved / "tango"), tmp_path / "aligned/unet")
    assert tuned.name == "aligned"
    waves = [one.generate(asked)[0].waveform for one in (base, tuned)]
    assert np.abs(waves[0] - waves[1]).max() > 1e-3
    mixed = small_networks.pipeline()
    mixed.unet = other
    np.testing.assert_allclose(TangoModel("mixed", mixed).generate(asked)[0].waveform, waves[1], atol=1e-5)


@pytest.mark.slow
def test_a_model_is_loaded_in_a_precision_and_the_one_in_float32_stays(saved: Path, tmp_path: Path) -> None:
    name, folder = str(saved / "tango"), tmp_path / "aligned" / "unet"
    small_networks.pipeline(seed=5).unet.save_pretrained(folder)
    half = [registry.load(name, None, "bf16"), registry.tuned(name, folder, None, "bf16")]
    assert [model.pipeline.precision for model in half] == ["bf16", "bf16"]
    assert registry.load(name).pipeline.precision == "fp32"
    assert registry.choose_precision(name) in ("fp32", "bf16")
    with pytest.raises(RecipeError, match="auto, fp32 or bf16"):
        registry.load(name, None, "fp8")


@pytest.mark.slow
def test_clips_have_the_named_length_whatever_the_model_is(saved: Path, tmp_path: Path) -> None:
    name, folder = str(saved / "tango"), tmp_path / "aligned" / "unet"
    small_networks.pipeline(seed=5).unet.save_pretrained(folder)
    prompt = Prompt.of("a dog barks", "test")
    objects = Registry({"mine": small_networks.pipeline(), "denoiser": registry.load_denoiser(name)})
    models = [registry.load(name, seconds=0.2), registry.tuned(name, folder, seconds=0.2)]
    models += [objects.load(part, seconds=0.2) for part in objects.objects] + [
        objects.tuned("mine", folder, seconds=0.2)
    ]
    for model in models:
        clip = model.generate([Request.of(1, prompt, prompt.text, 2, 3.0)])[0]
        assert len(clip.waveform) == 3200


@pytest.mark.parametrize("name", ["pipeline", "denoiser"])
def test_an_object_takes_the_scheduler_that_is_asked_for_and_keeps_its_own(name: str, tmp_path: Path) -> None:
    pipe, folder = small_networks.pipeline(), tmp_path / "aligned" / "unet"
    small_networks.pipeline(seed=5).unet.save_pretrained(folder)
    objects = Registry({"pipeline": pipe, "denoiser": TangoDenoiser.of(pipe)})
    for asked, kind in (("dpm++", DPMSolverMultistepScheduler), (None, DDIMScheduler)):
        for model in (objects.load(name, asked), objects.tuned(name, folder, asked)):
            assert type(model.pipeline.scheduler) is kind
    assert type(pipe.scheduler) is DDIMScheduler


def test_a_denoiser_of_another_kind_is_sampled_by_the_scheduler_that_is_asked_for(tmp_path: Path) -> None:
    denoiser = as_denoiser(small_backbones.make("AudioLDMPipeline"))
    assert isinstance(as_model(denoiser).denoiser.process.scheduler, DDIMScheduler)
    denoiser.save(tmp_path / "tuned")
    tuned = Registry({"mine": denoiser}).tuned("mine", tmp_path / "tuned", "dpm++")
    assert isinstance(tuned.denoiser.process.scheduler, DPMSolverMultistepScheduler)
    assert isinstance(as_model(denoiser, "dpm++").denoiser.process.scheduler, DPMSolverMultistepScheduler)


def test_a_denoiser_of_another_kind_keeps_its_own_scheduler() -> None:
    denoiser = as_denoiser(small_backbones.make("AudioLDMPipeline"))
    objects, own = Registry({"mine": denoiser}), denoiser.process
    assert isinstance(objects.load("mine", "dpm++").denoiser.process.scheduler, DPMSolverMultistepScheduler)
    assert denoiser.process is own
    assert isinstance(objects.load("mine").denoiser.process.scheduler, DDIMScheduler)


def test_a_tuned_model_that_was_trained_again_is_loaded_again(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "aligned" / "unet"
    small_networks.pipeline(seed=5).unet.save_pretrained(folder)
    first = registry.tuned(str(saved / "tango"), folder)
    assert registry.tuned(str(saved / "tango"), folder) is first
    shutil.rmtree(folder)
    small_networks.pipeline(seed=6).unet.save_pretrained(folder)
    assert registry.tuned(str(saved / "tango"), folder) is not first


def test_a_denoiser_is_loaded_anew_each_time(saved: Path) -> None:
    first, second = (registry.load_denoiser(str(saved / "tango")) for _ in range(2))
    assert first.module is not second.module
    assert first.process.prediction == "v_prediction"
    assert first.process.alphas_cumprod.shape == (1000,)
    states, mask = small_networks.pipeline().encode_prompt([""])
    torch.testing.assert_close(first.empty["states"], states)
    assert torch.equal(first.empty["mask"], mask)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rename_a_key(path: Path) -> None:
    stored = load_file(path)
    first = min(stored)
    stored["other"] = stored.pop(first)
    save_file(stored, path)


UNET, VAE, T5 = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
BROKEN: dict[str, Callable[[Path], object]] = {
    "no index": lambda folder: (folder / "model_index.json").unlink(),
    "cut index": lambda folder: truncate(folder / "model_index.json"),
    "no scheduler": lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
    "no tokenizer": lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(),
    "no config": lambda folder: (folder / "unet" / "config.json").unlink(),
    "cut config": lambda folder: truncate(folder / "vae" / "config.json"),
    **{f"no {part}": lambda folder, p=part: (folder / f"{p}.safetensors").unlink() for part in (UNET, VAE, T5)},
    **{f"cut {part}": lambda folder, p=part: truncate(folder / f"{p}.safetensors") for part in (UNET, VAE, T5)},
    **{f"key of {part}": lambda folder, p=part: rename_a_key(folder / f"{p}.safetensors") for part in (UNET, VAE, T5)},
    "key of vocoder": lambda folder: rename_a_key(folder / "vocoder" / "model.safetensors"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_model_is_told_in_one_line_that_names_its_folder(model: Path, how: str) -> None:
    BROKEN[how](model)
    with pytest.raises(CheckpointError) as error:
        pipeline(str(model))
    assert str(model) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["no", "cut", "key of"])
def test_a_broken_trained_network_is_told_by_its_own_folder(saved: Path, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "aligned" / "unet"
    small_networks.pipeline().unet.save_pretrained(folder)
    BROKEN[f"{how} {UNET}"](folder.parent)
    with pytest.raises(CheckpointError, match="aligned/unet") as error:
        pipeline(str(saved / "tango"), folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "name"), [("text_embedder", "gte"), ("perturber", "llm")])
def test_an_unknown_embedder_or_perturber_names_the_known_one(kind: str, name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name!r}: choose"):
        getattr(registry, kind)(name)


# -- training examples


def pair_of(winner: Request, loser: Request) -> Pair:
    return Pair(
        id="p", prompt_id=winner.prompt_id, prompt=winner.prompt, strategy="1", chosen_id=winner.id,
        rejected_id=loser.id, chosen_words=winner.words, rejected_words=loser.words, chosen_steps=2, rejected_steps=2,
        chosen_seed=winner.seed, rejected_seed=loser.seed, chosen_scores={}, rejected_scores={},
    )  # fmt: skip


def stored(run: Run, latents: bool = True) -> tuple[list[Pair], dict[str, np.ndarray]]:
    """Two pairs whose clips lie in two shards of a run, and the latents of each clip."""
    prompts = [Prompt.of(text, "test") for text in small_networks.WORDS[:2]]
    asked = [Request.of(1, one, one.text, 2, 3.0, n) for one in prompts for n in range(2)]
    rng = np.random.default_rng(0)
    held = {one.id: rng.standard_normal((4, 8, 16)).astype(np.float16) for one in asked}
    clip = Clip(np.zeros(8, dtype=np.float32), 16000)
    for name, part in (("a", asked[:3]), ("b", asked[3:])):
        packed = [held[one.id].tobytes() if latents else None for one in part]
        run.stage("generate").write_table(name, clip_table([one.id for one in part], [clip] * len(part), packed))
    return [pair_of(asked[1], asked[0]), pair_of(asked[2], asked[3])], held


def test_examples_are_the_pairs_latents_with_their_captions(saved: Path, tmp_path: Path) -> None:
    pairs, held = stored(Run(tmp_path))
    batch = pair_examples(registry.load_denoiser(str(saved / "tango")), Run(tmp_path), pairs, tmp_path).batch([1, 0], 0)
    for place, pair in enumerate(pairs[::-1]):
        assert np.array_equal(batch.winner[place].numpy(), held[pair.chosen_id].astype(np.float32))
        assert batch.loser is not None
        assert np.array_equal(batch.loser[place].numpy(), held[pair.rejected_id].astype(np.float32))
        states, mask = small_networks.pipeline().encode_prompt([pair.prompt])
        shown = batch.conditioning["mask"][place]
        assert int(shown.sum()) == int(mask.sum())
        torch.testing.assert_close(batch.conditioning["states"][place][shown], states[0], atol=1e-5, rtol=0.0)


def test_prior_clips_are_real_clips_through_the_models_own_vae(saved: Path, tmp_path: Path) -> None:
    pairs, _ = stored(Run(tmp_path))
    denoiser = registry.load_denoiser(str(saved / "tango"))
    clips = encode_clips(denoiser, "world:train:3", tmp_path)
    found = with_prior_data(pair_examples(denoiser, Run(tmp_path), pairs, tmp_path), clips)
    assert found.num_prior == 3
    batch = found.prior_batch([2, 0], epoch=0)
    assert batch.loser is None
    assert batch.winner.shape == found.batch([0, 0], epoch=0).winner.shape
    assert not torch.equal(batch.winner, found.prior_batch([2, 0], epoch=1).winner)


def test_clips_without_latents_pass_the_autoencoder(saved: Path, tmp_path: Path) -> None:
    pairs, latents = stored(Run(tmp_path), latents=False)
    found = pair_examples(registry.load_denoiser(str(saved / "tango")), Run(tmp_path), pairs, tmp_path)
    batch = found.batch([0], epoch=0)
    assert batch.loser is not None
    assert batch.winner.shape == batch.loser.shape == (1, *next(iter(latents.values())).shape)
    assert not torch.equal(batch.winner, found.batch([0], epoch=1).winner)  # drawn anew in each epoch


def test_a_pair_whose_clip_was_thrown_away_is_named(saved: Path, tmp_path: Path) -> None:
    pairs, _ = stored(Run(tmp_path))
    gone = pairs[0].model_copy(update={"chosen_id": "gone"})
    with pytest.raises(DataError, match="lacks clip gone"):
        pair_examples(registry.load_denoiser(str(saved / "tango")), Run(tmp_path), [gone], tmp_path)


def test_the_shipped_names_say_what_is_broken_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match="weights/tango"):
        pipeline("nano")
    with pytest.raises(CheckpointError, match="weights/tango"):
        registry.sampling("nano")
    with pytest.raises(CheckpointError, match="weights/tagger"):
        registry.fingerprint("nano-tagger")


def test_the_index_names_the_pipelines_class(saved: Path) -> None:
    index = json.loads((saved / "tango" / "model_index.json").read_text())
    assert index["_class_name"] == "TangoPipeline"
    assert index["vocoder"] == ["transformers", "SpeechT5HifiGan"]
