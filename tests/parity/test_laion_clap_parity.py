"""LAION-CLAP against the layout of the original files and numbers recorded from the original code."""

import json
from pathlib import Path

import numpy as np
import pytest
import recorded_evaluation as recorded
import torch
from small_networks import tokenizer

from milonga.core.audio import resample
from milonga.core.records import Clip
from milonga.maths.mel import MelSettings, log_mel
from milonga.scorers.laion_clap import LaionClap, filled, quantised
from milonga.scorers.laion_convert import UNUSED, from_original, their_name, to_original

pytestmark = recorded.needed

LAYOUT = "laion_clap_htsat_tiny_nonfusion"
MEL = MelSettings(48000, 1024, 480, 64, 50.0, 14000.0, power=2.0, floor=1e-10, decibels=True, tango=False)


@pytest.fixture(scope="module")
def numbers() -> dict[str, np.ndarray]:
    return recorded.arrays("clap_htsat_tiny.npz")


def names(numbers: dict[str, np.ndarray]) -> list[str]:
    """The recorded clips, in the order of the recorded cosines' rows."""
    found = [key.split("/")[0] for key in numbers if key.endswith("/wav48k_int16")]
    assert found
    return found


def clip(numbers: dict[str, np.ndarray], name: str) -> Clip:
    return recorded.as_clip(numbers[f"{name}/wav48k_int16"], MEL.rate)


def heard(one: Clip) -> np.ndarray:
    """What of a clip comes into the picture."""
    return filled(quantised(resample(one, MEL.rate).waveform), 10 * MEL.rate)


def full_layout() -> dict[str, torch.Tensor]:
    """Every tensor of an original file in a few bytes: one number seen as a whole tensor."""
    return {
        key: torch.tensor(place % 100, dtype=getattr(torch, told["dtype"])).expand(told["shape"])
        for place, (key, told) in enumerate(recorded.layout(LAYOUT).items())
    }


@pytest.mark.slow
def test_every_key_maps_both_ways() -> None:
    state = full_layout()
    model, unused = from_original(state, Path("630k-best.pt"))
    back = to_original(model, unused)
    assert back.keys() == state.keys()
    assert [key for key, value in state.items() if not torch.equal(back[key], value)] == []


def test_names_are_those_of_the_recorded_mapping() -> None:
    told = json.loads((recorded.FOLDER / "layouts" / "clap_hf_mapping.json").read_text())
    model, unused = from_original(full_layout(), Path("630k-best.pt"))
    ours = {key: their_name(key)[0] for key in model.state_dict() if not UNUSED.match(their_name(key)[0])}
    expected = {one: theirs for theirs, found in told["map"].items() for one in found or [] if not UNUSED.match(theirs)}
    assert ours == expected
    assert set(told["dropped"]) <= unused.keys()


def test_what_is_heard_and_its_pictures_are_the_recorded_ones(numbers: dict[str, np.ndarray]) -> None:
    for name in names(numbers):
        wave = heard(clip(numbers, name))
        np.testing.assert_allclose(wave[:64], numbers[f"{name}/quantised_first64"], atol=1e-7)
        samples, last = numbers[f"{name}/padded_nonzero_tail"]
        assert (len(wave), np.flatnonzero(wave)[-1]) == (samples, last)
        picture = log_mel(torch.from_numpy(wave).double()[None], MEL).float()
        assert picture.shape == tuple(numbers[f"{name}/logmel_shape"][1:])
        np.testing.assert_allclose(picture[0, :8], numbers[f"{name}/logmel_frames_0_8"], atol=0.02)
        np.testing.assert_allclose([picture.mean(), picture.std()], numbers[f"{name}/logmel_mean_std"], atol=1e-3)


@pytest.mark.slow
def test_embeddings_and_cosines_are_the_recorded_ones(numbers: dict[str, np.ndarray]) -> None:
    constants = {key: value.contiguous() for key, value in full_layout().items() if UNUSED.match(key)}
    constants |= {key: value for key, value in constants.items() if "attn_mask" in key}
    model, _ = from_original(recorded.by_rule(LAYOUT, constants), Path("630k-best.pt"))
    scorer = LaionClap("laion", model, tokenizer("<s>"), MEL)
    rows = scorer.embed_clips([clip(numbers, name) for name in names(numbers)])
    expected = np.stack([numbers[f"{name}/audio_embed512_normalised"] for name in names(numbers)])
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    with torch.no_grad():
        pictures = torch.stack([scorer._picture(heard(clip(numbers, name))) for name in names(numbers)])
        pooled = model.audio_model(pictures, is_longer=torch.zeros(len(rows), 1, dtype=torch.bool)).pooler_output
        recorded.assert_near(
            pooled.numpy(), np.stack([numbers[f"{name}/htsat_embedding768"] for name in names(numbers)]), 1e-4
        )
        ids, mask = (torch.from_numpy(numbers[f"text/{part}"]) for part in ("input_ids", "attention_mask"))
        said = model.text_model(input_ids=ids, attention_mask=mask).pooler_output.numpy()
        recorded.assert_near(said, numbers["text/pooler768"], 1e-4)
        texts = model.get_text_features(ids, mask).pooler_output.numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(texts, numbers["text/text_embed512_normalised"], atol=1e-5)
    np.testing.assert_allclose(rows @ texts.T, numbers["cosine_audio_x_text"], atol=1e-5)
