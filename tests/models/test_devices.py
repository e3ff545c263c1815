"""Nothing stays behind on the CPU: every network of a job works on the device that was named, with the same results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import laion_file
import numpy as np
import pytest
import small_networks
import torch
from far_device import FAR, far_device
from small_networks import WORDS

from milonga.core.errors import RecipeError
from milonga.core.records import Clip, Prompt, Request
from milonga.maths.devices import batch_size, device_of, has_weights, placed, where, working_on
from milonga.models.generator import TangoModel
from milonga.models.load import DENOISING, ENCODERS, load_denoiser
from milonga.models.tango_denoiser import TangoDenoiser
from milonga.scorers.laion_clap import convert_laion, load_laion
from milonga.scorers.panns import FRONT_ENDS, Cnn14, PannsEmbedder
from milonga.scorers.vggish import Vggish, VggishEmbedder


def clip(seed: int = 0, seconds: float = 2.1, rate: int = 16000) -> Clip:
    rng = np.random.default_rng(seed)
    return Clip(rng.uniform(-0.3, 0.3, round(seconds * rate)).astype(np.float32), rate)


CLIPS = [clip(0), clip(1), clip(2, 1.5)]


def clap(_: Path) -> tuple[list[torch.nn.Module], Callable[[], Any]]:
    scorer = small_networks.scorer()
    return [scorer.model], lambda: scorer.score(CLIPS, WORDS[:3])


def laion(folder: Path) -> tuple[list[torch.nn.Module], Callable[[], Any]]:
    converted = folder / "converted"
    if not converted.exists():
        convert_laion(laion_file.write(folder, fused=False), converted, small_networks.tokenizer("<s>"))
    scorer = load_laion(converted, "laion", device="cpu")
    return [scorer.model], lambda: scorer.score(CLIPS, WORDS[:3])


def tagger(_: Path) -> tuple[list[torch.nn.Module], Callable[[], Any]]:
    own = small_networks.tagger()
    return [own.network], lambda: np.concatenate([*own.posteriors(CLIPS), *own.features(CLIPS)[:1]], axis=None)


def panns(_: Path) -> tuple[list[torch.nn.Module], Callable[[], Any]]:
    torch.manual_seed(0)
    embedder = PannsEmbedder("panns", Cnn14(FRONT_ENDS[16000], 1))
    return [embedder.network], lambda: np.concatenate(embedder.features(CLIPS), axis=None)


def vggish(_: Path) -> tuple[list[torch.nn.Module], Callable[[], Any]]:
    torch.manual_seed(0)
    embedder = VggishEmbedder(Vggish(1))
    return [embedder.network], lambda: np.concatenate(embedder.embed(CLIPS))


def encoders(_: Path) -> tuple[list[torch.nn.Module], Callable[[], Any]]:
    denoiser = TangoDenoiser.of(small_networks.pipeline())

    def encode() -> np.ndarray:
        posterior = denoiser.encode_audio([denoiser.prepare_waveform(each) for each in CLIPS])
        states = denoiser.encode_text(WORDS)["states"].detach().cpu()
        return torch.cat([part.detach().flatten() for part in (posterior.mean, posterior.logvar, states)]).numpy()

    return list(denoiser.others), encode


def sampling(_: Path) -> tuple[list[torch.nn.Module], Callable[[], Any]]:
    model = TangoModel("tiny", small_networks.pipeline(), device="cpu")
    pipe = model.pipeline
    requests = [Request.of(0, Prompt.of(text, "test"), text, 2, 3.0) for text in WORDS[:2]]
    return [pipe.unet, pipe.text_encoder, pipe.vae, pipe.vocoder], lambda: np.concatenate(
        [each.waveform for each in model.generate(requests)]
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", [clap, laion, tagger, panns, vggish, encoders, sampling])
def test_a_part_works_where_its_networks_are_and_says_the_same(
    part: Callable[[Path], tuple[list[torch.nn.Module], Callable[[], Any]]], tmp_path: Path
) -> None:
    _, work = part(tmp_path)
    expected = work()
    networks, work = part(tmp_path)
    with far_device() as device:
        for network in networks:
            placed(network, FAR)
        result = work()
    assert isinstance(result, np.ndarray)
    assert np.allclose(result, expected, atol=1e-5)
    assert sum(device.far_work.values()) > 0
    assert dict(device.near_work) == {}


def test_a_tensor_left_on_the_cpu_is_noticed() -> None:
    layer = torch.nn.Linear(2, 2)
    with far_device() as device:
        placed(layer, FAR)
        with pytest.raises(RuntimeError, match="another device"):
            layer(torch.ones(1, 2))
        torch.nn.Linear(2, 2)(torch.ones(1, 2))
    assert sum(device.near_work.values()) == 1


def test_encoders_are_away_only_while_they_work() -> None:
    denoiser = TangoDenoiser.of(small_networks.pipeline())

    def stopped() -> None:
        with working_on(denoiser.others, FAR):
            assert {where(network).type for network in denoiser.others} == {FAR}
            assert where(denoiser.module).type == "cpu"
            raise ValueError("stopped")

    with far_device(), pytest.raises(ValueError, match="stopped"):
        stopped()
    assert {where(network).type for network in denoiser.others} == {"cpu"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_networks.pipeline().save_pretrained(tmp_path / "tango")
    return tmp_path / "tango"


@pytest.mark.slow
def test_only_the_parts_that_a_job_needs_have_weights(folder: Path) -> None:
    for parts, work in ((ENCODERS, "encode"), (DENOISING, "train")):
        denoiser: Any = load_denoiser(str(folder), parts=parts)
        loaded = {
            name: has_weights(getattr(denoiser.pipe, name)) for name in ("text_encoder", "unet", "vae", "vocoder")
        }
        assert {name for name, weights in loaded.items() if weights} == set(parts)
        assert denoiser.latent_shape == load_denoiser(str(folder)).latent_shape
        if work == "encode":
            assert denoiser.encode_audio([denoiser.prepare_waveform(clip())]).mean.isfinite().all()
            with working_on(denoiser.others, "cpu"):
                assert denoiser.encode_text(WORDS)["states"].isfinite().all()
        else:
            shape = (1, *denoiser.latent_shape)
            assert denoiser.predict(torch.zeros(shape), torch.tensor([5]), denoiser.empty).shape == shape


def test_a_device_has_a_name_and_a_batch() -> None:
    assert device_of("cpu") == torch.device("cpu")
    assert device_of() == device_of(None) == device_of("auto")
    assert (batch_size(8, torch.device("cpu")), batch_size(8, torch.device("cuda"))) == (8, 64)
    with pytest.raises(RecipeError, match=r"nothing can be computed on device 'gpu' here"):
        device_of("gpu")
