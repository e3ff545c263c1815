"""The doors: quick help, exit statuses, errors in one line, results on stdout alone."""

import json
import os
import signal
import subprocess
import sys

import pytest
from fake_parts import RECIPE, FakeParts, NoiseModel

from milonga.cli.generate import check, generate_clips, slug
from milonga.core.audio import read_tags
from milonga.core.errors import DataError, RecipeError
from milonga.experiment.recipe import parse_recipe
from milonga.experiment.run import run

MAIN = "import sys; from milonga.cli.main import main; main()"


def milonga(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", MAIN, *words], capture_output=True, text=True, timeout=120)


def test_help_is_quick_and_loads_nothing_heavy():
    heavy = ("torch", "numpy", "pyarrow", "diffusers", "transformers", "sklearn", "scipy", "soundfile", "pydantic")
    script = f"""
import sys, atexit
atexit.register(lambda: print("loaded:", [name for name in {heavy} if name in sys.modules]))
from milonga.cli.main import main
main()
"""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    before = os.times().children_user
    done = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert "generate" in done.stdout
    assert done.stdout.strip().endswith("loaded: []")
    assert os.times().children_user - before < 2.0


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["bogus"], 2, "No such command"),
        (["run"], 2, "Missing argument"),
        (["status", "/nowhere"], 1, "milonga: /nowhere is no run folder"),
        (["run", "smok"], 1, "milonga: no recipe smok"),
        (["run", "smoke", "--set", "pair.thresolds=1"], 1, 'did you mean "pair.thresholds"?'),
        (["run", "smoke", "--engine", "moon"], 1, "no engine 'moon'"),
        (["--version"], 0, ""),
    ],
)
def test_exit_statuses(words, code, told):
    done = milonga(*words)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--debug", "run", "smok"], ["run", "smok", "--debug"]])
def test_debug_shows_the_trace_wherever_it_stands(words):
    done = milonga(*words)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.slow
def test_status_on_stdout_as_table_and_json(tmp_path):
    run(parse_recipe(RECIPE, "fake.toml"), tmp_path, until="plan", parts=FakeParts())
    assert milonga("status", str(tmp_path)).stdout.splitlines()[0].split()[:2] == ["stage", "done"]
    rows = json.loads(milonga("status", str(tmp_path), "--json").stdout)
    assert [row["stage"] for row in rows][:2] == ["prompts", "plan"]
    assert rows[1] | {"written": None} == {
        "stage": "plan", "done": 5, "expected": 5, "items": 40, "refused": 0, "written": None
    }  # fmt: skip


INTERRUPTED = """
import sys, time
from milonga.cli import main as cli
from milonga.experiment import run as pipeline
def endless(*_):
    print("begun", flush=True)
    time.sleep(60)
pipeline.run = endless
cli.main()
"""


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_130_and_says_how_to_resume(with_signal):
    command = [sys.executable, "-c", INTERRUPTED, "run", "smoke"]
    # A suite that runs in the background inherits SIGINT ignored, and would hand that on.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(with_signal)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert message == "milonga: Interrupted. Re-run the same command to resume.\n"


def test_generate_writes_playable_files_with_their_settings(tmp_path):
    paths = list(generate_clips(NoiseModel(), ["A dog  barks!", "rain"], tmp_path, 4, 3.0, seed=7, count=2))
    assert [path.name.rpartition("-")[0] for path in paths] == [
        "a-dog-barks-7-0",
        "a-dog-barks-7-1",
        "rain-7-0",
        "rain-7-1",
    ]
    settings = {"prompt": "A dog barks!", "model": "noise", "seed": 7, "number": 1, "steps": 4, "guidance": 3.0}
    assert read_tags(paths[1]) == {name: str(value) for name, value in settings.items()}
    lines = [json.loads(line) for line in (tmp_path / "clips.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == [path.name for path in paths]
    assert lines[1] == {"file_name": paths[1].name, **settings}
    again = list(generate_clips(NoiseModel(), ["A dog  barks!"], tmp_path / "again", 4, 3.0, seed=7))
    assert again[0].read_bytes() == paths[0].read_bytes()
    assert again[0].name == paths[0].name
    assert paths[0].read_bytes() != paths[1].read_bytes()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"prompts": ["x", "  "]}, DataError),
        ({"prompts": []}, DataError),
        ({"steps": 0}, RecipeError),
        ({"count": 0}, RecipeError),
        ({"guidance": float("nan")}, RecipeError),
        ({"duration": 0.0}, RecipeError),
    ],
)
def test_arguments_that_make_no_sense(change, error):
    arguments = {"prompts": ["x"], "steps": 4, "guidance": 3.0, "count": 1, "duration": None} | change
    with pytest.raises(error):
        check(**arguments)


def test_a_prompt_as_a_file_name():
    assert slug("A dog, then (far away) a bell!") == "a-dog-then-far-away-a-bell"
    assert slug("../../etc") == "etc"
    assert slug("ñ") == slug("n\u0303") == "ñ"
    assert slug("狗叫，猫叫") == "狗叫-猫叫"
    assert slug("कुत्ता भौंकता है") == "कुत्ता-भौंकता-है"
    assert slug("سگ پارس می‌کند") == "سگ-پارس-می-کند"
    assert slug("🐕!") == slug("") == "clip"
    assert len(slug("x" * 500)) == 60
    assert len(slug("狗" * 500).encode()) <= 120
