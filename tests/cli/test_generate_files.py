"""The command `generate`: no clip is lost or overwritten, whatever was typed; a list of prompts resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake_parts import LoudScorer, NoiseModel
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from milonga.cli.generate import check, generate_best, generate_clips, read_prompts, slug
from milonga.cli.main import app
from milonga.core.audio import read_audio, read_tags
from milonga.core.errors import DataError, StoreError
from milonga.data.captions import audio_files, caption_texts, clip_captions
from milonga.data.recordings import clip_entries

LONG = "狗叫，" * 150


def write(prompts: list[str], out: Path, steps: int = 4, guidance: float = 3.0, model=None, **options) -> list[Path]:
    return list(generate_clips(model or NoiseModel(), prompts, out, steps, guidance, **options))


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "clips.jsonl").read_text(encoding="utf-8").splitlines()]


@settings(deadline=None, max_examples=20)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip),
        min_size=1,
        max_size=8,
    )
)
def test_prompts_that_differ_never_share_a_file(tmp_path_factory, prompts):
    out = tmp_path_factory.mktemp("out")
    paths = write(prompts, out)
    words = list(dict.fromkeys(" ".join(text.split()) for text in prompts))
    assert len({str(path).casefold() for path in paths}) == len(words)
    assert [line["prompt"] for line in lines(out)] == words
    assert [line["file_name"] for line in lines(out)] == [path.name for path in paths]


def test_requests_that_differ_in_anything_never_share_a_file(tmp_path):
    write(["a dog barks", "a dog barks!", "A dog barks", "狗叫", "猫叫", "🐕"], tmp_path)
    write(["a dog barks"], tmp_path, steps=5)
    write(["a dog barks"], tmp_path, guidance=2.5)
    write(["a dog barks"], tmp_path, seed=1, count=2)
    for details in ({"scheduler": "ddim"}, {"duration": "2.0"}, {"weights": "0f"}, {"weights": "1e"}):
        write(["a dog barks"], tmp_path, details=details)
    assert len(list(tmp_path.glob("*.wav"))) == len(lines(tmp_path)) == 14


def test_the_same_request_replaces_its_own_file(tmp_path):
    (path,) = write(["a dog barks"], tmp_path)
    before = path.read_bytes()
    path.write_bytes(b"spoilt")
    assert write(["a  dog barks "], tmp_path, steps=4, guidance=3) == [path]
    assert path.read_bytes() == before
    assert len(lines(tmp_path)) == 1


def test_a_long_prompt_is_saved_with_its_neighbours_and_stands_whole_in_the_manifest(tmp_path):
    prompts = ["rain falls", LONG, "x" * 100_000, "a bell rings"]
    paths = write(prompts, tmp_path)
    assert [line["prompt"] for line in lines(tmp_path)] == prompts
    assert all(len(path.name.encode()) < 200 for path in paths)
    for path, prompt in zip(paths, prompts, strict=True):
        assert prompt.startswith(read_tags(path)["prompt"].removesuffix(" […]"))
        assert read_tags(path)["seed"] == "0"
        assert len(read_audio(path).waveform) == 200


def test_the_manifest_is_a_table_that_every_reader_takes(tmp_path):
    prompts = ["狗叫", 'a "dog", then\ta bell', "rain"]
    write(prompts, tmp_path)
    manifest = tmp_path / "clips.jsonl"
    words = [" ".join(prompt.split()) for prompt in prompts]
    assert list(caption_texts(manifest)) == words
    assert [entry.captions for entry in clip_entries(f"clips:{manifest}")] == [(text,) for text in words]
    assert {row.key: row.caption for row in clip_captions(manifest)} == dict(
        zip((line["file_name"].removesuffix(".wav") for line in lines(tmp_path)), words, strict=True)
    )
    assert set(audio_files(tmp_path)) == {row.key for row in clip_captions(manifest)}


def test_a_list_of_prompts_resumes_where_it_was_killed(tmp_path):
    class Killed(NoiseModel):
        calls = 0

        def generate(self, requests):
            type(self).calls += 1
            if type(self).calls == 3:
                raise KeyboardInterrupt
            return super().generate(requests)

    prompts = [f"sound {n}" for n in range(40)]
    with pytest.raises(KeyboardInterrupt):
        list(generate_clips(Killed(), prompts, tmp_path, 4, 3.0, resume=True))
    assert len(lines(tmp_path)) == 16
    (tmp_path / lines(tmp_path)[3]["file_name"]).unlink()
    with (tmp_path / "clips.jsonl").open("a") as file:
        file.write('{"file_name": "torn')
    log = tmp_path / "log"
    paths = list(generate_clips(NoiseModel(log), prompts, tmp_path, 4, 3.0, resume=True))
    assert len(log.read_text().splitlines()) == 24 + 1
    assert len(set(paths)) == len(lines(tmp_path)) == 40
    assert all(path.is_file() for path in paths)


def test_a_list_with_negative_words_resumes_and_every_batch_is_given_them(tmp_path):
    given_words: list[str] = []

    class Killed(NoiseModel):
        def generate(self, requests, negative=""):
            given_words.append(negative)
            if len(given_words) == 2:
                raise KeyboardInterrupt
            return super().generate(requests)

    options = {"resume": True, "details": {"negative": "wind"}, "options": {"negative": "wind"}}
    prompts = [f"sound {n}" for n in range(20)]
    with pytest.raises(KeyboardInterrupt):
        write(prompts, tmp_path, model=Killed(), **options)
    assert len(lines(tmp_path)) == 8
    assert len(write(prompts, tmp_path, model=Killed(), **options)) == len(lines(tmp_path)) == 20
    assert given_words == ["wind"] * 4
    assert {line["negative"] for line in lines(tmp_path)} == {"wind"}


def test_a_manifest_that_is_something_else_is_left_alone(tmp_path):
    (tmp_path / "clips.jsonl").write_text("[1]\n")
    with pytest.raises(StoreError, match=r"clips\.jsonl is no manifest of clips .*choose another --out"):
        write(["rain"], tmp_path)
    assert (tmp_path / "clips.jsonl").read_text() == "[1]\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "rain falls\n\n  a dog, then a bell \r\n"),
        ("p.list", "\ufeffrain falls\na dog, then a bell"),
        ("p.csv", 'caption\nrain falls\n"a dog, then a bell"\n'),
        ("p.tsv", "n\tprompt\n1\train falls\n2\ta dog, then a bell\n"),
        ("p.jsonl", '{"prompt": "rain falls"}\n{"prompt": "a dog, then a bell"}\n'),
        ("p.json", '[{"text": "rain falls"}, {"text": "a dog, then a bell"}]'),
    ],
)
def test_prompts_of_a_file(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_prompts(tmp_path / name) == ["rain falls", "a dog, then a bell"]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("p.txt", b" \n\n", "holds no prompt: write one a line"),
        ("p.txt", b"rain\ncaf\xe9\n", r"line 2: not UTF-8 at byte 8; save the table as UTF-8"),
        (
            "p.csv",
            b"caption\na dog, a bell\n",
            "line 2: 2 cells where the header names 1; put a text that holds a comma",
        ),
        ("gone.txt", None, r"cannot be read \(No such file"),
    ],
)
def test_a_file_of_prompts_that_cannot_be_used(name, data, told, tmp_path):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=told):
        read_prompts(tmp_path / name)


def test_the_command_takes_prompts_and_a_file_of_them(tmp_path):
    (tmp_path / "p.txt").write_text("rain falls\n狗叫\n", encoding="utf-8")
    words = ["generate", "a dog barks", "--prompts", str(tmp_path / "p.txt"), "--steps", "1", "--out", str(tmp_path)]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    names = [Path(line).name for line in first.stdout.splitlines()]
    assert [name.rsplit("-", 3)[0] for name in names] == ["a-dog-barks", "rain-falls", "狗叫"]
    stamps = {name: (tmp_path / name).stat().st_mtime_ns for name in names}
    again = CliRunner().invoke(app, words)
    assert again.stdout == first.stdout
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in names} == stamps
    assert {line["weights"] for line in lines(tmp_path)} != {None}
    other = CliRunner().invoke(
        app, ["generate", "rain falls", "--steps", "1", "--scheduler", "ddim", "--out", str(tmp_path)]
    )
    assert other.exit_code == 0, other.output
    assert len(lines(tmp_path)) == 4


def test_no_prompt_at_all_is_wrong_usage():
    done = CliRunner().invoke(app, ["generate"])
    assert done.exit_code == 2
    assert "Missing argument 'PROMPT...': give prompts, --prompts FILE or --timeline TEXT" in done.stderr


@pytest.mark.parametrize("duration", ["0.00001", "0.00003", "0.0001", "0.01"])
def test_a_length_of_no_sample_is_refused_and_a_short_one_is_generated(duration, tmp_path):
    words = ["generate", "rain", "--steps", "1", "--duration", duration, "--out", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    if float(duration) < 0.01:
        assert done.exit_code == 1
        assert done.stderr == "milonga: --duration must be at least 0.01 seconds\n"
    else:
        assert done.exit_code == 0, done.output
        assert soundfile.info(done.stdout.strip()).frames == 160


def test_a_prompt_that_is_not_utf_8_is_refused_by_name():
    with pytest.raises(DataError, match=r"the prompt 'dog \\\\xff' is not UTF-8"):
        check(["rain", os.fsdecode(b"dog \xff")], 1, 1.0, 1, None)


def test_a_file_system_of_another_encoding_gets_a_name_that_it_can_hold(monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "latin-1")
    assert slug("狗叫") == "clip"
    assert slug("café 狗") == "caf"
    assert slug("café") == "café"


@pytest.mark.slow
def test_under_an_ascii_locale_clips_are_written_and_named(tmp_path):
    script = f"""
from pathlib import Path
from fake_parts import LoudScorer, NoiseModel
from milonga.cli.generate import generate_clips
print(len(list(generate_clips(NoiseModel(), ["\\u72d7\\u53eb", "rain"], Path({str(tmp_path)!r}), 4, 3.0))))
"""
    support = str(Path(__file__).parents[1] / "support")
    source = str(Path(__file__).parents[2] / "src")
    for locale in ({"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        environment = os.environ | locale | {"PYTHONPATH": f"{source}{os.pathsep}{support}"}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        assert done.stdout.strip() == "2", done.stderr
    assert len(list(tmp_path.glob("*.wav"))) == len({line["file_name"] for line in lines(tmp_path)})


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot write"):
        write(["rain"], tmp_path)


@pytest.mark.parametrize("place", ["/proc/nohome", "file/below"])
def test_a_place_that_cannot_be_written_is_told_in_one_line(place, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"cannot write .*; make room or choose another place"):
        write(["rain"], Path(place) if place.startswith("/") else tmp_path / place)


def test_a_wav_holds_what_the_model_made(tmp_path):
    (path,) = write(["rain"], tmp_path)
    assert np.abs(read_audio(path).waveform).max() > 0.1


# -- best of N

SCORERS = [LoudScorer("one"), LoudScorer("two")]


def best(prompts: list[str], out: Path, n: int = 5, model: NoiseModel | None = None, **options) -> list[Path]:
    return list(generate_best(model or NoiseModel(), prompts, out, 4, 3.0, SCORERS, n, details={"by": "x"}, **options))


def test_the_best_of_n_is_saved_and_its_rank_and_scores_are_in_the_manifest(tmp_path):
    prompts = ["rain falls", "a dog barks", "rain  falls "]
    best(prompts, tmp_path / "all", count=5)
    rows = lines(tmp_path / "all")
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5] * 2
    for first in (0, 5):
        group = rows[first : first + 5]
        scores = np.array([[row["score one"], row["score two"]] for row in group])
        means = ((scores - scores.mean(axis=0)) / scores.std(axis=0)).mean(axis=1)
        np.testing.assert_allclose([row["score"] for row in group], means)
        assert (np.diff(means) < 0).all()
        assert sorted(row["number"] for row in group) == [0, 1, 2, 3, 4]
    paths = best(prompts, tmp_path / "best")
    assert [path.name for path in paths] == [rows[0]["file_name"], rows[5]["file_name"]]
    assert paths[0].read_bytes() == (tmp_path / "all" / paths[0].name).read_bytes()
    assert read_tags(paths[0])["rank"] == "1"
    assert len(list((tmp_path / "best").glob("*.wav"))) == len(lines(tmp_path / "best")) == 2


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_best_of_n_does_not_depend_on_the_batch(batch, tmp_path, monkeypatch):
    prompts = ["rain falls", "a dog barks", "a bell"]
    expected = best(prompts, tmp_path / "8", count=2)
    monkeypatch.setattr("milonga.cli.generate.BATCH", batch)
    assert [path.name for path in best(prompts, tmp_path / "other", count=2)] == [path.name for path in expected]
    assert lines(tmp_path / "other") == lines(tmp_path / "8")


def test_a_search_over_a_list_resumes_prompt_by_prompt(tmp_path):
    class Killed(NoiseModel):
        calls = 0

        def generate(self, requests):
            type(self).calls += 1
            if type(self).calls == 4:
                raise KeyboardInterrupt
            return super().generate(requests)

    prompts = [f"sound {number}" for number in range(6)]
    with pytest.raises(KeyboardInterrupt):
        best(prompts, tmp_path, model=Killed(), resume=True)
    assert len(lines(tmp_path)) == 3
    (tmp_path / lines(tmp_path)[1]["file_name"]).unlink()
    log = tmp_path / "log"
    paths = best(prompts, tmp_path, model=NoiseModel(log), resume=True)
    assert len(log.read_text().splitlines()) == 4 * 5
    assert len(set(paths)) == len(lines(tmp_path)) == 6
    assert best(prompts, tmp_path, model=NoiseModel(tmp_path / "none"), resume=True) == [
        tmp_path / row["file_name"] for row in sorted(lines(tmp_path), key=lambda row: row["prompt"])
    ]
    assert not (tmp_path / "none").exists()
    best(prompts, tmp_path, model=NoiseModel(tmp_path / "more"), resume=True, count=5)
    assert len((tmp_path / "more").read_text().splitlines()) == 6 * 5
    assert len(lines(tmp_path)) == 6 * 5


@pytest.mark.slow
def test_the_command_saves_the_best_by_named_scorers(tmp_path):
    words = ["generate", "a dog barks", "--steps", "1", "--best-of", "3", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, [*words, "--keep-all", "--by", "nano-clap-a, nano-clap-b,nano-events"])
    assert done.exit_code == 0, done.output
    rows = lines(tmp_path)
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert [Path(line).name for line in done.stdout.splitlines()] == [row["file_name"] for row in rows]
    assert rows[0]["by"].startswith("nano-clap-a@")
    assert {"score nano-clap-a", "score nano-clap-b", "score nano-events"} <= set(rows[0])
    again = CliRunner().invoke(app, words)  # nano's own scorers are these three: the same file again
    assert again.stdout == done.stdout.splitlines(keepends=True)[0], again.output
    assert len(lines(tmp_path)) == 3


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--best-of", "4", "--model", "someone/foreign"], 1, "name the scorers that choose among clips of someone/f"),
        (["--best-of", "2", "-n", "3"], 1, "--best-of must be at least -n, the number of clips that are saved (3)"),
        (["--by", "nano-clap-a"], 2, "--by and --keep-all choose among clips: give --best-of N"),
        (["--best-of", "2", "--by", "nowhere:Scorer"], 1, "scorer 'nowhere:Scorer'"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused_in_a_line(more, status, message, tmp_path):
    done = CliRunner().invoke(app, ["generate", "rain", "--steps", "1", "--out", str(tmp_path), *more])
    assert done.exit_code == status
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
