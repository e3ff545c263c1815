"""Cnn14 against layouts of the original files and numbers recorded from the original code."""

import re
from pathlib import Path

import numpy as np
import pytest
import recorded_evaluation as recorded
import torch

from milonga.core.audio import read_audio
from milonga.core.weights import fill
from milonga.maths.mel import log_mel
from milonga.scorers.panns import FRONT_ENDS, Cnn14, PannsEmbedder, load_panns

pytestmark = recorded.needed

MEL = FRONT_ENDS[recorded.RATE]


@pytest.fixture(scope="module")
def numbers() -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    return recorded.arrays("panns_cnn14_16k.npz")


def clips(numbers: dict[str, np.ndarray]) -> list[int]:
    found = sorted(int(name[3:].split("_")[0]) for name in numbers if re.fullmatch(r"wav\d+_int16", name))
    assert found
    return found


def on_meta(rate: int) -> Cnn14:
    with torch.device("meta"):
        return Cnn14(FRONT_ENDS[rate])


@pytest.fixture(scope="module")
def panns(tmp_path_factory: pytest.TempPathFactory) -> PannsEmbedder:
    """Weights by rule, written as the original file is and loaded as it would be."""
    path = tmp_path_factory.mktemp("panns") / "Cnn14_16k_mAP=0.438.pth"
    torch.save({"model": recorded.seeded(on_meta(recorded.RATE).state_dict())}, path)
    loaded = load_panns(path)
    path.unlink()
    return loaded


@pytest.mark.parametrize("rate", FRONT_ENDS)
def test_the_layout_is_the_original_files(rate: int) -> None:
    own = on_meta(rate).state_dict()
    expected = recorded.layout(f"panns_cnn14_{rate // 1000}k")
    assert own.keys() == expected.keys()
    for key, value in own.items():
        assert [list(value.shape), f"torch.{expected[key]['dtype']}"] == [expected[key]["shape"], str(value.dtype)]


@pytest.mark.parametrize("rate", FRONT_ENDS)
def test_the_original_through_ours_is_the_original(rate: int) -> None:
    network = on_meta(rate)
    constants = {key: value for key, value in network.state_dict().items() if not value.is_meta}
    assert len(constants) == 3
    original = {
        # One number seen as a whole tensor: the full layout in a few bytes. Constants in other bits than our own.
        key: constants[key] * (1 + 1e-5)
        if key in constants
        else torch.tensor(place, dtype=getattr(torch, told["dtype"])).expand(told["shape"])
        for place, (key, told) in enumerate(recorded.layout(f"panns_cnn14_{rate // 1000}k").items())
    }
    fill(network, original, Path("Cnn14.pth"))
    again = network.state_dict()
    assert again.keys() == original.keys()
    assert [key for key, value in original.items() if not torch.equal(value, again[key])] == []


def test_the_mel_bands_are_the_recorded_ones(numbers: dict[str, np.ndarray]) -> None:
    own = on_meta(recorded.RATE).state_dict()["logmel_extractor.melW"]
    np.testing.assert_allclose(own.numpy(), numbers["melW"], atol=1e-7, rtol=1e-5)


def test_log_mels_are_the_recorded_ones(numbers: dict[str, np.ndarray]) -> None:
    for place in clips(numbers):
        wave = recorded.as_clip(numbers[f"wav{place}_int16"]).waveform
        picture = log_mel(torch.from_numpy(wave)[None], MEL)[0].numpy()
        assert picture.shape == tuple(numbers[f"logmel{place}_shape"][-2:])
        expected = numbers[f"logmel{place}_first32frames"]
        np.testing.assert_allclose(picture[: len(expected)], expected, atol=0.02, rtol=0)


@pytest.mark.slow
def test_embeddings_logits_and_posteriors_are_the_recorded_ones(
    panns: PannsEmbedder, numbers: dict[str, np.ndarray]
) -> None:
    for place in clips(numbers):
        wave = torch.from_numpy(recorded.as_clip(numbers[f"wav{place}_int16"]).waveform)
        with torch.no_grad():
            embeddings, logits = panns.network(wave[None])
        recorded.assert_near(embeddings[0].numpy(), numbers[f"embedding{place}"], 5e-4)
        recorded.assert_near(logits[0].numpy(), numbers[f"logits{place}"], 5e-4)
        recorded.assert_near(torch.sigmoid(logits[0]).numpy(), numbers[f"clipwise{place}"], 5e-4)


def test_no_recorded_array_is_left_out(numbers: dict[str, np.ndarray]) -> None:
    kinds = {re.sub(r"^([a-z]+)\d+", r"\1", name) for name in numbers}
    compared = {"wav_int16", "logmel_shape", "logmel_first32frames", "embedding", "logits", "clipwise", "melW"}
    assert kinds == compared


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["gen", "ref16k"])
def test_files_are_heard_as_by_the_whole_toolkit(panns: PannsEmbedder, folder: str) -> None:
    toolkit = recorded.arrays("toolkit_upstream.npz")
    files = [recorded.FOLDER / "toolkit" / folder / name for name in toolkit["gen/names"].tolist()]
    embeddings, logits = panns.features([read_audio(file) for file in files])
    recorded.assert_near(embeddings, toolkit[f"{folder}/embedding2048"], 5e-4)
    recorded.assert_near(logits, toolkit[f"{folder}/logits"], 5e-4)
