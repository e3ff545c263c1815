"""`milonga evaluate`: folders, tables and runs; what is cached, what is refused, what is written."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from milonga.cli.main import app
from milonga.core.audio import read_audio, write_audio
from milonga.core.cache import feature_cache
from milonga.core.errors import CheckpointError, DataError, RecipeError, StoreError
from milonga.core.records import Clip
from milonga.evaluation import EvalConfig
from milonga.evaluation import features as extractors
from milonga.evaluation.evaluate import evaluate, with_weights
from milonga.evaluation.inputs import AudioRef, load_inputs
from milonga.evaluation.metrics import get_metric
from milonga.scorers import panns, vggish
from milonga.scorers.waveform import of_protocol

COUNT = 6
CAPTIONS = [f"a dog barks {'then' if n % 2 else 'and'} bell number {n} rings" for n in range(COUNT)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two systems, one of them nearly the real clips, and a silent and a clipped clip; captions with a column."""
    root = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        real = 0.3 * np.sin(np.arange(8000) * (0.05 + 0.03 * number)).astype(np.float32)
        near, far = real + 0.01 * rng.normal(size=8000), 0.3 * rng.normal(size=8000)
        if number == 0:
            far[:] = 0
        if number == 1:
            far[100:200] = 1
        for name, wave in (("real", real), ("near", near), ("far", far)):
            (root / name).mkdir(exist_ok=True)
            clip = Clip(np.clip(wave, -1, 1).astype(np.float32), 16000)
            write_audio(root / name / f"clip{number}{'.flac' if name == 'real' else '.wav'}", clip)
    with (root / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["clip", "caption", "kind"])
        rows.writerows([f"clip{n}.wav", text, "low" if n < 3 else "high"] for n, text in enumerate(CAPTIONS))
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MILONGA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def view_page(evaluation: Any) -> str:
    from milonga.reports.html import page
    from milonga.reports.leaderboard import view_of

    return page(view_of(evaluation))


def milonga(*words: Any):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def test_systems_against_a_reference_as_json_and_as_one_page(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [root / "far", root / "near", root / "real", "--captions", root / "captions.csv", "--split", "kind"]
    done = milonga(*words, "--weights", "nano", "--resamples", 100, "--out", out, "--audio", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    found = {(row["system"], row["split"], row["metric"]): row for row in told["summary"]}
    assert found["near", "overall", "kl"]["value"] < found["far", "overall", "kl"]["value"]
    assert found["near", "overall", "fd"]["value"] < found["far", "overall", "fd"]["value"]
    assert found["far", "overall", "silent"]["value"] == pytest.approx(1 / COUNT)
    assert found["far", "overall", "clipped"]["value"] == pytest.approx(1 / COUNT)
    assert found["near", "kind: low", "clap"]["n"] == found["near", "temporal", "clap"]["n"] == 3
    stamp = found["near", "overall", "kl"]["protocol"]
    assert all(re.search(words, stamp) for words in (r"nano-tagger@[0-9a-f]{8}", "soxr HQ", "N 6", "seed 0", "torch "))
    verdicts = {(row["metric"], row["split"]): row for row in told["comparisons"]}
    assert verdicts["kl", "overall"]["difference"] < 0
    assert verdicts["kl", "overall"]["holm"] >= verdicts["kl", "overall"]["p"]
    assert any("intervals" in one for one in told["warnings"])
    assert json.loads((out / "summary.json").read_text()) == told["summary"]
    page = (out / "leaderboard.html").read_text(encoding="utf-8")
    assert page.count("<article") == COUNT
    clips = re.findall(r'<audio [^>]*src="(audio/[^"]+)"', page)
    assert len(clips) == 3 * COUNT
    assert all((out / clip).is_file() for clip in clips)
    assert len(page) < 3_000_000
    assert page.index(">near<", page.index("Table 3")) < page.index(">far<", page.index("Table 3"))  # by mean rank
    ranks = {row["system"]: row for row in csv.DictReader((out / "tables/overall.csv").open(encoding="utf-8"))}
    assert float(ranks["near"]["mean_rank"]) < float(ranks["far"]["mean_rank"])
    assert float(ranks["near"]["kl"]) == found["near", "overall", "kl"]["value"]
    assert ranks["reference"]["mean_rank"] == ranks["near"]["fd_low"] == ""
    latex = (out / "tables/kind-low.tex").read_text(encoding="utf-8")
    assert latex.count(r" \\") == 4  # a head, two systems, the real clips
    changes = list(csv.DictReader((out / "tables/differences.csv").open(encoding="utf-8")))
    assert len(changes) == len(told["comparisons"])
    assert [float(row["difference"]) for row in changes] == [row["difference"] for row in told["comparisons"]]
    latex = (out / "tables/differences.tex").read_text(encoding="utf-8")
    assert latex.count(r" \\") == len(changes) + 1
    assert 'href="tables/differences.csv"' in page
    assert CAPTIONS[0] in page
    assert "<option>kind: low</option>" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "Table 5" in page
    assert "milonga run" not in page
    assert "Judge CLAP" not in page
    assert "by nano-judge" in page
    assert "on nano-tagger’s features" in page


def test_without_a_reference_and_captions_there_are_only_metrics_of_clips_alone(root: Path) -> None:
    done = milonga("one=" + str(root / "near"), "--tagger", "nano-tagger", "--resamples", 100, "--json", "--no-cache")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert {(row["system"], row["metric"]) for row in told["summary"]} == {("one", "silent"), ("one", "clipped")}
    assert any("no real clips, so none of KAD, FD, FD∞, KL:" in one for one in told["warnings"])
    assert not any(one.startswith(("FD:", "FD∞:")) for one in told["warnings"])


def test_the_table_to_read_says_how_its_numbers_were_made(root: Path) -> None:
    done = milonga(root / "near", root / "real", "--tagger", "nano-tagger", "--resamples", 100, "--no-cache")
    assert done.exit_code == 0, done.output
    made = done.stdout.partition("protocol\n")[2]
    assert re.search(r"FD: nano-tagger@[0-9a-f]{8}; mean of channels", made)
    assert "softmax, reference ‖ generated" in made
    assert re.search(
        r"^all: protocol milonga; at most 60 s of a clip; milonga .*; 100 resamples; N 6; seed 0$", made, re.M
    )


def test_labels_split_by_their_number_and_tell_how_far_captions_agree(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "labelled.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["clip", "caption", "audioset_labels"])
        labels = ["/m/1,/m/2", "/m/1,/m/2,/m/3", "/m/1", "", "/m/1", "/m/1,/m/2"]
        texts = [*CAPTIONS[:4], "a dog barks", "a dog barks"]
        rows.writerows([f"clip{n}.wav", text, label] for n, (text, label) in enumerate(zip(texts, labels, strict=True)))
    words = [root / "near", "--captions", path, "--labels", "audioset_labels", "--json", "--no-cache"]
    words += ["--metric", "silent"]
    done = milonga(*words, "--resamples", 100)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    found = {(row["split"], row["metric"]): row["n"] for row in told["summary"]}
    assert (found["several labels", "silent"], found["one label", "silent"]) == (3, 2)
    assert "multi-concept by caption: 3 clips, by labels: 3 of 5; they agree on 3 (60%)" in told["warnings"]


def test_a_table_names_clips_systems_and_real_clips(root: Path) -> None:
    path = root / "table.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["clip", "caption", "system", "reference"])
        for name in ("far", "near"):
            rows.writerows([f"{name}/clip{n}.wav", CAPTIONS[n], name, f"real/clip{n}.flac"] for n in range(COUNT))
    found = load_inputs([str(path)], None, None)
    assert {name: len(own) for name, own in found.systems.items()} == {"far": COUNT, "near": COUNT}
    assert len(found.reference) == COUNT
    assert found.prompts["clip1"].tags == ("temporal", "multi-concept")


def test_features_are_extracted_again_only_where_audio_or_extractor_change(
    root: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def extractor(description: str) -> extractors.Extractor:
        def extract(keys, clips):
            batches.append(len(clips))
            return {"peak": [np.array(np.abs(samples).max()) for samples, _ in clips]}

        return extractors.Extractor("peak", description, extract, ("peak",))

    file = tmp_path / "clip.wav"
    write_audio(file, Clip(np.full(100, 0.5, np.float32), 8000))
    clips = {"a": AudioRef("a", file)}

    def peak(description: str) -> float:
        found = extractors.extract_columns(clips, [extractor(description)], feature_cache(), lambda count: None)
        return float(found["peak"]["a"])

    assert peak("weights 1") == peak("weights 1") == 0.5
    assert batches == [1]
    peak("weights 2")
    assert batches == [1, 1]
    write_audio(file, Clip(np.full(100, 0.25, np.float32), 8000))
    assert peak("weights 1") == 0.25
    assert batches == [1, 1, 1]
    (cache / "features.sqlite").write_bytes(b"?" * 40)  # as a crash of the machine may leave it
    assert peak("weights 1") == 0.25
    assert batches == [1, 1, 1, 1]


def test_a_cached_entry_without_its_columns_is_extracted_again(tmp_path: Path) -> None:
    def extract(keys, clips):
        return {"first": [np.array(1.0)] * len(clips), "second": [np.array(2.0)] * len(clips)}

    write_audio(tmp_path / "clip.wav", Clip(np.full(100, 0.5, np.float32), 8000))
    clips, store = {"a": AudioRef("a", tmp_path / "clip.wav")}, feature_cache()
    part = extractors.Extractor("x", "x", extract, ("first", "second"))
    store.put({f"{part.key}/9/{clips['a'].hash()}": {"first": np.array(7.0)}})
    for _ in range(2):
        columns = extractors.extract_columns(clips, [part], store, lambda count: None, 9)
        assert {name: float(cells["a"]) for name, cells in columns.items()} == {"first": 1.0, "second": 2.0}
    assert len(next(iter(store.get([f"{part.key}/9/{clips['a'].hash()}"]).values()))) == 2


def test_a_cache_that_cannot_be_written_costs_a_warning(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["evaluate", str(root / "near"), str(root / "real"), "--weights", "nano", "--resamples", "100"]
    usual = CliRunner().invoke(app, arguments)
    monkeypatch.delenv("MILONGA_CACHE")
    monkeypatch.setenv("HOME", "/proc/nohome")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (0, usual.stdout)
    lines = [line for line in result.stderr.splitlines() if line.startswith("milonga: ")]
    assert len(lines) == 1
    assert re.search(r"/proc/nohome/\.cache/milonga/features\.sqlite cannot be used \(.*\), so features are", lines[0])


def test_one_clip_has_values_without_intervals(root: Path, tmp_path: Path) -> None:
    for name in ("near", "real"):
        (tmp_path / name).mkdir()
        file = next((root / name).glob("clip2.*"))
        (tmp_path / name / file.name).write_bytes(file.read_bytes())
    sources, nano = [str(tmp_path / "near"), str(tmp_path / "real")], EvalConfig(weights="nano")
    evaluation = evaluate(sources, None, None, nano)
    values = {row.metric: row for row in evaluation.summaries if row.system == "near"}
    assert set(values) == {"kl", "silent", "clipped"}
    assert all(row.n == 1 and np.isnan(row.low) and np.isnan(row.high) for row in values.values())
    assert values["silent"].value == 0
    text = str(evaluation)
    assert re.search(r"Silent ↓ +0\.0 % +0\.0 %", text)
    assert not re.search("note: (FD|IS)", text)
    result = CliRunner().invoke(app, ["evaluate", *sources, "--weights", "nano", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0
    assert "Silent" in (tmp_path / "out" / "leaderboard.html").read_text()


def test_metrics_that_apply_to_no_clip_are_an_error(root: Path) -> None:
    config = EvalConfig(weights="nano", metrics=("exact_match",))
    with pytest.raises(DataError, match="no clip has a value of exact_match: give clips, captions or a reference"):
        evaluate([str(root / "near")], None, None, config)


def test_a_set_against_itself_has_divergences_of_zero_and_none_below(root: Path) -> None:
    config = EvalConfig(weights="nano", metrics=("kl", "fd"), resamples=100)
    evaluation = evaluate([f"a={root / 'real'}", str(root / "real")], None, None, config)
    assert all(row.value < 1e-9 and not row.low < 0 for row in evaluation.summaries)
    assert "−0.0" not in str(evaluation).partition("protocol")[0]


@pytest.mark.parametrize("name", ["silent", "kl", "fd"])
def test_values_that_round_to_zero_have_no_sign(name: str) -> None:
    metric = get_metric(name)
    assert "−" not in metric.format_value(-1e-6) + metric.format_interval(-1e-6, -1e-7)
    assert metric.format_value(-1.0).startswith("−")


def test_of_a_long_clip_the_beginning_is_measured_and_the_rest_is_not_read(root: Path, tmp_path: Path) -> None:
    wave = read_audio(root / "near" / "clip2.wav").waveform
    for name, repeats in (("long", 8), ("short", 4)):
        (tmp_path / name).mkdir()
        for number in range(2):
            samples = np.concatenate([np.tile(wave, 4), np.ones(len(wave) * (repeats - 4), np.float32)])
            write_audio(tmp_path / name / f"c{number}.wav", Clip(samples, 16000))
    config = EvalConfig(weights="nano", seconds=2)
    for _ in range(2):  # computed, then cached
        evaluation = evaluate([str(tmp_path / "long")], None, None, config)
        assert evaluation.warnings[0] == "only the first 2 s are measured (--seconds) of 2 of long"
        assert "at most 2 s of a clip" in evaluation.summaries[0].protocol
    short = evaluate([str(tmp_path / "short")], None, None, EvalConfig(weights="nano", seconds=2.1))
    assert not any("--seconds" in line for line in short.warnings)
    assert [row.value for row in short.summaries] == [row.value for row in evaluation.summaries]
    every = evaluate([str(tmp_path / "long")], None, None, EvalConfig(weights="nano"))
    assert {row.metric: row.value for row in every.summaries}["clipped"] == 1
    assert {row.metric: row.value for row in evaluation.summaries}["clipped"] == 0


MEMORY = """
import resource, sys
from milonga.evaluation import EvalConfig
from milonga.evaluation.evaluate import evaluate
from milonga.listening_test.sources import from_folders
from pathlib import Path
config = EvalConfig(weights="nano", cache=False, resamples=100)
rows = evaluate([sys.argv[1]], None, Path(sys.argv[3]), config).summaries
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = evaluate([sys.argv[2]], None, Path(sys.argv[3]), config).summaries
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024, len(rows))
try:
    from_folders(Path(sys.argv[2]).parent, Path(sys.argv[3]), ["long"])
except Exception as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024)
"""


@pytest.mark.slow  # half a minute and more
def test_ten_hours_cost_an_evaluation_and_a_listening_test_what_they_use_of_them(tmp_path: Path) -> None:
    """Read whole, the file's samples and its 16 kHz would take 3.5 GB."""
    for name in ("short", "long"):
        (tmp_path / name).mkdir()
    write_audio(tmp_path / "short" / "a.wav", Clip(np.full(80_000, 0.1, np.float32), 8000))
    data, length = bytearray((tmp_path / "short" / "a.wav").read_bytes()), 10 * 3600 * 8000 * 2
    place = data.index(b"data")
    data[4:8], data[place + 4 : place + 8] = (number.to_bytes(4, "little") for number in (length + place, length))
    with (tmp_path / "long" / "a.wav").open("wb") as file:
        file.write(data)
        file.truncate(place + 8 + length)  # sparse: zeros that take no disk
    (tmp_path / "captions.csv").write_text("clip,caption\na,a hum\n")
    arguments = [str(tmp_path / name) for name in ("short", "long", "captions.csv")]
    done = subprocess.run([sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=True)
    evaluated, refused, listened = done.stdout.splitlines()
    assert float(evaluated.split()[0]) < 300
    assert int(evaluated.split()[1]) >= 3
    assert refused.endswith("a.wav: a clip of a listening test has at most 300 s; cut it to what people shall rate")
    assert float(listened) < 300


def test_published_weights_load_files_by_the_protocols_rules(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    small = {"panns": panns.Cnn14(panns.FRONT_ENDS[16000], 2), "vggish": vggish.Vggish(2)}
    torch.save({"model": small["panns"].state_dict()}, tmp_path / "panns.pth")
    torch.save(small["vggish"].state_dict(), tmp_path / "vggish.pth")
    whole = panns.load_panns, vggish.load_vggish
    monkeypatch.setattr(panns, "load_panns", lambda path, device: whole[0](path, width=2, device=device))
    monkeypatch.setattr(vggish, "load_vggish", lambda path, device: whole[1](path, width=2, device=device))
    weights = {name: str(tmp_path / f"{name}.pth") for name in small}
    config = EvalConfig(**weights, protocol="tango", sigmoid=True, reconstruction=True, resamples=100, cache=False)
    found = evaluate([str(root / "near"), str(root / "real")], None, None, config)
    names = {row.metric for row in found.summaries if row.system == "near"}
    assert {"fd", "kad", "kl", "kl_sigmoid", "psnr", "ssim", "lsd", "ssim_stft"} <= names
    told = {row.metric: row.protocol for row in found.summaries}
    assert "halved twice" in told["kl"]
    assert "panns-cnn14-16k@" in told["kl"]
    assert found.sources["classifier"] == "PANNs"
    assert "on PANNs features" in view_page(found)
    padded = of_protocol("milonga").panns(np.zeros((8000, 1), np.float32), 16000)
    assert len(padded) == 32000


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["NOWHERE"], "is not there, or no folder"),
        (["far", "near", "--reference", "NOWHERE"], "is not there, or no folder"),
        (["empty", "real"], "holds no audio files"),
        (["far", "far", "real"], "names of their own"),
        (
            ["near", "real", "--protocol", "fast", "--panns", "x"],
            "no protocol 'fast': there are milonga, audioldm, tango",
        ),
        (
            ["near", "real", "--protocol", "tango", "--weights", "nano"],
            "how PANNs, VGGish and --reconstruction load files",
        ),
        (["near", "real", "--clap", "nano-judge"], "a scorer needs captions"),
        (["near", "real", "--clap", "a/b", "--captions", "captions.csv"], "a/b is not on this machine: --fetch"),
        (["near", "real", "--tagger", "a/b@v1"], "a/b is not on this machine: --fetch"),
        (
            ["near", "real", "--clap", "laion-clap:a/b@mean", "--captions", "captions.csv"],
            "not on this machine: --fetch",
        ),
        (["near", "real", "--clap", "nowhere", "--captions", "captions.csv"], "neither a folder nor one of"),
        (["near", "real"], "no weights are named: --weights published"),
        (["near", "real", "--captions", "captions.csv"], "--clap nano-judge --tagger nano-tagger"),
        (["near", "real", "--weights", "best"], "no weights 'best': there are published"),
        (["near", "real", "--weights", "published"], "is not on this machine: --fetch would download it"),
        (["near", "real", "--weights", "nano", "--metric", "fad"], "fad needs VGGish (--vggish)"),
        (["near", "real", "--weights", "nano", "--metric", "fadd"], "unknown metric 'fadd': did you mean 'fad'?"),
        (["near", "--reconstruction"], "give a reference of the same names"),
        (["near", "real", "--panns", "NOWHERE.pth"], "neither a file nor OWNER/NAME:FILE"),
        (["near", "real", "--vggish", "captions.csv"], "no file of weights"),
        (
            ["near", "real", "--captions", "captions.csv", "--split", "loudness", "--weights", "nano"],
            "there are caption, clip, kind",
        ),
        (["near", "real", "--captions", "short.csv", "--weights", "nano"], "no caption for 5 clips, clip1 first"),
        (["near", "real", "--captions", "twice.csv", "--weights", "nano"], "line 3: the clip clip0 is there twice"),
        (["near", "real", "--captions", "empty.csv", "--weights", "nano"], "line 2: the caption is empty"),
        (["lost.csv", "--weights", "nano"], "line 2: clip gone.wav is not there"),
        (
            ["near", "few", "real", "--weights", "nano"],
            "few has 5, reference has 6 clips, all have 5 in common: --force",
        ),
        (["broken", "real", "--weights", "nano"], "clip0.wav: cannot be read as audio"),
        (["lost.csv", "--captions", "captions.csv"], "lost.csv has captions of its own: leave out --captions"),
        (["run", "--captions", "captions.csv"], "run has captions of its own: leave out --captions"),
        (["run", "--reference", "real"], "run is a run with real clips of its own: leave out --reference"),
    ],
)
def test_bad_input_is_an_error_in_one_line(
    root: Path, words: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    for name in ("empty", "few", "broken", "run/evaluate/prompts"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        if number:
            (root / "few" / f"clip{number}.wav").write_bytes((root / "near" / f"clip{number}.wav").read_bytes())
        (root / "broken" / f"clip{number}.wav").write_bytes(b"RIFF")
    (root / "short.csv").write_text("clip,caption\nclip0.wav,a dog\n")
    (root / "twice.csv").write_text("clip,caption\nclip0.wav,a dog\nclip0.wav,a cat\n")
    (root / "empty.csv").write_text("clip,caption\nclip0.wav,\n")
    (root / "lost.csv").write_text("clip,caption\ngone.wav,a dog\n")
    done = milonga(*words, "--no-cache")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1 + done.stderr.count("features: ")
    assert told in done.stderr


def test_different_clips_are_compared_on_equal_terms_if_forced(root: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for number in range(1, COUNT):
        (few / f"clip{number}.wav").write_bytes((root / "near" / f"clip{number}.wav").read_bytes())
    config = EvalConfig(tagger="nano-tagger", resamples=100, force=True, cache=False)
    found = evaluate([str(root / "far"), str(few), str(root / "real")], None, None, config)
    assert {row.n for row in found.summaries if row.metric == "kl"} == {COUNT - 1}
    assert "forced onto the clips that all have: left out are 1 of 6 of far, 1 of 6 of reference" in found.warnings


def test_nothing_is_fetched_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="not on this machine: --fetch"):
        extractors.weights_file("someone/something:weights.pth", fetch=False)
    with pytest.raises(RecipeError, match="neither a file"):
        extractors.weights_file("weights.pth", fetch=True)


def test_inputs_that_cannot_be_read_are_an_error_of_their_kind(root: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        load_inputs([str(tmp_path / "none")], None, None)
    (tmp_path / "bare.csv").write_text("file,text\n")
    with pytest.raises(DataError, match="columns clip and caption"):
        load_inputs([str(tmp_path / "bare.csv")], None, None)


def test_distances_over_a_second_embedding_are_of_the_first_clap(root: Path) -> None:
    sides = [str(root / name) for name in ("far", "near", "real")]
    options = EvalConfig(weights="nano", metrics=("kad_clap", "fd_clap"), cache=False)
    result = evaluate(sides, None, root / "captions.csv", options)
    rows = {(row.system, row.metric): row for row in result.summaries}
    for metric in ("kad_clap", "fd_clap"):
        assert rows["near", metric].value < rows["far", metric].value
        assert "nano-judge@" in rows["near", metric].protocol
    with pytest.raises(RecipeError, match="kad_clap needs a CLAP that is named"):
        evaluate(sides, None, None, EvalConfig(tagger="nano-tagger", metrics=("kad_clap",)))


@pytest.mark.parametrize("metric", ["kad_clap", "fd_clap"])
def test_published_weights_are_laion_clap_s_for_a_distance_of_clap_embeddings_alone(
    root: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extractors, "weights_file", lambda name, fetch: Path(f"/weights/{name}"))
    inputs = load_inputs([str(root / "near"), str(root / "real")], None, root / "captions.csv")
    config = with_weights(EvalConfig(weights="published", metrics=(metric,)), inputs)
    assert config.scorers == (f"laion-clap:/weights/{extractors.PUBLISHED['clap']}",)
    assert (config.panns, config.vggish) == (None, None)
