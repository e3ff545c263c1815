"""Checkpoints of the original Tango: they load, convert, come back the same; every broken one is told in a line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import original_folder
import pytest
import reference
import torch
from diffusers import DDPMScheduler
from original_folder import change, clips, copied, with_value
from typer.testing import CliRunner

from milonga.cli.main import app
from milonga.core.errors import CheckpointError, RecipeError
from milonga.experiment.registry import DEFAULT as registry
from milonga.models.load import pipeline
from milonga.models.original.layout import MAIN, VAE, VOCODER, is_original, read_layout
from milonga.models.original.load import TIED, blank, convert, load_original, places, to_original

LAYOUTS = reference.TANGO / "layouts"


def test_a_folder_generates_converts_and_generates_the_same(source: Path, tmp_path: Path) -> None:
    loaded = load_original(source)
    first = clips(loaded)
    assert first.shape == (2, 2560)
    assert np.abs(first[0] - first[1]).max() > 0.01
    made = convert(source, tmp_path / "new" / "tango")
    assert {path.suffix for path in made.rglob("*model*") if path.is_file()} <= {".safetensors", ".json"}
    assert not list(tmp_path.rglob("*.part"))
    again = pipeline(str(made))
    assert np.array_equal(clips(again), first)
    assert isinstance(again.scheduler, DDPMScheduler)
    assert again.scheduler.config["prediction_type"] == "v_prediction"


@pytest.mark.slow
def test_the_registry_takes_such_a_folder_as_any_other(source: Path, tmp_path: Path) -> None:
    assert np.array_equal(clips(pipeline(str(source))), clips(load_original(source)))
    assert registry.sampling(str(source)) == (200, 3.0)
    clip = clips(load_original(source))
    load_original(source).unet.save_pretrained(tmp_path / "unet")
    assert np.array_equal(clips(pipeline(str(source), tmp_path / "unet")), clip)
    other = copied(source, tmp_path)
    assert registry.fingerprint(str(other)) == registry.fingerprint(str(source))
    change(other / VAE, with_value("quant_conv.bias", torch.zeros(16)))
    assert registry.fingerprint(str(other)) != registry.fingerprint(str(source))


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert np.array_equal(clips(pipeline(str(target))), clips(load_original(source)))
    with pytest.raises(RecipeError, match="exists already"):
        convert(folder, target)
    with pytest.raises(CheckpointError, match="is a diffusers pipeline already"):
        convert(target, tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        convert(tmp_path / "words", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "tango", "words"]
