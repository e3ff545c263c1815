"""Reward gradients: clips that the trainer samples; the same whatever the batches, and resumed bit for bit."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_networks
import torch
from test_foreign_denoiser import LENGTH, RATE, WIDTH, TinyFlow
from torch import Tensor

from milonga.core.config import Phase, Settings
from milonga.core.errors import DataError, RecipeError
from milonga.core.protocols import DifferentiableScorer
from milonga.data.examples import CaptionExamples, PairExamples, fingerprint, with_prior_data
from milonga.experiment.export import export_system
from milonga.experiment.recipe import parse_recipe
from milonga.experiment.run import run as run_recipe
from milonga.maths.noise import seeded
from milonga.models.denoiser import Conditioning
from milonga.models.load import pipeline
from milonga.models.tango_denoiser import GUIDANCE_WIDTH, TangoDenoiser, guidance_embedding
from milonga.scorers.load import scorer
from milonga.training.align import AlignConfig, AlignTrainer
from milonga.training.trainer import train

TEXTS = ["a dog barks", "a bell rings", "rain", "rain then a bell", "a dog"]
SETTINGS = Settings(batch_size=4, learning_rate=1e-2, draft_steps=3, train_guidance=2.0, max_grad_norm=1e9)


class Level:
    """Rewards clips whose mean is near a level: its optimum is known."""

    name = "level"

    def __init__(self, level: float = 0.3) -> None:
        self.level = level

    def wave_rewards(self, waves: Tensor, rate: int, texts: Sequence[str]) -> Tensor:
        assert (rate, len(texts)) == (RATE, len(waves))
        return -(waves.mean(1) - self.level).pow(2)


def captions(denoiser: TinyFlow) -> CaptionExamples:
    return CaptionExamples(TEXTS, denoiser.encode_text(TEXTS), (LENGTH, WIDTH), seed=2)


def trained(folder: Path, settings: Settings = SETTINGS, steps: int = 4, **more) -> dict[str, Tensor]:
    denoiser = more.pop("denoiser", None) or TinyFlow()
    examples = more.pop("examples", None) or captions(denoiser)
    parts: dict[str, Any] = {"scorers": [Level()]} | more
    train(denoiser, examples, [Phase(loss="draft", steps=steps)], settings, 3, folder, **parts)
    return denoiser.module.state_dict()


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def test_a_batch_of_one_caption_that_no_scorer_can_read_teaches_nothing(tmp_path: Path) -> None:
    class Picky(Level):
        def wave_rewards(self, waves: Tensor, rate: int, texts: Sequence[str]) -> Tensor:
            read = [text != "a dog" for text in texts]
            rewards = torch.full((len(waves),), torch.nan)
            if any(read):  # else there is no gradient at all
                rewards[read] = super().wave_rewards(waves[read], rate, [text for text in texts if text != "a dog"])
            return rewards

    cut = SETTINGS.model_copy(update={"batch_size": 1, "gradient_accumulation_steps": 4})
    trained(tmp_path / "whole", scorers=[Picky()])
    trained(tmp_path / "parts", cut, scorers=[Picky()])
    for whole, parts in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert [parts[name] for name in ("loss", "grad_norm")] == pytest.approx(
            [whole[name] for name in ("loss", "grad_norm")], rel=1e-3
        )


@pytest.mark.slow
def test_the_reward_of_the_clips_rises_to_its_optimum(tmp_path: Path) -> None:
    trained(tmp_path, steps=60)
    log = rows(tmp_path)
    first, last = log[0], log[-1]
    assert last["scores"]["level"] > 0.1 * first["scores"]["level"]  # both below zero
    assert last["reward"] > first["reward"] + 0.5
    assert last["loss"] == pytest.approx(-last["reward"])
    assert first["winner_error"] is None


def test_the_gradient_is_that_of_the_reward_by_differences(tmp_path: Path) -> None:
    denoiser, step = TinyFlow(), 1e-3
    module: Any = denoiser.module
    weight = module.to_out.bias

    def loss(move: float, folder: str) -> dict:
        with torch.no_grad():
            weight[0] += move
        still = SETTINGS.model_copy(update={"learning_rate": 1e-12})
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rewards.json").write_text(json.dumps({"level": [0.0, 1.0]}))
        trained(tmp_path / folder, still, steps=1, denoiser=denoiser)
        gradient = weight.grad
        with torch.no_grad():
            weight[0] -= move
        return {"loss": rows(tmp_path / folder)[0]["loss"], "gradient": gradient}

    gradients: list[float] = []
    hook = weight.register_hook(lambda gradient: gradients.append(float(gradient[0])))
    loss(0.0, "here")
    hook.remove()
    above, below = loss(step, "above")["loss"], loss(-step, "below")["loss"]
    assert sum(gradients) == pytest.approx((above - below) / (2 * step), rel=0.02)


def test_results_do_not_depend_on_how_a_step_is_cut_into_batches(tmp_path: Path) -> None:
    cut = SETTINGS.model_copy(update={"batch_size": 1, "gradient_accumulation_steps": 4})
    trained(tmp_path / "whole")
    trained(tmp_path / "parts", cut)
    for whole, parts in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert [parts[name] for name in ("loss", "grad_norm")] == pytest.approx(
            [whole[name] for name in ("loss", "grad_norm")], rel=1e-3
        )


def test_a_training_that_was_cut_off_ends_with_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = SETTINGS.model_copy(
        update={"checkpoint_every": 2, "trust_region": 0.1, "grad_clip_quantile": 0.5, "ema": 0.9}
    )

    class Stop(Exception):
        pass

    def stops(row: dict) -> None:
        if row["step"] == 3:
            raise Stop

    expected = trained(tmp_path / "whole", settings, 6)
    with pytest.raises(Stop):
        trained(tmp_path / "cut", settings, 6, on_step=stops)
    (scales,) = {path.read_bytes() for path in tmp_path.glob("*/rewards.json")}
    assert capsys.readouterr().err.count("rewards: 5/5") == 2  # their scales, measured once in each training
    resumed = trained(tmp_path / "cut", settings, 6)
    assert "rewards:" not in capsys.readouterr().err
    assert json.loads(scales)["level"][1] > 0
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_gradients_through_the_last_steps_alone_are_others(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"draft_last": 1})
    whole, last = trained(tmp_path / "whole"), trained(tmp_path / "last", settings)
    assert any(not torch.equal(whole[name], last[name]) for name in whole)
    assert rows(tmp_path / "whole")[0]["reward"] == pytest.approx(rows(tmp_path / "last")[0]["reward"], rel=1e-4)


def test_the_trust_region_holds_the_policy_near_its_reference(tmp_path: Path) -> None:
    distances = []
    for weight in (1e-6, 100.0):
        trained(tmp_path / str(weight), SETTINGS.model_copy(update={"trust_region": weight}), steps=12)
        distances.append(rows(tmp_path / str(weight))[-1]["distance"])
    assert distances[1] < 0.5 * distances[0]


def test_real_clips_are_trained_beside_the_reward(tmp_path: Path) -> None:
    denoiser = TinyFlow()
    latents = torch.randn(3, LENGTH, WIDTH, generator=seeded(5, "real"))
    real = PairExamples(latents, None, denoiser.encode_text(TEXTS[:3]))
    examples = with_prior_data(captions(denoiser), real)
    trained(tmp_path, SETTINGS.model_copy(update={"prior_weight": 1.0}), denoiser=denoiser, examples=examples)
    assert rows(tmp_path)[0]["prior_error"] > 0


def test_lora_learns_the_reward_too(tmp_path: Path) -> None:
    trained(tmp_path, SETTINGS.model_copy(update={"lora_rank": 4, "trust_region": 0.01}), steps=20)
    log = rows(tmp_path)
    assert log[-1]["reward"] > log[0]["reward"]
    assert (tmp_path / "adapter").is_dir()


def test_every_scheduler_of_a_model_can_be_trained_through(tmp_path: Path) -> None:
    for name in ("euler", "dpm++", "unipc"):
        trained(tmp_path / name, SETTINGS.model_copy(update={"draft_scheduler": name}), steps=1)
        assert rows(tmp_path / name)[0]["grad_norm"] > 0


@pytest.mark.slow
def test_weights_choose_what_the_reward_follows(tmp_path: Path) -> None:
    low, high = Level(-0.3), Level(0.3)
    low.name, high.name = "low", "high"
    for name, weights in (("low", (1.0, 0.0)), ("high", (0.0, 1.0))):
        settings = SETTINGS.model_copy(update={"draft_weights": weights})
        trained(tmp_path / name, settings, steps=20, scorers=[low, high])
        log = rows(tmp_path / name)
        other = {"low": "high", "high": "low"}[name]
        assert log[-1]["scores"][name] > log[0]["scores"][name]
        assert log[-1]["scores"][other] < log[0]["scores"][other]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"scorers": []}, RecipeError, "needs scorers"),
        ({"settings": SETTINGS.model_copy(update={"draft_weights": (1.0, 2.0)})}, RecipeError, "2 weights for 1"),
        ({"scorers": [type("Plain", (), {"name": "plain"})()]}, RecipeError, "plain has no gradient"),
        ({"examples": PairExamples(torch.zeros(2, LENGTH, WIDTH), None, Conditioning(x=torch.zeros(2, 1)))}, DataError,
         "captions alone"),
    ],
)  # fmt: skip
def test_what_it_cannot_train_is_refused_before_the_first_step(tmp_path: Path, changes, error, words) -> None:
    with pytest.raises(error, match=words):
        trained(tmp_path, **changes)


def test_other_losses_refuse_captions_alone(tmp_path: Path) -> None:
    denoiser = TinyFlow()
    with pytest.raises(DataError, match="captions alone"):
        train(denoiser, captions(denoiser), [Phase(loss="sft")], SETTINGS, 3, tmp_path)


def test_a_scorer_that_tells_nothing_apart_is_refused(tmp_path: Path) -> None:
    class Same(Level):
        def wave_rewards(self, waves: Tensor, rate: int, texts: Sequence[str]) -> Tensor:
            return waves.mean(1) * 0

    with pytest.raises(DataError, match="no scores that differ"):
        trained(tmp_path, scorers=[Same()])


def test_the_fingerprint_of_captions_is_theirs_and_not_of_their_order_of_noise() -> None:
    denoiser = TinyFlow()
    other = CaptionExamples(TEXTS[::-1], denoiser.encode_text(TEXTS[::-1]), (LENGTH, WIDTH), seed=2)
    assert fingerprint(captions(denoiser)) == fingerprint(captions(TinyFlow()))
    assert fingerprint(captions(denoiser)) != fingerprint(other)


@pytest.mark.parametrize("name", ["nano-clap-a", "nano-events"])
def test_rewards_of_waves_are_the_scores_of_their_clips(name: str) -> None:
    from milonga.data.captions import reference, world_prompts

    part, prompts = scorer(name), world_prompts("train", 4)
    clips = [reference(prompt) for prompt in prompts]
    waves = torch.from_numpy(np.stack([clip.waveform for clip in clips])).requires_grad_()
    assert isinstance(part, DifferentiableScorer)
    scores = scorer(name).score(clips, [prompt.text for prompt in prompts])
    rewards = part.wave_rewards(waves, clips[0].rate, [prompt.text for prompt in prompts])
    if (
        name == "nano-events"
    ):  # weighted otherwise, and a score bounds each probability: 24 other sounds cost it a little
        shown = rewards.detach().exp().numpy()
        assert (scores < shown).all()
        assert (shown < scores + 0.15).all()
    else:
        np.testing.assert_allclose(rewards.detach().numpy(), scores, atol=1e-5)
    rewards.sum().backward()
    assert waves.grad is not None
    assert 0 < waves.grad.abs().max() < float("inf")


def test_gradients_pass_vocoder_and_vae_whose_weights_stay_frozen() -> None:
    denoiser = TangoDenoiser.of(pipeline("nano"))
    denoiser.prepare("fp32", denoiser.latent_shape)
    latents = torch.zeros(1, *denoiser.latent_shape, requires_grad=True)
    denoiser.decode(latents).pow(2).mean().backward()
    assert latents.grad is not None
    assert latents.grad.abs().max() > 0
    assert all(value.grad is None for value in denoiser.pipe.vae.parameters())


class Softness:
    """Rewards silence."""

    name = "softness"

    def wave_rewards(self, waves: Tensor, rate: int, texts: Sequence[str]) -> Tensor:
        return -waves.pow(2).mean(1).sqrt()


def test_a_student_is_refined_by_its_own_sampler_without_a_second_pass(tmp_path: Path) -> None:
    denoiser = TangoDenoiser.of(small_networks.pipeline())
    denoiser.add_guidance_input(consistent=True)
    settings = SETTINGS.model_copy(update={"batch_size": 2, "draft_steps": 2, "draft_scheduler": "lcm"})
    scales: list[Tensor] = []
    unet: Any = denoiser.module
    unet.register_forward_pre_hook(lambda _, args, more: scales.append(more["timestep_cond"]), with_kwargs=True)
    examples = CaptionExamples(TEXTS[:2], denoiser.encode_text(TEXTS[:2]), denoiser.latent_shape, seed=2)
    train(denoiser, examples, [Phase(loss="draft", steps=2)], settings, 3, tmp_path, scorers=[Softness()])
    assert len(scales) == 3 * settings.draft_steps  # the rewards' scales, and two steps
    wanted = guidance_embedding(torch.full((2,), settings.train_guidance), GUIDANCE_WIDTH)
    torch.testing.assert_close(scales[0], wanted)
    assert unet.time_embedding.cond_proj.weight.abs().max() > 0  # it began at zero
    first, last = rows(tmp_path)
    assert np.isfinite([first["reward"], last["reward"]]).all()


def test_captions_in_python_are_enough_to_align(tmp_path: Path) -> None:
    config = AlignConfig(output_dir=tmp_path, phases=(Phase(loss="draft"),), save_whole_model=False, draft_steps=2)
    denoiser = TinyFlow()
    AlignTrainer(denoiser, TEXTS, config, scorers=[Level()]).train()
    assert rows(tmp_path)[0]["scores"].keys() == {"level"}


RECIPE = """
name = "drafted"
[train]
batch_size = 2
learning_rate = 1e-4
draft_steps = 1
train_guidance = 2.0
[[train.systems]]
name = "aligned"
data = "captions"
sources = ["world:train:3:multi"]
scorers = ["nano-events"]
phases = [{ loss = "draft", steps = 1 }]
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("nano-events", "nano-judge"), "aligned: scorers: .*the judge"),
        (("nano-events", "events:nano-tagger"), "aligned: scorers: .*the tagger that measures"),
        (('data = "captions"', 'data = "clips"'), "sources and scorers are for captions"),
        (('sources = ["world:train:3:multi"]\n', ""), "prompts.sources is missing"),
        (("draft_steps = 1", "draft_steps = 1\ndraft_last = 2"), "draft_last = 2 is more than draft_steps = 1"),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_refused(change: tuple[str, str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_recipe(RECIPE.replace(*change), "a test")


def test_a_recipe_trains_on_its_captions_without_making_clips_and_exports_what_it_trained(tmp_path: Path) -> None:
    run_recipe(parse_recipe(RECIPE, "a test"), tmp_path, until="train")
    assert (tmp_path / "checkpoints" / "aligned" / "model").is_dir()
    assert not (tmp_path / "generate").exists()
    assert rows_of(tmp_path)[0]["scores"].keys() == {"nano-events"}
    card = (export_system(tmp_path, tmp_path / "small", "aligned", rank=2) / "README.md").read_text()
    for words in ("the gradient of the scorers’ rewards", "`world:train:3:multi`", "rewards: `nano-events`", "1 step "):
        assert words in card


def rows_of(run: Path) -> list[dict]:
    text = (run / "metrics" / "training" / "aligned.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
