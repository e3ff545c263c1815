"""Group-wise training: exactly DPO for two clips, the same whatever the batches, resumed bit for bit, and guided."""

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_training import SHAPE, model

from milonga.core.config import Phase, Settings
from milonga.core.errors import DataError, RecipeError
from milonga.data.examples import Examples, GroupExamples, PairExamples
from milonga.maths.noise import seeded
from milonga.models.denoiser import Conditioning
from milonga.training.distributed import Ranks
from milonga.training.monitor import grad_limit, update_grad_limit
from milonga.training.reference import FrozenCopy
from milonga.training.schedule import Step
from milonga.training.step import TrainStep
from milonga.training.trainer import train

SETTINGS = Settings(batch_size=2, learning_rate=1e-3, timesteps="high-noise", max_grad_norm=1e9, checkpoint_every=2)


def captions(count: int) -> Conditioning:
    states = torch.randn(count, 3, 8, generator=seeded(5, "states"))
    return Conditioning(states=states, mask=torch.ones(count, 3, dtype=torch.bool))


def groups(count: int = 6, size: int = 4) -> GroupExamples:
    latents = torch.randn(count, size, *SHAPE, generator=seeded(5, "groups"))
    return GroupExamples(latents, torch.rand(count, size, generator=seeded(5, "rewards")), captions(count))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next((folder / "model").glob("*.safetensors")))


def run(folder: Path, loss: str, settings: Settings = SETTINGS, beta: float = 50.0, examples=None, epochs: int = 1):
    phase = Phase(loss=loss, epochs=epochs, beta=beta)
    train(model(), examples or groups(), [phase], settings, 3, folder)
    return weights(folder)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def gradient(examples: Examples, loss: str, key: str, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The gradient of one step on all examples, whose draws are named `key`."""
    denoiser, phase = model(), Phase(loss=loss, epochs=1, beta=200.0)
    denoiser.module.eval()
    train_step = TrainStep(
        denoiser, denoiser.module, FrozenCopy(model(seed=1).module), examples, SETTINGS, 3, Ranks(), phase
    )
    plain = train_step._noised
    named = [(key, 0, row) for row in range(len(examples))]
    monkeypatch.setattr(train_step, "_noised", lambda batch, keys, *rest: plain(batch, named[: len(keys)], *rest))
    train_step.run(Step(0, 1, phase, 0, tuple(range(len(examples))), True, True), phase.beta, 0.0)
    return [value.grad for value in denoiser.module.parameters() if value.grad is not None]


def test_a_step_on_groups_of_two_is_that_of_dpo_over_beta(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = torch.randn(2, 2, *SHAPE, generator=seeded(5, "pairs"))
    pairs = PairExamples(latents[0], latents[1], captions(2))
    two = GroupExamples(latents.transpose(0, 1), torch.tensor([[1.0, 0.0]]).expand(2, 2), captions(2))
    by_pairs, by_groups = (
        gradient(examples, loss, "same", monkeypatch) for examples, loss in ((pairs, "dpo"), (two, "dgpo"))
    )
    for expected, value in zip(by_pairs, by_groups, strict=True):
        torch.testing.assert_close(200.0 * value, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("examples", [groups(size=4), PairExamples(torch.zeros(2, *SHAPE), None, captions(2))])
def test_the_network_is_prepared_for_the_shape_of_one_clip(tmp_path: Path, examples: Examples) -> None:
    denoiser, shapes = model(), []
    denoiser.prepare = lambda precision, shape: shapes.append(tuple(shape))
    loss = "dgpo" if isinstance(examples, GroupExamples) else "sft"
    train(denoiser, examples, [Phase(loss=loss, epochs=1, beta=1.0)], SETTINGS, 3, tmp_path)
    assert shapes == [SHAPE]


@pytest.mark.parametrize("loss", ["dgpo", "awm", "nft", "crd"])
def test_results_do_not_depend_on_how_a_step_is_cut_into_batches(tmp_path: Path, loss: str) -> None:
    cut = SETTINGS.model_copy(update={"batch_size": 1, "gradient_accumulation_steps": 2})
    whole, parts = run(tmp_path / "whole", loss, beta=1.0), run(tmp_path / "parts", loss, cut, beta=1.0)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("old", ["reference", "ema"])
def test_a_training_that_was_cut_off_ends_with_the_same_bits(tmp_path: Path, old: str) -> None:
    settings = SETTINGS.model_copy(
        update={"ema": 0.9, "old_policy": old, "ratio_clip": 0.1, "train_guidance": 2.0, "grad_clip_quantile": 0.5}
    )

    class Stop(Exception):
        pass

    def stops(row: dict) -> None:
        if row["step"] == 4:
            raise Stop

    expected = run(tmp_path / "whole", "dgpo", settings, epochs=2)
    phases = [Phase(loss="dgpo", epochs=2, beta=50.0)]
    with pytest.raises(Stop):
        train(model(), groups(), phases, settings, 3, tmp_path / "cut", stops)
    train(model(), groups(), phases, settings, 3, tmp_path / "cut")
    resumed = weights(tmp_path / "cut")
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
    assert [row["loss"] for row in rows(tmp_path / "cut")] == [row["loss"] for row in rows(tmp_path / "whole")]


@pytest.mark.slow
def test_the_old_policy_matters_once_the_policy_has_moved(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"ema": 0.5, "ratio_clip": 1e-4})
    frozen = run(tmp_path / "frozen", "awm", settings, epochs=2)
    moving = run(tmp_path / "moving", "awm", settings.model_copy(update={"old_policy": "ema"}), epochs=2)
    assert any(not torch.equal(frozen[name], moving[name]) for name in frozen)


def test_the_guided_prediction_is_trained_when_asked(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", "dgpo")
    guided = run(tmp_path / "guided", "dgpo", SETTINGS.model_copy(update={"train_guidance": 3.0}))
    assert any(not torch.equal(plain[name], guided[name]) for name in plain)


def test_the_trust_region_holds_the_policy_near_its_reference(tmp_path: Path) -> None:
    run(tmp_path / "free", "dgpo", epochs=6)
    run(tmp_path / "held", "dgpo", SETTINGS.model_copy(update={"trust_region": 100.0}), epochs=6)
    assert rows(tmp_path / "held")[-1]["distance"] < rows(tmp_path / "free")[-1]["distance"]


@pytest.mark.slow
def test_the_log_tells_best_and_worst_clips_apart(tmp_path: Path) -> None:
    run(tmp_path / "run", "dgpo", epochs=12)
    last = rows(tmp_path / "run")[-1]
    assert last["margin"] > 0
    assert last["accuracy"] > 0.5


def test_groups_of_equal_rewards_are_left_out_and_counted() -> None:
    latents, rewards = torch.randn(3, 2, *SHAPE), torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    examples = GroupExamples(latents, rewards, captions(3))
    assert (len(examples), examples.num_flat) == (2, 1)
    with pytest.raises(DataError, match="no group teaches anything"):
        GroupExamples(latents, torch.ones(3, 2), captions(3))
    with pytest.raises(DataError, match="differ in number"):
        GroupExamples(latents, rewards[:2], captions(3))


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    pairs = PairExamples(torch.randn(2, *SHAPE), torch.randn(2, *SHAPE), captions(2))
    with pytest.raises(DataError, match="'dgpo' needs groups of clips with rewards"):
        run(tmp_path, "dgpo", examples=pairs)
    with pytest.raises(DataError, match="'sft' needs pairs or clips"):
        run(tmp_path, "sft")
    cached = Settings(reference="cached", noise_samples_per_pair=1)
    with pytest.raises(RecipeError, match="no table of reference errors"):
        run(tmp_path, "dgpo", cached)
    with pytest.raises(ValueError, match="trust_region and train_guidance need its answers"):
        Settings(reference="cached", noise_samples_per_pair=1, trust_region=0.1)
    with pytest.raises(ValueError, match="needs ema"):
        Settings(old_policy="ema")


def test_the_gradient_limit_settles_at_its_quantile() -> None:
    settings = Settings(grad_clip_quantile=0.9)
    monitor: dict[str, float] = {}
    phase = Phase(loss="dpo", epochs=1, beta=1.0)
    assert grad_limit(phase, settings, monitor) == math.inf
    norms = torch.rand(4000, generator=seeded(0, "norms")).tolist()
    for norm in norms:
        update_grad_limit(monitor, settings, norm)
    assert grad_limit(phase, settings, monitor) == pytest.approx(0.9, abs=0.12)
    assert grad_limit(Phase(loss="sft", epochs=1), settings, monitor) == settings.max_grad_norm
