"""The pipeline: a clip depends on its own words, seed and settings alone, and every mistake is told in one line."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import small_networks
import torch
from diffusers import DPMSolverMultistepScheduler
from small_networks import SECONDS, WORDS

from milonga.core.errors import DataError, MilongaError, RecipeError
from milonga.core.ids import clip_seed
from milonga.core.records import Prompt, Request
from milonga.models.generator import TangoModel
from milonga.models.schedulers import SCHEDULERS
from milonga.models.tango import TangoPipeline

SAMPLES = round(SECONDS * 16000)
CLOSE = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(scope="module")
def pipeline() -> TangoPipeline:
    return small_networks.pipeline()


def request(words: str, steps: int = 2, guidance: float = 3.0, number: int = 0) -> Request:
    return Request.of(7, Prompt.of(words, "test"), words, steps, guidance, number)


def waves(model: TangoModel, requests: list[Request]) -> dict[str, np.ndarray]:
    clips = model.generate(requests)
    return {one.id: clip.waveform for one, clip in zip(requests, clips, strict=True)}


@pytest.mark.parametrize(
    "scheduler", [pytest.param(one, marks=() if one in ("ddim", "unipc") else pytest.mark.slow) for one in SCHEDULERS]
)
def test_a_clip_is_the_same_alone_in_a_batch_of_seven_in_any_order_and_beside_other_steps(scheduler: str) -> None:
    model = TangoModel("tiny", small_networks.pipeline(), scheduler)
    seven = [request(WORDS[n % len(WORDS)], number=n // len(WORDS)) for n in range(7)]
    together = waves(model, seven)
    assert min(np.ptp(wave) for wave in together.values()) > 0.01
    turned = waves(model, seven[::-1])
    model.generate([request(one.words, steps=5) for one in seven])
    for one in seven:
        np.testing.assert_allclose(waves(model, [one])[one.id], together[one.id], **CLOSE)
        np.testing.assert_allclose(turned[one.id], together[one.id], **CLOSE)


def test_a_clip_depends_on_its_words_seed_steps_and_guidance(pipeline: TangoPipeline) -> None:
    usual = {"prompt": "a dog barks", "seeds": [1], "num_inference_steps": 2, "guidance_scale": 3.0}
    first = pipeline(**usual).audios
    assert np.array_equal(pipeline(**usual).audios, first)
    for change in ({"seeds": [2]}, {"prompt": WORDS[1]}, {"num_inference_steps": 4}, {"guidance_scale": 6.0},
                   {"negative_prompt": WORDS[2]}):  # fmt: skip
        assert np.abs(pipeline(**(usual | change)).audios - first).max() > 0.005, change


def test_as_many_clips_as_asked_for_those_of_a_prompt_side_by_side(pipeline: TangoPipeline) -> None:
    found = pipeline(list(WORDS[:2]), num_waveforms_per_prompt=3, seeds=range(6)).audios
    assert found.shape == (6, SAMPLES)
    assert found.dtype == np.float32
    for place, (words, seed) in enumerate(zip([WORDS[0]] * 3 + [WORDS[1]] * 3, range(6), strict=True)):
        np.testing.assert_allclose(found[place], pipeline(words, seeds=[seed]).audios[0], **CLOSE)
    assert pipeline("a dog barks", num_waveforms_per_prompt=2, seeds=[5, 5]).audios.shape == (2, SAMPLES)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": ["a dog barks", ""]}, "prompt is empty"),
        ({"prompt": ["a dog barks", 3]}, "prompt is empty"),
        ({"prompt": list(WORDS[:2]), "seeds": [1, 2], "negative_prompt": ["rain"]}, "2 prompts need one .*not 1"),
        ({"negative_prompt": [3]}, "must be text"),
        ({"num_inference_steps": 1001}, "at most 1000, not 1001"),
        ({"guidance_scale": float("nan")}, "guidance must be a finite number, not nan"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval must be two shares"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback can be given latents, .*not 'noise'"),
        ({"audio_length_in_s": float("inf")}, "longer than 0 s, not inf"),
        ({"seeds": [1, 2]}, "1 clips need as many seeds, not 2"),
        ({"seeds": []}, "1 clips need as many seeds, not 0"),
        ({"num_inference_steps": 0}, "steps must be at least 1 and at most 1000, not 0"),
        ({"num_inference_steps": -3}, "steps must be at least 1 .*, not -3"),
        ({"num_waveforms_per_prompt": 0, "seeds": None}, "num_waveforms_per_prompt must be at least 1"),
        ({"output_type": "wav"}, "output_type must be .*not 'wav'"),
        ({"audio_length_in_s": -1.0}, "longer than 0 s"),
        ({"audio_length_in_s": 0.0}, "longer than 0 s"),
        ({"latents": torch.zeros(2, 4, 8, 16)}, r"latents must have the shape \(1, 4, 8, 16\), not \(2, 4, 8, 16\)"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(pipeline: TangoPipeline, change: dict[str, Any], told: str) -> None:
    with pytest.raises(MilongaError, match=told) as error:
        pipeline(**({"prompt": "a dog barks", "seeds": [1]} | change))
    assert "\n" not in str(error.value)


def test_an_unknown_scheduler_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"unknown scheduler 'heun': choose one of ddpm, ddim, dpm\+\+, unipc"):
        TangoModel("tiny", small_networks.pipeline(), "heun")


def test_a_model_with_another_scheduler_leaves_the_pipeline_its_own_and_shares_its_networks() -> None:
    pipeline = small_networks.pipeline()
    own, expected = pipeline.scheduler, pipeline("a dog barks", seeds=[1]).audios
    model = TangoModel("tiny", pipeline, "dpm++")
    assert isinstance(model.pipeline.scheduler, DPMSolverMultistepScheduler)
    assert pipeline.scheduler is own
    assert model.pipeline.unet is pipeline.unet
    assert np.array_equal(pipeline("a dog barks", seeds=[1]).audios, expected)
    assert np.abs(model.pipeline("a dog barks", seeds=[1]).audios - expected).max() > 1e-3


@pytest.mark.parametrize("seeds", [[0], [3], [4, 5]])
def test_seeds_may_be_an_array(pipeline: TangoPipeline, seeds: list[int]) -> None:
    words = list(WORDS[: len(seeds)])
    found = pipeline(words, seeds=np.array(seeds), num_inference_steps=1).audios
    assert np.array_equal(found, pipeline(words, seeds=seeds, num_inference_steps=1).audios)


@pytest.mark.slow
def test_guidance_up_to_one_runs_the_network_on_half_as_much() -> None:
    pipeline, rows = small_networks.pipeline(), []
    pipeline.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    for guidance, expected in ((1.0, [2] * 3), (0.0, [2] * 3), (1.01, [4] * 3)):
        rows.clear()
        pipeline(list(WORDS[:2]), seeds=[1, 2], num_inference_steps=3, guidance_scale=guidance)
        assert rows == expected
    near, at = (pipeline("a dog barks", seeds=[1], guidance_scale=g).audios for g in (1 + 1e-6, 1.0))
    np.testing.assert_allclose(near, at, **CLOSE)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_saved_and_loaded_it_is_the_same(tmp_path: Any, pipeline: TangoPipeline, kind: torch.dtype) -> None:
    small_networks.pipeline().to(kind).save_pretrained(tmp_path)
    loaded = TangoPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32, local_files_only=True)
    assert (loaded.config["seconds"], loaded.config["steps"], loaded.config["guidance"]) == (SECONDS, 3, 3.0)
    assert loaded.tokenizer(list(WORDS)).input_ids == pipeline.tokenizer(list(WORDS)).input_ids
    for one, value in pipeline.scheduler.config.items():
        assert one.startswith("_") or loaded.scheduler.config[one] == value, one
    made, before = (one(list(WORDS), seeds=range(4)).audios for one in (loaded, pipeline))
    np.testing.assert_allclose(made, before, atol=1e-6 if kind == torch.float32 else 5e-3)


@pytest.mark.slow
def test_the_duration_is_trimmed_and_the_latents_rounded_up_to_the_stride(pipeline: TangoPipeline) -> None:
    stride = pipeline.hop * pipeline.compression / pipeline.sampling_rate
    assert stride == 0.064
    assert pipeline.latent_shape(2 * stride) == (4, 2, 16)
    assert pipeline.latent_shape(2 * stride + 1 / 16000) == (4, 3, 16)
    for seconds, rows in ((0.1, 2), (SECONDS, 8), (0.4, 7), (1e-3, 1)):
        assert pipeline("a dog barks", audio_length_in_s=seconds).audios.shape == (1, round(seconds * 16000))
        latents = pipeline("a dog barks", audio_length_in_s=seconds, output_type="latent").audios
        assert latents.shape == (1, 4, rows, 16)


@pytest.mark.slow
def test_kinds_of_output_hold_the_same_clips(pipeline: TangoPipeline) -> None:
    asked: dict[str, Any] = {"prompt": list(WORDS[:3]), "seeds": [4, 5, 6]}
    arrays, tensors = pipeline(**asked).audios, pipeline(**asked, output_type="pt").audios
    latents = pipeline(**asked, output_type="latent").audios
    assert latents.shape == (3, *pipeline.latent_shape(SECONDS))
    assert np.array_equal(tensors.numpy(), arrays)
    assert np.array_equal(pipeline.decode(latents).numpy(), arrays)
    assert np.array_equal(pipeline(**asked, return_dict=False)[0], arrays)


def test_initial_latents_and_generators_may_be_given(pipeline: TangoPipeline) -> None:
    seeded = pipeline("a dog barks", seeds=[9]).audios
    noise = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(9))
    assert np.array_equal(pipeline("a dog barks", latents=noise).audios, seeded)
    assert np.array_equal(pipeline("a dog barks", generator=torch.Generator().manual_seed(9)).audios, seeded)


def test_a_callback_sees_every_step_and_may_change_the_latents(pipeline: TangoPipeline) -> None:
    seen: list[tuple[int, int, tuple[int, ...]]] = []

    def quiet(pipe: Any, number: int, step: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert pipe is pipeline
        seen.append((number, int(step), tuple(tensors["latents"].shape)))
        return {"latents": tensors["latents"] * 0} if number == 2 else {}

    found = pipeline("a dog barks", seeds=[1], callback_on_step_end=quiet).audios
    assert [number for number, *_ in seen] == [0, 1, 2]
    assert [step for _, step, _ in seen] == sorted((step for _, step, _ in seen), reverse=True)
    assert {shape for *_, shape in seen} == {(1, 4, 8, 16)}
    np.testing.assert_allclose(found, pipeline.decode(torch.zeros(1, 4, 8, 16)).numpy(), **CLOSE)


def test_a_callback_is_given_the_tensors_it_watches_and_may_change_the_words(pipeline: TangoPipeline) -> None:
    words = pipeline.encode_prompt([WORDS[2]] * 2)
    seen: list[set[str]] = []

    def other_words(_: Any, number: int, step: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(set(tensors))
        return {"prompt_embeds": words[0], "prompt_mask": words[1]} if number == 0 else {}

    watched = ["latents", "prompt_embeds", "prompt_mask"]
    usual: dict[str, Any] = {"prompt": WORDS[0], "seeds": [1], "guidance_scale": 3.0}
    turned = pipeline(**usual, callback_on_step_end=other_words, callback_on_step_end_tensor_inputs=watched).audios
    assert seen == [set(watched)] * 3
    assert np.abs(turned - pipeline(**usual).audios).max() > 0.005


@pytest.mark.slow
def test_guidance_only_where_the_noise_is_in_its_interval() -> None:
    pipeline, rows = small_networks.pipeline(), []
    pipeline.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    asked: dict[str, Any] = {"prompt": WORDS[0], "seeds": [1], "num_inference_steps": 4}
    part = pipeline(**asked, guidance_interval=(0.25, 0.75)).audios
    assert rows == [1, 2, 2, 1]
    none = pipeline(**asked, guidance_interval=(0.5, 0.5)).audios
    np.testing.assert_allclose(none, pipeline(**asked, guidance_scale=1.0).audios, **CLOSE)
    whole = pipeline(**asked).audios
    assert min(np.abs(part - none).max(), np.abs(part - whole).max()) > 0.001


def test_one_seed_gives_every_clip_its_own_by_its_text_and_number(pipeline: TangoPipeline) -> None:
    four = pipeline(list(WORDS[:2]), num_waveforms_per_prompt=2, seeds=7).audios
    own = [clip_seed(7, words, number) for words in WORDS[:2] for number in range(2)]
    assert np.array_equal(four, pipeline(list(WORDS[:2]), num_waveforms_per_prompt=2, seeds=own).audios)
    alone = pipeline(WORDS[1], num_waveforms_per_prompt=2, seeds=7).audios
    np.testing.assert_allclose(alone, four[2:], **CLOSE)
    assert len(set(own)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_clip_is_the_same_alone_and_in_a_batch_of_32(scheduler: str) -> None:
    pipeline = small_networks.pipeline().set_scheduler(scheduler)
    usual: dict[str, Any] = {"num_inference_steps": 4, "audio_length_in_s": 0.256, "seeds": 3}
    many = pipeline(list(WORDS), num_waveforms_per_prompt=8, **usual).audios
    for place in (0, 31):
        one = pipeline(WORDS[place // 8], num_waveforms_per_prompt=8, **usual).audios[place % 8]
        np.testing.assert_allclose(many[place], one, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_the_noise_is_the_same_in_every_type(kind: torch.dtype, pipeline: TangoPipeline) -> None:
    """In half precision latents stay float32 and only the networks round: the clip is near, not another one."""
    half, usual = small_networks.pipeline().to(kind).set_scheduler("ddpm"), {"seeds": [5], "output_type": "latent"}
    full = small_networks.pipeline().set_scheduler("ddpm")
    made, exact = (one(WORDS[0], **usual).audios for one in (half, full))
    assert made.dtype == torch.float32
    other = full(WORDS[0], seeds=[6], output_type="latent").audios
    assert (made - exact).std() < 0.1 * (other - exact).std()
    assert half(WORDS[0], seeds=[5]).audios.dtype == np.float32


def test_a_pipeline_is_offloaded_and_mapped_as_diffusers_does(tmp_path: Any, pipeline: TangoPipeline) -> None:
    usual: dict[str, Any] = {"prompt": WORDS[0], "seeds": [2]}
    exact = pipeline(**usual).audios
    offloaded = small_networks.pipeline()
    offloaded.enable_model_cpu_offload(device="cpu")
    np.testing.assert_allclose(offloaded(**usual).audios, exact, **CLOSE)
    pipeline.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    mapped = TangoPipeline.from_pretrained(tmp_path, device_map="cpu", local_files_only=True)
    np.testing.assert_allclose(mapped(**usual).audios, exact, **CLOSE)


@pytest.mark.slow
def test_threads_that_share_a_pipeline_do_not_disturb_each_other() -> None:
    model = TangoModel("tiny", small_networks.pipeline(), "dpm++")
    jobs = [[request(words, steps, number=n) for words in WORDS[: 1 + n]] for n in range(3) for steps in (2, 5, 9)]
    alone = [waves(model, job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(lambda job: waves(model, job), jobs * 2))
    for expected, found in zip(alone * 2, beside, strict=True):
        for name, wave in expected.items():
            np.testing.assert_allclose(found[name], wave, **CLOSE)


def test_a_model_gives_clips_with_their_latents_at_the_vocoders_rate(pipeline: TangoPipeline) -> None:
    model = TangoModel("tiny", small_networks.pipeline())
    (clip,) = model.generate([request("a dog barks")])
    assert (model.name, model.rate, clip.rate) == ("tiny", 16000, 16000)
    assert clip.waveform.shape == (SAMPLES,)
    assert clip.latents is not None
    again = pipeline.decode(torch.from_numpy(clip.latents[None])).numpy()[0]
    assert np.array_equal(again, clip.waveform)


def test_requests_of_one_batch_must_share_their_settings(pipeline: TangoPipeline) -> None:
    model = TangoModel("tiny", pipeline)
    for other in (request("a dog barks", steps=3), request("a dog barks", guidance=1.0)):
        with pytest.raises(RecipeError, match="share their steps and guidance"):
            model.generate([request("a dog barks"), other])


def test_texts_are_encoded_once_and_padded_without_a_trace(pipeline: TangoPipeline) -> None:
    states, mask = pipeline.encode_prompt([WORDS[1], WORDS[0], WORDS[1]])
    assert torch.equal(states[0], states[2])
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [len(pipeline.tokenizer(text).input_ids) for text in (WORDS[1], WORDS[0], WORDS[1])]
    alone, _ = pipeline.encode_prompt([WORDS[0]])
    torch.testing.assert_close(states[1, : alone.shape[1]], alone[0], atol=1e-5, rtol=0.0)
    with pytest.raises(DataError, match="must be text"):
        pipeline.encode_prompt([None])  # type: ignore[list-item]


def test_clips_are_made_on_a_gpu_where_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(TangoPipeline, "to", lambda whole, device: asked.append(device.type) or whole)
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        TangoModel("tiny", small_networks.pipeline())
    assert asked == ["cpu", "cuda"]
