"""Localised pairs: only the region's rows of latents are compared, from a repair's file to the gradient."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_networks
import tiny_training as tiny
import torch
from torch import Tensor

from milonga.core.config import Phase, Settings
from milonga.core.errors import DataError
from milonga.data.audio_alpaca import Origin, write_pairs
from milonga.data.encode import encode_pairs, region_rows
from milonga.data.examples import ConcatExamples, PairExamples, fingerprint
from milonga.data.pairs import read_pairs
from milonga.maths.losses import LOSSES
from milonga.models.editing import SPLICE
from milonga.models.tango_denoiser import TangoDenoiser
from milonga.preference.repair import Attempt, Repair
from milonga.scorers.events import Diagnosis, Fault
from milonga.training.noising import add_noise, add_reference_errors, draw, split_errors
from milonga.training.trainer import train

RATE, ROW = 16000, 0.064  # of the small networks: seconds of a row of latents
ROWS = tiny.SHAPE[1]


def with_regions(examples: PairExamples, regions: Tensor) -> PairExamples:
    return PairExamples(
        examples.winners, examples.losers, examples.conditioning, examples._prior, groups=None, regions=regions
    )


def rows_of(*spans: tuple[int, int]) -> Tensor:
    places = torch.arange(ROWS)
    return torch.stack([(places >= first) & (places < last) for first, last in spans])


@pytest.mark.parametrize("name", ["sft", "dpo", "ipo", "sdpo"])
def test_outside_the_region_the_gradient_is_exactly_zero(name: str) -> None:
    spans = [(2, 5), (0, 1), (7, 8), (0, ROWS)]
    batch = with_regions(tiny.pairs(4), rows_of(*spans)).batch(range(4), 0)
    draws = draw(tiny.SHAPE, [("pair", 0, row) for row in range(4)], 0, 100, Settings())
    noisy, spec = add_noise(tiny.model(), batch, draws, losers=LOSSES[name].needs_loser), LOSSES[name]
    prediction = torch.randn(noisy.target.shape, requires_grad=True)
    errors = split_errors(noisy.mse(prediction), spec.needs_loser)
    errors = add_reference_errors(errors, noisy.mse(torch.randn_like(prediction))) if spec.needs_reference else errors
    errors = replace(errors, safeguard=torch.full((4,), 0.5)) if spec.needs_safeguard else errors
    spec.function(errors, 1.0).sum().backward()
    assert prediction.grad is not None
    for row, gradient in enumerate(prediction.grad):
        first, last = spans[row % 4]
        assert gradient[:, first:last].abs().min() > 0
        assert not gradient[:, :first].any()
        assert not gradient[:, last:].any()


def test_a_pairs_error_is_the_mean_over_its_region() -> None:
    batch = with_regions(tiny.pairs(2, prior=False), rows_of((2, 5), (0, ROWS))).batch(range(2), 0)
    noisy = add_noise(tiny.model(), batch, draw(tiny.SHAPE, [("pair", 0, 0)] * 2, 0, 100, Settings()), losers=True)
    squares = (torch.ones_like(noisy.target) - noisy.target).pow(2)
    assert noisy.mse(torch.ones_like(noisy.target)).tolist() == pytest.approx(
        [squares[row, :, slice(*((2, 5), (0, ROWS))[row % 2])].mean().item() for row in range(4)]
    )


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["copy", "cached"])
def test_a_region_that_is_the_whole_clip_trains_as_a_plain_pair_does(reference: Any, tmp_path: Path) -> None:
    phases = (Phase(loss="sft", epochs=1), Phase(loss="sdpo", epochs=1, beta=200.0))
    settings = Settings(batch_size=4, learning_rate=1e-3, noise_samples_per_pair=1, reference=reference)
    rows: dict[str, list[dict]] = {"plain": [], "full": [], "part": []}
    plain = tiny.pairs(8)
    for name, last in (("plain", 0), ("full", ROWS), ("part", 3)):
        examples = with_regions(plain, rows_of(*[(0, last)] * 8)) if last else plain
        train(tiny.model(), examples, phases, settings, 3, tmp_path / name, rows[name].append, val=examples)
    for row in (row for table in rows.values() for row in table):
        row.pop("seconds", None)
    assert [row["loss"] for row in rows["full"]] == [row["loss"] for row in rows["plain"]]
    assert [row["val_margin"] for row in rows["full"]] == [row["val_margin"] for row in rows["plain"]]
    assert [row["loss"] for row in rows["part"]] != [row["loss"] for row in rows["plain"]]


def test_regions_are_part_of_the_data_and_join_with_plain_pairs() -> None:
    plain, part = tiny.pairs(2, prior=False), with_regions(tiny.pairs(2, 1, prior=False), rows_of((0, 3), (4, 6)))
    assert fingerprint(part) != fingerprint(tiny.pairs(2, 1, prior=False))
    joined = ConcatExamples([plain, part]).batch([2, 0, 3], 0)
    assert joined.regions is not None
    assert joined.regions.equal(rows_of((0, 3), (0, ROWS), (4, 6)))
    assert ConcatExamples([plain, plain]).batch([0, 3], 0).regions is None


def repair_of(region: tuple[float, float], seconds: float = 0.5) -> Repair:
    original = 0.1 * np.random.default_rng(0).standard_normal((round(seconds * RATE), 1))
    samples = original.copy()
    samples[round(region[0] * RATE) : round(region[1] * RATE)] *= 0.5
    attempts = Attempt(Fault("extra", "Rain", region), region, "a dog barks", "rain", 8, 0.2, 0.7, "")
    before, after = Diagnosis(0.2, (), (attempts.fault,)), Diagnosis(0.7, (), ())
    return Repair("a dog barks", "ear", 8, 3, original, samples, RATE, before, after, (attempts,))


def test_a_repair_becomes_a_pair_that_is_read_back_and_encoded_with_its_region(tmp_path: Path) -> None:
    pair = repair_of((0.15, 0.25)).pair()
    assert pair is not None
    write_pairs(tmp_path / "pairs" / "a.parquet", [pair], Origin("nano", "", {"ear": ""}), 3.0)
    (back,) = read_pairs(tmp_path / "pairs")
    assert back.pair == pair.pair
    assert back.pair.region == pytest.approx((0.15 - SPLICE, 0.25 + SPLICE))
    assert back.pair.chosen_scores == {"ear": 0.7}
    differs = np.flatnonzero(back.chosen.waveform != back.rejected.waveform) / RATE
    assert 0.15 - SPLICE <= differs[0] < differs[-1] < 0.25 + SPLICE
    _, examples = encode_pairs(TangoDenoiser.of(small_networks.pipeline()), tmp_path / "pairs", tmp_path / "work")
    regions = examples.batch([0], 0).regions
    assert regions is not None
    assert regions[0].nonzero().flatten().tolist() == [2, 3, 4]  # 0.135 to 0.265 s touch rows of 0.064 s
    assert "region_from" in pq.read_schema(tmp_path / "pairs" / "a.parquet").names
    unaccepted = replace(repair_of((0.15, 0.25)), attempts=())
    assert unaccepted.pair() is None


def test_a_region_that_the_model_does_not_see_is_refused() -> None:
    denoiser, pair = TangoDenoiser.of(small_networks.pipeline()), repair_of((0.1, 0.2)).pair()
    assert pair is not None
    assert region_rows(denoiser, [pair.pair.model_copy(update={"region": None})]) is None
    late = pair.pair.model_copy(update={"region": (7.0, 8.0)})
    with pytest.raises(DataError, match=r"differs after 0\.512 s, which this model does not see"):
        region_rows(denoiser, [late])
