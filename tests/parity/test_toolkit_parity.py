"""The evaluation's numbers against those that the original toolkits gave for whole folders, their quirks included."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded_evaluation as recorded
import torch

from milonga.core.audio import read_channels
from milonga.evaluation.reconstruction import OFFSET, lsd, mel_image, psnr, spectra, ssim
from milonga.maths.distances import KernelDistance
from milonga.maths.metrics import frechet_distance, inception_score, kl_sigmoid, kl_softmax
from milonga.scorers.waveform import of_protocol

pytestmark = recorded.needed

TOOLKITS = {"tango": "toolkit_tango", "audioldm": "toolkit_upstream"}


def folders() -> list[str]:
    """The sets of real clips that were compared with; none where nothing is recorded, so that tests can skip."""
    path = recorded.FOLDER / "toolkit_tango.json"
    return list(json.loads(path.read_text())) if path.is_file() else []


both = pytest.mark.parametrize("protocol", TOOLKITS)
each = pytest.mark.parametrize("folder", folders())


def told(protocol: str, folder: str) -> dict[str, float]:
    """The toolkit's dictionary at full precision, under the names that Tango's copy gives."""
    found = json.loads((recorded.FOLDER / f"{TOOLKITS[protocol]}.json").read_text())[folder]["metrics_full_precision"]
    names = {
        "kullback_leibler_divergence_sigmoid": "kl_sigmoid", "kullback_leibler_divergence_softmax": "kl_softmax",
        "inception_score_mean": "is_mean", "inception_score_std": "is_std",
    }  # fmt: skip
    return {names.get(name, name): value for name, value in found.items()}


def audio(folder: str, name: str) -> tuple[np.ndarray, int]:
    file = recorded.FOLDER / "toolkit" / folder / name
    return read_channels(file, str(file))


def names(protocol: str) -> list[str]:
    return recorded.arrays(f"{TOOLKITS[protocol]}.npz")["gen/names"].tolist()


@both
@each
def test_files_are_loaded_as_the_toolkit_loads_them(protocol: str, folder: str) -> None:
    loading, arrays = of_protocol(protocol), recorded.arrays(f"{TOOLKITS[protocol]}.npz")
    heads = [name for name in arrays if name.startswith(f"{folder}/wave16k_head/")]
    assert heads
    for name in heads:
        file = name.rpartition("/")[2]
        wave = loading.panns(*audio(folder, file))
        assert len(wave) == arrays[f"{folder}/wave16k_len/{file}"]
        np.testing.assert_allclose(wave[: len(arrays[name])], arrays[name], atol=2e-6)


def kernel_inception_distance(a: np.ndarray, b: np.ndarray, subset: int = 1000) -> float:
    """KID as the toolkit has it: the mean over 100 subsets of the unbiased MMD under (x·y/D + 1)³."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size, draw, values = min(subset, len(a), len(b)), np.random.RandomState(2020), []

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    for _ in range(100):
        x, y = a[draw.choice(len(a), size, False)], b[draw.choice(len(b), size, False)]
        within = [(kernel(z, z).sum() - np.trace(kernel(z, z))) / (size * (size - 1)) for z in (x, y)]
        values.append(sum(within) - 2 * kernel(x, y).mean())
    return float(np.mean(values))


@both
@each
def test_numbers_of_recorded_features_are_the_toolkits(protocol: str, folder: str) -> None:
    arrays, expected = recorded.arrays(f"{TOOLKITS[protocol]}.npz"), told(protocol, folder)
    own, real = (arrays[f"{side}/embedding2048"] for side in ("gen", folder))
    logits, of_real = (arrays[f"{side}/logits"] for side in ("gen", folder))
    assert frechet_distance(own, real) == pytest.approx(expected["frechet_distance"], rel=1e-5)
    rows = arrays["gen/vggish"], arrays[f"{folder}/vggish"]
    assert frechet_distance(*rows) == pytest.approx(expected["frechet_audio_distance"], rel=1e-5)
    assert kl_softmax(of_real, logits).mean() == pytest.approx(expected["kl_softmax"], rel=1e-5)
    assert kl_sigmoid(of_real, logits).mean() == pytest.approx(expected["kl_sigmoid"], rel=1e-5)
    assert inception_score(logits) == (
        pytest.approx(expected["is_mean"], rel=1e-6), pytest.approx(expected["is_std"], rel=1e-6)
    )  # fmt: skip
    if protocol == "tango":
        assert kernel_inception_distance(own, real) == pytest.approx(expected["kid_mean"], abs=1e-5)


@pytest.mark.slow
@both
@each
def test_reconstruction_is_the_toolkits(protocol: str, folder: str) -> None:
    loading, expected = of_protocol(protocol), told(protocol, folder)
    found: dict[str, list[float]] = {"psnr": [], "ssim": [], "lsd": [], "ssim_stft": []}
    for name in names(protocol):
        waves = [loading.image(*audio(side, name)) for side in ("gen", folder)]
        pictures = [mel_image(wave) for wave in waves]
        frames = min(map(len, pictures))
        pair = [picture[:frames] for picture in pictures]
        found["psnr"].append(psnr(*pair))
        found["ssim"].append(ssim(*pair, loading.ssim_span))
        both_spectra = spectra(*waves, OFFSET)
        found["lsd"].append(lsd(*both_spectra))
        found["ssim_stft"].append(ssim(*both_spectra))
    compared = [name for name in found if np.isfinite(expected.get(name, np.nan))]
    assert {"psnr", "ssim", "lsd"} <= set(compared)
    for name in compared:
        values = [value for value in found[name] if np.isfinite(value)]
        assert np.mean(values) == pytest.approx(expected[name], rel=1e-5), name


def test_kernel_distances_are_the_recorded_ones() -> None:
    numbers = json.loads((recorded.FOLDER / "kad.json").read_text())
    arrays = recorded.arrays("functions.npz")
    cases = [case for case in numbers if case.startswith("fd/")]
    assert cases
    for case in cases:
        found = KernelDistance(arrays[f"{case}/gen"], arrays[f"{case}/ref"]).value
        assert found == pytest.approx(numbers[case]["float64_bw_ref"], rel=1e-5), case


@pytest.mark.slow
def test_sigmoid_divergences_and_kernel_inception_distances_are_the_recorded_ones() -> None:
    numbers = json.loads((recorded.FOLDER / "functions.json").read_text())
    arrays = recorded.arrays("functions.npz")
    for case, expected in numbers.items():
        if case.startswith("logits/"):
            real = np.empty_like(arrays[f"{case}/ref"])
            real[arrays[f"{case}/ref_names_idx"]] = arrays[f"{case}/ref"]
            divergence = kl_sigmoid(real, arrays[f"{case}/gen"]).mean()
            assert divergence == pytest.approx(expected["kullback_leibler_divergence_sigmoid"], rel=1e-6), case
        if case.startswith("fd/"):
            for subset in (20, 1000):
                mean = kernel_inception_distance(arrays[f"{case}/gen"], arrays[f"{case}/ref"], subset)
                recorded_mean = expected[f"kid_subset{subset}"]["kernel_inception_distance_mean"]
                assert mean == pytest.approx(recorded_mean, abs=1e-5), case


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """PANNs' and VGGish's weights by rule, as the original files hold them; removed at the end, they are large."""
    from milonga.scorers.panns import FRONT_ENDS, Cnn14
    from milonga.scorers.vggish import Vggish

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("weights")
    with torch.device("meta"):
        networks = {"panns": Cnn14(FRONT_ENDS[recorded.RATE]), "vggish": Vggish()}
    found = {name: folder / f"{name}.pth" for name in networks}
    torch.save({"model": recorded.seeded(networks["panns"].state_dict())}, found["panns"])
    torch.save(recorded.seeded(networks["vggish"].state_dict()), found["vggish"])
    yield found
    for file in found.values():
        file.unlink()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@both
@each
def test_the_command_gives_the_toolkits_table(protocol: str, folder: str, weights: dict[str, Path]) -> None:
    from milonga.evaluation import EvalConfig
    from milonga.evaluation.evaluate import evaluate

    sources = [str(recorded.FOLDER / "toolkit" / side) for side in ("gen", folder)]
    asked: dict[str, Any] = {"panns": str(weights["panns"]), "vggish": str(weights["vggish"]), "protocol": protocol}
    found = evaluate(
        sources, None, None, EvalConfig(**asked, sigmoid=True, reconstruction=True, resamples=100, cache=False)
    )
    values = {row.metric: row.value for row in found.summaries if row.system == "gen"}
    expected = told(protocol, folder)
    tolerance = 1e-3 if folder == "ref16k" else 2e-3
    assert values["fd"] == pytest.approx(expected["frechet_distance"], rel=tolerance)
    assert values["fad"] == pytest.approx(expected["frechet_audio_distance"], rel=tolerance)
    assert values["kl"] == pytest.approx(expected["kl_softmax"], rel=tolerance)
    assert values["kl_sigmoid"] == pytest.approx(expected["kl_sigmoid"], rel=tolerance)
    assert values["is"] == pytest.approx(expected["is_mean"], rel=tolerance)
    for name in ("psnr", "ssim"):
        assert values[name] == pytest.approx(expected[name], rel=1e-4)
    if protocol == "tango":
        assert values["lsd"] == pytest.approx(expected["lsd"], rel=1e-4)
