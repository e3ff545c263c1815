"""Every command where the machine is unkind: a home and a cache that cannot be written, a disk that is read-only or
full, a locale that is not UTF-8. One clear line, or a warning and on; never a raw trace."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import original_folder
import pytest
import small_test
import soundfile
import test_evaluation
from tiny_parts import parts_folder
from typer.testing import CliRunner

from milonga.cli.main import app
from milonga.listening_test.fit import LEAST_CAPTIONS, LEAST_JUDGEMENTS

pytestmark = pytest.mark.slow

RECIPE = test_evaluation.RECIPE.replace('"world:test:5", "world:test:9"', '"world:test:3"')
CAPTIONS = {"café": "a cup falls", "b": "狗叫", "c": "rain falls", "d": "a bell rings", "e": "a man speaks"}
FOLDERS = ["one=systems/one", "two=systems/two", "--reference", "systems/reference", "--captions", "clips/metadata.csv"]
TRAIN = ["train", "finetune", "--set", 'models.model="tango"', "--set", 'train.clips="clips:clips"']
RATED = ["--ratings", "rated/ratings.csv"]
# Each command as it is tried: OUT is where it writes, RUN and TEST are a run and a listening test there.
COMMANDS = {
    "generate": ["generate", "a dog barks", "--model", "tango", "--steps", "1", "--out", "OUT/clips"],
    "edit": ["edit", "clips/b.wav", "--prompt", "rain", "--model", "tango", "--steps", "1", "--out", "OUT/edits"],
    "run": ["run", "tiny.toml", "--until", "pair", "--out", "OUT/run"],
    "train": [*TRAIN, "--set", "train.systems.0.phases.0.epochs=1", "--out", "OUT/trained"],
    "distil": ["distil", "tango", "clips:clips", "--epochs", "1", "--batch-size", "2", "--out", "OUT/student"],
    "status": ["status", "RUN"],
    "pair": ["pair", "RUN", "--set", 'pair.rank_by="mean"'],
    "export": ["export", "RUN", "OUT/exported"],
    "pairs": ["pairs", "RUN", "--no-open"],
    "studio": ["studio", "nano", "--out", "OUT/studio", "--no-open", "--port", "0"],
    "convert": ["convert", "original", "OUT/converted"],
    "evaluate": ["evaluate", *FOLDERS, "--clap", "judge", "--resamples", "100", "--out", "OUT/leaderboard"],
    "listen make": ["listen", "make", "systems", "--captions", "clips/metadata.csv", "--out", "OUT/made"],
    "listen links": ["listen", "links", "TEST", "--url", "http://localhost:8000"],
    "listen serve": ["listen", "serve", "TEST", "--port", "0"],
    "listen texts": ["listen", "texts"],
    "listen results": ["listen", "results", "TEST"],
    "listen plan": ["listen", "plan"],
    "listen export": ["listen", "export", "TEST", "OUT/ratings.csv"],
    "listen fit": ["listen", "fit", "rated/clips.csv", *RATED, "--features", "judge", "--out", "OUT/fit"],
    "nano train": ["nano", "train", "--work", "OUT/work", "--out", "OUT/weights"],
    "nano benchmark": ["nano", "benchmark", "--clips", "8", "--captions", "2", "--ranked", "2"],
}  # fmt: skip
READ_ONLY = ("status", "pairs", "listen texts", "listen plan", "nano benchmark")  # they write caches at most
ENDLESS = ("nano train",)  # where nothing stops it, it takes hours


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the commands read, in it a finished run and a listening test; uvicorn ends at once in it."""
    folder = parts_folder(tmp_path_factory.mktemp("place"))
    (folder / "tiny.toml").write_text(RECIPE.format(folder=folder))
    rows = [f'{name}.wav,"{caption}"' for name, caption in CAPTIONS.items()]
    for clips in ("clips", "systems/one", "systems/two", "systems/reference"):
        (folder / clips).mkdir(parents=True)
        for name in CAPTIONS:
            noise = np.random.default_rng(len(clips)).uniform(-0.3, 0.3, 16000)
            soundfile.write(folder / clips / f"{name}.wav", noise, 16000)
        for hidden in (".DS_Store", "._b.wav", "Thumbs.db"):
            (folder / clips / hidden).write_bytes(b"\0\5\x16\7")
    (folder / "clips" / "metadata.csv").write_text("\n".join(["file_name,caption", *rows]) + "\n", encoding="utf-8")
    rated_clips(folder / "rated")
    small_test.small_test(folder / "test")
    with pytest.MonkeyPatch.context() as patch:
        original_folder.shrink_vocoder(patch)
        original_folder.write(folder / "original")
        patch.setattr("milonga.experiment.stages.PRIOR_CLIPS", 4)
        patch.setattr("uvicorn.Server.run", lambda self, sockets: None)
        patch.chdir(folder)
        done = CliRunner().invoke(app, ["run", "tiny.toml", "--out", "run"])
        assert done.exit_code == 0, done.output
        yield folder


def rated_clips(folder: Path) -> None:
    """As few clips, captions and ratings as `listen fit` learns from."""
    rng = np.random.default_rng(0)
    clips, ratings = ["clip,caption"], ["clip,rater,rel"]
    folder.mkdir()
    for number in range(LEAST_JUDGEMENTS):
        soundfile.write(folder / f"{number}.wav", rng.uniform(-0.3, 0.3, 1600), 16000)
        clips.append(f"{number}.wav,sound {number % LEAST_CAPTIONS}")
        ratings += [f"{number}.wav,r{rater},{rng.integers(1, 6)}" for rater in range(9)]
    (folder / "clips.csv").write_text("\n".join(clips) + "\n")
    (folder / "ratings.csv").write_text("\n".join(ratings) + "\n")


def words_of(command: str, out: Path) -> list[str]:
    return [re.sub("^(OUT|RUN|TEST)", lambda found: f"{out}/{found[0].lower()}", word) for word in COMMANDS[command]]


def run_in(command: str, out: Path) -> tuple[int, list[str]]:
    """The exit status of a command and the lines that it told, without progress."""
    done = CliRunner().invoke(app, words_of(command, out))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.stderr
    assert "--debug" not in done.stderr, done.stderr  # an error that nobody foresaw
    return done.exit_code, [line for line in done.stderr.splitlines() if line.startswith("milonga: ")]


def mounted(folder: Path, *options: str) -> bool:
    """Whether a small disk could be mounted, or mounted anew; only root may."""
    words = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    return subprocess.run(words, capture_output=True).returncode == 0


@pytest.fixture(scope="module", params=["read-only", "full"])
def disk(request: pytest.FixtureRequest, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk that takes nothing more, with a run and a test on it."""
    folder = tmp_path_factory.mktemp("disk")
    is_disk = mounted(folder, "-o", "size=40m")
    if not is_disk and (request.param == "full" or os.geteuid() == 0):
        pytest.skip("a disk of its own can be mounted by root alone")
    for name in ("run", "test"):
        shutil.copytree(place / name, folder / name)
    (folder / "out").mkdir()
    if request.param == "full":
        with (folder / "rest").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            file.writelines(bytes(2**14) for _ in range(2**14))
    elif not is_disk:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o222)
    else:
        mounted(folder, "-o", "remount,ro,size=40m")
    yield folder
    if is_disk:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o200)


def test_every_command_is_tried():
    typers = {group.name: group.typer_instance for group in app.registered_groups}
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    for group, typer in typers.items():
        names += [f"{group} {command.name}" for command in typer.registered_commands if not command.hidden]
    assert sorted(names) == sorted(COMMANDS)


@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=[pytest.mark.slow] * name.startswith(("nano", "listen fit"))) for name in COMMANDS],
)
def test_a_disk_that_refuses_is_one_clear_line(command: str, disk: Path) -> None:
    status, lines = run_in(command, disk)
    if command in READ_ONLY or (command == "pair" and not status and (disk / "rest").exists()):
        assert (status, lines) == (0, [])  # what `pair` replaces makes room enough on a full disk
        return
    assert status == 1
    assert len(lines) == 1
    assert re.search("Read-only file system|No space left|Permission denied|disk is full|readonly", lines[0])
    assert str(disk) in lines[0]
    assert not [path for path in disk.rglob("*.part") if path.stat().st_size]


@pytest.mark.slow  # each command does all of its work: a minute together
@pytest.mark.parametrize("where", ["home", "cache"])
@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ENDLESS])
def test_a_home_or_cache_that_cannot_be_written_is_a_warning_at_most(command, where, place, tmp_path, monkeypatch):
    for name in ("run", "test"):
        shutil.copytree(place / name, tmp_path / name)
    for name in ("MILONGA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME" if where == "home" else "MILONGA_CACHE", "/proc/nohome")
    status, lines = run_in(command, tmp_path)
    assert status == 0, lines
    assert len([line for line in lines if "/proc/nohome" in line]) <= 1


LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Latin-1": {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
}
PROGRAM = "import uvicorn; uvicorn.Server.run = lambda self, sockets: None; from milonga.cli.main import main; main()"
SHRUNK = f"import sys; sys.path.append({str(Path(original_folder.__file__).parent)!r}); " + (
    "import pytest, original_folder; original_folder.shrink_vocoder(pytest.MonkeyPatch()); "
)


@pytest.mark.slow  # a process for each command: about two minutes
@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ENDLESS])
def test_a_locale_that_is_not_utf_8_changes_nothing(command: str, locale: str, place: Path, tmp_path: Path) -> None:
    for name in ("run", "test"):
        shutil.copytree(place / name, tmp_path / name)
    program = SHRUNK * (command == "convert") + PROGRAM
    words = [sys.executable, "-c", program, *words_of(command, tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    done = subprocess.run(words, cwd=place, env=environment | LOCALES[locale], capture_output=True)
    told = done.stderr.decode(errors="replace")
    assert done.returncode == 0, told
    assert "Traceback" not in told
