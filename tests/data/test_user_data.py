"""What a user hands in: mistakes with files, names and folders are read right or refused by name, and nothing is lost
without a report."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_networks
import soundfile

from milonga.core.errors import DataError, MilongaWarning
from milonga.core.ids import file_hash
from milonga.core.records import Refusal
from milonga.data.audio_alpaca import checked_pairs, read_alpaca
from milonga.data.captions import audio_files, clip_captions, prompt_source
from milonga.data.encode import encode_clips, encode_pairs
from milonga.data.recordings import clip_entries, count_entries, decoded, fingerprint, left_out_of, report_left_out
from milonga.models.load import load_denoiser

RATE = 16000
SOUND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def tone(seed: int, samples: int = 1600) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * (200 + 37 * seed) * np.arange(samples) / RATE)).astype(np.float32)


def wav(path: Path, seed: int = 0, samples: int = 1600, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seed, samples), rate, "PCM_16", format=path.suffix[1:].upper())
    return path


def wav_bytes(seed: int, samples: int = 1600) -> bytes:
    buffer = BytesIO()
    soundfile.write(buffer, tone(seed, samples), RATE, "PCM_16", format="WAV")
    return buffer.getvalue()


def read(source: str) -> tuple[list[tuple[str, ...]], list[str]]:
    """The captions of what is read, and the reasons of what is refused."""
    refused: list[Refusal] = []
    captions = [one.captions for one in decoded(clip_entries(source), refused.append)]
    return captions, [one.reason for one in refused]


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    small_networks.pipeline().save_pretrained(folder)
    return load_denoiser(str(folder))


# Names of files as tables and disks spell them: D12, D20, D21


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("file", "cell"),
    [
        ("café 0.wav", "café 0.wav"),
        ("café 0.flac", "café 0"),
        ("été/naïve ü.wav", "été/naïve ü.wav"),
        (" Distorted AM Radio.wav", "Distorted AM Radio.wav"),
        ("Distorted AM Radio.wav", "  Distorted AM Radio.wav "),
        ("dogs/a.wav", "dogs\\a.wav"),
        ("dogs/a.wav", "./dogs/a.wav"),
        ("fx_1.5.wav", "fx_1.5"),
        ("YGeR_0_30.000_40.000.wav", "GeR_0_30.000_40.000"),
    ],
)
def test_a_clip_is_found_however_its_name_is_spelt(file, cell, form, tmp_path):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    wav(tmp_path / unicodedata.normalize(form, file))
    column = "clip" if "." in cell and not cell.strip().endswith(".wav") else "file_name"
    (tmp_path / "t.csv").write_text(f"{column},caption\n{unicodedata.normalize(other, cell)},rain\n", encoding="utf-8")
    assert read(f"clips:{tmp_path}/t.csv") == ([("rain",)], [])
    keys = set(audio_files((tmp_path / unicodedata.normalize(form, file)).parent))
    assert {row.key for row in clip_captions(tmp_path / "t.csv", keys)} == keys


def test_two_clips_whose_names_differ_behind_a_dot_stay_two(tmp_path):
    for name in ("fx_1.5", "fx_1.7"):
        wav(tmp_path / f"{name}.wav")
    assert set(audio_files(tmp_path)) == {"fx_1.5", "fx_1.7"}
    (tmp_path / "t.csv").write_text("clip,caption\nfx_1.5,a\nfx_1.7,b\n")
    assert [row.key for row in clip_captions(tmp_path / "t.csv")] == ["fx_1.5", "fx_1.7"]


def test_hidden_files_are_no_clips(tmp_path):
    wav(tmp_path / "x0.wav")
    (tmp_path / "._x0.wav").write_bytes(b"\0\5\x16\7Mac OS X")
    (tmp_path / ".hidden.flac").write_bytes(b"x")
    assert set(audio_files(tmp_path)) == {"x0"}
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "._a.parquet").write_bytes(b"\0\5\x16\7Mac OS X")
    with pytest.raises(DataError, match=r"[/]a\.parquet has no column chosen"):
        list(read_alpaca(tmp_path))


def test_a_sound_of_any_usual_kind_is_a_clip_also_where_it_cannot_be_decoded(tmp_path):
    """Passed over, it would be lost from an evaluation without a word; decoded, it is refused by name."""
    for name in ("a.oga", "b.aifc", "c.w64", "d.caf", "e.au", "f.m4a", "g.WMA"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("clip,caption\na,rain\nf,a bell\n")
    assert set(audio_files(tmp_path)) == set("abcdefg")
    assert [row.key for row in clip_captions(tmp_path / "metadata.csv")] == ["a", "f"]
    reasons = read(f"clips:{tmp_path}")[1]
    assert all(
        f"{name}: cannot be read as audio" in reason for name, reason in zip(("a.oga", "f.m4a"), reasons, strict=True)
    )


def test_a_name_that_is_not_utf_8_is_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "caf\udce9.wav").write_bytes(wav_bytes(0))
    with pytest.raises(DataError, match=r"the name of caf\\xe9\.wav is not UTF-8; rename that file"):
        audio_files(tmp_path)


def test_names_that_only_look_alike_are_one_clip(tmp_path):
    for name in ("café.wav", unicodedata.normalize("NFD", "café.flac")):
        wav(tmp_path / name)
    with pytest.raises(DataError, match=r"are one clip: remove one of them"):
        audio_files(tmp_path)


@pytest.mark.parametrize(
    ("header", "row", "file"),
    [
        ("audiocap_id,youtube_id,start_time,caption", "91139,r1nicOVtvkQ,130,rain", "Yr1nicOVtvkQ_130.wav"),
        ("clip,caption,audioset_labels", '-a_30,rain,"/m/06mb1,/m/0jb2l"', "-a_30.wav"),
        ("clip,caption", "sub/x.wav,rain", "x.wav"),
        ("file_name,text", "x.wav,rain", "x.flac"),
        ("location;captions", "x.wav;rain", "x.wav"),
    ],
)
def test_evaluation_matches_a_clip_by_any_of_the_usual_columns(header, row, file, tmp_path):
    wav(tmp_path / file)
    (tmp_path / "t.csv").write_text(f"{header}\n{row}\n")
    keys = set(audio_files(tmp_path))
    assert [(one.key, one.caption) for one in clip_captions(tmp_path / "t.csv", keys)] == [(*keys, "rain")]


# What is left out is reported: D6, D9


def spoilt_folder(folder: Path, good: int = 9) -> Path:
    rows = [(wav(folder / f"good{n}.wav", n).name, f"sound {n}") for n in range(good)]
    rows += [("gone.wav", "gone"), ("Good0.WAV", "of another case"), ("empty.wav", "empty"), ("page.wav", "a page")]
    rows += [("one.wav", "one sample"), ("cut.wav", "cut off")]
    soundfile.write(folder / "empty.wav", np.zeros(0), RATE)
    (folder / "page.wav").write_text("<html>")
    wav(folder / "one.wav", 0, 1, 44100)
    (folder / "cut.wav").write_bytes(wav_bytes(0)[:-100])
    text = "file_name,caption\n" + "".join(f"{name},{caption}\n" for name, caption in rows)
    (folder / "metadata.csv").write_text(text)
    return folder


def test_clips_that_are_left_out_are_reported_with_file_row_and_reason(denoiser, tmp_path):
    folder = spoilt_folder(tmp_path / "clips")
    with pytest.warns(MilongaWarning, match=r"left out 6 of 15 clips; ") as caught:
        examples = encode_clips(denoiser, f"clips:{folder}", tmp_path / "work")
    assert len(examples) == 9
    text = str(caught[0].message)
    assert "\n" not in text
    for line, reason in (
        (11, "no such audio file"), (12, "no such audio file"), (13, "the audio is empty"),
        (14, "cannot be read as audio"), (15, "only 1 samples at 44100 Hz: it is too short"), (16, "is cut off"),
    ):  # fmt: skip
        assert any(f"metadata.csv, line {line}: " in part and reason in part for part in text.split("; ")), (line, text)
    with pytest.warns(MilongaWarning, match="left out 6 of 15 clips"):  # what is encoded already is reported again
        encode_clips(denoiser, f"clips:{folder}", tmp_path / "work")


def refusals(count: int) -> list[Refusal]:
    return [Refusal(stage="recordings", id=str(n), reason=f"t.csv, line {n}: gone") for n in range(count)]


def test_more_reasons_than_ten_stand_in_a_file(tmp_path):
    with pytest.warns(MilongaWarning, match=r"left out 12 of 193 clips; the first: t\.csv, line 0: gone; all are in "):
        report_left_out(refusals(12), 193, tmp_path / "refused")
    report = json.loads((tmp_path / "refused" / "left-out.json").read_text())
    assert report["reasons"] == [f"t.csv, line {n}: gone" for n in range(12)]
    report_left_out_folder = tmp_path / "run" / "encoded" / "0f" / "refused"
    with pytest.warns(MilongaWarning, match="left out 4 of 193 clips; t"):
        report_left_out(refusals(4), 193, report_left_out_folder)
    assert left_out_of(tmp_path / "run") == {"4 of 193 clips": [f"t.csv, line {n}: gone" for n in range(4)]}


def test_a_report_replaces_the_one_of_what_the_same_source_held_before(tmp_path):
    for folder, count, source in (
        ("0a", 4, "clips:a"),
        ("0b", 5, "clips:b"),
        ("0c", 2, "clips:a"),
        ("0d", 0, "clips:b"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MilongaWarning)
            report_left_out(refusals(count), 193, tmp_path / "encoded" / folder / "refused", source=source)
    assert list(left_out_of(tmp_path)) == ["2 of 193 clips of clips:a"]


def test_a_fingerprint_is_of_contents_and_files_are_read_again_only_where_they_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("MILONGA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "t.csv").write_text("file_name,caption\na.wav,a\nb.wav,b\n")
    for name in ("a", "b"):
        wav(tmp_path / f"{name}.wav", ord(name))
    first, reads = fingerprint(f"clips:{tmp_path}/t.csv"), []
    monkeypatch.setattr("milonga.data.recordings.file_hash", lambda file: (reads.append(file.name), file_hash(file))[1])
    assert fingerprint(f"clips:{tmp_path}/t.csv") == first
    assert reads == ["t.csv"]
    (tmp_path / "a.wav").touch()
    assert fingerprint(f"clips:{tmp_path}/t.csv") == first
    assert reads == ["t.csv", "t.csv", "a.wav"]
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert fingerprint(f"clips:{tmp_path}/copy/t.csv") == first
    wav(tmp_path / "b.wav", 7)
    assert fingerprint(f"clips:{tmp_path}/t.csv") != first


def test_more_than_half_left_out_stops_unless_allowed(tmp_path):
    with pytest.raises(
        DataError, match=r"left out 6 of 11 clips, more than half; .*; mend the data, or set train.allow_missing"
    ):
        report_left_out(refusals(6), 11, tmp_path)
    with pytest.warns(MilongaWarning, match="left out 6 of 11 clips"):
        report_left_out(refusals(6), 11, tmp_path, allow_missing=True)
    with pytest.raises(DataError, match=r"none of 3 clips could be used; the first: t\.csv, line 0"):
        report_left_out(refusals(3), 3, tmp_path, allow_missing=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report_left_out([], 3, tmp_path)
    with pytest.warns(MilongaWarning, match="left out 5 of 10 pairs"):
        report_left_out(refusals(5), 10, tmp_path, things="pairs")


# Folders without the table that is expected: D16, D17


def test_a_folder_of_sounds_without_a_table_says_what_it_lacks(tmp_path):
    wav(tmp_path / "a.wav")
    missing = r"has sound files but no metadata\.csv, \.jsonl or \.parquet \(columns file_name and caption\)"
    with pytest.raises(DataError, match=missing):
        list(clip_entries(f"clips:{tmp_path}"))
    for name in ("captions.csv", "train/metadata.csv"):
        shutil.rmtree(tmp_path / "train", ignore_errors=True)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("file_name,caption\na.wav,rain\n")
        for ask in (clip_entries, count_entries):
            with pytest.raises(DataError, match=rf"{missing}; it has .*{name}.*: name it, as in clips:{tmp_path}"):
                list(ask(f"clips:{tmp_path}"))  # type: ignore[arg-type]
        (tmp_path / name).unlink()


def test_a_table_beside_no_sounds_is_named(tmp_path):
    (tmp_path / "captions.tsv").write_text("file_name\tcaption\n")
    with pytest.raises(DataError, match=rf"has no metadata\.csv, but captions\.tsv: name it, as in clips:{tmp_path}"):
        list(clip_entries(f"clips:{tmp_path}"))


def test_an_audio_folder_named_as_a_data_set_is_read_as_one_of_clips(tmp_path):
    for n in range(2):
        wav(tmp_path / f"{n}.wav", n)
    (tmp_path / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{n}.wav", "text": f"s {n}"}) + "\n" for n in range(2))
    )
    for source in (f"dataset:{tmp_path}", f"dataset:{tmp_path}:train"):
        assert read(source) == ([("s 0",), ("s 1",)], [])
        assert count_entries(source) == 2
        assert [one.text for one in prompt_source(source)] == ["s 0", "s 1"]
    before = fingerprint(f"dataset:{tmp_path}")
    wav(tmp_path / "0.wav", 7, 3200)
    assert fingerprint(f"dataset:{tmp_path}") != before


def test_the_cause_of_a_data_set_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def fails(*_, **__):
        try:
            raise ImportError("To support decoding audio data, please install 'torchcodec'.")
        except ImportError as error:
            raise datasets.exceptions.DatasetGenerationError(
                "An error occurred while generating the dataset"
            ) from error

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(
        DataError, match="cannot be loaded: ImportError: To support decoding audio data, please install"
    ):
        prompt_source("dataset:someone/sounds")


# D7: a data set that changed is encoded anew


@pytest.mark.slow
def test_a_data_set_in_a_folder_that_was_replaced_is_encoded_anew(denoiser, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder, features = tmp_path / "set", {"audio": {"_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}}
    folder.mkdir()

    def write(texts: list[str], seed: int) -> None:
        sounds = pa.array([{"bytes": wav_bytes(seed + n), "path": None} for n in range(len(texts))], SOUND)
        told = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(
            pa.table({"audio": sounds, "text": texts}).replace_schema_metadata(told), folder / "train.parquet"
        )

    seen = []
    for texts, seed in ((["a dog barks"] * 2, 0), (["rain falls"] * 3, 5), (["rain falls"] * 3, 9)):
        write(texts, seed)
        examples = encode_clips(denoiser, f"dataset:{folder}", tmp_path / "work")
        assert len(examples) == len(texts)
        assert [one.text for one in prompt_source(f"dataset:{folder}")] == texts[:1]
        seen.append(fingerprint(f"dataset:{folder}"))
    assert len(set(seen)) == 3
    assert fingerprint(f"dataset:{folder}") == seen[-1]


# D13: Audio-alpaca of another shape


def alpaca(path: Path, **change: Any) -> Path:
    columns: dict[str, Any] = {
        "prompt": ["a dog", "rain"],
        "chosen": pa.array([{"bytes": wav_bytes(n), "path": None} for n in range(2)], SOUND),
        "rejected": pa.array([{"bytes": wav_bytes(n + 5), "path": None} for n in range(2)], SOUND),
        "strategy": ["1", "2"],
    } | change
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def test_a_strategy_that_is_a_number_is_text(tmp_path):
    path = alpaca(tmp_path / "a.parquet", strategy=pa.array([1, 2], pa.int64()))
    assert [one.pair.strategy for one in read_alpaca(path)] == ["1", "2"]


def test_audio_as_arrays_is_read(tmp_path):
    kind = pa.struct([("array", pa.list_(pa.float32())), ("sampling_rate", pa.int64()), ("path", pa.string())])
    arrays = [{"array": tone(n).tolist(), "sampling_rate": RATE, "path": f"{n}.wav"} for n in range(4)]
    path = alpaca(tmp_path / "a.parquet", chosen=pa.array(arrays[:2], kind), rejected=pa.array(arrays[2:], kind))
    pairs = list(read_alpaca(path))
    np.testing.assert_array_equal(pairs[0].chosen.waveform, tone(0))
    assert (pairs[1].rejected.rate, len({one.pair.id for one in pairs})) == (RATE, 2)
    np.testing.assert_array_equal(next(iter(decoded(clip_entries(f"clips:{path}")))).clip.waveform, tone(0))


@pytest.mark.parametrize("kind", [SOUND, pa.string()])
def test_audio_as_paths_beside_the_file_is_read(kind, tmp_path):
    names = [wav(tmp_path / "set" / "audio" / f"{n}.wav", n).relative_to(tmp_path / "set") for n in range(4)]
    cells = [str(name) if kind == pa.string() else {"bytes": None, "path": str(name)} for name in names]
    path = alpaca(tmp_path / "set" / "a.parquet", chosen=pa.array(cells[:2], kind), rejected=pa.array(cells[2:], kind))
    pairs = list(read_alpaca(path))
    assert np.allclose(pairs[1].rejected.waveform, tone(3), atol=1e-4)
    assert len({clip for one in pairs for clip in (one.pair.chosen_id, one.pair.rejected_id)}) == 4


SHAPES = [
    ("a prompt that is null", {"prompt": ["a dog", None]}, "row 2: the prompt is empty"),
    ("a prompt of spaces", {"prompt": ["a dog", " \n"]}, "row 2: the prompt is empty"),
    ("a prompt that is a number", {"prompt": [1, 2]}, "row 1: the prompt is empty"),
    (
        "winner equals loser",
        {"rejected": pa.array([{"bytes": wav_bytes(0), "path": None}, {"bytes": wav_bytes(9), "path": None}], SOUND)},
        "row 1: winner and loser of 'a dog' are the same clip",
    ),
    ("no audio", {"chosen": pa.array([None, None], SOUND)}, "row 1: 'a dog' lacks a clip .*chosen: holds no audio"),
    ("a number for audio", {"chosen": [1, 2]}, "row 1: .*a cell of int holds no audio"),
    (
        "one sample",
        {"rejected": pa.array([{"bytes": wav_bytes(0, 1), "path": None}] * 2, SOUND)},
        r"row 1: .*rejected: only 1 samples at 16000 Hz",
    ),
    ("a path to nothing", {"chosen": ["a.wav", "b.wav"]}, r"row 1: .*a\.wav: no such audio file"),
    (
        "bytes cut off",
        {"chosen": pa.array([{"bytes": wav_bytes(0)[:-9], "path": None}] * 2, SOUND)},
        "row 1: .*the audio is cut off",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in SHAPES], ids=[case[0] for case in SHAPES])
def test_a_pair_that_cannot_be_used_is_refused_with_file_and_row(change, message, tmp_path):
    path = alpaca(tmp_path / "a.parquet", **change)
    with pytest.raises(DataError, match=rf"a\.parquet, {message}") as error:
        list(read_alpaca(path))
    assert "\n" not in str(error.value)
    assert any(isinstance(one, Refusal) for one in checked_pairs(path))


@pytest.mark.parametrize("source", ["pairs", "clips"])
def test_damaged_parquet_is_refused_in_one_line(source, tmp_path):
    row = {"bytes": wav_bytes(0), "path": "x.wav"}
    table = pa.Table.from_pylist([{"prompt": "rain", "chosen": row, "rejected": row, "strategy": "1"}])
    pq.write_table(table, tmp_path / "x.parquet")
    data = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(data[:8] + bytes(255 - byte for byte in data[8:40]) + data[40:])
    with pytest.raises(DataError, match=r"x\.parquet cannot be read as Parquet") as error:
        list(read_alpaca(tmp_path) if source == "pairs" else clip_entries(f"clips:{tmp_path}"))
    assert "\n" not in str(error.value)


def test_a_set_without_rows_holds_no_pairs(denoiser, tmp_path):
    empty = pa.table({"prompt": ["x"], "chosen": ["x"], "rejected": ["x"], "strategy": ["1"]}).slice(0, 0)
    pq.write_table(empty, tmp_path / "a.parquet")
    for use in (lambda: list(read_alpaca(tmp_path)), lambda: encode_pairs(denoiser, tmp_path, tmp_path / "work")):
        with pytest.raises(DataError, match="holds no pairs"):
            use()


def test_pairs_that_cannot_be_used_are_left_out_of_a_training(denoiser, tmp_path):
    sounds = [{"bytes": wav_bytes(n), "path": None} for n in range(8)]
    alpaca(
        tmp_path / "set" / "a.parquet",
        prompt=["a", " ", "c", "d"],
        chosen=pa.array(sounds[:4], SOUND),
        rejected=pa.array([sounds[4], sounds[5], sounds[2], sounds[7]], SOUND),
        strategy=[1, 1, 1, 1],
    )
    with pytest.warns(
        MilongaWarning, match=r"left out 2 of 4 pairs; .*row 2: the prompt is empty; .*row 3: winner and"
    ):
        pairs, examples = encode_pairs(denoiser, tmp_path / "set", tmp_path / "work")
    assert [pair.prompt for pair in pairs] == ["a", "d"]
    assert len(examples) == 2


# D14, D2 through every reader that takes a table


@pytest.mark.parametrize(
    "text",
    [
        'clip,caption\na.wav,"a dog barks\nb.wav,rain falls\nc.wav,a bell rings\n',
        "clip,caption\na.wav,a dog barks, then a bell\n",
        "clip,caption\na.wav\n",
    ],
)
def test_every_reader_refuses_a_damaged_table(text, tmp_path):
    wav(tmp_path / "a.wav")
    path = tmp_path / "metadata.csv"
    path.write_text(text)
    for use in (
        lambda: list(clip_entries(f"clips:{path}")),
        lambda: list(clip_entries(f"clips:{tmp_path}")),
        lambda: list(clip_entries(f"dataset:{tmp_path}")),
        lambda: fingerprint(f"clips:{path}"),
        lambda: prompt_source(f"captions:{path}"),
        lambda: prompt_source(f"audiocaps:{path}"),
        lambda: list(clip_captions(path)),
    ):
        with pytest.raises(DataError, match=r"metadata\.csv, line 2: "):
            use()


@pytest.mark.slow
def test_the_commands_refuse_it_too(tmp_path):
    for name in ("one", "two"):
        wav(tmp_path / "s" / name / "a.wav")
    path = tmp_path / "t.csv"
    path.write_text("clip,caption\na.wav,a dog barks, then a bell\n")
    main = [sys.executable, "-c", "from milonga.cli.main import main; main()"]
    for words in (
        ["evaluate", "s/one", "s/two", "--captions", "t.csv", "--clap", "nano-judge"],
        ["listen", "make", "s", "--captions", "t.csv", "--out", "test"],
    ):
        done = subprocess.run([*main, *words], capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "t.csv, line 2: 3 cells where the header names 2; put a text that holds a comma" in done.stderr


C_LOCALE = """
from pathlib import Path
from milonga.data.captions import audio_files
from milonga.data.recordings import clip_entries, decoded
captions = [entry.captions for entry in decoded(clip_entries("clips:clips"))]
print(ascii(captions), ascii(sorted(audio_files(Path("clips")))))
"""


def test_names_of_any_script_are_found_in_a_locale_that_is_not_utf_8(tmp_path):
    wav(tmp_path / "clips" / "café 狗.wav")
    (tmp_path / "clips" / "metadata.csv").write_text("file_name,caption\ncafé 狗.wav,狗叫\n", encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-c", C_LOCALE]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | locale, capture_output=True, text=True)
    assert done.stdout.strip() == ascii([("狗叫",)]) + " " + ascii(["café 狗"]), done.stderr
