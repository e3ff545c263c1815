"""The baselines, wired with components of the real classes: by name, by their own defaults, each clip from its seed."""

import json
from pathlib import Path

import numpy as np
import pytest
import small_baselines

from milonga.cli.generate import generate_clips
from milonga.core.audio import read_audio
from milonga.core.errors import CheckpointError, RecipeError
from milonga.core.records import Prompt, Request
from milonga.experiment.registry import DEFAULT as registry
from milonga.models.generator import LENGTHS, BaselineModel, baseline_class, load_baseline

pytest.importorskip("torchsde", reason="Stable Audio's sampler needs torchsde: pip install 'milonga[baselines]'")
pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning:torchsde")  # rounding of its own times

# What each takes where it is told nothing, the rate of its sound, and the samples of a clip of its own length.
KNOWN = {
    "AudioLDMPipeline": ((10, 2.5), 16000, 256),
    "AudioLDM2Pipeline": ((200, 3.5), 16000, 256),
    "StableAudioPipeline": ((100, 7.0), 4410, 512),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind in KNOWN:
        made[kind] = tmp_path_factory.mktemp("baselines") / kind
        small_baselines.make(kind).save_pretrained(made[kind])
    return made


def asked(words: str, number: int = 0, guidance: float = 2.5) -> Request:
    return Request.of(1, Prompt.of(words, "test"), words, 3, guidance, number)


@pytest.mark.parametrize("kind", KNOWN)
def test_each_makes_clips_from_words_and_seeds_by_the_registrys_name(kind: str, folders: dict[str, Path]) -> None:
    model, (defaults, rate, samples) = registry.load(str(folders[kind])), KNOWN[kind]
    assert (model.rate, registry.sampling(str(folders[kind]))) == (rate, defaults)
    requests = [asked("a dog"), asked("a much longer line of words"), asked("a dog", 1)]
    clips = model.generate(requests)
    assert [(clip.waveform.shape, clip.waveform.dtype, clip.rate) for clip in clips] == [
        ((samples,), np.float32, rate)
    ] * 3
    assert all(np.isfinite(clip.waveform).all() for clip in clips)
    assert np.abs(clips[0].waveform - clips[2].waveform).max() > 1e-4  # another number, another seed
    alone = model.generate(requests[1:2])[0]
    assert np.array_equal(alone.waveform, clips[1].waveform)
    same_seed = requests[1].model_copy(update={"words": "a bell"})
    assert np.abs(model.generate([same_seed])[0].waveform - alone.waveform).max() > 0
    assert len(registry.fingerprint(str(folders[kind]))) == 16


@pytest.mark.parametrize("kind", KNOWN)
def test_the_length_of_a_clip_can_be_told(kind: str, folders: dict[str, Path]) -> None:
    model = load_baseline("x", folders[kind], seconds=128 / KNOWN[kind][1])
    assert model.generate([asked("a dog")])[0].waveform.shape == (128,)


def test_a_baseline_stands_behind_the_door_generate(folders: dict[str, Path], tmp_path: Path) -> None:
    model = registry.load(str(folders["AudioLDMPipeline"]))
    (path,) = generate_clips(model, ["a dog"], tmp_path, steps=2, guidance=2.5)
    assert len(read_audio(path).waveform) == 256


def test_a_baseline_cannot_be_trained(folders: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match="is a AudioLDM2Pipeline: it makes clips to compare with"):
        registry.load_denoiser(str(folders["AudioLDM2Pipeline"]))


def test_only_folders_that_name_such_a_class_are_baselines(folders: dict[str, Path], tmp_path: Path) -> None:
    assert {kind: baseline_class(folder) for kind, folder in folders.items()} == {kind: kind for kind in LENGTHS}
    assert baseline_class(tmp_path) is None
    for held in ("{", "[]", json.dumps({"_class_name": "TangoPipeline"})):
        (tmp_path / "model_index.json").write_text(held)
        assert baseline_class(tmp_path) is None
    with pytest.raises(CheckpointError, match="holds none of AudioLDMPipeline"):
        load_baseline("x", tmp_path)
    (tmp_path / "model_index.json").write_text((folders["AudioLDMPipeline"] / "model_index.json").read_text())
    with pytest.raises(CheckpointError, match="holds no usable AudioLDMPipeline") as error:
        load_baseline("x", tmp_path)
    assert "\n" not in str(error.value)


def test_no_choice_is_made_among_several_candidates(folders: dict[str, Path]) -> None:
    model, told = load_baseline("x", folders["AudioLDM2Pipeline"]), []
    assert isinstance(model, BaselineModel)
    whole = model.pipeline

    class Watched:
        def __call__(self, *words, **numbers):
            told.append(numbers)
            return whole(*words, **numbers)

    model.pipeline = Watched()
    model.generate([asked("a dog", guidance=1.0)])
    assert (told[0]["num_waveforms_per_prompt"], told[0]["guidance_scale"]) == (1, 1.0)
