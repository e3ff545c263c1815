"""Every option that makes steps cheaper really does what it says, and leaves the numbers where it must."""

import math
from pathlib import Path

import pytest
import tiny_training as tiny
import torch
from diffusers import UNet2DConditionModel
from pydantic import ValidationError
from safetensors.torch import load_file

from milonga.core.config import Phase, Settings
from milonga.core.errors import DataError, MilongaError, RecipeError
from milonga.data.examples import PairExamples
from milonga.models.denoiser import Conditioning
from milonga.training import noising
from milonga.training.noising import NoisyBatch, draw
from milonga.training.step import TrainStep
from milonga.training.trainer import train

PLAIN = Settings(batch_size=4, learning_rate=1e-3)
DPO = (Phase(loss="dpo", epochs=2, beta=100.0),)


def run(folder: Path, settings: Settings = PLAIN, phases=DPO, examples=None, model=None, **more) -> list[dict]:
    rows: list[dict] = []
    given = model or tiny.model()
    train(given, examples or tiny.pairs(8, prior=False), phases, settings, 3, folder, rows.append, **more)
    return rows


def but(**changes) -> Settings:
    return PLAIN.model_copy(update=changes)


def losses(rows: list[dict]) -> list[float]:
    return [row["loss"] for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "other"), [(0, "FrozenCopy"), (2, "AdapterDisabled")])
def test_kept_reference_errors_give_the_losses_of_a_live_reference_bit_for_bit(
    rank: int, other: str, tmp_path: Path, monkeypatch
) -> None:
    if rank:
        pytest.importorskip("peft")
    phases = (Phase(loss="sft", epochs=1), Phase(loss="dpo", epochs=3, beta=100.0))
    settings = but(noise_samples_per_pair=2, caption_dropout=0.3, lora_rank=rank)
    live = run(tmp_path / "live", settings, phases, val=tiny.pairs(5, 1))
    monkeypatch.delattr(f"milonga.training.trainer.{other}")  # no second pass
    settings = settings.model_copy(update={"reference": "cached"})
    kept = run(tmp_path / "kept", settings, phases, val=tiny.pairs(5, 1))
    for name in ("loss", "margin", "grad_norm", "val_margin", "val_accuracy"):
        assert [row[name] for row in kept] == [row[name] for row in live], name
    assert live[-1]["distance"] > 0
    assert kept[-1]["distance"] is None
    assert len(list((tmp_path / "kept" / "reference").glob("*.parquet"))) == 2


def test_fixed_draws_come_again_and_fresh_ones_do_not(tmp_path: Path, monkeypatch) -> None:
    seen: list[tuple] = []

    def noted(shape, keys, *rest):
        seen.append(tuple(sorted(keys)))
        return draw(shape, keys, *rest)

    monkeypatch.setattr("milonga.training.step.draw", noted)
    phases = (Phase(loss="dpo", epochs=4, beta=100.0),)
    run(tmp_path / "fixed", but(batch_size=8, noise_samples_per_pair=2), phases)
    assert len(seen) == 4
    assert seen[0] == seen[2] != seen[1] == seen[3]
    seen.clear()
    run(tmp_path / "fresh", but(batch_size=8), phases)
    assert len(set(seen)) == 4


@pytest.mark.slow
def test_a_table_of_errors_that_was_cut_short_is_gone_on_with(tmp_path: Path, monkeypatch) -> None:
    settings, made = but(noise_samples_per_pair=3, reference="cached"), []
    errors = NoisyBatch.errors

    def stops(noisy: NoisyBatch, *rest) -> torch.Tensor:
        made.append(len(noisy.latents))
        if len(made) == 3:
            raise KeyboardInterrupt
        return errors(noisy, *rest)

    monkeypatch.setattr(NoisyBatch, "errors", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, settings)
    rest = run(tmp_path, settings)
    assert made == [8] * 7  # two batches a pass: the first pass was whole, the second is made again
    assert losses(rest) == losses(run(tmp_path / "other", settings))


def test_a_table_has_a_draw_for_every_epoch_and_gives_the_numbers_of_a_copy(tmp_path: Path) -> None:
    cached = losses(run(tmp_path / "cached", but(reference="cached")))
    assert cached == pytest.approx(losses(run(tmp_path / "copy", but(reference="copy"))), rel=1e-5)


@pytest.mark.slow
def test_an_adapter_begins_as_the_base_and_only_it_is_trained(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = tiny.model()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    settings = but(lora_rank=2, ema=0.5, learning_rate=1e-2)
    rows = run(tmp_path, settings, (Phase(loss="dpo", epochs=3, beta=100.0),), model=model, val=tiny.pairs(5, 1))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["distance"] == 0.0
    assert rows[-1]["distance"] > 0
    assert rows[-1]["val_margin"] > 0
    merged = weights(tmp_path)
    assert merged.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert changed
    assert all(".to_" in name and name.endswith("weight") for name in changed)
    assert list((tmp_path / "adapter").glob("*.safetensors"))
    assert UNet2DConditionModel.from_pretrained(tmp_path / "model").config.in_channels == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_rank": 2},
        {"reference": "cached", "noise_samples_per_pair": 1},
        pytest.param({"precision": "bf16"}, marks=pytest.mark.slow),
        pytest.param({"released_ranks": 2}, marks=pytest.mark.slow),
    ],
    ids=["adapter", "table", "bf16", "released ranks"],
)
def test_what_is_stopped_with_an_option_on_is_resumed_to_the_same_losses_and_weights(
    changes: dict, tmp_path: Path
) -> None:
    if "lora_rank" in changes:
        pytest.importorskip("peft")
    settings = but(batch_size=2, gradient_accumulation_steps=2, ema=0.5, checkpoint_every=1, **changes)
    whole = run(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        train(tiny.model(), tiny.pairs(8, prior=False), DPO, settings, 3, tmp_path / "cut", stop_at(2))
    assert losses(whole)[2:] == losses(run(tmp_path / "cut", settings))
    ours, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_short_last_step_leaves_released_ranks_without_examples(tmp_path: Path) -> None:
    phases = (Phase(loss="sft", epochs=1), Phase(loss="dpo", epochs=1, beta=100.0))
    settings = but(batch_size=2, gradient_accumulation_steps=2, released_ranks=4)
    rows = run(tmp_path, settings, phases, model=tiny.model(), examples=tiny.pairs(9, prior=False))
    assert len(rows) == 6
    assert all(math.isfinite(one["loss"]) for one in rows)


def stop_at(step: int):
    def stop(row: dict) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    return stop


def test_without_peft_an_adapter_is_refused_in_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(RecipeError, match=r"milonga\[lora\]"):
        run(tmp_path, but(lora_rank=2))


@pytest.mark.slow
def test_bf16_runs_the_network_in_bf16_and_the_loss_in_float32(tmp_path: Path, monkeypatch) -> None:
    kinds: set[torch.dtype] = set()
    conv = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", noting(torch.nn.Conv2d._conv_forward, kinds))
    full, half = run(tmp_path / "full"), run(tmp_path / "half", but(precision="bf16"))
    assert conv is torch.nn.functional.conv2d
    assert kinds == {torch.float32, torch.bfloat16}
    assert losses(full) != losses(half)
    assert losses(half) == pytest.approx(losses(full), rel=0.15)
    assert {value.dtype for value in weights(tmp_path / "half").values()} == {torch.float32}


def noting(forward, kinds: set[torch.dtype]):
    def noted(layer, *args):
        out = forward(layer, *args)
        kinds.add(out.dtype)
        return out

    return noted


@pytest.mark.slow
def test_bf16_answers_leave_as_float32() -> None:
    model = tiny.model()
    batch = tiny.pairs(4).batch([0, 1], 0)
    draws = draw(tiny.SHAPE, [("pair", 0, 0), ("pair", 0, 1)], 1, 100, PLAIN)
    noisy = noising.add_noise(model, batch, draws, True, None)
    assert noisy.predict(precision="bf16").dtype == torch.float32


@pytest.mark.parametrize(("precision", "calls"), [("fp32", True), ("bf16", False)])
def test_bf16_on_a_cpu_does_without_the_fused_attention_whose_backward_is_slow_there(
    precision: str, calls: bool, tmp_path: Path, monkeypatch
) -> None:
    fused: list[int] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **more):
        fused.append(1)
        return attention(*args, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    rows = run(tmp_path, but(precision=precision))
    assert bool(fused) == calls
    assert rows[0]["distance"] == 0.0  # the reference attends alike


def test_the_fused_attention_stays_where_latents_are_large() -> None:
    model = tiny.model()
    model.prepare("bf16", (2, 256, 16))
    assert all("2_0" in type(one).__name__ for one in model.module.attn_processors.values())


def test_gradient_checkpointing_computes_again_and_changes_no_number(tmp_path: Path, monkeypatch) -> None:
    calls: list[int] = []
    checkpoint = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        torch.utils.checkpoint, "checkpoint", lambda *args, **more: (calls.append(1), checkpoint(*args, **more))[1]
    )
    plain, again = run(tmp_path / "plain"), run(tmp_path / "again", but(gradient_checkpointing=True))
    assert calls
    assert losses(again) == pytest.approx(losses(plain), rel=1e-6)


@pytest.mark.slow
def test_memory_that_runs_out_turns_on_gradient_checkpointing_and_changes_no_number(
    tmp_path: Path, monkeypatch
) -> None:
    plain, took, failed = run(tmp_path / "plain"), TrainStep._backward, []

    def short(self, total, step):
        """The third step's backward pass fails where activations are kept, after a batch whose gradient is there."""
        on = any(getattr(part, "gradient_checkpointing", False) for part in self._denoiser.module.modules())
        took(self, total, step)
        if step.number == 2 and not on:
            failed.append(step.number)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    monkeypatch.setattr(TrainStep, "_backward", short)
    again = run(tmp_path / "again")
    assert failed == [2]
    assert losses(again) == pytest.approx(losses(plain), rel=1e-6)
    with pytest.raises(
        MilongaError, match=r"memory is short at step 3, OutOfMemoryError: CUDA out.*: lower batch_size and .*true"
    ):
        run(tmp_path / "off", but(gradient_checkpointing=False))
    monkeypatch.setattr(type(tiny.model().module), "_supports_gradient_checkpointing", False)
    with pytest.raises(MilongaError, match=r"memory is short .*by the same factor$"):
        run(tmp_path / "without")


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_losses(tmp_path: Path) -> None:
    plain, fast = run(tmp_path / "plain"), run(tmp_path / "fast", but(compile=True))
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-3)


def test_compile_is_asked_of_the_policy(tmp_path: Path, monkeypatch) -> None:
    asked: list[dict] = []
    monkeypatch.setattr(UNet2DConditionModel, "compile", lambda unet, **more: asked.append(more))
    run(tmp_path, but(compile=True))
    assert asked == [{"dynamic": False, "options": {"layout_optimization": False}}]


def test_an_independent_timestep_is_the_losers_own() -> None:
    keys = [("pair", 0, row) for row in range(6)]
    shared, apart = (draw(tiny.SHAPE, keys, 1, 100, but(shared_timestep=kind)) for kind in (True, False))
    assert shared.loser_timesteps is None
    assert torch.equal(shared.timesteps, apart.timesteps)
    assert torch.equal(shared.noise, apart.noise)
    assert apart.loser_timesteps is not None
    assert not torch.equal(apart.timesteps, apart.loser_timesteps)
    pairs = tiny.pairs(6)
    noisy = noising.add_noise(tiny.model(), pairs.batch(range(6), 0), apart, True, None)
    assert noisy.timesteps.tolist() == [*apart.timesteps.tolist(), *apart.loser_timesteps.tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sdpo", "kto", "mapo", "crpo"])
def test_every_loss_trains_and_lowers_itself(loss: str, tmp_path: Path) -> None:
    rows = run(tmp_path, but(noise_samples_per_pair=1), (Phase(loss=loss, epochs=10, beta=30.0),))
    assert sum(losses(rows)[-2:]) < sum(losses(rows)[:2])
    if loss == "kto":
        assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.slow
def test_the_guarded_loss_keeps_winners_where_plain_dpo_lets_them_go(tmp_path: Path) -> None:
    phase = {"epochs": 12, "beta": 200.0}
    plain = run(tmp_path / "dpo", PLAIN, (Phase(loss="dpo", **phase),))
    safe = run(tmp_path / "sdpo", but(sdpo_mu=0.5), (Phase(loss="sdpo", **phase),))
    assert plain[0]["loss"] == safe[0]["loss"]
    assert safe[-1]["delta_winner"] < plain[-1]["delta_winner"]


def labelled(count: int = 8) -> PairExamples:
    stream = torch.Generator().manual_seed(4)
    latents = torch.randn(count, *tiny.SHAPE, generator=stream)
    states, mask = torch.randn(count, 3, 8, generator=stream), torch.ones(count, 3, dtype=torch.bool)
    rewards = torch.linspace(0, 1, count)
    return PairExamples(latents, None, Conditioning(states=states, mask=mask), weights=rewards, desirable=rewards > 0.5)


@pytest.mark.slow
def test_kto_learns_from_clips_that_are_labelled_one_by_one(tmp_path: Path) -> None:
    rows = run(tmp_path, but(noise_samples_per_pair=1), (Phase(loss="kto", epochs=12, beta=100.0),), labelled())
    assert rows[-1]["delta_winner"] < 0 < rows[-1]["delta_loser"]
    assert rows[-1]["margin"] is None
    with pytest.raises(DataError, match="no losers"):
        run(tmp_path / "dpo", PLAIN, DPO, labelled())


def test_rewards_weigh_fine_tuning_and_are_asked_for(tmp_path: Path) -> None:
    phase = (Phase(loss="weighted-sft", epochs=1),)
    rows = run(tmp_path, but(batch_size=8), phase, labelled())
    assert 0 < rows[0]["loss"] < rows[0]["winner_error"]
    with pytest.raises(DataError, match="reward"):
        run(tmp_path / "none", PLAIN, phase)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss_weighting": "released"}, "snr_gamma"),
        ({"loss_weighting": "epsilon", "snr_gamma": 5.0}, "two weights"),
        ({"fsdp": True, "lora_rank": 4}, "no LoRA"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Settings(**changes)


def weighted(gaps: list[float] | None) -> PairExamples:
    plain = tiny.pairs(8, prior=False)
    return PairExamples(plain.winners, plain.losers, plain.conditioning, gaps=gaps)


@pytest.mark.slow
def test_pairs_weigh_by_their_gaps_and_need_them(tmp_path: Path) -> None:
    def one(name: str, gaps: list[float] | None, **changes) -> list[dict]:
        return run(tmp_path / name, but(batch_size=8, weight_decay=0.0, **changes), examples=weighted(gaps))

    gaps = [3.0, 0.5, 0.0, 1.0, 1.0, 2.0, 0.5, 0.0]
    one("equal", gaps)
    one("ones", [1.0] * 8, pair_weights="gap")
    assert all(
        torch.equal(value, weights(tmp_path / "ones")[name]) for name, value in weights(tmp_path / "equal").items()
    )
    rows = one("gaps", gaps, pair_weights="gap")
    assert losses(rows)[0] == pytest.approx(math.log(2))  # policy and reference agree, and the gaps' mean is 1
    rows = one("doubled", [2 * gap for gap in gaps], pair_weights="gap")
    assert losses(rows)[0] == pytest.approx(2 * math.log(2))
    assert any(
        not torch.equal(value, weights(tmp_path / "gaps")[name]) for name, value in weights(tmp_path / "equal").items()
    )
    assert one("none", [0.0] * 8, pair_weights="gap")[-1]["grad_norm"] == 0
    with pytest.raises(DataError, match="2 of 8 examples have none"):
        one("unknown", [*gaps[:6], math.nan, math.nan], pair_weights="gap")
    with pytest.raises(DataError, match="8 of 8 examples have none"):
        one("without", None, pair_weights="gap")


@pytest.mark.slow
def test_crpo_without_its_second_term_is_dpo(tmp_path: Path) -> None:
    crpo = (Phase(loss="crpo", epochs=2, beta=100.0),)
    full = run(tmp_path / "full", phases=crpo)
    bare = run(tmp_path / "bare", but(crpo_weight=0.0), phases=crpo)
    assert losses(bare) == losses(run(tmp_path / "dpo"))
    assert losses(full)[0] > losses(bare)[0]
