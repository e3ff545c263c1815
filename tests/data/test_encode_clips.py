"""Real clips as training examples: encoded once, resumed, mixed by the ear, refused with a reason, trained on."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_networks
import soundfile
import torch

from milonga.core.audio import read_audio
from milonga.core.config import Phase, Settings
from milonga.core.errors import DataError, MilongaWarning, RecipeError
from milonga.core.records import Refusal
from milonga.core.store import Run
from milonga.data import encode
from milonga.data.captions import prompt_source, reference
from milonga.data.encode import encode_clips
from milonga.data.examples import CaptionedClips
from milonga.data.examples import fingerprint as contents
from milonga.data.recordings import clip_entries, count_entries, decoded, fingerprint
from milonga.maths.mixing import mixes
from milonga.models.load import load_denoiser
from milonga.training.trainer import train

WORDS = small_networks.WORDS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tango"
    small_networks.pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Four clips in AudioCaps' layout, one of them silent, and a row whose clip is not there."""
    (tmp_path / "audio").mkdir()
    rng = np.random.default_rng(0)
    rows = [(n, f"clip{n}", 0, WORDS[n]) for n in range(4)] + [(9, "gone", 0, "Nothing")]
    for place in range(4):
        wave = rng.uniform(-0.4, 0.4, (6000 + 1000 * place, 2)) * (place != 2)
        soundfile.write(tmp_path / "audio" / f"Yclip{place}.wav", wave, 22050 if place == 1 else 16000)
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("audiocap_id", "youtube_id", "start_time", "caption"), *rows])
    return f"clips:{tmp_path}/train.csv@{tmp_path}/audio"


def encode_with_a_gap(model: str, source: str, folder: Path, **more) -> CaptionedClips:
    """`encode_clips`, which says that the fifth clip is missing."""
    with pytest.warns(MilongaWarning, match="left out 1 of 5 clips"):
        return encode_clips(load_denoiser(model), source, folder, **more)


def test_examples_are_posteriors_of_the_clips_with_their_captions(model: str, source: str, tmp_path: Path) -> None:
    examples = encode_with_a_gap(model, source, tmp_path / "work")
    assert len(examples) == 4
    whole, batch = small_networks.pipeline(), examples.batch([0, 1], epoch=0)
    assert batch.loser is None
    assert batch.winner.shape == (2, *whole.latent_shape(whole.config["seconds"]))
    clip = read_audio(tmp_path / "audio" / "Yclip1.wav")
    denoiser = load_denoiser(model)
    posterior = denoiser.encode_audio([denoiser.prepare_waveform(clip)])
    mean, logvar = posterior.mean, posterior.logvar
    drawn = torch.stack([examples.batch([1], epoch).winner[0] for epoch in range(300)])
    scale = whole.vae.config.scaling_factor
    error = (drawn.mean(0) - mean[0] * scale).abs() / (torch.exp(0.5 * logvar[0]) * scale / 17 + 2e-3)
    assert float(error.max()) < 6
    states, mask = whole.encode_prompt([WORDS[1]])
    torch.testing.assert_close(
        batch.conditioning["states"][1][batch.conditioning["mask"][1]], states[0][mask[0]], atol=1e-5, rtol=0
    )
    (kept,) = (tmp_path / "work").iterdir()
    refused = Run(kept).stage("refused/encode").read_records(Refusal)
    assert ["no such audio file" in one.reason for one in refused] == [True]


@pytest.mark.slow
def test_a_stopped_encoding_goes_on_to_the_same(
    model: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "SHARD", 2)
    whole = encode_with_a_gap(model, source, tmp_path / "whole", mix_ratio=1.0)
    original, calls = encode._clips_tables, []

    def stops(*words):
        recordings = list(words[1])
        calls.append(len(recordings))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(words[0], recordings, *words[2:])

    monkeypatch.setattr(encode, "_clips_tables", stops)
    with pytest.raises(KeyboardInterrupt):
        encode_clips(load_denoiser(model), source, tmp_path / "work", mix_ratio=1.0)
    again = encode_with_a_gap(model, source, tmp_path / "work", mix_ratio=1.0)
    assert calls == [2, 2, 2, 0]
    assert torch.equal(again.batch(range(len(again)), 3).winner, whole.batch(range(len(whole)), 3).winner)


def test_mixes_are_further_examples_with_joined_captions_and_without_silence(
    model: str, source: str, tmp_path: Path
) -> None:
    examples = encode_with_a_gap(model, source, tmp_path / "work", mix_ratio=1.0)
    assert len(examples) == 4 + 3  # of three clips that sound there are three pairs
    said = {examples.caption_of(index, 0) for index in range(4, 7)}
    pairs = [(0, 1), (0, 3), (1, 3)]
    assert said == {f"{WORDS[one]} and {WORDS[other]}" for one, other in pairs}
    other = encode_with_a_gap(model, source, tmp_path / "work", mix_ratio=0.5)
    assert len(other) == 6
    assert len(list((tmp_path / "work").iterdir())) == 2


def test_each_epoch_has_mixes_of_its_own_that_depend_on_seed_and_epoch_alone(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "SHARD", 3)
    rng, texts = np.random.default_rng(0), [f"clip {letter}" for letter in "abcdef"]
    for text in texts:
        soundfile.write(tmp_path / f"{text[-1]}.wav", rng.uniform(-0.4, 0.4, 8000), 16000)
    rows = [f"{text[-1]}.wav,{text}" for text in texts]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,caption", *rows]))
    denoiser, source = load_denoiser(model), f"clips:{tmp_path}"
    single = encode_clips(denoiser, source, tmp_path / "work", 0.5)
    examples = encode_clips(denoiser, source, tmp_path / "work", 0.5, mix_epochs=3)
    assert len(single) == len(examples) == 2 * (3 + 2)
    assert torch.equal(single.batch(range(10), 0).winner, examples.batch(range(10), 0).winner)  # the same files
    said = [[examples.caption_of(index, epoch) for index in range(10)] for epoch in range(6)]
    assert said[:3] == said[3:]
    assert len({tuple(captions) for captions in said}) > 1
    assert [[captions[index] for index in (0, 1, 2, 5, 6, 7)] for captions in said] == [texts] * 6
    for epoch, captions in enumerate(said[:3]):  # each mix is of the clips that its caption names
        for index in (3, 4, 8, 9):
            names = captions[index].removeprefix("clip ").split(" and clip ")
            waves = [denoiser.prepare_waveform(read_audio(tmp_path / f"{name}.wav")).numpy() for name in names]
            mixed = torch.from_numpy(mixes(waves, [(0, 1)], denoiser.sampling_rate)[0])
            row = examples._row(index, epoch)
            mean = denoiser.encode_audio([mixed]).mean[0]
            torch.testing.assert_close(examples._latents.mean[row].float(), mean, atol=2e-3, rtol=2e-3)  # type: ignore[union-attr]
    (tmp_path / "alone.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    (tmp_path / "alone.csv").write_text("file_name,caption\nalone.wav,alone")
    assert len(encode_clips(denoiser, f"clips:{tmp_path / 'alone.csv'}", tmp_path / "work", 1.0, mix_epochs=3)) == 1
    again = encode_clips(denoiser, source, tmp_path / "again", 0.5, mix_epochs=3)
    assert contents(again) == contents(examples) != contents(single)
    assert torch.equal(again.batch([3, 9], 4).winner, examples.batch([3, 9], 4).winner)


def test_legacy_is_another_set_with_the_originals_path(model: str, source: str, tmp_path: Path) -> None:
    own, theirs = (encode_with_a_gap(model, source, tmp_path / "work", legacy=legacy) for legacy in (False, True))
    denoiser = load_denoiser(model)
    clip = read_audio(tmp_path / "audio" / "Yclip1.wav", mono="first")
    mean = denoiser.encode_audio([denoiser.prepare_waveform(clip, legacy=True)]).mean
    torch.testing.assert_close(theirs._latents.mean[1].float(), mean[0], atol=2e-3, rtol=2e-3)  # type: ignore[union-attr]
    assert not torch.allclose(own.batch([1], 0).winner, theirs.batch([1], 0).winner, atol=1e-3)


@pytest.mark.slow
def test_a_model_is_pretrained_on_them(model: str, source: str, tmp_path: Path) -> None:
    examples, rows = encode_with_a_gap(model, source, tmp_path / "work", mix_ratio=1.0), []
    phases = [Phase(loss="ldm", epochs=1), Phase(loss="sft", epochs=1)]
    train(load_denoiser(model), examples, phases, Settings(batch_size=4), 0, tmp_path / "run", rows.append)
    assert [row["phase"] for row in rows] == ["ldm", "ldm", "sft", "sft"]
    assert all(np.isfinite(row["loss"]) for row in rows)


def test_a_clip_with_several_captions_goes_by_all_of_them_in_turn(model: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.4, 0.4, 8000), 16000)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.wav", "captions": list(WORDS)}))
    examples = encode_clips(load_denoiser(model), f"clips:{tmp_path}", tmp_path / "work")
    assert {examples.caption_of(0, epoch) for epoch in range(40)} == set(WORDS)


def test_a_changed_clip_is_encoded_anew(source: str, tmp_path: Path) -> None:
    before = fingerprint(source)
    assert fingerprint(source) == before
    assert count_entries(source) == 5
    soundfile.write(tmp_path / "audio" / "Yclip0.wav", np.zeros(100), 16000)
    assert fingerprint(source) != before


def test_a_source_of_which_nothing_can_be_used_is_told(model: str, source: str, tmp_path: Path) -> None:
    for path in (tmp_path / "audio").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"none of 5 clips could be used; the first: .*no such audio file"):
        encode_clips(load_denoiser(model), source, tmp_path / "work")


@pytest.mark.parametrize(
    "source", ["", "clips", "clips:", "worlds:train:5", "dataset:", "world:dev:3", "world:train", "world:train:5:many"]
)
def test_a_source_of_another_form_is_told_how_to_write_one(source: str) -> None:
    with pytest.raises(RecipeError, match=r"is no source of clips: write clips:FILE\.csv"):
        clip_entries(source)


def test_clips_of_the_small_world_are_rendered_from_its_captions(model: str, tmp_path: Path) -> None:
    source = "world:train:3:multi"
    prompts = prompt_source(source)
    recordings = list(decoded(clip_entries(source)))
    assert [one.captions for one in recordings] == [(prompt.text,) for prompt in prompts]
    for one, prompt in zip(recordings, prompts, strict=True):
        assert np.array_equal(one.clip.waveform, reference(prompt).waveform)
    assert count_entries(source) == len(encode_clips(load_denoiser(model), source, tmp_path)) == 3
    assert fingerprint(source) == fingerprint(source) != fingerprint("world:train:4:multi")
    with pytest.raises(DataError, match="world:train:0 holds no clips"):
        encode_clips(load_denoiser(model), "world:train:0", tmp_path)


def test_data_sets_with_an_audio_column_are_read_undecoded(tmp_path: Path) -> None:
    from io import BytesIO

    from datasets import Audio, Dataset

    rows = []
    for place in range(3):
        buffer = BytesIO()
        soundfile.write(buffer, np.full(160, 0.1 * place), 16000, "PCM_16", format="WAV")
        rows.append({"sound": {"bytes": buffer.getvalue(), "path": None}, "caption": f"sound {place}"})
    made = Dataset.from_list(rows).cast_column("sound", Audio(sampling_rate=16000, decode=False))
    (tmp_path / "set").mkdir()
    made.to_parquet(str(tmp_path / "set" / "train-00000-of-00001.parquet"))
    source = f"dataset:{tmp_path / 'set'}"
    found = list(clip_entries(source))
    assert [one.captions for one in found] == [(f"sound {n}",) for n in range(3)]
    assert [one.source for one in found] == [row["sound"]["bytes"] for row in rows]
    assert count_entries(source) == 3
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "set" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="has no Audio column"):
        list(clip_entries(f"dataset:{tmp_path / 'set'}"))
