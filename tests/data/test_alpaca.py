"""Audio-alpaca's layout: what is written reads back to the same pairs and clips, and the published columns suffice."""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milonga.core.audio import flac_bytes
from milonga.core.errors import DataError
from milonga.core.ids import content_id
from milonga.core.records import Clip, Pair, Prompt, Refusal, Request
from milonga.data.audio_alpaca import PUBLISHED, Origin, alpaca_table, checked_pairs, read_alpaca
from milonga.data.pairs import read_pairs

RATE = 16000
ORIGIN = Origin("nano", "0f0f", {"a": "aa", "folder/b": "bb"})
SOUND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def clip(seed: int, samples: int = 40) -> Clip:
    wave = np.random.default_rng(seed).integers(-(2**15), 2**15, samples).astype(np.float32) / 2**15
    return Clip(wave, RATE)


def wav(made: Clip) -> bytes:
    buffer = BytesIO()
    soundfile.write(buffer, made.waveform, made.rate, "PCM_16", format="WAV")
    return buffer.getvalue()


scores = st.fixed_dictionaries({"a": st.floats(-1, 1), "folder/b": st.floats(-1, 1)})


@st.composite
def some_pairs(draw) -> list[Pair]:
    found = []
    for number in range(draw(st.integers(1, 3))):
        prompt = Prompt.of(draw(st.text(min_size=1, max_size=9).filter(str.strip)), "t")
        strategy, words = draw(st.sampled_from(["1.1", "2"])), draw(st.sampled_from([prompt.text, "wrong"]))
        chosen, rejected = (
            Request.of(draw(st.integers(0, 9)), prompt, w, 5, 3.0, number) for w in (prompt.text, words)
        )
        rejected = rejected.model_copy(update={"id": content_id("loser", rejected.id)})
        found.append(
            Pair(
                id=content_id(strategy, chosen.id, rejected.id), prompt_id=prompt.id, prompt=prompt.text,
                strategy=strategy, chosen_id=chosen.id, rejected_id=rejected.id, chosen_words=chosen.words,
                rejected_words=words, chosen_steps=5, rejected_steps=7, chosen_seed=chosen.seed,
                rejected_seed=rejected.seed, chosen_scores=draw(scores), rejected_scores=draw(scores),
            )
        )  # fmt: skip
    return found


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_pairs())
def test_what_is_written_reads_back_to_the_same_pairs_and_clips(tmp_path, pairs):
    ids = {one for pair in pairs for one in (pair.chosen_id, pair.rejected_id)}
    clips = {name: clip(int(name, 16)) for name in ids}
    audio = {name: flac_bytes(made) for name, made in clips.items()}
    table = alpaca_table(pairs, audio, dict.fromkeys(ids, 3.0), ORIGIN)
    assert tuple(table.column_names[:4]) == PUBLISHED
    assert table["scorer_hashes"].to_pylist() == [dict(ORIGIN.scorer_hashes)] * len(pairs)
    assert table["rejected_guidance"].to_pylist() == [3.0] * len(pairs)
    pq.write_table(table, tmp_path / "train-0.parquet")
    back = list(read_alpaca(tmp_path))
    assert [one.pair for one in back] == pairs
    for one in back:
        assert np.array_equal(one.chosen.waveform, clips[one.pair.chosen_id].waveform)
        assert np.array_equal(one.rejected.waveform, clips[one.pair.rejected_id].waveform)
        assert one.chosen.rate == one.rejected.rate == RATE


def published(path: Path, rows: int = 3, start: int = 0, **change) -> Path:
    """A shard of the very columns of the published set: WAV bytes in `chosen` and `rejected`."""
    columns = {
        "prompt": pa.array([f"a sound {start + n}" for n in range(rows)]),
        "chosen": pa.array([{"bytes": wav(clip(start + n)), "path": f"{n}.wav"} for n in range(rows)], SOUND),
        "rejected": pa.array([{"bytes": wav(clip(99 + n)), "path": None} for n in range(rows)], SOUND),
        "strategy": pa.array(["Strategy 1.1"] * rows),
    } | change
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), path)
    return path


def test_the_published_set_is_read_from_its_four_columns(tmp_path):
    published(tmp_path / "data" / "train-00000-of-00002.parquet")
    published(tmp_path / "data" / "train-00001-of-00002.parquet", start=3)
    found = list(read_alpaca(tmp_path))
    assert [one.pair.prompt for one in found] == [f"a sound {n}" for n in range(6)]
    first = found[0]
    assert np.array_equal(first.chosen.waveform, clip(0).waveform)
    assert np.array_equal(first.rejected.waveform, clip(99).waveform)
    assert first.pair.prompt_id == Prompt.of("a sound 0", "x").id
    assert (first.pair.strategy, first.pair.chosen_words, first.pair.chosen_steps) == ("Strategy 1.1", "", 0)
    assert first.pair.chosen_scores == {}
    assert len({one.pair.id for one in found}) == 6
    assert found[0].pair.rejected_id == found[3].pair.rejected_id != found[0].pair.chosen_id
    assert [one.pair for one in read_alpaca(tmp_path)] == [one.pair for one in found]


def test_one_split_or_one_file(tmp_path):
    published(tmp_path / "train-0.parquet", rows=2)
    other = published(tmp_path / "validation-0.parquet", rows=1, start=7)
    assert len(list(read_alpaca(tmp_path))) == 3
    assert [one.pair.prompt for one in read_alpaca(tmp_path, "validation")] == ["a sound 7"]
    assert [one.pair.prompt for one in read_alpaca(other)] == ["a sound 7"]
    with pytest.raises(DataError, match="no Parquet file of the split test"):
        list(read_alpaca(tmp_path, "test"))


def test_what_cannot_be_read_is_told_in_one_line(tmp_path):
    silent = published(tmp_path / "a" / "x.parquet", rows=1, chosen=pa.array([{"bytes": b"no", "path": ""}], SOUND))
    empty = published(tmp_path / "b" / "x.parquet", rows=1, chosen=pa.array([{"bytes": None, "path": "x"}], SOUND))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and no more")
    for path, told in (
        (tmp_path / "nowhere", "holds no Parquet file"),
        (broken, "cannot be read as Parquet"),
        (published(tmp_path / "c" / "x.parquet", strategy=None), "has no column strategy"),
        (silent, "'a sound 0' lacks a clip that can be decoded"),
        (empty, "'a sound 0' lacks a clip that can be decoded"),
    ):
        with pytest.raises(DataError, match=told) as error:
            list(read_alpaca(path))
        assert "\n" not in str(error.value)


def test_of_sets_that_were_joined_each_pair_keeps_the_scores_that_it_has(tmp_path):
    won, lost = [{"a": 0.5}, {"b": 0.25}], [{"a": 0.25}, {"b": -0.5}]
    shards = [
        pq.read_table(
            published(tmp_path / f"{n}.parquet", 1, n, chosen_scores=pa.array([w]), rejected_scores=pa.array([x]))
        )
        for n, (w, x) in enumerate(zip(won, lost, strict=True))
    ]
    joined = pa.concat_tables(shards, promote_options="permissive")
    assert joined["chosen_scores"].to_pylist() == [{"a": 0.5, "b": None}, {"a": None, "b": 0.25}]
    pq.write_table(joined, tmp_path / "joined.parquet")
    pairs = [one.pair for one in read_alpaca(tmp_path / "joined.parquet")]
    assert [pair.chosen_scores for pair in pairs] == won
    assert [pair.rejected_scores for pair in pairs] == lost


@pytest.mark.parametrize(
    ("column", "cells", "told"),
    [
        ("chosen_steps", [50.0, 12.5, 50.0], "chosen_steps is unusable: .*integer"),
        ("rejected_scores", [{"a": "0.5"}, {"a": "high"}, None], r"rejected_scores\.a is unusable: .*number"),
    ],
)
def test_a_row_with_unusable_metadata_is_refused_and_the_others_are_read(tmp_path, column, cells, told):
    path = published(tmp_path / "x.parquet", **{column: pa.array(cells)})
    first, refused, last = checked_pairs(path)
    assert isinstance(refused, Refusal)
    assert re.search(f"row 2: {told}", refused.reason)
    assert "\n" not in refused.reason
    assert [one.pair.prompt for one in (first, last)] == ["a sound 0", "a sound 2"]
    with pytest.raises(DataError, match=f"row 2: {told}"):
        list(read_alpaca(path))


@settings(deadline=None, max_examples=3)
@given(some_pairs())
def test_a_clip_that_is_missing_is_told(pairs):
    with pytest.raises(DataError, match=f"lacks clip or score '{pairs[0].chosen_id}'"):
        alpaca_table(pairs, {}, {}, ORIGIN)


def test_the_rows_of_a_data_set_object_are_pairs(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = published(tmp_path / "train-0.parquet")
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    for side in ("chosen", "rejected"):
        rows = rows.cast_column(side, datasets.Audio(decode=False))
    pairs = list(read_pairs(rows))
    assert [one.pair for one in pairs] == [one.pair for one in read_alpaca(path)]
    assert np.array_equal(pairs[0].chosen.waveform, clip(0).waveform)
    blank = rows.map(lambda row, at: {"prompt": " " if at == 1 else row["prompt"]}, with_indices=True)
    with pytest.raises(DataError, match="the data set, row 1: the prompt is empty"):
        list(read_pairs(blank))
