"""Precision by a probe: what is faster on this machine is chosen, measured once, and near float32."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import milonga
from milonga.core.errors import RecipeError
from milonga.models import tango_denoiser
from milonga.models.tango_denoiser import WAYS, TangoDenoiser, choose_precision, pass_seconds

TIMES = {"half is faster": (1.0, 0.9, 0.5), "half is slower": (1.0, 1.2, 1.1), "within noise": (1.0, 0.95, 0.93)}


@pytest.fixture(scope="module")
def pipe() -> Any:
    loaded = milonga.load("nano")
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.parametrize(("case", "chosen"), zip(TIMES, ("bf16", "fp32", "fp32"), strict=True))
def test_the_faster_way_is_taken_and_measured_once(
    case: str, chosen: str, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILONGA_CACHE", str(tmp_path))
    times, passes = dict(zip(WAYS, TIMES[case], strict=True)), []

    def timed(unet: Any, shape: Any, way: str) -> float:
        plain = "2_0" not in type(next(iter(unet.attn_processors.values()))).__name__
        passes.append((way, plain))
        return times[f"{way} plain" if plain else way]

    monkeypatch.setattr(tango_denoiser, "_timed", timed)
    shape = pipe.latent_shape(4.096)
    assert choose_precision(pipe.unet, shape) == chosen
    assert choose_precision(pipe.unet, shape) == chosen
    assert passes == [("fp32", False), ("bf16", False), ("bf16", True)]
    kind = type(next(iter(pipe.unet.attn_processors.values()))).__name__
    assert kind == ("AttnProcessor" if chosen == "bf16" else "AttnProcessor2_0")
    assert choose_precision(pipe.unet, shape, "bf16") == "bf16"
    assert choose_precision(pipe.unet, shape, "fp32") == "fp32"

    (stored,) = (tmp_path / "precision").iterdir()
    assert json.loads(stored.read_text()) == times
    stored.write_text("{")  # damaged: measured again
    assert pass_seconds(pipe.unet, shape) == times
    assert len(passes) == 6


@pytest.mark.slow
def test_a_probe_times_the_network_itself(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILONGA_CACHE", str(tmp_path))
    monkeypatch.setattr(tango_denoiser, "REPEATS", 1)
    seconds = pass_seconds(pipe.unet, pipe.latent_shape(4.096))
    assert seconds.keys() == WAYS.keys()
    assert all(0 < value < 60 for value in seconds.values())


@pytest.mark.slow
def test_clips_of_both_precisions_agree_alone_and_in_a_batch(pipe: Any) -> None:
    words, seeds = ["a dog barks", "rain then a bell rings"], [3, 4]
    pipe.precision = "fp32"
    full = pipe.sample(words, seeds, 2, 3.0)
    pipe.precision = "bf16"
    half, alone = pipe.sample(words, seeds, 2, 3.0), pipe.sample(words[1:], seeds[1:], 2, 3.0)
    edited = TangoDenoiser.of(pipe)
    conditioning = edited.encode_text(words)
    assert edited.predict(full, torch.tensor([500, 500]), conditioning).dtype == torch.bfloat16
    assert edited.predict(full, torch.tensor([500, 500]), conditioning, pipe.unet).dtype == torch.float32
    pipe.precision = "fp32"
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    for other, one in ((half, full), (alone, half[1:])):
        assert np.corrcoef(other.flatten(), one.flatten())[0, 1] > 0.999
    with pytest.raises(RecipeError, match="auto, fp32 or bf16"):
        pipe.set_precision("fp8")
