"""Checkpoints in the original's layout, loaded and sampled, against the arrays that the original Tango gave."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import original_folder
import pytest
import reference
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file
from torch import Tensor

from milonga.models.original.layout import SCHEDULE, VAE, read_layout
from milonga.models.original.load import blank, fill, load_original, places
from milonga.models.tango import TangoPipeline

FOLDER = reference.TANGO

pytestmark = reference.needed(FOLDER)


@pytest.fixture(scope="module")
def facts() -> Any:
    """What the manifest says, and the rule by which weights and inputs are rebuilt from names."""
    torch.set_num_threads(1)
    rule = reference.rule()
    told = reference.manifest()

    def weights(networks: dict[str, Any], file: str, salt: str = told["weights"]["A"]) -> dict[str, Tensor]:
        wanted = places(networks, file)
        return {k: torch.from_numpy(rule["init_from_key"](k, at.original_shape, salt)) for k, at in wanted.items()}

    def draw(name: str, shape: Any) -> Tensor:
        return torch.from_numpy(rule["draw"](f"{told['prefix']}/{name}", tuple(shape)))

    return SimpleNamespace(**told | {"weights": weights, "draw": draw})


@pytest.fixture(scope="module")
def tiny(facts: Any, tmp_path_factory: pytest.TempPathFactory) -> TangoPipeline:
    """The recorded tiny networks, put into a folder of the original's layout and loaded from it."""
    with pytest.MonkeyPatch.context() as patch:
        original_folder.shrink_vocoder(patch)
        folder = original_folder.write_reference(tmp_path_factory.mktemp("tiny"), FOLDER / "assets", facts.weights)
        made = load_original(folder, FOLDER / "assets" / "tiny-t5")
    made.set_progress_bar_config(disable=True)
    return made.set_scheduler("compat")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(FOLDER / "tiny_unet_sampling.safetensors")


def close(ours: Tensor, theirs: Tensor, atol: float) -> None:
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def test_texts_are_encoded_as_recorded(tiny: TangoPipeline, facts: Any, recorded: dict[str, Tensor]) -> None:
    tokens = tiny.tokenizer(facts.prompts, padding=True, return_tensors="pt")
    assert torch.equal(tokens.input_ids, recorded["encode_text.input_ids"])
    states, mask = tiny.encode_prompt(facts.prompts)
    assert torch.equal(mask, recorded["encode_text.mask"])
    close(states, recorded["encode_text.hidden"], 1e-4)


def test_texts_of_guidance_are_encoded_as_recorded(
    tiny: TangoPipeline, facts: Any, recorded: dict[str, Tensor]
) -> None:
    texts = repeated(facts)
    states, mask = tiny.encode_prompt([*[""] * len(texts), *texts])
    assert torch.equal(mask, recorded["encode_cfg.mask"])
    close(states, recorded["encode_cfg.hidden"], 1e-4)


def repeated(facts: Any) -> list[str]:
    return [words for words in facts.prompts for _ in range(facts.samples_per_prompt)]


def unet_cases() -> list[str]:
    """Names of the recorded answers of the tiny U-Net."""
    return [key for key in reference.keys(FOLDER / "tiny_unet_sampling.safetensors") if key.startswith("unet.out")]


@pytest.mark.parametrize("case", unet_cases())
def test_the_unet_answers_as_recorded(case: str, tiny: TangoPipeline, facts: Any, recorded: dict[str, Tensor]) -> None:
    mask = recorded["unet.ctx_mask"]
    x = facts.draw("tiny/x", recorded[case].shape)
    states = facts.draw("tiny/ctx", (*mask.shape, tiny.unet.config.cross_attention_dim))
    number = case.rpartition("_t")[2]
    step = int(number) if number.isdigit() else torch.tensor(facts.training_timesteps[: len(x)])
    with torch.no_grad():
        given = None if "nomask" in case else mask
        ours = tiny.unet(x, step, encoder_hidden_states=states, encoder_attention_mask=given).sample
    close(ours, recorded[case], 1e-4)


def loops() -> list[str]:
    """Names of the recorded denoising loops, which end in their guidance."""
    found = reference.keys(FOLDER / "tiny_unet_sampling.safetensors")
    return [key.removesuffix(".final") for key in found if key.endswith(".final")]


# All steps take 30 s; the first has both halves of the guidance, and the schedule is compared step by step below.
@pytest.mark.parametrize("until", [1, pytest.param(None, marks=pytest.mark.slow)], ids=["first step", "all steps"])
@pytest.mark.parametrize("case", loops())
def test_sampling_goes_as_recorded(
    case: str,
    until: int | None,
    tiny: TangoPipeline,
    facts: Any,
    recorded: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = tuple(recorded[f"{case}.final"].shape)
    noises = iter([facts.draw(f"loop/noise{number}", shape) for number in range(facts.steps)])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(noises))
    steps, after = [], []

    def watch(_: Any, __: int, step: Tensor, held: dict[str, Any]) -> dict[str, Any]:
        steps.append(int(step))
        after.append(held["latents"])
        if len(steps) == until:
            raise Stopped
        return held

    guidance, init = float(case.rpartition(".g")[2]), facts.draw("loop/init", shape)
    seconds = shape[2] * tiny.compression * tiny.hop / tiny.sampling_rate
    with pytest.raises(Stopped) if until else nullcontext():
        final = tiny.sample(repeated(facts), None, facts.steps, guidance, seconds, latents=init, callback=watch)
    assert steps == recorded[f"{case}.timesteps"].tolist()[:until]
    close(after[0], recorded[f"{case}.after_step0"], 1e-3)
    if until is None:
        close(final, recorded[f"{case}.final"], 1e-3)


class Stopped(Exception):
    """Ends a sampling before its last step."""


@pytest.fixture
def schedule() -> tuple[Any, dict[str, Tensor]]:
    return DDPMScheduler.from_config(SCHEDULE), load_file(FOLDER / "scheduler.safetensors")


def test_the_noise_schedule_is_the_recorded_one(schedule: tuple[Any, dict[str, Tensor]]) -> None:
    ours, theirs = schedule
    close(ours.betas, theirs["betas"], 1e-6)
    close(ours.alphas_cumprod, theirs["alphas_cumprod"], 1e-6)
    config = json.loads((FOLDER / "assets" / "sd21" / "scheduler" / "scheduler_config.json").read_text())
    theirs = DDPMScheduler.from_config(config).config
    assert {key: theirs[key] for key in SCHEDULE} == SCHEDULE


def test_timesteps_are_the_recorded_ones(schedule: tuple[Any, dict[str, Tensor]]) -> None:
    ours, theirs = schedule
    counts = [int(key.split(".")[1]) for key in theirs if key.startswith("timesteps.")]
    assert counts
    for count in counts:
        ours.set_timesteps(count)
        assert torch.equal(ours.timesteps, theirs[f"timesteps.{count}"]), count


def test_steps_are_the_recorded_ones(
    schedule: tuple[Any, dict[str, Tensor]], facts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = schedule
    cases = [key.split(".")[1:3] for key in theirs if key.startswith("step.") and key.endswith(".prev")]
    assert cases
    for count, place in cases:
        shape = theirs[f"step.{count}.{place}.prev"].shape
        v, x, noise = (facts.draw(f"sched/{name}", shape) for name in ("v", "x", "n"))
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, noise=noise, **__: noise)
        ours.set_timesteps(int(count))
        done = ours.step(v, ours.timesteps[int(place)], x)
        close(done.prev_sample, theirs[f"step.{count}.{place}.prev"], 1e-6)
        close(done.pred_original_sample, theirs[f"step.{count}.{place}.x0"], 1e-6)


@pytest.fixture(scope="module")
def sound(facts: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TangoPipeline]:
    """The tiny text encoder and U-Net with the full-size VAE and vocoder of the recorded weights."""
    folder = original_folder.write_reference(
        tmp_path_factory.mktemp("full"), FOLDER / "assets", facts.weights, FOLDER / "layouts" / "configs"
    )
    yield load_original(folder, FOLDER / "assets" / "tiny-t5")
    (folder / VAE).unlink()


def sixteen_bit(waves: Tensor) -> Tensor:
    return (waves.double() * 32768).clamp(-32768, 32767).trunc().int()


def assert_sounds(ours: Tensor, floats: Tensor | None, whole: Tensor) -> None:
    """Waveforms within 1e-4 and 16-bit values within 8; where the original wrapped full scale, its sign is mended."""
    if floats is not None:
        close(ours, floats.reshape(ours.shape), 1e-4)
    gap = (sixteen_bit(ours) - whole.reshape(ours.shape).int()).abs()
    assert int(torch.minimum(gap, (65536 - gap).abs()).max()) <= 8


@pytest.mark.slow
def test_the_vae_encodes_and_decodes_as_recorded(sound: TangoPipeline, facts: Any) -> None:
    recorded = load_file(FOLDER / "vae_vocoder.safetensors")
    factor = sound.vae.config.scaling_factor
    for name in facts.vae_names:
        mean = recorded[f"encode.{name}.mean"]
        batch, _, rows, columns = mean.shape
        mel = -4.63 + 2.74 * facts.draw(f"vae/mel/{name}", (batch, 1, rows * 4, columns * 4))
        with torch.no_grad():
            found = sound.vae.encode(mel.clamp(min=torch.tensor(1e-5).log().item())).latent_dist
        close(found.mean, mean, 1e-4)
        close(found.logvar, recorded[f"encode.{name}.logvar"], 1e-4)
        drawn = factor * (found.mean + (found.logvar / 2).exp() * facts.draw(f"vae/eps/{name}", mean.shape))
        close(drawn, recorded[f"encode.{name}.latent_scaled"], 1e-4)
        assert_decodes(sound, facts, recorded, name)


def assert_decodes(sound: TangoPipeline, facts: Any, recorded: dict[str, Tensor], name: str) -> None:
    mel, whole = recorded[f"decode.{name}.mel"], recorded[f"decode.{name}.wave_int16"]
    latents = facts.draw(f"vae/latent/{name}", (len(mel), 8, mel.shape[2] // 4, mel.shape[3] // 4))
    with torch.no_grad():
        close(sound.vae.decode(latents / sound.vae.config.scaling_factor).sample, mel, 1e-4)
    seconds = whole.shape[-1] / sound.sampling_rate
    assert_sounds(sound.decode(latents, seconds), recorded[f"decode.{name}.wave_float"], whole)


@pytest.mark.slow
def test_the_vocoder_sounds_as_recorded(sound: TangoPipeline, facts: Any) -> None:
    recorded = load_file(FOLDER / "vae_vocoder.safetensors")
    for name in [key.split(".")[1] for key in recorded if key.startswith("vocoder.") and key.endswith("float")]:
        floats, whole = recorded[f"vocoder.{name}.wave_float"], recorded[f"vocoder.{name}.wave_int16"]
        mel = -4.63 + 2.74 * facts.draw(f"voc/mel/{name}", (len(whole), 64, whole.shape[-1] // 160))
        with torch.no_grad():
            assert_sounds(sound.vocoder(mel.transpose(1, 2)).reshape(whole.shape), floats, whole)


@pytest.mark.slow
def test_a_whole_clip_sounds_as_recorded(sound: TangoPipeline, recorded: dict[str, Tensor]) -> None:
    theirs = load_file(FOLDER / "e2e_decode.safetensors")
    guided = max(loops(), key=lambda case: float(case.rpartition(".g")[2]))
    latents = recorded[f"{guided}.final"][:1]
    with torch.no_grad():
        mel = sound.vae.decode(latents / sound.vae.config.scaling_factor).sample
    close(mel, theirs["mel"], 2e-4)
    assert_sounds(
        sound.decode(latents, theirs["wave_int16"].shape[-1] / sound.sampling_rate), None, theirs["wave_int16"]
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 40 s of one core; a crowded machine takes its time
def test_the_full_size_networks_answer_as_recorded(facts: Any, tmp_path: Path) -> None:
    recorded = load_file(FOLDER / "full_size_nets.safetensors")
    layout = read_layout(original_folder.write_published(tmp_path, FOLDER / "layouts" / "configs"))
    networks = blank(layout)
    fill(networks, "main", facts.weights(networks, "main"))
    with torch.no_grad():
        ids, mask = recorded["flan_t5_large.input_ids"], recorded["flan_t5_large.attention_mask"]
        hidden = networks["text_encoder"](input_ids=ids, attention_mask=mask).last_hidden_state
        close(hidden, recorded["flan_t5_large.hidden"], 2e-3)
        gap = (hidden - recorded["flan_t5_large.hidden"]).pow(2).mean().sqrt()
        assert gap / recorded["flan_t5_large.hidden"].pow(2).mean().sqrt() < 5e-4
        x = facts.draw("full/x", facts.full_unet_latent_shape)
        states = facts.draw("full/ctx", facts.full_unet_text_shape)
        step, seen = recorded["unet_full.timestep"], recorded["unet_full.ctx_mask"]
        answer = networks["unet"](x, step, encoder_hidden_states=states, encoder_attention_mask=seen).sample
    close(answer, recorded["unet_full.out"], 2e-4)
