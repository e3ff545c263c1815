"""A shard of clips is what `datasets` expects, and gives the clips back."""

import json

import numpy as np
import pytest

from milonga.core.audio import clip_table, clips_of
from milonga.core.errors import AudioError, DataError
from milonga.core.records import Clip
from milonga.core.store import Shards

RATE = 16000


def clips(count: int) -> list[Clip]:
    rng = np.random.default_rng(0)
    return [Clip(rng.integers(-9999, 9999, 50).astype(np.float32) / 32768, RATE) for _ in range(count)]


def test_clips_come_back_by_id(tmp_path):
    made = clips(2)
    Shards(tmp_path).write_table("a", clip_table(["x", "y"], made, [b"12", None]))
    table = Shards(tmp_path).read_table("a")
    back = clips_of(table)
    assert list(back) == ["x", "y"]
    assert all(np.array_equal(a.waveform, b.waveform) for a, b in zip(made, back.values(), strict=True))
    assert table.column("latents").to_pylist() == [b"12", None]


def test_datasets_sees_audio(tmp_path):
    datasets = pytest.importorskip("datasets")
    Shards(tmp_path).write_table("a", clip_table(["x"], clips(1), [None]))
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "a.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(loaded.features["audio"], datasets.Audio)
    assert loaded.features["audio"].sampling_rate == RATE
    row = loaded.cast_column("audio", datasets.Audio(decode=False))[0]
    assert row["audio"]["bytes"][:4] == b"fLaC"


def test_an_empty_shard_has_the_same_columns():
    table = clip_table([], [], [])
    assert table.schema.names == ["id", "audio", "latents"]
    assert json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["audio"]["_type"] == "Audio"
    assert clips_of(table) == {}


def test_mismatches_are_refused():
    with pytest.raises(DataError, match="do not match"):
        clip_table(["x"], clips(2), [None, None])
    with pytest.raises(DataError, match="share a sampling rate"):
        clip_table(["x", "y"], [clips(1)[0], Clip(np.zeros(5, np.float32), 8000)], [None, None])
    with pytest.raises(AudioError, match="NaN"):
        clip_table(["x"], [Clip(np.array([np.nan], np.float32), RATE)], [None])
