"""A data set of pairs becomes training examples: encoded once, resumed, and never mistaken for another's."""

import math
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_networks
import soundfile
import synthetic_run
import torch

from milonga.core.config import Phase, Settings
from milonga.core.errors import DataError, MilongaWarning
from milonga.data import encode
from milonga.data.audio_alpaca import read_alpaca
from milonga.data.corrections import corrected
from milonga.data.encode import encode_pairs
from milonga.data.pairs import score_gaps
from milonga.maths.mel import fit, log_mel, normalise
from milonga.models.load import load_denoiser
from milonga.training.trainer import train

SOUND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SAMPLES = 8192  # what the small model is trained on


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tango"
    small_networks.pipeline().save_pretrained(folder)
    return str(folder)


def wav(seed: int, rate: int) -> bytes:
    buffer = BytesIO()
    wave = np.random.default_rng(seed).uniform(-0.4, 0.4, rate // 2 if seed % 2 else rate)
    soundfile.write(buffer, wave, rate, "PCM_16", format="WAV")
    return buffer.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five pairs in the published columns, longer and shorter than the model's clips, some at another rate."""
    rows = range(5)
    rates = [16000, 22050, 16000, 16000, 16000]
    columns = {
        "prompt": [small_networks.WORDS[n % 4] for n in rows],
        "chosen": pa.array([{"bytes": wav(n, rates[n]), "path": ""} for n in rows], SOUND),
        "rejected": pa.array([{"bytes": wav(n + 10, rates[n]), "path": ""} for n in rows], SOUND),
        "strategy": ["1.1"] * 5,
    }
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "set" / "train-0.parquet")
    return tmp_path / "set"


def test_examples_are_the_vaes_posteriors_of_the_clips_with_their_captions(model, data, tmp_path):
    pairs, examples = encode_pairs(load_denoiser(model), data, tmp_path / "work")
    read = list(read_alpaca(data))
    assert pairs == [one.pair for one in read]
    assert len(examples) == 5
    batch, whole = examples.batch([0, 3], epoch=0), small_networks.pipeline()
    assert batch.loser is not None
    assert batch.winner.shape == batch.loser.shape == (2, *whole.latent_shape(whole.config["seconds"]))
    # The mean of many epochs' draws is the posterior's mean.
    drawn = torch.stack([examples.batch([0], epoch).winner[0] for epoch in range(400)])
    wave = torch.from_numpy(fit(normalise(read[0].chosen.waveform), SAMPLES))[None]
    with torch.no_grad():
        posterior = whole.vae.encode(log_mel(wave, small_networks.MEL).unsqueeze(1)).latent_dist
    scale = whole.vae.config.scaling_factor
    error = (drawn.mean(0) - posterior.mean[0] * scale).abs() / (posterior.std[0] * scale / 20 + 1e-3)
    assert float(error.max()) < 6
    states, mask = whole.encode_prompt([small_networks.WORDS[3]])
    assert int(batch.conditioning["mask"][1].sum()) == int(mask.sum())
    torch.testing.assert_close(
        batch.conditioning["states"][1][batch.conditioning["mask"][1]], states[0], atol=1e-5, rtol=0.0
    )


@pytest.mark.slow
def test_a_stopped_encoding_goes_on_and_a_finished_one_asks_nothing_of_the_vae(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "SHARD", 2)
    _, whole = encode_pairs(load_denoiser(model), data, tmp_path / "whole")
    original, calls = encode._posteriors, []

    def stops(*words):
        calls.append(len(words[1]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*words)

    monkeypatch.setattr(encode, "_posteriors", stops)
    with pytest.raises(KeyboardInterrupt):
        encode_pairs(load_denoiser(model), data, tmp_path / "work")
    pairs, examples = encode_pairs(load_denoiser(model), data, tmp_path / "work")
    assert calls == [2, 2, 2, 2, 2, 1, 1]
    assert len(pairs) == 5
    assert torch.equal(examples.batch(range(5), 0).winner, whole.batch(range(5), 0).winner)
    encode_pairs(load_denoiser(model), data, tmp_path / "work")
    assert len(calls) == 7


@pytest.mark.slow
def test_other_data_and_other_weights_are_encoded_anew(model, data, tmp_path):
    encode_pairs(load_denoiser(model), data, tmp_path / "work")
    table = pq.read_table(data / "train-0.parquet")
    pq.write_table(table.slice(0, 3), data / "train-0.parquet")
    assert len(encode_pairs(load_denoiser(model), data, tmp_path / "work")[1]) == 3
    other = tmp_path / "other"
    small_networks.pipeline(seed=1).save_pretrained(other)
    encode_pairs(load_denoiser(str(other)), data, tmp_path / "work")
    assert len(list((tmp_path / "work").iterdir())) == 3


@pytest.mark.parametrize("kind", [SOUND, pa.string()], ids=["cells with a path", "paths alone"])
def test_clips_that_a_set_names_by_path_are_encoded_anew_when_added_or_replaced(model, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("MILONGA_CACHE", str(tmp_path / "cache"))
    folder, work, denoiser = tmp_path / "set", tmp_path / "work", load_denoiser(model)
    folder.mkdir()
    columns: dict = {"prompt": small_networks.WORDS[:3], "strategy": ["1.1"] * 3}
    for side in ("chosen", "rejected"):
        names = [f"{side}-{n}.wav" for n in range(3)]
        columns[side] = pa.array([{"path": name} for name in names] if kind == SOUND else names, kind)
        for n, name in enumerate(names):
            (folder / name).write_bytes(wav(2 * n + 10 * (side == "rejected"), 16000))
    pq.write_table(pa.table(columns), folder / "train-0.parquet")
    (folder / "rejected-1.wav").unlink()
    with pytest.warns(MilongaWarning, match="left out 1 of 3 pairs"):
        assert len(encode_pairs(denoiser, folder, work)[0]) == 2
    (folder / "rejected-1.wav").write_bytes(wav(20, 16000))
    pairs, added = encode_pairs(denoiser, folder, work)
    assert len(pairs) == 3
    (folder / "chosen-0.wav").write_bytes(wav(22, 16000))
    _, replaced = encode_pairs(denoiser, folder, work)
    same = [torch.equal(old, new) for old, new in zip(added.winners.mean, replaced.winners.mean, strict=True)]
    assert same == [False, True, True]
    encode_pairs(denoiser, folder, work)
    assert len(list(work.iterdir())) == 3


def test_a_pair_that_a_person_swapped_weighs_as_a_typical_pair():
    margins = [0.1, 0.2, 0.2, 0.3, 0.4]
    pairs = [synthetic_run.make_pair(n, {"a": 0.4 + margin}, {"a": 0.4}) for n, margin in enumerate(margins)]
    pairs[1] = corrected(pairs[1], "swap")
    gaps = score_gaps(pairs)
    assert gaps[0] < gaps[1] < gaps[4]
    assert sum(gaps) / len(gaps) == pytest.approx(1)


def test_scores_that_are_no_number_count_in_no_gap():
    rows = [({"a": 0.6, "b": 9.0}, {"a": 0.2, "b": 5.0}), ({"a": 0.3, "b": 4.0}, {"a": 0.1, "b": 2.0})]
    half, none = {"a": math.nan, "b": 7.0}, dict.fromkeys("ab", math.nan)
    rest = [synthetic_run.make_pair(n, *row) for n, row in enumerate(rows)]
    alone = synthetic_run.make_pair(2, {"b": 7.0}, {"b": 1.0})
    partly = synthetic_run.make_pair(2, half, {"a": 0.2, "b": 1.0})
    unknown = synthetic_run.make_pair(3, none, {"a": 0.2, "b": 1.0})
    gaps = score_gaps([*rest, partly, unknown])
    assert gaps[:3] == pytest.approx(score_gaps([*rest, alone]))
    assert math.isnan(gaps[3])


def test_a_split_that_is_not_there_is_told(model, data, tmp_path):
    assert len(encode_pairs(load_denoiser(model), data, tmp_path / "work", split="train")[0]) == 5
    with pytest.raises(DataError, match="no Parquet file of the split test"):
        encode_pairs(load_denoiser(model), data, tmp_path / "work", split="test")


@pytest.mark.slow
def test_a_model_is_aligned_on_a_published_set(model, data, tmp_path):
    _, examples = encode_pairs(load_denoiser(model), data, tmp_path / "work")
    phases, rows = [Phase(loss="sft", epochs=1), Phase(loss="dpo", epochs=1, beta=200.0)], []
    trained = train(load_denoiser(model), examples, phases, Settings(batch_size=3), 0, tmp_path / "run", rows.append)
    assert (trained / "config.json").exists()
    assert [row["phase"] for row in rows] == ["sft", "sft", "dpo", "dpo"]
    assert all(np.isfinite(row["loss"]) for row in rows)
