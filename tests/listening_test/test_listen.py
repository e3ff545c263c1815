"""`milonga listen`: from a real run or folders of audio files, through its doors, to pairs that training takes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_evaluation
from typer.testing import CliRunner

from milonga.cli.main import app
from milonga.core.audio import clips_of, write_audio
from milonga.core.errors import DataError, RecipeError, StoreError
from milonga.core.records import Clip, Pair
from milonga.core.store import Run
from milonga.experiment import run as pipeline
from milonga.experiment.recipe import parse_recipe
from milonga.listening_test.design import plan_session
from milonga.listening_test.material import read_test
from milonga.listening_test.ratings import Ratings
from milonga.listening_test.sources import load_sources, read_captions

run = test_evaluation.run  # the fixture: a whole run of tiny networks
SYSTEMS = ("base", "sft", "aligned")
MAIN = "from milonga.cli.main import main; main()"


def milonga(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", MAIN, *words], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two systems and recordings, eight clips each, one of them missing in a system; and captions."""
    root = tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(0)
    for system, suffix in (("ours", ".wav"), ("theirs", ".flac"), ("reference", ".wav")):
        (root / "clips" / system).mkdir(parents=True)
        for number in range(8 - (system == "theirs")):
            clip = Clip(rng.uniform(-0.3, 0.3, 4000).astype(np.float32), 8000)
            write_audio(root / "clips" / system / f"clip{number}{suffix}", clip)
    lines = [f'clip{number}.wav,"a dog, then {number} bells"' for number in range(8)]
    (root / "captions.csv").write_text("\ufeffclip,caption\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return root


def made(folders: Path, out: Path, *words: str):
    captions = ["--captions", str(folders / "captions.csv")]
    return CliRunner().invoke(app, ["listen", "make", str(folders / "clips"), *captions, "--out", str(out), *words])


def test_from_folders_paired_by_name(folders, tmp_path):
    done = made(folders, tmp_path / "test", "--per-rater", "2", "--title", "Ours or theirs?")
    assert done.exit_code == 0, done.output
    test = read_test(tmp_path / "test")
    assert test.systems == ("ours", "reference", "theirs")
    assert test.reference == "reference"
    assert len(test.prompts) == 7 - 3  # one clip is missing, three prompts are for checks and the example
    assert all(one.text.startswith("a dog, then") for one in test.prompts)
    assert {one.tags for one in test.prompts} == {("temporal", "multi-concept")}
    assert len(list((tmp_path / "test" / "playback").iterdir())) == 7 * 3 + 3


def test_recordings_of_mixed_rates_are_one_system(folders, tmp_path):
    shutil.copytree(folders, tmp_path / "mixed")
    for number, rate in enumerate((5000, 11127, 44100)):
        tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)
        write_audio(tmp_path / "mixed" / "clips" / "reference" / f"clip{number}.wav", Clip(tone, rate))
    done = made(tmp_path / "mixed", tmp_path / "test")
    assert done.exit_code == 0, done.output
    stored = Run(tmp_path / "test").stage("generate")
    clips = [
        clip for name in stored.names() for clip in clips_of(stored.read_table(name)).values() if clip.rate == 44100
    ]
    assert len(clips) == 7  # those of the reference, at the highest of their rates; the systems' stay at 8 kHz
    tones = [clip for clip in clips if clip.seconds == pytest.approx(1.0, abs=0.001)]
    assert len(tones) == 3
    for clip in tones:
        assert np.argmax(np.abs(np.fft.rfft(clip.waveform))) == pytest.approx(440, abs=1)


def test_links_results_and_table_through_the_doors(folders, tmp_path):
    where = str(tmp_path / "test")
    made(folders, tmp_path / "test", "--kind", "rate")
    told = milonga("listen", "links", where, "-n", "3", "--url", "https://listen.example.org/")
    links = told.stdout.split()
    assert len(set(links)) == 3
    assert all(link.startswith("https://listen.example.org/r/") for link in links)
    assert "0 valid ratings" in milonga("listen", "results", where).stdout
    test, ratings = read_test(tmp_path / "test"), Ratings(tmp_path / "test" / "ratings.sqlite")
    ratings.begin(1, lambda: plan_session(test, 1, {one.id: 0 for one in test.prompts}))
    for place in range(len(ratings.trials(1))):
        ratings.judge(1, place, {"ovl": 3, "rel": 4, "better": None}, 1.0)
    data = json.loads(milonga("listen", "results", where, "--json").stdout)
    assert [one["rater"] for one in data["excluded"]] == ["r1"]  # no headphone check
    out = tmp_path / "ratings.csv"
    assert milonga("listen", "export", where, str(out)).stdout.strip() == str(out)
    assert len(out.read_text().splitlines()) == 1 + len(ratings.trials(1))


@pytest.mark.slow
def test_what_is_wrong_is_told_in_one_line(folders, tmp_path):
    clips, captions = str(folders / "clips"), str(folders / "captions.csv")
    out, nothing = str(tmp_path / "t"), str(tmp_path / "nothing")
    (tmp_path / "nothing").mkdir()
    taken = tmp_path / "taken"
    made(folders, taken)
    for words, said in (
        (["make", nothing + "x", "--out", out], "is not a folder"),
        (["make", clips, "--out", out], "give --captions CSV"),
        (["make", nothing, "--out", out, "--captions", captions], "no folders with audio files"),
        (["make", clips, "--out", out, "--captions", captions, "--prompts", "9"], "needs 12 prompts"),
        (["make", clips, "--out", out, "--captions", captions, "--system", "hers"], "no system 'hers'"),
        (["make", clips, "--out", out, "--captions", captions, "--kind", "sing"], "unknown kind of judging 'sing'"),
        (["make", clips, "--out", out, "--captions", captions, "--reference", "x"], "no system x"),
        (["make", clips, "--out", out, "--captions", captions, "--system", "ours"], "two systems besides"),
        (["make", clips, "--out", str(taken), "--captions", captions], "not empty"),
        (["make", clips, "--out", str(folders), "--captions", captions], "not empty"),
        (["links", nothing], "holds no listening test"),
        (["links", str(taken), "--url", "javascript:alert(1)"], "not a web address"),
        (["serve", nothing], "holds no listening test"),
        (["results", nothing], "holds no listening test"),
        (["export", str(taken), out, "--as", "poem"], "unknown form of export 'poem'"),
        (["export", str(taken), out, "--as", "pairs"], "preferred to another by two votes"),
        (["export", str(taken), out], "written as .csv or .parquet"),
    ):
        done = CliRunner().invoke(app, ["listen", *words])
        assert done.exit_code == 1, (words, done.output)
        assert said in done.output, (words, done.output)
        assert done.output.count("\n") == 1
    assert not (tmp_path / "t" / "test.json").exists()
    assert not (tmp_path / "nothing" / "ratings.sqlite").exists()


def test_a_port_that_is_taken_is_told_in_one_line(folders, tmp_path):
    import socket

    made(folders, tmp_path / "test")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = milonga("listen", "serve", str(tmp_path / "test"), "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "choose another --port" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "text", ["", "clip\nx\n", "sound,caption\nx,y\n", "clip,caption\nx,\n", "clip,caption\nx,a\nx.wav,b\n", "\0"]
)
def test_captions_that_cannot_be_used(tmp_path, text):
    path = tmp_path / "captions.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"captions\.csv"):
        read_captions(path)


@pytest.mark.slow
def test_a_run_gives_its_systems_clips_with_latents_and_seeds(run):
    prompts, found = load_sources(run.path, None, ())
    assert set(found) == {*SYSTEMS, "reference"}
    assert len(prompts) == 9
    for system in SYSTEMS:
        assert all(one.latents and one.steps == 2 and one.seed for one in found[system].values())
    seeds = [{name: one.seed for name, one in found[system].items()} for system in SYSTEMS]
    assert seeds[0] == seeds[1] == seeds[2]
    assert all(one.latents is None and one.seed == 0 for one in found["reference"].values())
    assert set(load_sources(run.path, None, ["base", "sft"])[1]) == {"base", "sft"}
    with pytest.raises(RecipeError, match="no system"):
        load_sources(run.path, None, ["nobody"])
    with pytest.raises(StoreError, match="--captions"):
        load_sources(run.path / "plan", None, ())


@pytest.mark.slow
def test_people_prefer_and_training_learns_it(run, tmp_path):
    """A run's clips are compared by people; a system is trained on what they preferred, by the trainer itself."""
    where = tmp_path / "test"
    assert CliRunner().invoke(app, ["listen", "make", str(run.path), "--out", str(where)]).exit_code == 0
    test, ratings = read_test(where), Ratings(where / "ratings.sqlite")
    for number, _ in enumerate(ratings.invite(3), 1):
        ratings.begin(
            number, lambda number=number: plan_session(test, number, {one.id: number for one in test.prompts})
        )
        for item in range(6):
            ratings.answer_tone(number, item, 1, True)
        for place, trial in enumerate(ratings.trials(number)):
            ratings.judge(number, place, liking(trial), 1.0)
    out = tmp_path / "pairs"
    done = CliRunner().invoke(app, ["listen", "export", str(where), str(out), "--as", "pairs"])
    assert done.exit_code == 0, done.output
    pairs = Run(out).stage("pair").read_records(Pair)
    assert len(pairs) == len(test.prompts) * 3
    whole, kept = run.stage("evaluate/aligned"), Run(out).stage("generate")
    first = next(iter(clips_of(whole.read_table(whole.names()[0])).values()))
    assert any(
        np.array_equal(first.waveform, clip.waveform)
        for name in kept.names() for clip in clips_of(kept.read_table(name)).values()
    )  # fmt: skip
    recipe = test_evaluation.RECIPE.format(folder=run.path.parent).replace('"sft", phases', '"people", phases')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("milonga.experiment.stages.PRIOR_CLIPS", 4)
        learnt = parse_recipe(recipe, "people.toml", [f'train.pairs=["{out}"]'])
        trained = pipeline.run(learnt, tmp_path / "people", until="train")
    assert not (trained.path / "generate").exists()
    assert (trained.path / "checkpoints" / "aligned" / "model").exists()
    steps = [json.loads(line) for line in (trained.path / "metrics/training/aligned.jsonl").read_text().splitlines()]
    assert steps[-1]["phase"] == "dpo"
    assert np.isfinite([row["loss"] for row in steps]).all()


def liking(trial) -> dict:
    """Someone who likes later systems better, real clips best and broken ones least."""
    worth = {"broken": 1, "base": 2, "sft": 3, "aligned": 4, "reference": 5}
    if trial.kind == "rate":
        return {"ovl": worth[trial.a], "rel": 1 if trial.shown_id else worth[trial.a], "better": None}
    return {"ovl": None, "rel": None, "better": "a" if worth[trial.a] > worth[trial.b] else "b"}
