"""Checkpoints of the original Tango: they load, convert, come back the same; every broken one is told in a line."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import original_folder
from milonga.app import registry
from milonga.app.cli import app
from milonga.core.errors import CheckpointError, RecipeError
from milonga.models.original import blank, convert, load_original, to_original
from milonga.models.original_keys import TIED, places
from milonga.models.original_layout import MAIN, VAE, VOCODER, is_original, read_layout
from milonga.models.tango import TangoPipeline
from original_folder import VAE_CONFIG
from small_networks import WORDS

SHARED = Path(__file__).parents[3] / "shared" / "reference"
LAYOUTS = Path(os.environ.get("MILONGA_REFERENCE", SHARED)) / "tango" / "layouts"


@pytest.fixture(scope="module", autouse=True)
def small_vocoder() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        original_folder.shrink_vocoder(patch)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return original_folder.write(tmp_path_factory.mktemp("original") / "tango")


def clips(pipeline: TangoPipeline, seeds: tuple[int, ...] = (1, 2)) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        list(WORDS[: len(seeds)]), seeds=seeds, num_inference_steps=2, audio_length_in_s=original_folder.SECONDS
    ).audios  # type: ignore[return-value]


def test_a_folder_generates_converts_and_generates_the_same(source: Path, tmp_path: Path) -> None:
    loaded = load_original(source)
    first = clips(loaded)
    assert first.shape == (2, 2560)
    assert np.abs(first[0] - first[1]).max() > 0.01
    made = convert(source, tmp_path / "new" / "tango")
    assert {path.suffix for path in made.rglob("*model*") if path.is_file()} <= {".safetensors", ".json"}
    assert not list(tmp_path.rglob("*.part"))
    again = registry.pipeline(str(made))
    assert np.array_equal(clips(again), first)
    assert isinstance(again.scheduler, DDPMScheduler)
    assert again.scheduler.config["prediction_type"] == "v_prediction"


def test_the_registry_takes_such_a_folder_as_any_other(source: Path, tmp_path: Path) -> None:
    assert np.array_equal(clips(registry.pipeline(str(source))), clips(load_original(source)))
    assert registry.sampling(str(source)) == (200, 3.0)
    clip = clips(load_original(source))
    load_original(source).unet.save_pretrained(tmp_path / "unet")
    assert np.array_equal(clips(registry.pipeline(str(source), tmp_path / "unet")), clip)
    other = copied(source, tmp_path)
    assert registry.fingerprint(str(other)) == registry.fingerprint(str(source))
    change(other / VAE, with_value("quant_conv.bias", torch.zeros(16)))
    assert registry.fingerprint(str(other)) != registry.fingerprint(str(source))


@pytest.mark.parametrize("safe", [True, False])
def test_what_an_original_training_saved_is_the_same_model(source: Path, tmp_path: Path, safe: bool) -> None:
    trained = original_folder.write_trained(tmp_path / "saved" / "best", source, safe)
    assert is_original(trained)
    assert np.array_equal(clips(load_original(trained)), clips(load_original(source)))


def test_a_training_without_a_summary_is_taken_for_the_published_configs(source: Path, tmp_path: Path) -> None:
    trained = original_folder.write_trained(tmp_path / "best", source, safe=True)
    (tmp_path / "summary.jsonl").unlink()
    layout = read_layout(trained)
    assert (layout.text_encoder_name, layout.unet["block_out_channels"][0]) == ("google/flan-t5-large", 320)


def test_weights_go_back_to_the_originals_names_bit_by_bit(source: Path) -> None:
    back = to_original(load_original(source).components)
    for file, path in (("main", source / MAIN), ("vae", source / VAE)):
        theirs = torch.load(path)
        assert back[file].keys() == theirs.keys()
        assert all(torch.equal(back[file][key], value) for key, value in theirs.items())


@pytest.mark.parametrize(
    ("file", "theirs", "network", "ours"),
    [
        ("main", "unet.conv_in.weight", "unet", "conv_in.weight"),
        ("main", TIED[0], "text_encoder", "shared.weight"),
        ("vae", "encoder.down.1.downsample.conv.weight", "vae", "encoder.down_blocks.1.downsamplers.0.conv.weight"),
        (
            "vae",
            "encoder.down.2.block.0.nin_shortcut.bias",
            "vae",
            "encoder.down_blocks.2.resnets.0.conv_shortcut.bias",
        ),
        ("vae", "decoder.up.0.block.1.norm2.bias", "vae", "decoder.up_blocks.2.resnets.1.norm2.bias"),
        ("vae", "decoder.up.2.upsample.conv.bias", "vae", "decoder.up_blocks.0.upsamplers.0.conv.bias"),
        ("vae", "encoder.mid.attn_1.k.weight", "vae", "encoder.mid_block.attentions.0.to_k.weight"),
        ("vae", "decoder.mid.attn_1.proj_out.weight", "vae", "decoder.mid_block.attentions.0.to_out.0.weight"),
        ("vae", "decoder.mid.attn_1.norm.bias", "vae", "decoder.mid_block.attentions.0.group_norm.bias"),
        ("vae", "encoder.mid.block_2.conv1.weight", "vae", "encoder.mid_block.resnets.1.conv1.weight"),
        ("vae", "decoder.norm_out.weight", "vae", "decoder.conv_norm_out.weight"),
        ("vae", "vocoder.ups.3.weight", "vocoder", "upsampler.3.weight"),
        ("vae", "vocoder.resblocks.2.convs1.0.weight", "vocoder", "resblocks.2.convs1.0.weight"),
    ],
)
def test_known_names_are_where_they_belong(source: Path, file: str, theirs: str, network: str, ours: str) -> None:
    place = places(blank(read_layout(source)), file)[theirs]
    assert (place.network, place.key) == (network, ours)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The networks of the published configs, on `meta`: their weights are empty files."""
    if not LAYOUTS.is_dir():
        pytest.skip(f"no recorded layouts at {LAYOUTS} (set MILONGA_REFERENCE to the folder that holds them)")
    folder = original_folder.write_published(tmp_path_factory.mktemp("published"), LAYOUTS / "configs")
    return blank(replace(read_layout(folder), vocoder=VOCODER))


@pytest.mark.parametrize("file", ["main", "vae"])
def test_every_published_key_maps_both_ways(published: dict[str, Any], file: str) -> None:
    theirs = {
        key: tuple(one["shape"])
        for key, one in json.loads((LAYOUTS / f"pytorch_model_{file}.json").read_text()).items()
    }
    found = places(published, file)
    assert {key: tuple(place.original_shape) for key, place in found.items()} == theirs
    assert len({(place.network, place.key) for place in found.values()}) == len(theirs)
    back = to_original(published)[file]
    assert {key: tuple(value.shape) for key, value in back.items()} == theirs


def test_published_networks_have_the_published_configs(published: dict[str, Any]) -> None:
    told = json.loads((LAYOUTS / "configs" / "unet_config_facts.json").read_text())
    config = published["unet"].config
    for key, value in told.items():
        if not key.startswith("_") and key in config:
            assert json.loads(json.dumps(config[key])) == value, key
    told = json.loads((LAYOUTS / "flan_t5_large_config_facts.json").read_text())
    text = published["text_encoder"].config
    # The encoder alone is no encoder-decoder, and whether a head is tied means nothing to it.
    for key in told.keys() - {"is_encoder_decoder", "tie_word_embeddings"}:
        assert getattr(text, key) == told[key], key


def test_weights_stay_mapped_to_their_file_and_the_embedding_is_one(source: Path) -> None:
    mapped = Path("/proc/self/maps")
    loaded = load_original(source)
    encoder: Any = loaded.text_encoder
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    assert all(one.device.type == "cpu" and one.dtype == torch.float32 for one in loaded.unet.parameters())
    assert not any(module.training for module in (loaded.unet, loaded.vae, loaded.vocoder, encoder))
    if mapped.exists():
        assert str(source / MAIN) in mapped.read_text()
    before = (source / MAIN).read_bytes()
    with torch.no_grad():
        loaded.unet.conv_in.weight.zero_()
    assert (source / MAIN).read_bytes() == before


def test_half_precision_and_old_pickles_load_as_float32(source: Path, tmp_path: Path) -> None:
    folder = copied(source, tmp_path)
    change(folder / MAIN, lambda tensors: {key: value.half() for key, value in tensors.items()})
    torch.save(torch.load(folder / VAE), folder / VAE, _use_new_zipfile_serialization=False)
    assert {one.dtype for one in load_original(folder).unet.parameters()} == {torch.float32}


def test_the_tokenizer_may_be_anywhere(source: Path, tmp_path: Path) -> None:
    folder = copied(source, tmp_path)
    (folder / "tokenizer").rename(tmp_path / "words")
    assert load_original(folder, tmp_path / "words").tokenizer("a dog").input_ids
    with pytest.raises(CheckpointError, match=r"tokenizer holds no tokenizer: put tokenizer\.json .*--tokenizer DIR"):
        load_original(folder)


def test_convert_is_a_command_that_never_leaves_half_a_folder(source: Path, tmp_path: Path) -> None:
    folder = copied(source, tmp_path)
    (folder / "tokenizer").rename(tmp_path / "words")
    target = tmp_path / "made"
    failed = CliRunner().invoke(app, ["convert", str(folder), str(target)])
    assert failed.exit_code == 1
    assert "--tokenizer DIR" in failed.stderr
    assert failed.stderr.count("\n") == 1
    done = CliRunner().invoke(app, ["convert", str(folder), str(target), "--tokenizer", str(tmp_path / "words")])
    assert (done.exit_code, done.stdout.strip()) == (0, str(target))
    assert np.array_equal(clips(registry.pipeline(str(target))), clips(load_original(source)))
    with pytest.raises(RecipeError, match="there already"):
        convert(folder, target)
    with pytest.raises(CheckpointError, match="is a diffusers pipeline already"):
        convert(target, tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        convert(tmp_path / "words", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "tango", "words"]


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target / "tango"))


def change(path: Path, how: Callable[[dict[str, torch.Tensor]], dict[Any, Any]]) -> None:
    torch.save(how(torch.load(path)), path)


def config(name: str, **values: Any) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))

    return rewrite


def edited(file: str, how: Callable[[dict[str, torch.Tensor]], dict[Any, Any]]) -> Callable[[Path], None]:
    return lambda folder: change(folder / file, how)


def shortened(file: str, share: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: int(len(data) * share)])

    return cut


class Hostile:
    """What a pickle may do to those who load it with pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def hostile(folder: Path) -> None:
    torch.save({"unet.conv_in.weight": Hostile(folder / "ran")}, folder / MAIN)


def plainly_hostile(folder: Path) -> None:
    (folder / VAE).write_bytes(pickle.dumps({"encoder": Hostile(folder / "ran")}, protocol=2))


def swapped(folder: Path) -> None:
    (folder / MAIN).rename(folder / "aside")
    (folder / VAE).rename(folder / MAIN)
    (folder / "aside").rename(folder / VAE)


def without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name: one for name, one in tensors.items() if name != key}


def with_value(key: str, value: Any) -> Callable[[dict[str, Any]], dict[Any, Any]]:
    return lambda tensors: {**tensors, key: value}


Q = "encoder.mid.attn_1.q.weight"
BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("no main weights", lambda at: (at / MAIN).unlink(), r"pytorch_model_main\.bin is missing"),
    ("no VAE weights", lambda at: (at / VAE).unlink(), r"pytorch_model_vae\.bin is missing"),
    ("renamed main weights", lambda at: (at / MAIN).rename(at / "main.bin"), r"_main\.bin is missing"),
    ("no main config", lambda at: (at / "main_config.json").unlink(), r"main_config\.json is missing"),
    ("no VAE config", lambda at: (at / "vae_config.json").unlink(), r"vae_config\.json is missing"),
    ("config no JSON", lambda at: (at / "main_config.json").write_text("{"), r"main_config\.json is no JSON"),
    ("config a list", lambda at: (at / "vae_config.json").write_text("[]"), r"vae_config\.json must hold a JSON"),
    ("other schedule", config("main_config.json", scheduler_name="x/y"), r"main_config\.json: scheduler_name 'x/y'"),
    ("picture U-Net", config("main_config.json", unet_model_name="x/y"), r"unet_model_name must be null"),
    ("unknown U-Net", config("main_config.json", unet_model_config_path="a.json"), r"unet_model_config_path 'a\.json'"),
    ("unknown encoder", config("main_config.json", text_encoder_name="bert"), r"text_encoder_name 'bert' is neither"),
    ("other width", config("tiny-t5/config.json", d_model=32), r"cross_attention_dim 16 is not the text encoder's 32"),
    ("no U-Net at all", config("configs/tiny_unet.json", norm_num_groups=3), r"its unet describes no network"),
    ("other front end", config("stft_config.json", hop_length=256), r"stft_config\.json: hop_length must be 160"),
    ("VAE without ddconfig", config("vae_config.json", ddconfig=None), r"vae_config\.json lacks ddconfig"),
    ("VAE channels", config("vae_config.json", embed_dim=4), r"vae_config\.json: z_channels"),
    ("VAE levels", config("vae_config.json", ddconfig=VAE_CONFIG["ddconfig"] | {"ch_mult": 4}), r"and ch_mult must be"),
    ("VAE attention", config("vae_config.json", ddconfig=VAE_CONFIG["ddconfig"] | {"attn_resolutions": [32]}),
     r"vae_config\.json: ddconfig\.attn_resolutions must be \[\], not \[32\]"),
    ("no vocabulary", config("tiny-t5/config.json", vocab_size=None), r"config\.json lacks vocab_size"),
    ("VAE scale", config("vae_config.json", scale_factor=0), r"scale_factor must be a number above 0, not 0"),
    ("empty file", shortened(MAIN, 0), r"pytorch_model_main\.bin is truncated or no file of weights"),
    ("half a file", shortened(MAIN, 0.5), r"pytorch_model_main\.bin is truncated or no file of weights"),
    ("nearly all of a file", shortened(VAE, 0.999), r"pytorch_model_vae\.bin is truncated or no file of weights"),
    ("text", lambda at: (at / VAE).write_text("<html>"), r"_vae\.bin is truncated or no file of weights"),
    ("pointer", lambda at: (at / VAE).write_text("version https://git-lfs.github.com/x"), r"git-lfs pointer"),
    ("code", hostile, r"_main\.bin asks to run \w+\.mkdir"),
    ("code in a plain pickle", plainly_hostile, r"_vae\.bin asks to run \w+\.mkdir"),
    ("two files swapped", swapped, r"_main\.bin lacks unet\.\S+ and \d+ more"),
    ("a missing key", edited(VAE, without(Q)), rf"_vae\.bin lacks {Q}: it is incomplete"),
    ("no embedding", edited(MAIN, lambda old: {k: v for k, v in old.items() if k not in TIED}), rf"lacks {TIED[0]}"),
    ("an extra key", edited(VAE, with_value("loss.logvar", torch.zeros(1))), r"_vae\.bin holds loss\.logvar, which"),
    ("a renamed key", edited(MAIN, lambda old: {k.replace("conv_in", "first"): v for k, v in old.items()}),
     r"_main\.bin lacks unet\.conv_in\.\w+ and 1 more"),
    ("a wrong shape", edited(VAE, with_value(Q, torch.zeros(64, 64))), rf"{Q} has the shape \(64, 64\),"),
    ("integers", edited(VAE, with_value("quant_conv.bias", torch.zeros(16).int())), r"conv\.bias holds torch\.int"),
    ("no tensor", edited(MAIN, with_value("epoch", 3)), r"_main\.bin must hold tensors .*'epoch' there is a int"),
    ("no names", lambda at: torch.save([torch.zeros(1)], at / VAE), r"_vae\.bin must hold tensors .*it is a list"),
    ("torn embedding", edited(MAIN, lambda old: old | {TIED[1]: old[TIED[0]] + 1}), rf"{TIED[1]} is not the same as"),
    ("no tokenizer", lambda at: shutil.rmtree(at / "tokenizer"), r"tokenizer holds no tokenizer: put tokenizer\.json"),
    ("broken tokenizer", lambda at: (at / "tokenizer/tokenizer.json").write_text("{}"), r"no usable tokenizer"),
    ("another's tokenizer", config("tiny-t5/config.json", vocab_size=40), r"tokenizer has a token \d+, .* knows 40"),
]  # fmt: skip


@pytest.mark.parametrize(("how", "told"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_folder_is_told_in_one_line(
    source: Path, tmp_path: Path, how: Callable[[Path], object], told: str
) -> None:
    folder = copied(source, tmp_path)
    how(folder)
    with pytest.raises(CheckpointError, match=told) as caught:
        registry.pipeline(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not (folder / "ran").exists()


def test_a_broken_training_folder_is_told_in_one_line(source: Path, tmp_path: Path) -> None:
    trained = original_folder.write_trained(tmp_path / "saved" / "best", source, safe=True)
    whole = load_file(trained / "model.safetensors")
    save_file(without(Q)(whole), trained / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"model\.safetensors lacks {Q}"):
        load_original(trained)
    (trained / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"pytorch_model_vae\.bin is missing, under any of its names: .*model\.saf"
    ):
        load_original(trained)
    shortened("model_2.safetensors", 0.7)(trained)
    shutil.copy(source / VAE, trained)
    with pytest.raises(CheckpointError, match=r"model_2\.safetensors is truncated or no file of weights"):
        load_original(trained)
