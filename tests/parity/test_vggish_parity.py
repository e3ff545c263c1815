"""VGGish against the layout of the original file and numbers recorded from the original code."""

import re
from pathlib import Path

import numpy as np
import pytest
import recorded_evaluation as recorded
import torch

from milonga.core.audio import read_audio
from milonga.core.weights import fill
from milonga.scorers.vggish import Vggish, VggishEmbedder, examples, load_vggish, mel_bands

pytestmark = recorded.needed

# The original's resampler for other rates (resampy's kaiser_best): zero crossings, roll-off and shape of its window.
CROSSINGS, ROLLOFF, BETA = 50, 0.9173, 12.98
STEREO_RATE = 44100


@pytest.fixture(scope="module")
def numbers() -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    return recorded.arrays("vggish.npz")


def clips(numbers: dict[str, np.ndarray]) -> list[int]:
    found = sorted(int(name[3:].split("_")[0]) for name in numbers if re.fullmatch(r"wav\d+_int16", name))
    assert found
    return found


def pictures(numbers: dict[str, np.ndarray], place: int) -> np.ndarray:
    return examples(recorded.as_clip(numbers[f"wav{place}_int16"]).waveform)


def on_meta() -> Vggish:
    with torch.device("meta"):
        return Vggish()


@pytest.fixture(scope="module")
def vggish(tmp_path_factory: pytest.TempPathFactory) -> VggishEmbedder:
    """Weights by rule, written as the original file is and loaded as it would be."""
    path = tmp_path_factory.mktemp("vggish") / "vggish-10086976.pth"
    torch.save(recorded.seeded(on_meta().state_dict()), path)
    loaded = load_vggish(path)
    path.unlink()
    return loaded


def rows(vggish: VggishEmbedder, shown: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return vggish.network(torch.from_numpy(shown)).numpy()


def test_the_original_through_ours_is_the_original() -> None:
    network = on_meta()
    original = {
        # One number seen as a whole tensor: the full layout in a few bytes.
        key: torch.tensor(place, dtype=getattr(torch, told["dtype"])).expand(told["shape"])
        for place, (key, told) in enumerate(recorded.layout("vggish").items())
    }
    fill(network, original, Path("vggish.pth"))
    again = network.state_dict()
    assert again.keys() == original.keys()
    assert [key for key, value in original.items() if not torch.equal(value, again[key])] == []
    assert {value.dtype for value in again.values()} == {value.dtype for value in original.values()}


def test_the_mel_bands_are_the_recorded_ones(numbers: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(mel_bands(), numbers["mel_matrix"], atol=1e-12, rtol=0)


def test_examples_are_the_recorded_ones(numbers: dict[str, np.ndarray]) -> None:
    for place in clips(numbers):
        found = pictures(numbers, place)
        assert (len(found), 1, *found.shape[1:]) == tuple(numbers[f"examples{place}_shape"])
        recorded.assert_near(found[0], numbers[f"example{place}_first"], 1e-5)
        recorded.assert_near(found[-1], numbers[f"example{place}_last"], 1e-5)


@pytest.mark.slow
def test_rows_are_the_recorded_ones_with_and_without_the_last_relu(
    vggish: VggishEmbedder, numbers: dict[str, np.ndarray]
) -> None:
    for place in clips(numbers):
        found = rows(vggish, pictures(numbers, place))
        recorded.assert_near(found, numbers[f"emb_prerelu{place}"], 1e-4)
        recorded.assert_near(np.maximum(found, 0), numbers[f"emb_relu{place}"], 1e-4)


def stereo(numbers: dict[str, np.ndarray]) -> np.ndarray:
    """Examples of the recorded stereo clip by the original's own path: the mean of its channels, then its resampler."""
    return examples(kaiser_best(numbers["stereo441_int16"].mean(axis=1) / 32768, STEREO_RATE, recorded.RATE))


def kaiser_best(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """A sinc under a Kaiser window, interpolated from a table as resampy does."""
    grid = np.linspace(0, CROSSINGS, 512 * CROSSINGS + 1)
    window = np.i0(BETA * np.sqrt(1 - (grid / CROSSINGS) ** 2)) / np.i0(BETA)
    table = ROLLOFF * np.sinc(ROLLOFF * grid) * window
    scale = min(1.0, wanted / rate)
    times = np.arange(len(wave) * wanted // rate) * (rate / wanted)
    reach = int(CROSSINGS / scale) + 1
    near = np.floor(times).astype(int)[:, None] + np.arange(-reach, reach + 1)
    weights = scale * np.interp(np.abs(times[:, None] - near) * scale, grid, table, right=0.0)
    heard = np.where((near >= 0) & (near < len(wave)), wave[near.clip(0, len(wave) - 1)], 0)
    return (weights * heard).sum(axis=1)


@pytest.mark.slow
def test_examples_of_a_stereo_clip_are_the_recorded_ones(numbers: dict[str, np.ndarray]) -> None:
    recorded.assert_near(stereo(numbers), numbers["stereo441_examples"], 1e-3)


@pytest.mark.slow
def test_rows_of_a_stereo_clip_are_the_recorded_ones(vggish: VggishEmbedder, numbers: dict[str, np.ndarray]) -> None:
    recorded.assert_near(rows(vggish, stereo(numbers)), numbers["stereo441_emb_prerelu"], 1e-3)


def test_no_recorded_array_is_left_out(numbers: dict[str, np.ndarray]) -> None:
    kinds = {re.sub(r"^(wav|examples?|emb_prerelu|emb_relu)\d+", r"\1", name) for name in numbers}
    compared = {"wav_int16", "examples_shape", "example_first", "example_last", "emb_prerelu", "emb_relu", "mel_matrix"}
    assert kinds == compared | {"stereo441_int16", "stereo441_examples", "stereo441_emb_prerelu"}


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["gen", "ref16k"])
def test_files_are_heard_as_by_the_whole_toolkit(vggish: VggishEmbedder, folder: str) -> None:
    toolkit = recorded.arrays("toolkit_upstream.npz")
    files = [recorded.FOLDER / "toolkit" / folder / name for name in toolkit["gen/names"].tolist()]
    found = vggish.embed([read_audio(file) for file in files])
    assert [len(one) for one in found] == toolkit[f"{folder}/vggish_rows_per_clip"].tolist()
    recorded.assert_near(np.concatenate(found), toolkit[f"{folder}/vggish"], 1e-4)
