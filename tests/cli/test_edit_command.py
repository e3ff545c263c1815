"""The command `edit`, and `generate` with negative words, long clips and timelines, on nano with two steps."""

import json
from pathlib import Path

import pytest
import soundfile
from typer.testing import CliRunner

from milonga.cli.main import app
from milonga.core.audio import read_tags

FEW = ["--steps", "2"]


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


def paths(*words: object) -> list[Path]:
    code, stdout, stderr = run(*words)
    assert code == 0, stderr
    return [Path(line) for line in stdout.splitlines()]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    (path,) = paths("generate", "a dog barks", *FEW, "--out", tmp_path_factory.mktemp("clip"))
    return path


def test_a_generated_clip_is_edited_by_its_own_words_and_others(clip, tmp_path):
    (own,) = paths("edit", clip, "--variation", *FEW, "--out", tmp_path)
    assert read_tags(own)["prompt"] == "a dog barks"
    assert read_tags(own)["strength"] == "0.4"
    (part,) = paths("edit", clip, "--region", "1.2-2.0", "--prompt", "a bell rings", *FEW, "--out", tmp_path)
    before, after = (soundfile.read(path, dtype="int16")[0] for path in (clip, part))
    places = (before != after).nonzero()[0] / 16000
    assert 1.2 - 0.015 <= places[0] <= places[-1] <= 2.0 + 0.015
    longer, loop = (
        paths("edit", clip, *change, *FEW, "--out", tmp_path)[0] for change in (["--continue", 1], ["--loop"])
    )
    assert soundfile.info(longer).frames == len(before) + 16000
    assert soundfile.info(loop).frames == len(before)
    (same,) = paths("edit", clip, "--strength", 0, *FEW, "--out", tmp_path)
    assert (soundfile.read(same, dtype="int16")[0] == before).all()
    rows = [json.loads(line) for line in (tmp_path / "clips.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [path.name for path in (own, part, longer, loop, same)]
    assert rows[1]["region"] == "(1.2, 2.0)"
    assert rows[1]["source"] == clip.name


def test_long_clips_negative_words_and_timelines_are_generated(tmp_path):
    (plain,) = paths("generate", "rain", *FEW, "--duration", 6, "--out", tmp_path)
    (against,) = paths("generate", "rain", *FEW, "--duration", 6, "--negative", "a dog barks", "--out", tmp_path)
    assert soundfile.info(plain).duration == soundfile.info(against).duration == 6
    assert read_tags(against)["negative"] == "a dog barks"
    assert (soundfile.read(plain)[0] != soundfile.read(against)[0]).any()
    (parts,) = paths("generate", "--timeline", "0-2 rain; 2-5 a dog barks", *FEW, "--out", tmp_path)
    assert soundfile.info(parts).duration == 5
    assert read_tags(parts)["timeline"] == "0-2 rain; 2-5 a dog barks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["edit", "none.wav", "--prompt", "rain"], "none.wav: no such audio file"),
        (["edit", "CLIP", "--prompt", " "], "a prompt is empty"),
        (["edit", "CLIP", "--region", "2"], "--region '2' is not read"),
        (["edit", "CLIP", "--region", "2-9"], "region 2-9 s is not inside the clip, which has 4.096 s"),
        (["edit", "CLIP", "--region", "1-1.05"], "are too short to repaint: this model needs 0.128 s at least"),
        (["edit", "CLIP", "--region", "1-2", "--loop"], "an edit is one of region, continuation and loop"),
        (["edit", "CLIP", "--variation", "--loop"], "--variation is of the whole clip"),
        (["edit", "CLIP", "--continue", "0"], "a continuation has more than 0 s"),
        (["edit", "CLIP", "--strength", "2"], "strength must be between 0 and 1, not 2"),
        (["edit", "CLIP", "-n", "0"], "-n must be at least 1"),
        (["edit", "CLIP", "--negative", "rain", "--guidance", "1"], "--negative has no effect without guidance"),
        (["generate", "rain", "--negative", "wind", "--guidance", "1"], "--negative has no effect without guidance"),
        (["generate", "rain", "--timeline", "0-2 rain"], "--timeline has its own words and length"),
        (["generate", "--timeline", "rain"], "timeline: 'rain' is not read"),
    ],
)
def test_what_makes_no_sense_is_one_line(clip, tmp_path, words, message):
    code, _, stderr = run(*(str(clip) if word == "CLIP" else word for word in words), "--out", tmp_path)
    assert code == 1
    assert message in stderr
    assert len(stderr.strip().splitlines()) <= 2  # the bar of the progress may be there
    assert not list(tmp_path.glob("*.wav"))
