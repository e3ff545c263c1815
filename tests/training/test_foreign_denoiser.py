"""A backbone of one's own: a flow-matching transformer with latents (L, D) and its own conditioning, in this file.

It is sampled, fine-tuned, aligned, interrupted and resumed, saved, loaded and evaluated by the code that serves Tango.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import milonga
from milonga.core.audio import write_audio
from milonga.core.errors import RecipeError
from milonga.core.records import Clip, Prompt, Request
from milonga.core.store import Run
from milonga.data.encode import encode_captions
from milonga.data.examples import PairExamples
from milonga.models.denoiser import Conditioning, Denoiser, Posterior, Process, module_hash
from milonga.models.editing import SPLICE, edit, noise_levels
from milonga.models.generator import DenoiserModel, generator_of
from milonga.models.load import load, load_denoiser
from milonga.models.schedulers import prepare_scheduler, scheduler_named
from milonga.training.align import AlignConfig, AlignTrainer
from milonga.training.trainer import TrainerCallback

torch.set_num_threads(1)
LENGTH, WIDTH, HOP, RATE = 8, 4, 16, 2000
WORDS = ("a dog barks", "a bell rings twice", "rain", "a dog barks then a bell rings")


class TinyDiT(nn.Module):
    """Noisy latents (B, L, D), times (B,), caption bytes (B, T, 1) with their mask, and seconds (B,) to a flow."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.entry, self.caption, self.time = nn.Linear(WIDTH, hidden), nn.Linear(1, hidden), nn.Linear(2, hidden)
        self.block = nn.TransformerEncoderLayer(hidden, 2, 32, dropout=0.1, batch_first=True)
        self.to_out = nn.Linear(hidden, WIDTH)

    def forward(self, x: Tensor, times: Tensor, caption: Tensor, mask: Tensor, seconds: Tensor) -> Tensor:
        clock = self.time(torch.stack([times.float() / 1000, seconds.float()], dim=1))[:, None]
        tokens = torch.cat([self.entry(x) + clock, self.caption(caption)], dim=1)
        hidden_tokens = torch.cat([torch.zeros(x.shape[:2], dtype=torch.bool), ~mask], dim=1)
        return self.to_out(self.block(tokens, src_key_padding_mask=hidden_tokens)[:, : x.shape[1]])


class TinyFlow:
    """A `Denoiser` whose autoencoder folds a waveform into latents, without noise, and unfolds them again."""

    latent_shape, latent_scale, sampling_rate = (LENGTH, WIDTH), 2.0, RATE
    lora_targets = ("to_out", "linear1")
    time_axis = 0
    others = ()  # what encodes here has no weights

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module: nn.Module = TinyDiT().eval()
        self.process = Process.flow(shift=2.0)
        self.empty = self.encode_text([""])
        self.fingerprint = "tiny-flow"

    @property
    def fsdp_blocks(self) -> Sequence[nn.Module]:
        return [self.module.block]  # type: ignore[list-item]

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        rows = []
        for text in captions:
            caption = torch.tensor([ord(letter) / 128 for letter in text or " "])[None, :, None]
            mask = torch.ones(caption.shape[:2], dtype=torch.bool)
            rows.append(Conditioning(caption=caption, mask=mask, seconds=torch.tensor([len(text) / 10])))
        return Conditioning.concat(rows)

    def prepare_waveform(self, clip: Clip, legacy: bool = False) -> Tensor:
        samples = LENGTH * WIDTH * HOP
        return torch.from_numpy(np.resize(clip.waveform, samples).astype(np.float32))

    def encode_audio(self, waves: Sequence[Tensor]) -> Posterior:
        mean = torch.stack([wave.reshape(LENGTH, WIDTH, HOP).mean(2) for wave in waves])
        return Posterior(mean, torch.full_like(mean, -torch.inf), self.latent_scale)

    def decode(self, latents: Tensor) -> Tensor:
        waves = (latents / self.latent_scale).reshape(len(latents), -1, 1).expand(-1, -1, HOP)
        return waves.reshape(len(latents), -1).clamp(-1, 1).cpu()

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, network=None) -> Tensor:
        call = self.module if network is None else network
        return call(noisy, timesteps, conditioning["caption"], conditioning["mask"], conditioning["seconds"])

    def prepare(self, precision: str, shape: Sequence[int]) -> None:
        assert tuple(shape) == self.latent_shape

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights or self.module.state_dict(), folder / "dit.safetensors")

    def load(self, folder: Path) -> None:
        self.module.load_state_dict(load_file(folder / "dit.safetensors"))

    def save_model(self, folder: Path) -> None:
        self.save(folder / "transformer")

    @classmethod
    def load_model(cls, folder: Path) -> "TinyFlow":
        denoiser = cls()
        denoiser.load(folder / "transformer")
        return denoiser


def examples(count: int = 8, seed: int = 0) -> PairExamples:
    stream = torch.Generator().manual_seed(seed)
    winner, loser = torch.randn(2, count, LENGTH, WIDTH, generator=stream).unbind(0)
    captions = TinyFlow().encode_text([WORDS[place % len(WORDS)] for place in range(count)])
    return PairExamples(winner + 0.5, loser - 0.5, captions, groups=["1", "2"] * (count // 2))


def config(folder: Path, **changes) -> AlignConfig:
    settings = {"batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 3e-3, "checkpoint_every": 2}
    settings |= {"caption_dropout": 0.3, "ema": 0.5, "phases": ["sft:1", "dpo:3"], "beta": 200, "seed": 3}
    return AlignConfig(output_dir=folder, **settings | changes)


def requests(count: int = 3) -> list[Request]:
    prompts = [Prompt.of(text, "test") for text in WORDS[:count]]
    return [Request.of(1, prompt, prompt.text, 4, 3.0) for prompt in prompts]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "training" / "model" / "dit.safetensors")


def stop_at(step: int) -> TrainerCallback:
    class Stop(TrainerCallback):
        def on_step(self, row: dict) -> None:
            if row["step"] == step:
                raise KeyboardInterrupt

    return Stop()


def test_it_is_a_denoiser() -> None:
    assert isinstance(TinyFlow(), Denoiser)


def test_it_is_sampled_alone_as_in_a_batch_and_guided_by_its_own_conditioning() -> None:
    model = generator_of("tiny", TinyFlow())
    clips = model.generate(requests())
    assert [clip.waveform.shape for clip in clips] == [(LENGTH * WIDTH * HOP,)] * 3
    assert clips[0].latents is not None
    assert clips[0].latents.shape == (LENGTH, WIDTH)
    (alone,) = model.generate(requests()[1:2])
    np.testing.assert_allclose(alone.waveform, clips[1].waveform, atol=1e-5)
    unguided = model.generate([requests()[0].model_copy(update={"guidance": 1.0})])[0]
    assert np.abs(unguided.waveform - clips[0].waveform).max() > 1e-4


def test_it_is_edited_and_makes_long_clips_by_each_of_its_samplers(tmp_path: Path) -> None:
    denoiser, rate = TinyFlow(), 2 * RATE
    samples = 0.3 * np.random.default_rng(0).standard_normal((rate, 2)).clip(-3, 3)
    for scheduler in ("euler", "dpm++", "unipc"):
        denoiser.process = Process.of(scheduler_named(scheduler, denoiser.process.scheduler.config))
        edited = edit(denoiser, samples, rate, "rain", region=(0.3, 0.6), steps=4, guidance=3.0, seeds=[1, 2])
        places = np.flatnonzero((edited != samples).any(axis=(0, 2)))
        assert 0.3 - SPLICE - 1 / rate <= places[0] / rate <= places[-1] / rate <= 0.6 + SPLICE
        assert np.abs(edited[0] - edited[1]).max() > 0.01
        assert np.array_equal(edit(denoiser, samples, rate, "rain", strength=0, steps=4, guidance=3.0)[0], samples)
        assert np.isfinite(edit(denoiser, samples, rate, "rain", extend=1.0, steps=4, guidance=3.0)).all()
        prepared = prepare_scheduler(denoiser.process.scheduler, 4)
        for step, (share, spread) in zip(prepared.timesteps, noise_levels(prepared, denoiser.process), strict=False):
            assert share + spread == pytest.approx(1)
            assert float(step) == pytest.approx(1000 * spread, abs=1)
    model = DenoiserModel("tiny", TinyFlow(), seconds=1.0)
    long = model.generate(requests(2), negative="a bell")
    assert [clip.waveform.shape for clip in long] == [(RATE,)] * 2
    np.testing.assert_allclose(
        model.generate(requests(2)[1:], negative="a bell")[0].waveform, long[1].waveform, atol=1e-5
    )
    assert np.abs(model.generate(requests(2))[0].waveform - long[0].waveform).max() > 1e-4
    TinyFlow().save_model(tmp_path / "model")
    loaded = load(f"{__name__}:TinyFlow@{tmp_path / 'model'}", "dpm++", 1.0)
    assert type(loaded.denoiser.process.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert loaded.generate(requests(1))[0].waveform.shape == (RATE,)
    parts = [(0.0, 0.5, "rain"), (0.5, 1.5, "a dog barks")]
    assert model.generate(requests(1), timeline=parts)[0].waveform.shape == (1.5 * RATE,)


def test_every_tensor_of_the_conditioning_is_stored_and_read_back(tmp_path: Path) -> None:
    denoiser = TinyFlow()
    encoded = encode_captions(denoiser, Run(tmp_path), WORDS)(WORDS[:2])
    direct = denoiser.encode_text(WORDS[:2])
    assert encoded.keys() == direct.keys() == {"caption", "mask", "seconds"}
    assert all(torch.equal(encoded[name], direct[name]) for name in direct)
    stored = encode_captions(denoiser, Run(tmp_path), WORDS)(WORDS[:2])
    assert all(torch.equal(stored[name], direct[name]) for name in direct)


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "LoRA"])
def test_it_is_fine_tuned_and_aligned_and_its_output_folder_is_a_whole_model(rank: int, tmp_path: Path) -> None:
    if rank:
        pytest.importorskip("peft")
    rows: list[dict] = []

    class Rows(TrainerCallback):
        def on_step(self, row: dict) -> None:
            rows.append(row)

    denoiser, before = TinyFlow(), module_hash(TinyFlow().module)
    more = {"lora_rank": rank, "val_fraction": 0.25, "caption_dropout": 0.0}
    trainer = AlignTrainer(denoiser, examples(), config(tmp_path / "out", **more), callbacks=[Rows()])
    assert trainer.train() == tmp_path / "out"
    assert {row["phase"] for row in rows} == {"sft", "dpo"}
    assert rows[-1]["margin"] > 0
    assert rows[-1]["val_accuracy"] is not None
    tuned = load_denoiser(f"{__name__}:TinyFlow@{tmp_path / 'out'}")
    assert module_hash(tuned.module) == module_hash(denoiser.module) != before
    assert (tmp_path / "out" / "adapter").is_dir() == bool(rank)
    exported = trainer.save_model(tmp_path / "exported")
    generated = load(f"{__name__}:TinyFlow@{exported}").generate(requests())
    assert np.array_equal(generated[0].waveform, generator_of("x", denoiser).generate(requests())[0].waveform)
    assert trainer.train() == tmp_path / "out"  # finished: nothing is trained again
    assert len(rows) == rows[-1]["step"]


def test_a_run_that_trained_it_is_loaded_by_its_system(tmp_path: Path) -> None:
    run, tuned = tmp_path / "run", TinyFlow(seed=1)
    TinyFlow().save_model(tmp_path / "model")
    tuned.save(run / "checkpoints" / "aligned" / "model")
    (run / "recipe.toml").touch()
    base = f"{__name__}:TinyFlow@{tmp_path / 'model'}"
    (run / "manifest.json").write_text(json.dumps({"recipe": {"models": {"model": base}}}))
    model = milonga.load(str(run / "aligned"), scheduler="dpm++")
    assert module_hash(model.denoiser.module) == module_hash(tuned.module) != module_hash(TinyFlow().module)
    assert type(model.denoiser.process.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert milonga.load(str(run / "aligned")).denoiser is not milonga.load(str(run / "aligned")).denoiser


@pytest.mark.parametrize("option", [{"dtype": "bfloat16"}, {"revision": "main"}, {"tokenizer": "folder"}])
def test_options_that_its_class_does_not_take_are_refused(option: dict[str, str], tmp_path: Path) -> None:
    TinyFlow().save_model(tmp_path / "model")
    with pytest.raises(RecipeError, match="loaded by its own class: leave revision, tokenizer and dtype out"):
        milonga.load(f"{__name__}:TinyFlow@{tmp_path / 'model'}", **option)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"reference": "cached", "noise_samples_per_pair": 2}], ids=["copy", "cached"])
def test_it_is_resumed_bit_for_bit(changes: dict, tmp_path: Path) -> None:
    AlignTrainer(TinyFlow(), examples(), config(tmp_path / "whole", **changes)).train()
    with pytest.raises(KeyboardInterrupt):
        AlignTrainer(TinyFlow(), examples(), config(tmp_path / "cut", **changes), callbacks=[stop_at(5)]).train()
    AlignTrainer(TinyFlow(), examples(), config(tmp_path / "cut", **changes)).train(resume_from_checkpoint=True)
    ours, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow  # a new process takes 10 s; test_resume.py kills one that trains a U-Net
def test_killed_by_the_system_it_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    AlignTrainer(TinyFlow(), examples(), config(tmp_path / "whole")).train()
    program = [sys.executable, __file__, str(tmp_path / "cut"), "5"]
    done = subprocess.run(program, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    AlignTrainer(TinyFlow(), examples(), config(tmp_path / "cut")).train()
    ours, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_model_may_be_the_reference_and_metrics_are_computed_each_epoch(tmp_path: Path) -> None:
    rows: list[dict] = []

    class Rows(TrainerCallback):
        def on_epoch_end(self, row: dict) -> None:
            rows.append(row)

    def loudness(model) -> dict[str, float]:
        return {"rms": float(np.mean([clip.waveform.std() for clip in model.generate(requests(2))]))}

    AlignTrainer(
        TinyFlow(), examples(), config(tmp_path, phases=["dpo:2"]), ref_model=TinyFlow(seed=1), callbacks=[Rows()],
        compute_metrics=loudness,
    ).train()  # fmt: skip
    assert len(rows) == 2
    assert all(row["samples"]["rms"] > 0 for row in rows)
    assert rows[0]["distance"] > 1e-3  # the reference is another network from the start


def test_without_resuming_it_is_trained_again(tmp_path: Path) -> None:
    AlignTrainer(TinyFlow(), examples(), config(tmp_path, phases=["sft:1"])).train()
    first = weights(tmp_path)
    changed = config(tmp_path, phases=["sft:2"])
    AlignTrainer(TinyFlow(), examples(), changed).train(resume_from_checkpoint=False)
    assert not torch.equal(first["to_out.weight"], weights(tmp_path)["to_out.weight"])


def test_its_clips_are_evaluated_like_any_others(tmp_path: Path) -> None:
    model = generator_of("tiny", TinyFlow())
    prompts = [Prompt.of(f"{text} {place}", "test") for place in range(3) for text in WORDS]
    clips = model.generate([Request.of(1, prompt, prompt.text, 2, 1.0) for prompt in prompts])
    stream = np.random.default_rng(0)
    for place, clip in enumerate(clips):
        noise = (0.1 * stream.standard_normal(4000)).astype(np.float32)
        write_audio(tmp_path / "tiny" / f"{place}.wav", clip, {})
        write_audio(tmp_path / "real" / f"{place}.wav", Clip(noise, RATE), {})
    result = milonga.evaluate(tmp_path / "tiny", reference=tmp_path / "real", weights="nano", resamples=20)
    assert {row.system for row in result.summaries} >= {"tiny"}


def main(folder: Path, step: int) -> None:
    """Trains in `folder` until this process kills itself."""

    class Kill(TrainerCallback):
        def on_step(self, row: dict) -> None:
            if row["step"] == step:
                os.kill(os.getpid(), signal.SIGKILL)

    AlignTrainer(TinyFlow(), examples(), config(folder), callbacks=[Kill()]).train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
