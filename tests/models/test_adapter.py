"""A folder with a LoRA adapter and its base's name is a model: loaded, fingerprinted, sampled and trained."""

import json
from pathlib import Path

import pytest
import small_networks
import torch
from safetensors.torch import load_file, save_file

from milonga.core.errors import CheckpointError, RecipeError
from milonga.core.weights import fingerprint
from milonga.maths.noise import seeded
from milonga.models.adapter import extract_adapter, merge_adapter, name_base
from milonga.models.load import load, load_denoiser, pipeline, sampling
from milonga.models.tango_denoiser import TangoDenoiser

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


@pytest.mark.parametrize(
    "prefix",
    ["", "transformer.", *(pytest.param(one, marks=pytest.mark.slow) for one in ("unet.", "base_model.model."))],
)
def test_an_adapter_is_added_to_the_weights_of_its_base(tmp_path: Path, prefix: str) -> None:
    weights = adapter(tmp_path / "one", prefix)
    unet = pipeline(str(tmp_path / "one")).unet
    torch.testing.assert_close(unet.get_submodule(LAYER).weight, weights["expected"])
    assert load_denoiser(str(tmp_path / "one")).module.get_submodule(LAYER).weight.requires_grad
    assert load(str(tmp_path / "one")).rate == 16000
    assert sampling(str(tmp_path / "one")) == sampling("nano")


@pytest.mark.slow
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


@pytest.mark.slow
def test_adapters_stack(tmp_path: Path) -> None:
    weights = adapter(tmp_path / "one")
    adapter(tmp_path / "again", base=str(tmp_path / "one"))
    twice = 2 * weights["expected"] - weights["plain"]
    torch.testing.assert_close(pipeline(str(tmp_path / "again")).unet.get_submodule(LAYER).weight, twice)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [({"base_model_name_or_path": None}, "no base_model_name_or_path"), ({"r": 0}, "no usable adapter")],
)
def test_an_adapter_that_cannot_be_used_is_refused(tmp_path: Path, change: dict, words: str) -> None:
    adapter(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words):
        pipeline(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_rslora": True}, "its scale by use_rslora is not known here: merge it by PEFT"),
        ({"alpha_pattern": {"0": 8}}, "its scale by alpha_pattern is not known here"),
        ({"rank_pattern": {"0": 1}}, "its scale by rank_pattern is not known here"),
        ({"use_rslora": False, "alpha_pattern": {}, "rank_pattern": {}}, None),
    ],
)
def test_an_adapter_with_scales_of_another_kind_is_refused_and_changes_nothing(tmp_path, change, words) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False))
    before = network[0].weight.detach().clone()
    names = {f"0.lora_{name}.weight": torch.ones(shape) for name, shape in (("A", (2, 3)), ("B", (3, 2)))}
    save_file(names, tmp_path / "pytorch_lora_weights.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4} | change))
    if words is None:
        merge_adapter(network, tmp_path)
        torch.testing.assert_close(network[0].weight.detach(), before + 2 * 2)
        return
    with pytest.raises(CheckpointError, match=words) as error:
        merge_adapter(network, tmp_path)
    assert "\n" not in str(error.value)
    assert torch.equal(network[0].weight, before)


def test_no_adapter_is_extracted_from_a_distilled_network(tmp_path: Path) -> None:
    base, student = (TangoDenoiser.of(small_networks.pipeline()) for _ in range(2))
    student.add_guidance_input(consistent=False)
    with pytest.raises(RecipeError, match="is no layer of the base, as in a distilled network: export it whole"):
        extract_adapter(base.module, student.module, 2, tmp_path / "none", "tiny")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_an_adapter_of_another_network_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path)
    for tensors in ({"elsewhere.lora_A.weight": torch.zeros(2, 3), "elsewhere.lora_B.weight": torch.zeros(3, 2)}, {}):
        save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
        with pytest.raises(CheckpointError, match="no usable adapter"):
            pipeline(str(tmp_path))


def changed(scale: float = 1e-2):
    base, tuned = pipeline("nano").unet, pipeline("nano").unet
    generator = seeded(2, "changes")
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.dim() > 1:
                rows, columns = weight.flatten(1).shape
                change = torch.randn(rows, 2, generator=generator) @ torch.randn(2, columns, generator=generator)
                weight += scale * change.reshape(weight.shape)
    return base, tuned


@pytest.mark.slow
def test_a_change_of_low_rank_is_extracted_as_it_is(tmp_path: Path) -> None:
    base, tuned = changed()
    extract_adapter(base, tuned, 2, tmp_path / "two", "nano")
    loaded = pipeline(str(tmp_path / "two")).unet
    for name, weight in tuned.named_parameters():
        torch.testing.assert_close(loaded.get_parameter(name), weight, rtol=1e-3, atol=2e-4)
    assert (tmp_path / "two" / "pytorch_lora_weights.safetensors").stat().st_size < 1_000_000


@pytest.mark.slow
def test_stock_diffusers_loads_an_extracted_adapter_as_we_do(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base, tuned = changed()
    extract_adapter(base, tuned, 1, tmp_path, "nano")
    base.load_lora_adapter(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    inputs = torch.randn(1, 8, 32, 8, generator=seeded(3, "latents")), torch.tensor([500])
    states = torch.randn(1, 4, base.config["cross_attention_dim"], generator=seeded(3, "states"))
    ours = pipeline(str(tmp_path)).unet(*inputs, encoder_hidden_states=states).sample
    theirs = base(*inputs, encoder_hidden_states=states).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(ours, pipeline("nano").unet(*inputs, encoder_hidden_states=states).sample, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "words"), [(0, "1 or more"), (4, "nothing to extract")])
def test_what_cannot_be_extracted_is_refused(tmp_path: Path, rank: int, words: str) -> None:
    unet = pipeline("nano").unet
    with pytest.raises(RecipeError, match=words):
        extract_adapter(unet, unet, rank, tmp_path / "none", "nano")
