"""Real clips with captions out of files of the exact schemas that people have; what is missing is told."""

import csv
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from milonga.core.audio import Mono
from milonga.core.errors import DataError
from milonga.core.records import Refusal
from milonga.data.recordings import Recording, Refused, decoded, entries


def recordings(path: Path, audio: Path | None = None, refused: Refused | None = None, mono: Mono = "mean"):
    return decoded(entries(path, audio), refused, mono)


SOUND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def tone(seed: int, rate: int = 16000, channels: int = 1) -> np.ndarray:
    """Each channel another tone, exact in 16 bits."""
    times = np.arange(rate // 10)[:, None]
    waves = 0.3 * np.sin(2 * np.pi * (200 + 37 * seed + 90 * np.arange(channels)) * times / rate)
    return np.round(waves * 32768) / 32768


def wav(path: Path, seed: int, rate: int = 16000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seed, rate, channels), rate, "PCM_16", format="WAV")
    return path


def wav_bytes(seed: int, rate: int = 16000) -> bytes:
    buffer = BytesIO()
    soundfile.write(buffer, tone(seed, rate), rate, "PCM_16", format="WAV")
    return buffer.getvalue()


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def audiocaps(path: Path, rows: list[tuple[int, str, int, str]]) -> Path:
    columns = ("audiocap_id", "youtube_id", "start_time", "caption")
    return table(path, [dict(zip(columns, row, strict=True)) for row in rows])


def told(found: list[Recording]) -> list[tuple[tuple[str, ...], int]]:
    return [(one.captions, one.clip.rate) for one in found]


def assert_heard(one: Recording, seed: int) -> None:
    np.testing.assert_allclose(one.clip.waveform, tone(seed, one.clip.rate)[:, 0], atol=1e-4)


@pytest.mark.parametrize(
    "name", ["{video}.wav", "Y{video}.wav", "{video}_{start}.flac", "Y{video}_{start}.wav", "{id}.wav"]
)
def test_audiocaps_tables_find_their_clips_by_any_of_the_usual_names(name: str, tmp_path: Path) -> None:
    rows = [(91139, "r1nicOVtvkQ", 130, "A woman talks"), (58146, "-UDGBjjwyaqE", 20, "Clanging, and more")]
    for place, (number, video, start, _) in enumerate(rows):
        path = tmp_path / "audio" / name.format(video=video, start=start, id=number)
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, tone(place), 16000)
    found = list(recordings(audiocaps(tmp_path / "train.csv", rows), tmp_path / "audio"))
    assert told(found) == [(("A woman talks",), 16000), (("Clanging, and more",), 16000)]
    for place, one in enumerate(found):
        assert_heard(one, place)


def test_several_captions_of_a_clip_are_one_recording_wherever_they_stand(tmp_path: Path) -> None:
    """In AudioCaps' own test.csv the five captions of a clip are hundreds of rows apart."""
    rows = [(1, "a", 10, "One"), (3, "b", 0, "Three"), (2, "a", 10, "Two")]
    for place, video in enumerate("ab"):
        wav(tmp_path / f"{video}.wav", place)
    found = list(recordings(audiocaps(tmp_path / "val.csv", rows)))
    assert [one.captions for one in found] == [("One", "Two"), ("Three",)]
    assert found[0].id != found[1].id


def test_a_table_may_name_clips_by_video_and_start_in_one_column(tmp_path: Path) -> None:
    wav(tmp_path / "-a_30.wav", 0)
    (tmp_path / "subset.csv").write_text('clip,caption,audioset_labels\n-a_30,Rain falls,"/m/06mb1,/m/0jb2l"\n')
    assert told(list(recordings(tmp_path / "subset.csv"))) == [(("Rain falls",), 16000)]


def test_the_originals_json_lines_name_their_clips(tmp_path: Path) -> None:
    inside, outside = wav(tmp_path / "data" / "one.wav", 0, 44100, 2), wav(tmp_path / "elsewhere" / "two.wav", 1, 22050)
    rows = [
        {"dataset": "audiocaps", "location": "data/one.wav", "captions": "Rain falls"},
        {"dataset": "audiocaps", "location": str(outside), "captions": "A bell rings"},
    ]
    path = tmp_path / "train_audiocaps.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(recordings(path))
    assert told(found) == [(("Rain falls",), 44100), (("A bell rings",), 22050)]
    assert_heard(found[1], 1)
    both = soundfile.read(inside)[0]
    np.testing.assert_allclose(found[0].clip.waveform, both.mean(1), atol=1e-6)
    first = next(recordings(path, mono="first"))
    np.testing.assert_allclose(first.clip.waveform, both[:, 0], atol=1e-6)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_audio_folder_is_read_by_its_metadata(kind: str, tmp_path: Path) -> None:
    rows = [{"file_name": "sub/a.wav", "text": "A dog"}, {"file_name": "b.flac", "text": "A cat"}]
    wav(tmp_path / "sub" / "a.wav", 0)
    soundfile.write(tmp_path / "b.flac", tone(1), 16000)
    if kind == "csv":
        table(tmp_path / "metadata.csv", rows)
    elif kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    found = list(recordings(tmp_path))
    assert [one.captions for one in found] == [("A dog",), ("A cat",)]
    assert_heard(found[0], 0)
    assert_heard(found[1], 1)


def test_parquet_with_audio_inside_is_read_without_datasets(tmp_path: Path) -> None:
    features = {"audio": {"sampling_rate": 16000, "_type": "Audio"}, "caption": {"dtype": "string", "_type": "Value"}}
    held = {
        "audio": pa.array([{"bytes": wav_bytes(n), "path": f"{n}.wav"} for n in range(40)], SOUND),
        "caption": pa.array([f"sound {n}" for n in range(40)]),
        "other": pa.array(range(40)),
    }
    whole = pa.table(held).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "data").mkdir()
    for place in range(2):
        pq.write_table(whole.slice(20 * place, 20), tmp_path / "data" / f"train-0000{place}-of-00002.parquet")
    found = list(recordings(tmp_path))
    assert [one.captions for one in found] == [(f"sound {n}",) for n in range(40)]
    for place in (0, 19, 20, 39):
        assert_heard(found[place], place)


def test_the_winners_of_audio_alpaca_are_recordings(tmp_path: Path) -> None:
    held = {
        "prompt": ["a dog barks", "rain"],
        "chosen": pa.array([{"bytes": wav_bytes(n), "path": None} for n in range(2)], SOUND),
        "rejected": pa.array([{"bytes": wav_bytes(n + 5), "path": None} for n in range(2)], SOUND),
        "strategy": ["1", "2"],
    }
    pq.write_table(pa.table(held), tmp_path / "train-0.parquet")
    found = list(recordings(tmp_path / "train-0.parquet"))
    assert [one.captions for one in found] == [("a dog barks",), ("rain",)]
    assert_heard(found[1], 1)


def test_missing_and_broken_clips_are_refused_with_their_reason_or_are_errors(tmp_path: Path) -> None:
    rows = [(1, "there", 0, "One"), (2, "gone", 0, "Two"), (3, "broken", 0, "Three"), (4, "also", 0, "Four")]
    wav(tmp_path / "there.wav", 0)
    wav(tmp_path / "also.wav", 1)
    (tmp_path / "broken.wav").write_bytes(b"RIFF....WAVE")
    path, refused = audiocaps(tmp_path / "train.csv", rows), list[Refusal]()
    found = list(recordings(path, refused=refused.append))
    assert [one.captions for one in found] == [("One",), ("Four",)]
    assert [one.reason.split(": ", 2)[0] for one in refused] == [f"{path}, line 3", f"{path}, line 4"]
    assert "no such audio file" in refused[0].reason
    assert "cannot be read as audio" in refused[1].reason
    with pytest.raises(DataError, match=r"train\.csv, line 3: .*no such audio file"):
        list(recordings(path))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"caption": "A dog", "label": "x"}], r"no column location, .* or youtube_id names a clip \(it has: caption"),
        ([{"file_name": "a.wav", "label": "x"}], "no column `caption`"),
        ([{"file_name": "a.wav", "caption": " "}], "the caption is empty"),
    ],
)
def test_a_table_without_the_columns_is_told(rows: list[dict[str, Any]], words: str, tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", 0)
    with pytest.raises(DataError, match=words):
        list(recordings(table(tmp_path / "t.csv", rows)))


def test_what_holds_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file_name,caption\n")
    with pytest.raises(DataError, match="holds no clips"):
        list(recordings(tmp_path / "t.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no Parquet file"):
        list(recordings(tmp_path / "empty"))
    pq.write_table(pa.table({"caption": ["x"], "audio": ["a.wav"]}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match="with audio inside"):
        list(recordings(tmp_path / "p.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        list(recordings(tmp_path / "bad.parquet"))
