"""A folder with a LoRA adapter and its base's name is a model: loaded, fingerprinted, sampled and trained."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from milonga.core.errors import CheckpointError
from milonga.core.weights import fingerprint
from milonga.maths.noise import seeded
from milonga.models.adapter import name_base
from milonga.models.load import load, load_denoiser, pipeline, sampling

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def adapter(folder: Path, prefix: str = "", base: str = "nano", scale: float = 1.0) -> dict[str, torch.Tensor]:
    weight = pipeline("nano").unet.get_submodule(LAYER).weight
    down = torch.randn(2, weight.shape[1], generator=seeded(1, "down"))
    up = scale * torch.randn(weight.shape[0], 2, generator=seeded(1, "up"))
    folder.mkdir(parents=True, exist_ok=True)
    names = {f"{prefix}{LAYER}.lora_A.weight": down, f"{prefix}{LAYER}.lora_B.weight": up}
    save_file(names, folder / "pytorch_lora_weights.safetensors")
    config = {"base_model_name_or_path": base, "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return {"expected": weight + 2 * up @ down, "plain": weight}


@pytest.mark.parametrize("prefix", ["", "unet.", "transformer.", "base_model.model."])
def test_an_adapter_is_added_to_the_weights_of_its_base(tmp_path: Path, prefix: str) -> None:
    weights = adapter(tmp_path / "one", prefix)
    unet = pipeline(str(tmp_path / "one")).unet
    torch.testing.assert_close(unet.get_submodule(LAYER).weight, weights["expected"])
    assert load_denoiser(str(tmp_path / "one")).module.get_submodule(LAYER).weight.requires_grad
    assert load(str(tmp_path / "one")).rate == 16000
    assert sampling(str(tmp_path / "one")) == sampling("nano")


def test_its_fingerprint_is_of_adapter_and_base(tmp_path: Path) -> None:
    adapter(tmp_path / "one")
    adapter(tmp_path / "two", scale=2.0)
    adapter(tmp_path / "again", base=str(tmp_path / "one"))
    prints = [fingerprint(str(tmp_path / name)) for name in ("one", "two", "again")]
    assert len({fingerprint("nano"), *prints}) == 4


def test_an_adapter_as_training_writes_it_gets_the_name_of_its_base(tmp_path: Path) -> None:
    weights = adapter(tmp_path, "transformer.")
    path = tmp_path / "pytorch_lora_weights.safetensors"
    settings = json.dumps({"transformer.r": 2, "transformer.lora_alpha": 4})
    save_file(load_file(path), path, {"lora_adapter_metadata": settings})
    (tmp_path / "adapter_config.json").unlink()
    name_base(tmp_path, "nano")
    torch.testing.assert_close(pipeline(str(tmp_path)).unet.get_submodule(LAYER).weight, weights["expected"])


def test_adapters_stack(tmp_path: Path) -> None:
    weights = adapter(tmp_path / "one")
    adapter(tmp_path / "again", base=str(tmp_path / "one"))
    twice = 2 * weights["expected"] - weights["plain"]
    torch.testing.assert_close(pipeline(str(tmp_path / "again")).unet.get_submodule(LAYER).weight, twice)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base_model_name_or_path": None}, "no base_model_name_or_path"),
        ({"r": 0}, "no usable adapter"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused(tmp_path: Path, change: dict, words: str) -> None:
    adapter(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words):
        pipeline(str(tmp_path))


def test_an_adapter_of_another_network_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path)
    for tensors in ({"elsewhere.lora_A.weight": torch.zeros(2, 3), "elsewhere.lora_B.weight": torch.zeros(3, 2)}, {}):
        save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
        with pytest.raises(CheckpointError, match="no usable adapter"):
            pipeline(str(tmp_path))
