"""`milonga evaluate --against`: metrics of clips and of sets measured against people's ratings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy import stats as untyped
from typer.testing import CliRunner

import milonga
from milonga.cli.main import app
from milonga.core.errors import DataError

stats: Any = untyped  # its results are not typed
CAPTIONS, SYSTEMS, RATERS = 12, ("a", "b", "c"), 4


class Level:
    """A scorer that people follow."""

    name = "level"

    def score(self, clips: Any, texts: Any) -> np.ndarray:
        return np.array([np.abs(clip.waveform).max() for clip in clips])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Clips whose level people like, with noise; a table of clips and one of ratings in RELATE's columns."""
    rng = np.random.default_rng(0)
    clips, ratings = ["system,clip,caption"], ["wavname,text,score,listener_id,audio type"]
    for place, system in enumerate(SYSTEMS):
        (tmp_path / system).mkdir()
        for number in range(CAPTIONS):
            level = 0.1 + 0.2 * place + 0.2 * rng.random()
            name = f"{system}/{number}.wav"
            soundfile.write(tmp_path / name, level * np.sin(np.arange(16000) / 9), 16000)
            clips.append(f"{system},{name},sound {number}")
            for rater in range(RATERS):
                ratings.append(f"/wav/{name},sound {number},{10 * level + rng.normal():.3f},r{rater},{system}")
    (tmp_path / "clips.csv").write_text("\n".join(clips) + "\n")
    (tmp_path / "ratings.csv").write_text("\n".join(ratings) + "\n")
    return tmp_path


@pytest.mark.slow
def test_a_scorer_against_ratings_by_clip_and_by_system(folder: Path):
    options = {"scorers": [Level()], "against": folder / "ratings.csv", "resamples": 100, "cache": False}
    result = milonga.evaluate(folder / "clips.csv", metrics=["silent"], **options)
    assert "score level" not in {row.metric for row in result.agreement}  # only what is named is computed
    result = milonga.evaluate(folder / "clips.csv", **options)
    cells = {(row.level, row.metric, row.statistic): row for row in result.agreement}
    rows = [line.split(",") for line in (folder / "ratings.csv").read_text().splitlines()[1:]]
    means: dict[str, list[float]] = {}
    for name, _, value, *_ in rows:
        means.setdefault(name, []).append(float(value))
    people = np.array([np.mean(values) for values in means.values()])
    levels = np.array([np.abs(soundfile.read(folder / name.removeprefix("/wav/"))[0]).max() for name in means])
    assert cells["clip", "score level", "srcc"].value == pytest.approx(stats.spearmanr(levels, people).statistic)
    assert cells["clip", "score level", "kendall"].value == pytest.approx(stats.kendalltau(levels, people).statistic)
    assert cells["clip", "score level", "srcc"].n == CAPTIONS * len(SYSTEMS)
    assert cells["clip", "score level", "pairs"].n == CAPTIONS * 3
    assert cells["system", "score level", "srcc"].value == 1.0
    assert 0.8 < cells["clip", "ceiling", "srcc"].value <= 1.0
    text = str(result)
    assert "score by clip (n 36)" in text
    assert "ceiling of the ratings" in text
    assert "144 ratings of 36 clips of 12 captions and 3 systems; 4 raters" in text
    page = result.save(folder / "board").read_text()
    assert "Agreement with people" in page
    agreement = (folder / "board/tables/agreement-score-by-clip.csv").read_text().splitlines()
    assert agreement[0] == "Metric,SRCC,Kendall τ,Pearson,Pairs,Against the first"
    assert agreement[1].startswith("ceiling of the ratings,")
    assert r"Kendall $\tau$" in (folder / "board/tables/agreement-score-by-system.tex").read_text()


def test_the_command_prints_and_writes_it_and_metrics_that_are_better_lower_are_turned(folder: Path):
    rows = (folder / "ratings.csv").read_text().splitlines()
    clipped = [line for line in rows[1:] if "/a/" not in line]
    (folder / "ratings.csv").write_text("\n".join([rows[0], *clipped]) + "\n")
    samples, rate = soundfile.read(folder / "b/0.wav")
    soundfile.write(folder / "b/0.wav", np.clip(50 * samples, -1, 1), rate)
    words = ["evaluate", folder / "clips.csv", "--metric", "clipped", "--against", folder / "ratings.csv", "--json"]
    done = CliRunner().invoke(app, [*map(str, words), "--resamples", "100", "--no-cache"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["agreement"]
    cell = next(row for row in rows if row["metric"] == "clipped" and row["statistic"] == "srcc")
    assert cell["value"] != 0
    assert cell["n"] == 24
    assert {row["level"] for row in rows} == {"clip"}  # two systems have no order worth a number


def test_ratings_of_other_clips_are_refused_and_some_are_counted(folder: Path):
    (folder / "other.csv").write_text("clip,rater,score\nnothing.wav,r1,3\n")
    with pytest.raises(DataError, match="none of its 1 ratings is of these clips, line 2 first"):
        milonga.evaluate(folder / "clips.csv", metrics=["silent"], against=folder / "other.csv")
    (folder / "ambiguous.csv").write_text("clip,rater,score\n1.wav,r1,3\n")
    with pytest.raises(DataError, match=r"1.wav fits a/1, b/1, c/1; add a column system"):
        milonga.evaluate(folder / "clips.csv", metrics=["silent"], against=folder / "ambiguous.csv")
    more = (folder / "ratings.csv").read_text() + "/wav/x/99.wav,gone,3,r1,x\n"
    (folder / "ratings.csv").write_text(more)
    options: dict[str, Any] = {"scorers": [Level()], "against": folder / "ratings.csv", "resamples": 100}
    assert "1 of 145 ratings are of other clips" in str(milonga.evaluate(folder / "clips.csv", **options, cache=False))


def test_our_own_export_is_found_by_system_and_caption(folder: Path):
    rows = ["rater,place,kind,check,prompt_id,prompt,a,b,ovl,rel,better,seconds,given,excluded"]
    for number in range(CAPTIONS):
        rows.append(f"r1,{number},compare,,p,sound {number},a,c,,,b,1,now,")
        rows.append(f"r2,{number},compare,,p,sound {number},c,a,,,a,1,now,")
        rows.append(f"r2,{number},rate,,p,sound {number},a,,{1 + number % 5},3,,1,now,")
    (folder / "export.csv").write_text("\n".join(rows) + "\n")
    options: dict[str, Any] = {"scorers": [Level()], "against": folder / "export.csv", "resamples": 100}
    result = milonga.evaluate(folder / "clips.csv", cache=False, **options)
    cells = {(row.scale, row.metric, row.statistic): row for row in result.agreement}
    assert cells["preference", "score level", "pairs"].value == 1.0
    assert cells["preference", "score level", "pairs"].n == CAPTIONS
    assert ("preference", "score level", "srcc") not in cells
    assert "ovl" in {row.scale for row in result.agreement}


def test_a_scorer_s_agreement_by_system_is_over_the_clips_that_people_rated(folder: Path):
    """Over all clips the systems' levels are the other way round."""
    rated = range(CAPTIONS // 2)
    for place, system in enumerate(SYSTEMS):
        for number in set(range(CAPTIONS)) - set(rated):
            soundfile.write(
                folder / f"{system}/{number}.wav", (0.9 - 0.4 * place) * np.sin(np.arange(16000) / 9), 16000
            )
    rows = (folder / "ratings.csv").read_text().splitlines()
    names = {f"/wav/{system}/{number}.wav" for system in SYSTEMS for number in rated}
    kept = [row for row in rows[1:] if row.split(",")[0] in names]
    (folder / "ratings.csv").write_text("\n".join([rows[0], *kept]) + "\n")
    options: dict[str, Any] = {"scorers": [Level()], "against": folder / "ratings.csv", "resamples": 100}
    result = milonga.evaluate(folder / "clips.csv", cache=False, **options)
    means = {row.system: row.value for row in result.summaries if row.metric == "score level"}
    assert means["a"] > means["b"] > means["c"]
    by_system = [row for row in result.agreement if (row.level, row.metric) == ("system", "score level")]
    assert {row.statistic: row.value for row in by_system}["srcc"] == 1.0


def test_a_scale_with_too_few_rated_clips_is_a_note_beside_the_others(folder: Path):
    rows = ["clip,system,rater,ovl,rel"]
    for number in range(CAPTIONS):
        rows += [f"{number}.wav,{system},r1,{1 + number % 5},{3 if (system, number) < ('a', 4) else ''}"
                 for system in SYSTEMS]  # fmt: skip
    (folder / "few.csv").write_text("\n".join(rows) + "\n")
    options: dict[str, Any] = {"scorers": [Level()], "against": folder / "few.csv", "resamples": 100}
    result = milonga.evaluate(folder / "clips.csv", cache=False, **options)
    assert {row.scale for row in result.agreement} == {"ovl"}
    told = "rel: 4 rated clips, and agreement needs 5"
    assert told in result.ratings
    assert told in str(result)
