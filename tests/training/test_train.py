"""The training loop: what each phase passes through the U-Net, and what its rows say."""

import json
import math
from pathlib import Path

import pytest
import tiny_training as tiny
import torch
from diffusers import UNet2DConditionModel

from milonga.core.config import Phase, Settings
from milonga.core.errors import DataError, MilongaError, RecipeError
from milonga.data.examples import Batch, PairExamples
from milonga.models.denoiser import Conditioning
from milonga.training.trainer import train

PLAIN = Settings(batch_size=4, learning_rate=1e-3)
SFT = Phase(loss="sft", epochs=1)
DPO = Phase(loss="dpo", epochs=1, beta=200.0)


def run(folder: Path, phases=(DPO,), settings: Settings = PLAIN, examples=None, model=None, **more) -> list[dict]:
    rows: list[dict] = []
    examples = tiny.pairs(8) if examples is None else examples
    train(model or tiny.model(), examples, phases, settings, 3, folder, rows.append, **more)
    return rows


def clips(count: int = 8) -> PairExamples:
    """Captioned clips without losers."""
    chance = torch.Generator().manual_seed(0)
    states, mask = torch.randn(count, 3, 8, generator=chance), torch.ones(count, 3, dtype=torch.bool)
    return PairExamples(torch.randn(count, *tiny.SHAPE, generator=chance), None, Conditioning(states=states, mask=mask))


class Counting:
    """Counts the forward passes of all U-Nets, and how many latents each saw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        forward = UNet2DConditionModel.forward

        def counted(unet, sample, *args, **named):
            self.sizes.append(len(sample))
            return forward(unet, sample, *args, **named)

        monkeypatch.setattr(UNet2DConditionModel, "forward", counted)


def test_dpo_begins_at_ln_two_and_learns_to_prefer_winners(tmp_path: Path) -> None:
    phase = Phase(loss="dpo", epochs=10, beta=100.0)
    rows = run(tmp_path, [phase], val=tiny.pairs(6, 5))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (rows[0]["accuracy"], rows[0]["margin"], rows[0]["saturation"]) == (0.5, 0.0, 0.5)
    assert rows[-1]["loss"] < 0.3
    assert rows[-1]["margin"] > 0.01
    assert rows[-1]["val_accuracy"] == 1.0
    assert rows[-1]["val_margin"] > 0.005
    assert rows[0]["val_accuracy"] is None


def test_the_rows_hang_together(tmp_path: Path) -> None:
    for row in run(tmp_path, [Phase(loss="dpo", epochs=3, beta=100.0)]):
        assert row["margin"] == pytest.approx(row["delta_loser"] - row["delta_winner"], abs=1e-6)
        assert row["margin_p10"] <= row["margin_p50"] <= row["margin_p90"]
        assert 0 <= row["winner_worse"] <= 1
        assert row["samples_per_second"] > 0
        assert row["grad_norm"] > 0
    lines = (tmp_path / "curves.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_winner_and_loser_share_a_pass_and_sft_asks_for_neither_loser_nor_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    run(tmp_path, [SFT, DPO])
    assert counting.sizes == [4, 4] + [8, 8] * 2  # SFT: policy; DPO: policy and reference, winners with losers


def test_the_reference_is_the_model_as_given_and_not_the_result_of_sft(tmp_path: Path) -> None:
    rows = run(tmp_path, [Phase(loss="sft", epochs=5), DPO])
    first = next(row for row in rows if row["phase"] == "dpo")
    assert first["delta_winner"] < -0.01  # already better than the reference before DPO's first update


@pytest.mark.slow
def test_ldm_pretrains_on_clips_without_losers(tmp_path: Path) -> None:
    settings = PLAIN.model_copy(update={"caption_dropout": 0.5, "ema": 0.9, "snr_gamma": 5.0})
    rows = run(tmp_path, [Phase(loss="ldm", epochs=24)], settings, clips())
    assert rows[0]["phase"] == "ldm"
    assert rows[0]["loser_error"] is rows[0]["margin"] is None
    assert sum(row["loss"] for row in rows[-16:]) < sum(row["loss"] for row in rows[:16])


def test_the_rate_warms_up_and_ends_at_zero_whatever_the_accumulation(tmp_path: Path) -> None:
    for accumulation in (1, 2):
        settings = Settings(batch_size=2, gradient_accumulation_steps=accumulation, learning_rate=1e-3, warmup_steps=1)
        phases = [SFT, Phase(loss="dpo", epochs=1, beta=10.0, learning_rate=2e-3)]
        rates = [row["lr"] for row in run(tmp_path / str(accumulation), phases, settings)]
        total = 8 // accumulation
        assert len(rates) == total
        assert rates[0] == pytest.approx(5e-4)
        assert rates[1] == pytest.approx(1e-3)
        assert rates[-1] == pytest.approx(2e-3 / (total - 1))  # one more step would be at zero


def test_accumulation_gives_the_same_training_as_one_large_batch(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", [SFT, DPO], Settings(batch_size=4, learning_rate=1e-3))
    parts = run(
        tmp_path / "parts", [SFT, DPO], Settings(batch_size=1, gradient_accumulation_steps=4, learning_rate=1e-3)
    )
    for one, other in zip(whole, parts, strict=True):
        for name in ("loss", "winner_error", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-3)


def test_the_anchor_term_adds_the_error_on_real_clips(tmp_path: Path) -> None:
    rows = run(tmp_path, [SFT], PLAIN.model_copy(update={"prior_weight": 0.5}))
    for row in rows:
        assert row["loss"] == pytest.approx(row["winner_error"] + 0.5 * row["prior_error"], rel=1e-5)


def test_the_finished_unet_loads_with_diffusers_and_holds_the_average_where_there_is_one(tmp_path: Path) -> None:
    model = tiny.model()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    run(tmp_path / "plain", [SFT], model=model)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "plain" / "model")
    assert all(torch.equal(value, model.module.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    run(tmp_path / "ema", [SFT], PLAIN.model_copy(update={"ema": 0.999}))
    averaged = UNet2DConditionModel.from_pretrained(tmp_path / "ema" / "model")
    assert not torch.equal(averaged.conv_in.weight, loaded.conv_in.weight)


class Broken:
    """Pairs of which some epochs are not numbers."""

    num_prior = 0

    def __init__(self, bad: set[int]) -> None:
        self.pairs, self.bad = tiny.pairs(4, prior=False), bad

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices, epoch: int) -> Batch:
        good = self.pairs.batch(indices, epoch)
        winner = good.winner * float("nan") if epoch in self.bad else good.winner
        return Batch(winner, good.loser, good.conditioning)

    def prior_batch(self, indices, epoch: int) -> Batch:
        raise DataError("no anchors")


def test_a_loss_that_is_not_a_number_is_skipped_and_leaves_the_weights_alone(tmp_path: Path) -> None:
    model = tiny.model()
    rows = run(tmp_path, [Phase(loss="dpo", epochs=6, beta=10.0)], examples=Broken({1, 2, 4}), model=model)
    assert [row["skipped"] for row in rows] == [False, True, True, False, True, False]
    assert rows[1]["loss"] is None
    assert all(torch.isfinite(value).all() for value in model.module.state_dict().values())


def test_three_in_a_row_stop_the_training_and_name_the_last_good_checkpoint(tmp_path: Path) -> None:
    settings = PLAIN.model_copy(update={"checkpoint_every": 1})
    with pytest.raises(MilongaError, match=r"step 4 .*step-00000003"):
        run(tmp_path, [Phase(loss="dpo", epochs=6, beta=10.0)], settings, Broken({1, 2, 3}))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("phases", "settings", "examples", "error", "words"),
    [
        ([], PLAIN, None, RecipeError, "at least one phase"),
        ([Phase(loss="dpoo", epochs=1)], PLAIN, None, RecipeError, "ldm, sft, dpo"),
        ([Phase(loss="dpo", epochs=1)], PLAIN, None, RecipeError, "beta above zero"),
        ([SFT, DPO], PLAIN, clips(), DataError, "no losers"),
        ([SFT], PLAIN, clips(0), DataError, "no pair was kept"),
        ([SFT], Settings(prior_weight=1.0), clips(), DataError, "real clips"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(
    phases, settings, examples, error, words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        run(tmp_path, phases, settings, examples)
    assert list(tmp_path.iterdir()) == []


def test_training_leaves_the_global_random_stream_alone(tmp_path: Path) -> None:
    model, before = tiny.model(), torch.random.get_rng_state()
    run(tmp_path, [SFT, DPO], model=model)
    assert torch.equal(before, torch.random.get_rng_state())


def test_watching_held_out_pairs_changes_no_number(tmp_path: Path) -> None:
    settings = PLAIN.model_copy(update={"ema": 0.9})
    watched = run(tmp_path / "watched", [SFT, DPO], settings, val=tiny.pairs(5, 9))
    alone = run(tmp_path / "alone", [SFT, DPO], settings)
    assert [row["loss"] for row in watched] == [row["loss"] for row in alone]
    assert [row["val_margin"] is None for row in watched] == [True, False, True, False]
