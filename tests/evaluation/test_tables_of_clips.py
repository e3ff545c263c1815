"""A table of several systems: their clips stay apart, and rows that contradict each other are refused."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from milonga.core.errors import DataError
from milonga.evaluation.inputs import from_table

CLIPS = ("a/dogs/1", "a/cats/1", "b/dogs/1", "b/cats/1", "real/dogs/1", "real/cats/1", "a/x", "b/x", "r1/x", "r2/x")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(CLIPS):
        file = tmp_path / f"{name}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, np.full(100, number / 100), 16000)
    return tmp_path


def table(folder: Path, *rows: str) -> Path:
    path = folder / "t.csv"
    path.write_text("\n".join(["system,clip,reference,caption", *rows]) + "\n")
    return path


def test_clips_of_one_name_in_two_folders_are_two_clips(folder):
    inputs = from_table(
        table(
            folder,
            "a,a/dogs/1.wav,real/dogs/1.wav,a dog",
            "a,a/cats/1.wav,real/cats/1.wav,a cat",
            "b,b/dogs/1.wav,,a dog",
            "b,b\\cats\\1,,a cat",
        ),
        None,
    )
    paths = {name: {key: ref.source for key, ref in refs.items()} for name, refs in inputs.systems.items()}
    assert paths == {
        name: {f"{kind}/1": folder / name / kind / "1.wav" for kind in ("dogs", "cats")} for name in ("a", "b")
    }
    assert {key: ref.source for key, ref in inputs.reference.items()} == {
        f"{kind}/1": folder / "real" / kind / "1.wav" for kind in ("dogs", "cats")
    }
    assert {key: prompt.text for key, prompt in inputs.prompts.items()} == {"dogs/1": "a dog", "cats/1": "a cat"}


def test_systems_in_folders_of_their_own_are_compared_by_name(folder):
    inputs = from_table(table(folder, "a,a/x.wav,r1/x.wav,rain", "b,b/x.wav,r1/x.wav,rain"), None)
    assert {name: list(clips) for name, clips in inputs.systems.items()} == {"a": ["x"], "b": ["x"]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ("a,a/x.wav,r1/x.wav,rain", "b,b/x.wav,r1/x.wav,wind"),
            r"t\.csv, line 3: the clip x has the caption 'wind', and 'rain' in line 2; give clips of",
        ),
        (
            ("a,a/x.wav,r1/x.wav,rain", "b,b/x.wav,r2/x.wav,rain"),
            r"t\.csv, line 3: the clip x has the reference 'r2/x\.wav', and 'r1/x\.wav' in line 2",
        ),
        (("a,a/x.wav,,rain", "a,a/x.wav,,rain"), r"t\.csv, line 3: a has the clip x twice"),
        (("a,a/gone.wav,,rain",), r"t\.csv, line 2: clip a/gone\.wav is not there"),
        (("a,a/x.wav,gone.wav,rain",), r"t\.csv, line 2: reference gone\.wav is not there"),
        (
            ("a,a/x.wav,,rain", "reference,r1/x.wav,,rain"),
            r"t\.csv: 'reference' is what real clips are called: put them in the column reference",
        ),
        (
            ("a,/clips/dogs/1.wav,,a dog", "a,a/cats/1.wav,,a cat"),
            r"t\.csv: some clips have absolute paths and others relative ones: write all alike",
        ),
    ],
)
def test_contradictions_are_refused_with_both_rows(rows, message, folder):
    with pytest.raises(DataError, match=message):
        from_table(table(folder, *rows), None)
