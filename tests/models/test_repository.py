"""Models from the hub: which files are fetched, that they are the same model, and what `convert` makes of them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import hub_server
import numpy as np
import original_folder
import pytest
from hub_server import Hub, Repository
from original_folder import MAIN_CONFIG, clips
from typer.testing import CliRunner

import milonga
from milonga.cli.main import app
from milonga.core import weights
from milonga.core.errors import CheckpointError, RecipeError
from milonga.core.weights import folder_of, needed
from milonga.experiment.registry import DEFAULT as registry
from milonga.models.original import layout as original_layout
from milonga.models.original.layout import MAIN, VAE
from milonga.models.original.load import load_original
from milonga.models.tango import TangoPipeline

T5, TANGO2 = "google/flan-t5-large", "declare-lab/tango2"
SEVEN = ["main_config.json", "config.json", "vae_config.json", "stft_config.json", MAIN, VAE, "pytorch_model_stft.bin"]
DIFFUSERS = {
    "model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors", "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json", "vae/diffusion_pytorch_model.bin", "vocoder/config.json", "vocoder/model.safetensors",
}  # fmt: skip
OTHERS = {
    "README.md", ".gitattributes", "clip.wav", "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin.index.json",
    "vocoder/flax_model.msgpack", "image_encoder/model.safetensors", "text_encoder/pytorch_model.bin",
}  # fmt: skip


def test_of_a_diffusers_repository_every_component_and_each_once() -> None:
    assert sorted(needed(sorted(DIFFUSERS | OTHERS))) == sorted(DIFFUSERS)


def test_of_an_original_repository_two_weights_and_their_configs() -> None:
    wanted = set(SEVEN) - {"config.json", "pytorch_model_stft.bin"}
    assert set(needed([*SEVEN, "README.md"])) == wanted
    saved = ["model.safetensors", "model_1.safetensors", "model_2.safetensors", "optimizer.bin", "random_states_0.pkl"]
    assert set(needed([*saved, "summary.jsonl"])) == {"model.safetensors", "model_2.safetensors", "summary.jsonl"}
    assert set(needed(["pytorch_model_2.bin", VAE])) == {"pytorch_model_2.bin", VAE}
    assert needed(["README.md", "model.safetensors"]) == []


@pytest.fixture
def hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Tango 2 as it was published, and FLAN-T5 with its weights, on a hub of the test's own; both small."""
    monkeypatch.setitem(original_layout.TEXT_ENCODERS, T5, original_folder.TEXT_CONFIG)
    monkeypatch.setitem(original_layout.UNETS, "diffusion_model_config.json", original_folder.UNET_CONFIG)
    tango, t5 = tmp_path / "tango", tmp_path / "t5"
    tango.mkdir()
    for name in ("vae_config.json", "stft_config.json", "pytorch_model_stft.bin", MAIN, VAE):
        shutil.copy(source / name, tango)
    published = MAIN_CONFIG | {"text_encoder_name": T5, "unet_model_config_path": "configs/diffusion_model_config.json"}
    for name in ("main_config.json", "config.json"):
        (tango / name).write_text(json.dumps(published))
    shutil.copytree(source / "tokenizer", t5)
    (t5 / "pytorch_model.bin").write_bytes(b"3 GB")
    with hub_server.serving() as made:
        made.repositories |= {TANGO2: Repository(tango, {"license": "cc-by-nc-sa-4.0"}), T5: Repository(t5)}
        hub_server.use(monkeypatch, made, tmp_path / "home")
        monkeypatch.setattr(weights, "_fetched", weights._fetched.__wrapped__)
        yield made


def fetched(hub: Hub) -> set[str]:
    return {path.split("/resolve/")[0] + ":" + path.split("/", 4)[4] for path in hub.got()}


def test_a_published_checkpoint_loads_by_its_name(
    hub: Hub, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = milonga.load(TANGO2)
    expected = clips(load_original(source))
    assert np.array_equal(clips(loaded), expected)
    wanted = {f"{TANGO2}:{name}" for name in SEVEN} - {f"{TANGO2}:config.json", f"{TANGO2}:pytorch_model_stft.bin"}
    assert fetched(hub) == wanted | {f"{T5}:tokenizer.json", f"{T5}:tokenizer_config.json"}
    told = capsys.readouterr().err
    assert told.count("are under cc-by-nc-sa-4.0") == 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert np.array_equal(clips(milonga.load(TANGO2)), expected)
    assert "cc-by" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_revision_is_named_either_way(hub: Hub, tmp_path: Path) -> None:
    older = shutil.copytree(tmp_path / "tango", tmp_path / "older")
    original_folder.change(older / MAIN, lambda old: {key: 1.01 * one for key, one in old.items()})
    hub.repositories[TANGO2].revisions["v1"] = older
    first, second = clips(milonga.load(TANGO2, revision="v1")), clips(milonga.load(f"{TANGO2}@v1"))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, clips(milonga.load(TANGO2)))
    assert registry.fingerprint(TANGO2) != registry.fingerprint(f"{TANGO2}@v1")
    with pytest.raises(RecipeError, match=r"nano is no repository on the hub, so it has no revision 'v1'"):
        milonga.load("nano", revision="v1")


@pytest.mark.slow
def test_what_convert_makes_loads_from_the_hub_too(hub: Hub, tmp_path: Path, source: Path) -> None:
    made = tmp_path / "made"
    done = CliRunner().invoke(app, ["convert", TANGO2, str(made)])
    assert (done.exit_code, done.stdout.strip()) == (0, str(made))
    shutil.copy(
        made / "unet/diffusion_pytorch_model.safetensors", made / "unet/diffusion_pytorch_model.fp16.safetensors"
    )
    hub.repositories["someone/tango"] = Repository(made)
    hub.asked.clear()
    expected = clips(load_original(source))
    assert np.array_equal(clips(milonga.load("someone/tango")), expected)
    assert not [path for path in hub.got() if "fp16" in path]
    assert np.array_equal(clips(TangoPipeline.from_pretrained("someone/tango")), expected)


def test_a_hub_without_the_tokenizer_says_what_to_do(hub: Hub) -> None:
    del hub.repositories[T5]
    with pytest.raises(CheckpointError, match=rf"holds no tokenizer: put .*; {T5} on \S+ does not exist") as error:
        milonga.load(TANGO2)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="a/b on"):
        milonga.load(TANGO2, tokenizer="a/b")


def test_a_repository_of_something_else_is_told(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")
    hub.repositories["some/bert"] = Repository(tmp_path / "bert")
    with pytest.raises(CheckpointError, match=r"some/bert holds neither model_index\.json nor main_config\.json"):
        milonga.load("some/bert")


@pytest.mark.slow
def test_schedulers_and_types_are_chosen_at_loading(hub: Hub) -> None:
    import torch

    loaded = milonga.load(TANGO2, scheduler="compat", dtype=torch.bfloat16)
    assert (loaded.scheduler.config.timestep_spacing, loaded.dtype) == ("leading", torch.bfloat16)
    assert milonga.load(TANGO2).scheduler.config.timestep_spacing == "trailing"
    with pytest.raises(RecipeError, match="unknown scheduler 'heun'"):
        milonga.load(TANGO2, scheduler="heun")


@pytest.mark.slow
def test_a_clap_of_the_hub_is_fetched_when_asked_for_and_then_heard_without_asking(hub: Hub, tmp_path: Path) -> None:
    from milonga.core.audio import write_audio
    from milonga.core.errors import MilongaError
    from milonga.core.records import Clip

    hub.repositories["some/clap"] = Repository(folder_of("nano-clap-a"))
    (tmp_path / "captions.csv").write_text("clip,caption\n0.wav,a bell rings\n1.wav,a dog barks\n")
    for number in (0, 1):
        wave = np.random.default_rng(number).normal(0, 0.1, 16000).astype(np.float32)
        write_audio(tmp_path / "made" / f"{number}.wav", Clip(wave, 16000))

    def scores(fetch: bool, clap: str = "some/clap") -> list[float]:
        claps, captions = [clap], tmp_path / "captions.csv"
        found = milonga.evaluate(tmp_path / "made", captions=captions, claps=claps, fetch=fetch, cache=False)
        return [row.value for row in found.summaries if row.metric == "clap"]

    with pytest.raises(MilongaError, match="some/clap is not on this machine: --fetch would download it"):
        scores(fetch=False)
    assert hub.asked == []
    assert scores(fetch=True) == scores(fetch=True, clap="nano-clap-a")
    assert {path.split("/")[-1] for path in hub.got()} == {
        "config.json", "front_end.json", "head.safetensors", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    before = len(hub.asked)
    assert scores(fetch=False) == scores(fetch=False, clap="nano-clap-a")
    assert len(hub.asked) == before
