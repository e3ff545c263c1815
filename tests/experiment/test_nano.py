"""`milonga nano train` in seconds: every task at full width for two steps, stopped, begun again, and loaded."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from milonga.core.errors import RecipeError
from milonga.core.ids import file_hash
from milonga.core.records import Clip, Prompt, Request
from milonga.core.weights import SHIPPED
from milonga.experiment.nano import train as nano
from milonga.experiment.registry import DEFAULT as registry
from milonga.models.load import pipeline
from milonga.nano.build import codec as train_codec
from milonga.nano.build import corpus
from milonga.nano.build import scorers as train_scorers
from milonga.nano.build import text as train_text
from milonga.nano.build import unet as train_unet
from milonga.nano.world import CLASSES, SECONDS
from milonga.preference.candidates import generate_clips

pytestmark = pytest.mark.slow

CLIPS = 6
LOSSES = (
    (train_text, "text_loss"),
    (train_codec, "vae_loss"),
    (train_codec, "vocoder_loss"),
    (train_scorers, "tagger_loss"),
    (train_scorers, "words_loss"),
    (train_scorers, "audio_loss"),
    (train_scorers, "joint_loss"),
    (train_scorers, "misses_loss"),
)
SHORT: dict[str, Any] = {"steps": 2, "batch_size": 2, "warmup_steps": 1, "checkpoint_every": 1}
FOLDERS = {"tango", "tagger", "tagger-b", "clap-a", "clap-b", "clap-judge"}


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Six clips, two steps a task; the networks, losses and the order of tasks are the real ones."""
    patch.setattr(nano, "CLIPS", CLIPS)
    patch.setattr(nano, "CODED", 2)
    patch.setattr(corpus, "SHARD", 3)
    tasks = ((train_text, "TASK"), (train_codec, "VAE_TASK"), (train_codec, "VOCODER_TASK"))
    for module, name in tasks:
        patch.setattr(module, name, replace(getattr(module, name), **SHORT))
    for module, name in (
        (train_codec, "VAE_CLIPS"), (train_codec, "VOCODER_CLIPS"), (train_unet, "CLIPS"),
        (train_scorers, "MISSES_CLIPS"),
    ):  # fmt: skip
        patch.setattr(module, name, CLIPS)
    patch.setattr(train_unet, "EPOCHS", 1)
    patch.setattr(train_unet, "SETTINGS", train_unet.SETTINGS | {"batch_size": 3, "checkpoint_every": 1})
    thirds = [replace(one, first=2 * n, last=2 * n + 2) for n, one in enumerate(train_scorers.CLAPS)]
    patch.setattr(train_scorers, "CLAPS", tuple(thirds))
    taggers = [
        replace(spec, first=first, last=CLIPS) for spec, first in zip(train_scorers.TAGGERS, (0, 2), strict=True)
    ]
    patch.setattr(train_scorers, "TAGGERS", tuple(taggers))
    for name in ("tagger_task", "text_task", "audio_task", "joint_task", "misses_task"):
        patch.setattr(train_scorers, name, shorter(getattr(train_scorers, name)))
    say = train_text.sentences
    patch.setattr(train_text, "sentences", lambda seed, count: say(seed, 400))


def shorter(task_of: Callable) -> Callable:
    """Two steps of the task that `task_of` gives."""
    return lambda spec: replace(task_of(spec), **SHORT)


def stopping(loss: Callable, at: int) -> Callable:
    """A maker of losses whose losses are interrupted before a step."""

    def make(*arguments: object) -> Callable:
        whole = loss(*arguments)

        def stopped(step: int) -> dict[str, torch.Tensor]:
            if step == at:
                raise KeyboardInterrupt
            return whole(step)

        return stopped

    return make


def files(folder: Path) -> dict[str, str]:
    """Hashes of all files."""
    return {str(path.relative_to(folder)): file_hash(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder whose weights were made without a stop, under `out`."""
    folder = tmp_path_factory.mktemp("nano")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        assert nano.make(folder / "work", folder / "out") == folder / "out"
    return folder


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def test_every_part_ships_in_a_folder_of_its_own_within_25_megabytes(work: Path) -> None:
    assert (
        {path.name for path in (work / "out").iterdir()} == FOLDERS == set(SHIPPED.values()) - {"tango-2"}
    )  # that one is made by recipes/nano.toml
    assert sum(path.stat().st_size for path in (work / "out").rglob("*") if path.is_file()) < 25e6


def test_what_ships_does_not_say_where_it_was_made(work: Path) -> None:
    for path in (work / "out").rglob("*.json"):
        assert str(work) not in path.read_text(), path


def test_what_ships_loads_and_works_together(work: Path) -> None:
    model = registry.load(str(work / "out" / "tango"))
    prompt = Prompt.of("a dog barks then a bell rings", "test")
    steps, guidance = registry.sampling(str(work / "out" / "tango"))
    assert (steps, guidance) == (nano.STEPS, nano.GUIDANCE)
    ((_, clip),) = generate_clips([Request.of(1, prompt, prompt.text, 2, guidance)], model.generate, 4)
    assert isinstance(clip, Clip)
    assert clip.seconds == SECONDS
    assert np.isfinite(clip.waveform).all()
    assert clip.latents is not None
    for name in ("clap-a", "clap-b", "clap-judge"):
        scorer = registry.scorer(str(work / "out" / name))
        assert np.abs(scorer.embed_clips([clip]) @ scorer.embed_texts([prompt.text]).T).max() <= 1
        assert np.isfinite(scorer.score([clip], [prompt.text])).all()
        assert (scorer.head is None) == (name == "clap-judge")
    for name in ("tagger", "tagger-b"):
        tagger = registry.tagger(str(work / "out" / name))
        assert tagger.classes == CLASSES
        assert tagger.features([clip])[1].shape == (1, len(CLASSES))
    events = registry.scorer(f"events:{work / 'out' / 'tagger-b'}")
    assert 0 < events.score([clip], [prompt.text])[0] < 1


def test_the_curves_of_all_tasks_are_drawn(work: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "curves.py"
    subprocess.run([sys.executable, script, work / "work", tmp_path / "curves.svg"], check=True)
    drawn = (tmp_path / "curves.svg").read_text()
    tasks = [folder.name for folder in (work / "work").iterdir() if (folder / "curves.jsonl").exists()]
    assert len(tasks) == 17
    assert all(f">{task}: log10 of the loss by step<" in drawn for task in tasks)


def test_latents_are_brought_to_unit_variance_by_the_factor_that_ships(work: Path) -> None:
    with torch.no_grad():
        vae = pipeline(str(work / "out" / "tango")).vae
        clips = corpus.load(work / "work" / "corpus", nano.SEED, range(6)).mels.float().unsqueeze(1)
        latents = vae.encode(clips).latent_dist.sample() * vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.usefixtures("_short")
def test_what_is_learnt_is_not_learnt_again(
    work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for module, name in LOSSES:
        monkeypatch.setattr(module, name, stopping(getattr(module, name), 0))
    nano.make(work / "work", work / "again")
    assert files(work / "again") == files(work / "out")
    assert sum(name.endswith("tokenizer.json") for name in files(work / "out")) == 4
    assert not capfd.readouterr().out  # where results go, and the tokenizers' own progress went


@pytest.mark.usefixtures("_short")
def test_scorers_alone_are_the_same_with_the_codec_that_is_there(work: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    shutil.copytree(work / "out" / "tango", tmp_path / "out" / "tango")
    nano.make(tmp_path / "work", tmp_path / "out", ["tagger-b"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"tango", "tagger-b"}
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"corpus", "codec", "tagger-b"}
    rounded, exact = (load_file(folder / "out" / "tagger-b" / "model.safetensors") for folder in (tmp_path, work))
    assert max(float((rounded[name].float() - exact[name].float()).abs().max()) for name in exact) < 0.05
    with pytest.raises(RecipeError, match="'clap-c' is none of nano's networks: there are tango, tagger, tagger-b"):
        nano.make(tmp_path / "work", tmp_path / "out", ["clap-c"])


@pytest.mark.slow  # half a minute and more
@pytest.mark.usefixtures("_short")
def test_stopped_in_every_task_and_begun_again_it_makes_the_same_weights(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in LOSSES:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stopping(getattr(module, name), 1))
            with pytest.raises(KeyboardInterrupt):
                nano.make(tmp_path / "work", tmp_path / "out")
    nano.make(tmp_path / "work", tmp_path / "out")
    assert files(tmp_path / "out") == files(work / "out")
