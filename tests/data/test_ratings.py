"""Tables of people's ratings: ours, and the shapes in which others are published."""

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from milonga.core.errors import DataError
from milonga.data.ratings import Opinion, read_opinions

RELATE = """wavname,text,score,listener_id,audio type,in RELATE dataset,in AudioCaps
/wav/audiocaps/train/8215.wav,A steam engine,1,0000,anchor,excluded,None
/wav/tango/test/102816.wav,People laugh,8,0000,tango,validation,test
/wav/audioldm2/test/102816.wav,People laugh,3,0001,audioldm,excluded,test
"""
XACLE = "wav_file_name,text,score,listener_id\n00000.wav,Rain,8,17\n00000.wav,Rain,7,18\n"
XACLE_SCORES = (("17", 8.0), ("18", 7.0))
XACLE_MEANS = "wav_file_name,text,average_score\n00000.wav,Rain,8.25\n"
PAM = "File Name,Model,OVL,REL\n12,audioldm2,3.4,4.1\n"
AUDIOEVAL_SCORES = (("quality", 7.0), ("alignment", 9.0))
AUDIOEVAL = "file_name,system_id,prompt_text,rater_id,quality,alignment\nS01_P1.wav,S01,Rain,e1,7,9\n"
OURS = """rater,place,kind,check,prompt_id,prompt,a,b,ovl,rel,better,seconds,given,excluded
r1,0,rate,,p1,rain,base,,4,5,,9.1,now,
r1,1,rate,broken,p2,wind,broken,,1,1,,9.1,now,
r1,2,compare,,p1,rain,aligned,base,,,b,9.1,now,
r2,0,rate,,p1,rain,base,,1,1,,0.1,now,attention
"""


@pytest.mark.parametrize(
    ("text", "expected", "excluded"),
    [
        (RELATE, [("/wav/tango/test/102816.wav", "tango", "People laugh", "0000", "score", 8.0, "")], 2),
        (XACLE, [("00000.wav", "", "Rain", rater, "score", value, "") for rater, value in XACLE_SCORES], 0),
        (XACLE_MEANS, [("00000.wav", "", "Rain", "", "average_score", 8.25, "")], 0),
        (PAM, [("12", "audioldm2", "", "", scale, value, "") for scale, value in (("ovl", 3.4), ("rel", 4.1))], 0),
        (
            AUDIOEVAL,
            [("S01_P1.wav", "S01", "Rain", "e1", scale, score, "") for scale, score in AUDIOEVAL_SCORES],
            0,
        ),
        (
            OURS,
            [
                ("", "base", "rain", "r1", "ovl", 4.0, ""),
                ("", "base", "rain", "r1", "rel", 5.0, ""),
                ("", "aligned", "rain", "r1", "preference", 0.0, "base"),
            ],
            2,
        ),
    ],
    ids=["RELATE", "XACLE", "XACLE means", "PAM", "AudioEval", "a listening test's export"],
)  # fmt: skip
def test_published_shapes_are_read_as_they_are(tmp_path: Path, text, expected, excluded):
    path = tmp_path / "t.csv"
    path.write_text(text)
    opinions, dropped = read_opinions(path)
    fields = ("clip", "system", "caption", "rater", "scale", "value", "other")
    assert sorted(tuple(getattr(row, name) for name in fields) for row in opinions) == sorted(expected)
    assert dropped == excluded


@pytest.mark.parametrize("column", ["excluded", "check"])
def test_a_mark_that_says_no_excludes_nothing(tmp_path: Path, column: str):
    path = tmp_path / "t.csv"
    cells = ["0", "0.0", "False", "no", " ", "1", "True", "screened"]
    path.write_text(f"clip,rater,score,{column}\n" + "".join(f"{n}.wav,r,4,{cell}\n" for n, cell in enumerate(cells)))
    opinions, excluded = read_opinions(path)
    assert [opinion.clip for opinion in opinions] == [f"{n}.wav" for n in range(5)]
    assert excluded == 3


def test_marks_of_a_parquet_table_are_truth_values_or_numbers(tmp_path: Path):
    for marks in ([False, True, None], [0, 1, None], [0.0, 1.0, math.nan]):
        cells = {"clip": ["a.wav", "b.wav", "c.wav"], "score": [4, 2, 3], "excluded": pa.array(marks)}
        pq.write_table(pa.table(cells), tmp_path / "t.parquet")
        opinions, excluded = read_opinions(tmp_path / "t.parquet")
        assert [opinion.clip for opinion in opinions] == ["a.wav", "c.wav"]
        assert excluded == 1


def test_scales_are_named_where_their_names_are_unusual(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("clip,rater,Warmth of sound\na.wav,r1,3\nb.wav,r1,\n")
    with pytest.raises(DataError, match=r"line 2: no column of scores; name one with --scale"):
        read_opinions(path)
    opinions, _ = read_opinions(path, ["Warmth of sound"])
    assert opinions == [Opinion(f"{path}, line 2", "a.wav", "", "", "r1", "warmth_of_sound", 3.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip,rater,score\na.wav,r1,good\n", "line 2: score is 'good', not a number"),
        ("clip,rater,score\na.wav,r1,nan\n", "line 2: score is 'nan', not a number"),
        ("rater,score\nr1,4\n", "line 2: no clip"),
        (OURS.replace(",b,9.1", ",c,9.1"), "line 4: better is 'c'"),
        ("clip,rater,score,excluded\na.wav,r1,4,screened\n", "no rating counts"),
    ],
)
def test_damaged_tables_are_refused_with_their_line(tmp_path: Path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_opinions(path)
