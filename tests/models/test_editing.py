"""Editing: samples outside a region are the input's, bit for bit; long clips are windows of the trained length."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_networks
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import SECONDS, WORDS

from milonga.cli.edit import edit_files, parse_region
from milonga.core.audio import read_samples, read_tags, write_samples
from milonga.core.errors import AudioError, DataError, MilongaError, MilongaWarning, RecipeError
from milonga.core.records import Prompt, Request
from milonga.models.editing import (
    SEAM,
    SPLICE,
    Canvas,
    decode,
    edit,
    encode,
    noise_levels,
    parse_timeline,
    windows_over,
)
from milonga.models.generator import TangoModel
from milonga.models.schedulers import SCHEDULERS, prepare_scheduler
from milonga.models.tango_denoiser import TangoDenoiser

RATE, ROW = 16000, 0.064
SUBTYPES = {
    ".wav": ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"),
    ".flac": ("PCM_S8", "PCM_16", "PCM_24"),
}


@pytest.fixture(scope="module")
def pipe():
    return small_networks.pipeline()


@pytest.fixture(scope="module")
def denoiser(pipe):
    return TangoDenoiser.of(pipe)


def sound(seconds: float = 1.0, rate: int = RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).standard_normal((round(seconds * rate), channels)).clip(-3, 3)


def changed(before: np.ndarray, after: np.ndarray, rate: int = RATE) -> tuple[float, float]:
    """Seconds from the first to the end of the last sample that differs."""
    places = np.flatnonzero((before != after).any(axis=1))
    return places[0] / rate, (places[-1] + 1) / rate


def take(denoiser, samples: np.ndarray, rate: int = RATE, prompt: str = WORDS[0], **options) -> np.ndarray:
    return edit(denoiser, samples, rate, prompt, **({"steps": 2, "guidance": 3.0} | options))[0]


@pytest.mark.slow
@settings(deadline=None, max_examples=8, derandomize=True)
@given(data=st.data())
def test_outside_the_region_every_stored_sample_is_the_inputs(tmp_path_factory, pipe, data):
    folder = tmp_path_factory.mktemp("edit")
    suffix = data.draw(st.sampled_from(sorted(SUBTYPES)))
    subtype = data.draw(st.sampled_from(SUBTYPES[suffix]))
    rate, channels = data.draw(st.sampled_from([8000, 11025, 16000, 44100, 48000])), data.draw(st.integers(1, 3))
    first = data.draw(st.floats(0, 0.4))
    last = first + data.draw(st.floats(0.1, 0.5))
    source = folder / f"in{suffix}"
    soundfile.write(source, sound(1.0, rate, channels), rate, subtype)
    model = TangoModel("tiny", pipe)
    (path,) = edit_files(model, [source], folder / "out", 1, 1.0, "rain", {"region": (first, last)})
    before, after = (soundfile.read(name, dtype="float64", always_2d=True)[0] for name in (source, path))
    info, own = soundfile.info(path), soundfile.info(source)
    assert (info.samplerate, info.channels, info.subtype, info.format) == (rate, channels, subtype, own.format)
    begin, end = changed(before, after, rate)
    assert first - SPLICE - 1 / rate <= begin <= first + 0.02
    assert last - 0.02 <= end <= last + SPLICE + 1 / rate


@pytest.mark.parametrize(("suffix", "subtype"), [(key, own) for key, many in SUBTYPES.items() for own in many])
def test_samples_are_read_and_written_bit_for_bit(tmp_path, suffix, subtype):
    source, copy = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    soundfile.write(source, np.concatenate([sound(0.1, channels=2), [[-1.0, 1.0]]]), 44100, subtype)
    samples, rate, own_suffix, own_subtype = read_samples(source)
    assert (rate, own_suffix, own_subtype) == (44100, suffix, subtype)
    write_samples(copy, samples, rate, subtype, {"prompt": "rain"})
    kind = "float64" if subtype == "DOUBLE" else "float32" if subtype == "FLOAT" else "int32"
    first, second = (soundfile.read(path, dtype=kind, always_2d=True)[0] for path in (source, copy))
    assert np.array_equal(first, second)
    assert read_tags(copy) == {"prompt": "rain"}


def test_what_is_neither_wav_nor_flac_becomes_a_wav_with_its_decoded_samples(tmp_path, pipe):
    source = tmp_path / "in.ogg"
    soundfile.write(source, sound(), RATE)
    with pytest.warns(MilongaWarning, match=r"in\.ogg becomes a \.wav with its decoded samples"):
        (path,) = edit_files(TangoModel("tiny", pipe), [source], tmp_path, 1, 1.0, "rain", {"region": (0.4, 0.6)})
    before, after = (soundfile.read(name, dtype="float32", always_2d=True)[0] for name in (source, path))
    assert changed(before, after)[0] >= 0.4 - SPLICE
    assert soundfile.info(path).subtype == "FLOAT"


def test_a_region_at_an_edge_has_no_splice_there(denoiser):
    samples = sound()
    begin, end = changed(samples, take(denoiser, samples, region=(0.0, 0.3)))
    assert (begin, end) == (0.0, pytest.approx(0.3 + SPLICE, abs=1e-3))
    begin, end = changed(samples, take(denoiser, samples, region=(0.7, 1.0)))
    assert (begin, end) == (pytest.approx(0.7 - SPLICE, abs=1e-3), 1.0)


def test_a_continuation_leaves_what_was_there(denoiser):
    samples = sound(0.5, channels=2)
    edited = take(denoiser, samples, extend=1.0)
    assert edited.shape == (round(1.5 * RATE), 2)
    assert np.array_equal(edited[: round((0.5 - SPLICE) * RATE) - 1], samples[: round((0.5 - SPLICE) * RATE) - 1])
    assert np.abs(edited[len(samples) :]).max() > 0.001


def test_a_loop_changes_its_seam_alone(denoiser):
    samples = sound(1.5)
    edited = take(denoiser, samples, loop=True)
    reach = SEAM / 2 + SPLICE
    inside = slice(round(reach * RATE) + 1, len(samples) - round(reach * RATE) - 1)
    assert np.array_equal(edited[inside], samples[inside])
    assert (edited[:100] != samples[:100]).any()
    assert (edited[-100:] != samples[-100:]).any()


def test_strength_goes_from_the_input_to_something_else(denoiser):
    samples = sound(SECONDS)
    assert np.array_equal(take(denoiser, samples, strength=0.0), samples)
    assert np.array_equal(take(denoiser, samples, strength=0.0, region=(0.1, 0.3)), samples)
    for length in (round(1.5 * RATE), round(1.5 * RATE) + 1):
        long = sound(2.0, channels=2)[:length]
        assert np.array_equal(take(denoiser, long, strength=0.0, loop=True), long)
    latents, gain = encode(denoiser, samples[:, 0])
    trip = decode(denoiser, latents[None])[0] / gain
    distances = [np.square(take(denoiser, samples, strength=share)[:, 0] - trip).mean() for share in (0.02, 0.3, 1.0)]
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_edit_depends_on_its_seed_and_not_on_its_batch(scheduler):
    denoiser = TangoDenoiser.of(small_networks.pipeline().set_scheduler(scheduler))
    samples, options = sound(0.5), {"steps": 2, "guidance": 3.0, "region": (0.1, 0.4)}
    both = edit(denoiser, samples, RATE, WORDS[0], seeds=[5, 6], **options)
    alone = take(denoiser, samples, seeds=[6], **options)
    assert np.array_equal(alone, take(denoiser, samples, seeds=[6], **options))
    np.testing.assert_allclose(alone, both[1], atol=1e-4)
    assert np.abs(both[0] - both[1]).max() > 1e-3
    assert np.abs(take(denoiser, samples, seeds=[6], prompt=WORDS[2], **options) - alone).max() > 1e-4


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_is_known_is_noised_again_at_the_samplers_own_levels(scheduler):
    pipe = small_networks.pipeline().set_scheduler(scheduler)
    denoiser, rows = TangoDenoiser.of(pipe), 12
    prepared = prepare_scheduler(pipe.scheduler, 5)
    latents, noise = torch.randn(2, 1, 4, rows, 16)
    for step, (signal, spread) in zip(prepared.timesteps, noise_levels(prepared, denoiser.process), strict=False):
        expected = prepared.add_noise(latents, noise, step[None]) if hasattr(prepared, "add_noise") else None
        torch.testing.assert_close(signal * latents + spread * noise, expected, atol=2e-3, rtol=0)
    canvas = Canvas(denoiser, rows, ["rain"], [""], 3.0)
    free = torch.tensor([0.0] * 5 + [1.0] * 7)
    streams = [torch.Generator().manual_seed(1)]
    sampled = canvas.sample(prepared, canvas.noise(streams), streams, known=latents, free=free)
    assert torch.equal(sampled[:, :, :5], latents[:, :, :5])
    assert not torch.isclose(sampled[:, :, 5:], latents[:, :, 5:], atol=1e-3).any(dim=(0, 1, 3)).all()
    assert torch.isfinite(sampled).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": (0.5, 0.52)}, r"0\.02 s are too short to repaint: this model needs 0\.064 s"),
        ({"region": (0.5, 1.2)}, r"region 0\.5-1\.2 s is not inside the clip, which has 1 s"),
        ({"region": (0.6, 0.5)}, "is not inside the clip"),
        ({"region": (float("nan"), 0.5)}, "is not inside the clip"),
        ({"region": (0.0, 1.0)}, "the region is the whole clip"),
        ({"region": (0.1, 0.5), "loop": True}, "one of region, continuation and loop"),
        ({"strength": 1.5}, r"strength must be between 0 and 1, not 1\.5"),
        ({"strength": float("nan")}, "strength must be between 0 and 1"),
        ({"extend": -1.0}, "a continuation has more than 0 s"),
        ({"extend": 0.0}, "a continuation has more than 0 s"),
        ({"extend": 1.0, "strength": 0.5}, "and the strength 1"),
        ({"loop": True}, "too short for a loop"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"guidance": float("inf")}, "guidance must be a finite number"),
    ],
)
def test_what_cannot_be_edited_is_refused_in_one_line(denoiser, options: dict[str, Any], message: str):
    with pytest.raises(MilongaError, match=message) as error:
        take(denoiser, sound(), **options)
    assert "\n" not in str(error.value)


def test_audio_without_samples_or_channels_is_refused(denoiser):
    for samples in (np.zeros((0, 1)), np.zeros(100)):
        with pytest.raises(AudioError, match=r"\(samples, channels\)"):
            take(denoiser, samples)


@pytest.mark.parametrize("samples", [np.zeros((8000, 1)), np.full((8000, 2), 0.25)])
def test_silence_is_edited_too(denoiser, samples):
    assert np.isfinite(take(denoiser, samples, region=(0.1, 0.3))).all()


def test_a_loud_and_a_quiet_clip_are_edited_at_their_own_level(denoiser):
    loud, quiet = (take(denoiser, level * sound(), region=(0.3, 0.7)) for level in (1.0, 0.01))
    np.testing.assert_allclose(quiet, 0.01 * loud, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(0, 30))
def test_the_windows_weights_sum_to_one_in_every_row(size: int, parts: list[int], more: int):
    rows = max(size, sum(parts) + more)
    edges = [0, *np.cumsum(parts)[:-1].tolist(), rows]
    spans = list(pairwise(edges))
    total = torch.zeros(rows)
    for window in windows_over(rows, size, spans):
        assert 0 <= window.start <= rows - size
        total[window.start : window.start + size] += window.weight
    torch.testing.assert_close(total, torch.ones(rows))
    assert len(windows_over(rows, size, spans)) <= len(spans) + math.ceil(2 * rows / size)


def test_of_the_trained_length_a_canvas_is_the_pipeline(pipe, denoiser):
    seeds = [3, 4]
    usual = pipe.sample(WORDS[:2], seeds, 3, 3.0, negative=WORDS[2])
    canvas = Canvas(denoiser, 8, WORDS[:2], [WORDS[2]] * 2, 3.0)
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    scheduler = prepare_scheduler(pipe.scheduler, 3)
    torch.testing.assert_close(canvas.sample(scheduler, canvas.noise(streams), streams), usual, atol=1e-5, rtol=0)


def test_a_long_clip_is_windows_of_the_trained_length_at_a_linear_cost():
    pipe, passed = small_networks.pipeline(), []
    pipe.unet.register_forward_pre_hook(lambda _, args: passed.append(tuple(args[0].shape)))
    rows = {}
    for seconds in (1.0, 2.0, 4.0):
        passed.clear()
        audio = pipe(WORDS[0], audio_length_in_s=seconds, seeds=[1], num_inference_steps=1).audios
        assert audio.shape == (1, round(seconds * RATE))
        assert {shape[2] for shape in passed} == {8}
        rows[seconds] = sum(shape[0] for shape in passed)
    assert rows[4.0] - rows[2.0] == 2 * (rows[2.0] - rows[1.0])


def test_long_clips_do_not_depend_on_their_batch(pipe):
    options: dict[str, Any] = {"audio_length_in_s": 1.3, "num_inference_steps": 2}
    both = pipe(list(WORDS[:2]), seeds=[1, 2], **options).audios
    np.testing.assert_allclose(pipe(WORDS[1], seeds=[2], **options).audios[0], both[1], atol=1e-4)
    clip = TangoModel("tiny", pipe, seconds=1.3).generate([Request.of(0, Prompt.of("x", "y"), WORDS[0], 2, 3.0)])[0]
    assert clip.waveform.shape == (round(1.3 * RATE),)


def test_a_callback_sees_the_steps_of_a_long_clip_and_may_change_its_latents(pipe):
    seen: list[int] = []

    def quiet(_: Any, number: int, step: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(number)
        return {"latents": tensors["latents"] * 0}

    options: dict[str, Any] = {"audio_length_in_s": 1.0, "seeds": [1], "output_type": "latent"}
    assert not pipe(WORDS[0], callback_on_step_end=quiet, **options).audios.any()
    assert seen == [0, 1, 2]
    with pytest.raises(RecipeError, match="latents alone"):
        pipe(WORDS[0], callback_on_step_end_tensor_inputs=["prompt_embeds"], **options)


def test_the_parts_of_a_timeline_hold_in_their_rows(pipe):
    options: dict[str, Any] = {"seeds": [1], "num_inference_steps": 1, "output_type": "latent", "guidance_scale": 3.0}
    first, second = (pipe(timeline=f"0-1.024 rain; 1.024-2.048 {text}", **options).audios for text in WORDS[:2])
    assert first.shape[2] == 32
    same = torch.isclose(first, second, atol=1e-5).all(dim=(0, 1, 3))
    assert same[:16].all()
    assert not same[16:].any()
    alone = pipe("rain", audio_length_in_s=2.048, **options).audios
    torch.testing.assert_close(alone[:, :, :8], first[:, :, :8], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "text", ["", "rain", "0-4", "1-4 rain", "0-4 rain; 5-6 bell", "0-4 rain; 3-6 bell", "0-0 rain", "0-4 rain;"]
)
def test_a_timeline_that_cannot_be_read_is_refused(pipe, text: str):
    with pytest.raises(RecipeError, match=r"timeline: .* is not read: write '0-4 rain"):
        pipe(timeline=text)


def test_a_timeline_is_read_with_its_fractions_and_spaces(pipe):
    assert parse_timeline(" 0-1.5 s a dog barks;1.5-4 rain, then a bell ") == [
        (0.0, 1.5, "a dog barks"),
        (1.5, 4.0, "rain, then a bell"),
    ]
    for options in ({"prompt": "rain"}, {"audio_length_in_s": 2.0}):
        with pytest.raises(RecipeError, match="a timeline has its own"):
            pipe(timeline="0-1 rain", **options)
    with pytest.raises(RecipeError, match="a part of a timeline must be longer than"):
        pipe(timeline="0-0.01 rain; 0.01-1 bell")


def test_the_pipeline_edits_arrays_and_files(tmp_path, pipe):
    wave = sound()[:, 0]
    audios = pipe.edit(wave, "rain", region=(0.3, 0.6), num_waveforms=2, seeds=7).audios
    assert audios.shape == (2, len(wave))
    assert np.array_equal(audios[:, : round(0.28 * RATE)], np.stack([wave[: round(0.28 * RATE)]] * 2))
    soundfile.write(tmp_path / "in.wav", sound(1.0, 8000, 2), 8000)
    assert pipe.edit(tmp_path / "in.wav", "rain", extend=0.5).audios.shape == (1, 12000, 2)


@pytest.mark.slow
def test_files_are_named_tagged_and_listed_as_generated_ones(tmp_path, pipe):
    soundfile.write(tmp_path / "in.wav", sound(), RATE)
    model = TangoModel("tiny", pipe)
    options: dict[str, Any] = {"prompt": "a dog barks", "count": 2, "seed": 3}
    paths = list(edit_files(model, [tmp_path / "in.wav"], tmp_path / "out", 1, 3.0, **options))
    again = list(edit_files(model, [tmp_path / "in.wav"], tmp_path / "out", 1, 3.0, **options))
    other = list(
        edit_files(model, [tmp_path / "in.wav"], tmp_path / "out", 1, 3.0, change={"strength": 0.5}, **options)
    )
    assert paths == again
    assert len({*paths, *other}) == 4
    rows = [json.loads(line) for line in (tmp_path / "out" / "clips.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [path.name for path in [*paths, *other]]
    assert rows[0]["source"] == "in.wav"
    assert read_tags(paths[1])["number"] == "1"
    (own,) = edit_files(model, paths[:1], tmp_path / "out", 1, 3.0)  # words from the tags
    assert read_tags(own)["prompt"] == "a dog barks"
    with pytest.raises(DataError, match="has no prompt in its tags: say with --prompt"):
        list(edit_files(model, [tmp_path / "in.wav"], tmp_path, 1, 3.0))
    (wordless,) = edit_files(model, [tmp_path / "in.wav"], tmp_path, 1, 3.0, wordless=True)
    assert wordless.name.startswith("in-0-0-")


def test_what_was_interrupted_among_several_files_is_gone_on_with(tmp_path, pipe):
    soundfile.write(tmp_path / "in.wav", sound(), RATE)
    model, made = TangoModel("tiny", pipe), []
    options: dict[str, Any] = {"prompt": "a dog barks", "count": 3, "seed": 3, "resume": True}

    def files() -> list[Path]:
        return list(edit_files(model, [tmp_path / "in.wav"], tmp_path / "out", 1, 3.0, **options))

    whole = files()
    bits = [path.read_bytes() for path in whole]
    whole[1].unlink()
    model.denoiser.module.register_forward_hook(lambda *_: made.append(1))
    assert sorted(files()) == sorted(whole)
    passes = len(made)
    assert [path.read_bytes() for path in whole] == bits
    assert files() == whole
    assert len(made) == passes > 0  # the second time nothing was left to do
    assert len((tmp_path / "out" / "clips.jsonl").read_text().splitlines()) == 3


def test_a_model_that_only_generates_is_refused(tmp_path):
    class Baseline:
        name = "audioldm"

    with pytest.raises(RecipeError, match="audioldm runs by a pipeline of its own"):
        list(edit_files(Baseline(), [Path("x.wav")], tmp_path, 1, 1.0))


@pytest.mark.parametrize("text", ["", "1", "2-", "a-b", "-1-2", "1-2-3", "1e3-2"])
def test_a_region_that_cannot_be_read_is_refused(text: str):
    assert parse_region(" 0.5 - 1. ") == (0.5, 1.0)
    with pytest.raises(RecipeError, match="is not read: write seconds from and to"):
        parse_region(text)
