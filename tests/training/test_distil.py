"""Distillation: what is consistent has no error, draws are each example's own, and a student passes once a step."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from test_foreign_denoiser import TinyFlow
from test_foreign_denoiser import examples as flow_examples
from tiny_training import SHAPE, model, pairs
from torch import Tensor, nn

from milonga.core.config import Phase, Settings
from milonga.core.errors import RecipeError
from milonga.core.records import Prompt, Request
from milonga.data.examples import PairExamples
from milonga.maths.losses import Errors, pseudo_huber
from milonga.maths.noise import add_noise, clean_and_noise, noise_between, target
from milonga.models.denoiser import Conditioning, Process
from milonga.models.generator import DenoiserModel, TangoModel
from milonga.models.load import pipeline, system
from milonga.models.schedulers import POINTS, prepare_scheduler, scheduler_named
from milonga.models.tango_denoiser import GUIDANCE_WIDTH, STUDENT_STEPS, TangoDenoiser, guidance_embedding
from milonga.training.align import AlignConfig, AlignTrainer
from milonga.training.distil import DistilStep
from milonga.training.distributed import Ranks
from milonga.training.reference import FrozenCopy
from milonga.training.schedule import loss_spec
from milonga.training.trainer import train

PREDICTIONS: tuple[Any, ...] = ("epsilon", "v_prediction", "flow_prediction")
SETTINGS = Settings(batch_size=2, gradient_accumulation_steps=2, learning_rate=3e-3, ema=0.5, snr_gamma=5.0)
DISTIL = (Phase(loss="distil", steps=4),)
GUIDANCE = loss_spec("distil-guidance")


class PointMass:
    """The exact denoiser of data that are one clip: all paths end there, so every network in its place is consistent.

    It is off by `error` in its prediction where the conditioning says so.
    """

    guidance_input = True

    def __init__(self, process: Process, clip: Tensor) -> None:
        self.process, self.clip = process, clip
        self.module = nn.Linear(1, 1)
        self.empty = Conditioning(word=torch.zeros(1))
        self.seen: list[Conditioning] = []

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, network: Any = None) -> Tensor:
        self.seen.append(conditioning)
        shown = self.process.shown(torch.arange(len(self.process))).double()
        steps = (timesteps.double()[:, None] - shown).abs().argmin(1)
        return self.process.target_between(noisy, self.clip.expand_as(noisy), steps)


def process_of(prediction: str) -> Process:
    if prediction == "flow_prediction":
        return Process.flow(shift=2.0)
    return Process.of(DDIMScheduler(prediction_type=prediction, beta_schedule="scaled_linear"))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_prediction_says_what_noisy_latents_consist_of(prediction: Any) -> None:
    stream = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 6, 3, 4, generator=stream, dtype=torch.float64).unbind(0)
    levels = torch.tensor([0.999, 0.9, 0.5, 0.2, 0.05, 0.01], dtype=torch.float64)
    noisy = add_noise(clean, noise, levels, prediction)
    parts = clean_and_noise(noisy, target(clean, noise, levels, prediction), levels, prediction)
    torch.testing.assert_close(parts, (clean, noise))
    torch.testing.assert_close(noise_between(noisy, clean, levels, prediction), noise)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_whose_paths_all_end_in_one_clip_has_no_error(prediction: Any) -> None:
    clip = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    denoiser: Any = PointMass(process_of(prediction), clip)
    words = Conditioning(word=torch.arange(1.0, 65))
    data = PairExamples(clip.repeat(64, 1, 1, 1), None, words)
    parts = (denoiser, denoiser.module, FrozenCopy(denoiser.module), data, SETTINGS, 0, Ranks(), DISTIL[0])
    step = DistilStep(*parts)
    keys = [("pair", 0, row) for row in range(64)]
    noisy = step._noised(data.batch(range(64), 0), keys, False, loss_spec("distil"))
    assert noisy.errors().max() < 1e-5
    assert len(noisy.timesteps.unique()) > POINTS // 2

    # The teacher is asked without words and with them, and not told the scale; the student is, alone.
    teacher, student = denoiser.seen[0], denoiser.seen[1]
    assert teacher["word"].tolist() == [0.0] * 64 + words["word"].tolist()
    assert "guidance" not in teacher
    low, high = SETTINGS.distil_guidance
    assert low <= student["guidance"].min() < 2
    assert high >= student["guidance"].max() > 5
    assert torch.equal(noisy.conditioning["guidance"], student["guidance"])

    # A clip elsewhere is an error at the first point, where the clip itself is the target, and at no other.
    moved = PairExamples(clip.repeat(64, 1, 1, 1) + 1, None, words)
    batch = moved.batch(range(64), 0)
    errors = step._noised(batch, keys, False, loss_spec("distil")).errors()
    first = noisy.timesteps == noisy.timesteps.min()
    assert first.any()
    assert (errors[first] > 0.1).all()
    assert errors[~first].max() < 1e-5


class Words(PointMass):
    """Predicts the number that its words are, everywhere."""

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, network: Any = None) -> Tensor:
        return conditioning["word"].reshape(-1, 1, 1, 1).expand_as(noisy)


def test_guidance_is_distilled_at_all_timesteps_and_scales() -> None:
    clip = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    denoiser: Any = Words(process_of("v_prediction"), clip)
    words = torch.arange(1.0, 65)
    data = PairExamples(clip.repeat(64, 1, 1, 1), None, Conditioning(word=words))
    parts = (denoiser, denoiser.module, FrozenCopy(denoiser.module), data, SETTINGS, 0, Ranks(), DISTIL[0])
    step = DistilStep(*parts)
    noisy = step._noised(data.batch(range(64), 0), [("pair", 0, row) for row in range(64)], False, GUIDANCE)
    wanted = (noisy.conditioning["guidance"] * words).reshape(-1, 1, 1, 1)  # u + g·(c − u), where u is 0
    torch.testing.assert_close(noisy.target, wanted.expand_as(noisy.target))
    assert len(noisy.timesteps.unique()) > 55  # any of a thousand


def test_the_pseudo_huber_loss_grows_as_the_root_of_the_error() -> None:
    losses = pseudo_huber(Errors(torch.tensor([0.0, 1.0, 4.0])))
    assert losses.tolist() == pytest.approx([0.0, 1 - 0.00054, 2 - 0.00054], abs=1e-6)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def weights_after(folder: Path, settings: Settings, phases: Any = DISTIL, **more: Any) -> dict[str, Tensor]:
    denoiser = model()
    denoiser.add_guidance_input(consistent=True)
    train(denoiser, pairs(), phases, settings, 7, folder, **more)
    return denoiser.module.state_dict()


def test_a_training_is_the_same_in_other_batches_and_after_a_stop(tmp_path: Path) -> None:
    reference = weights_after(tmp_path / "a", SETTINGS)
    assert reference["time_embedding.cond_proj.weight"].abs().max() > 0
    whole = SETTINGS.model_copy(update={"batch_size": 4, "gradient_accumulation_steps": 1})
    weights_after(tmp_path / "b", whole)
    losses = [row["loss"] for row in rows(tmp_path / "a")]
    assert losses[0] == pytest.approx(rows(tmp_path / "b")[0]["loss"], rel=1e-5)
    assert losses == pytest.approx([row["loss"] for row in rows(tmp_path / "b")], rel=1e-2)  # AdamW widens rounding

    def stop(row: dict) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    often = SETTINGS.model_copy(update={"checkpoint_every": 2})
    with pytest.raises(KeyboardInterrupt):
        weights_after(tmp_path / "c", often, on_step=stop)
    resumed = weights_after(tmp_path / "c", often)
    assert all(torch.equal(resumed[name], value) for name, value in reference.items())
    huber = weights_after(tmp_path / "d", SETTINGS, (Phase(loss="distil-huber", steps=4),))
    assert not torch.equal(huber["conv_in.weight"], reference["conv_in.weight"])


def test_the_input_for_the_guidance_has_no_effect_at_first(tmp_path: Path) -> None:
    denoiser = model()
    denoiser.module.eval()
    batch = pairs().batch(range(3), 0)
    steps = torch.tensor([5, 50, 99])
    before = denoiser.predict(batch.winner, steps, batch.conditioning)
    assert not denoiser.guidance_input
    denoiser.add_guidance_input(consistent=True)
    assert denoiser.guidance_input
    told = Conditioning(batch.conditioning, guidance=torch.tensor([1.0, 3.0, 6.0]))
    assert torch.equal(denoiser.predict(batch.winner, steps, told), before)
    nn.init.ones_(denoiser.module.time_embedding.cond_proj.weight)
    assert not torch.equal(denoiser.predict(batch.winner, steps, told), before)

    # diffusers' own pipelines embed the scale alike, and load what is saved.
    from diffusers import LatentConsistencyModelPipeline

    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([2.0]), GUIDANCE_WIDTH)
    torch.testing.assert_close(guidance_embedding(torch.tensor([3.0]), GUIDANCE_WIDTH), theirs, rtol=0, atol=1e-3)
    denoiser.save(tmp_path / "unet")
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert loaded.config["time_cond_proj_dim"] == GUIDANCE_WIDTH
    assert torch.equal(loaded.time_embedding.cond_proj.weight, denoiser.module.time_embedding.cond_proj.weight)


@pytest.mark.parametrize(
    ("losses", "sampler"),
    [(["distil"], "LCM"), pytest.param(["distil-guidance"], "UniPCMultistep", marks=pytest.mark.slow)],
)
def test_a_student_of_nano_passes_once_a_step_and_is_saved_whole(
    losses: list[str], sampler: str, tmp_path: Path
) -> None:
    pipe: Any = pipeline("nano")
    denoiser = TangoDenoiser.of(pipe)
    words = ["a dog barks", "rain"]
    latents = torch.randn(2, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    data = PairExamples(latents, None, denoiser.encode_text(words))
    config = AlignConfig(
        output_dir=tmp_path / "student", phases=[Phase(loss=loss, steps=1) for loss in losses], batch_size=2
    )
    AlignTrainer(pipe, data, config).train()
    student: Any = pipeline(str(tmp_path / "student"))
    assert student.config["steps"] == STUDENT_STEPS
    assert type(student.scheduler).__name__ == f"{sampler}Scheduler"
    chosen = TangoModel("student", pipeline(str(tmp_path / "student")), scheduler="ddim").pipeline
    assert type(chosen.scheduler).__name__ == ("DDIMScheduler" if sampler != "LCM" else "LCMScheduler")

    sizes, forward = [], student.unet.forward

    def counted(sample: Tensor, *args: Any, **more: Any) -> Any:
        sizes.append(len(sample))
        return forward(sample, *args, **more)

    student.unet.forward = counted
    both = student.sample(words, [1, 2], 2, 3.0)
    assert sizes == [2, 2]
    torch.testing.assert_close(student.sample(words[1:], [2], 2, 3.0), both[1:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(student.sample(words[1:], [2], 2, 5.0), both[1:], atol=1e-4)
    with pytest.raises(RecipeError, match="no second pass"):
        student.sample(words, [1, 2], 2, 3.0, negative="hiss")

    # The editing canvas gives the same clips by the protocol.
    student.unet.forward = forward
    whole = TangoModel("student", student)
    edited = DenoiserModel("student", whole.denoiser)
    request = Request.of(0, Prompt.of(words[0], "test"), words[0], 2, 3.0)
    one, other = whole.generate([request])[0], edited.generate([request])[0]
    np.testing.assert_allclose(one.latents, other.latents, atol=1e-4)


def test_a_flow_is_distilled_at_one_scale_and_sampled_by_its_own_scheduler(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no input for the guidance scale"):
        train(TinyFlow(), flow_examples(), DISTIL, SETTINGS, 0, tmp_path / "a")
    denoiser: Any = TinyFlow()
    before = denoiser.module.to_out.bias.clone()
    at_one = SETTINGS.model_copy(update={"distil_guidance": (3.0, 3.0)})
    train(denoiser, flow_examples(), DISTIL, at_one, 0, tmp_path / "b")
    log = rows(tmp_path / "b")
    assert len(log) == 4
    assert all(row["loss"] > 0 for row in log)
    assert not torch.equal(denoiser.module.to_out.bias, before)
    scheduler = scheduler_named("lcm", denoiser.process.scheduler.config)
    prepared = prepare_scheduler(scheduler, 4)
    assert prepared.timesteps[0] == 1000
    assert len(prepared.timesteps) == 4


def test_what_cannot_be_distilled_is_refused(tmp_path: Path) -> None:
    cached = SETTINGS.model_copy(update={"reference": "cached", "noise_samples_per_pair": 1})
    for settings in (cached, SETTINGS.model_copy(update={"lora_rank": 2})):
        with pytest.raises(RecipeError, match="asks its teacher at each step"):
            weights_after(tmp_path / "a", settings)
    with pytest.raises(ValueError, match="the least guidance first"):
        Settings(distil_guidance=(5.0, 2.0))
    scheduler = scheduler_named("lcm", DDIMScheduler().config)
    assert prepare_scheduler(scheduler, 2).timesteps.tolist() == [999, 499]
    with pytest.raises(RecipeError, match="1 to 50 steps"):
        prepare_scheduler(scheduler, 51)
    with pytest.raises(RecipeError):
        system("no-such-student")
