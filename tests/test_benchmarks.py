"""The scripts that make tables out of runs, on a synthetic run."""

import importlib
import sys
import time
import types
from pathlib import Path

import pytest

from milonga.core.errors import DataError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def alignment(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "stages"))
    return importlib.import_module("alignment")


@pytest.mark.slow
def test_tables_of_runs_go_between_the_pages_markers(alignment, tmp_path, monkeypatch):
    from synthetic_run import make_run

    runs = [make_run(tmp_path / name, prompts=6) for name in ("one", "two")]
    page = tmp_path / "page.md"
    kept = "<!-- sweeps:begin -->\nkept\n<!-- sweeps:end -->"
    page.write_text(f"before\n<!-- results:begin -->\nold\n<!-- results:end -->\n{kept}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["alignment.py", *map(str, runs), "--write", str(page)])
    alignment.main()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{kept}\nafter\n")
    assert "old" not in text
    assert "| system | one | two | mean of runs |" in text
    line = next(row for row in text.splitlines() if row.startswith("| aligned |") and "to +0.099" in row)
    assert "**+0.099** [+0.068, +0.130]" in line
    assert "+0.099 (+0.099 to +0.099)" in line
    assert "**+0.029** (+2 of 2)" in text  # at a glance
    again = text
    alignment.main()
    assert page.read_text() == again


def test_a_single_run_has_one_table_of_gains_between_markers_of_their_own(alignment, tmp_path, monkeypatch):
    from synthetic_run import make_run

    page = tmp_path / "page.md"
    page.write_text("<!-- sweeps:begin --><!-- sweeps:end -->")
    run = make_run(tmp_path / "one", prompts=6)
    monkeypatch.setattr(sys, "argv", ["alignment.py", str(run), "--write", str(page), "--part", "sweeps"])
    alignment.main()
    assert "mean of runs" not in page.read_text()
    gains = next(row for row in page.read_text().splitlines() if row.startswith("| aligned |"))
    assert gains.startswith("| aligned | **+0.099** [+0.068, +0.130] |")  # exact match, the first of the metrics
    assert "| **+0.029** [+0.018, +0.040] |" in gains  # the judge


def test_a_page_without_markers_is_told(alignment):
    with pytest.raises(DataError, match="lacks <!-- results:begin"):
        alignment.written("nothing", "tables", "results")


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("tables", 40),
        ("pairs", 16),
        # ten seconds and more each
        pytest.param("audio", 44, marks=pytest.mark.slow),
        pytest.param("checkpoints", 20, marks=pytest.mark.slow),
    ],
)
def test_every_case_of_what_users_hand_in_is_read_right_or_refused(kind, least, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    rows, faults = importlib.import_module("inputs").run([kind])
    assert faults == []
    assert len(rows[kind]) >= least


def test_a_case_with_another_outcome_is_a_fault(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    inputs, cases = importlib.import_module("inputs"), importlib.import_module("inputs_cases")
    group = importlib.import_module("inputs_tables").group()
    case = next(case for case in group.cases if case.name == "a missing cell")
    wrong = cases.Case(case.name, lambda folder: case.make(folder) and {"a": "a dog barks"})
    assert len(inputs.judged(wrong, group, tmp_path)[1]) == len(group.readers)


def clock_of_passes(*networks):
    """A clock that a pass of a network moves by a millisecond, so that figures do not depend on the machine's load."""
    now = [0.0]

    def move(seconds):
        now[0] += seconds
        return now[0]

    for network in networks:
        network.register_forward_pre_hook(lambda *_: move(0.001) and None)
    return types.SimpleNamespace(perf_counter=lambda: move(1e-7), process_time=time.process_time)


@pytest.mark.slow
def test_the_accelerators_figures_are_lines_that_are_measured_once(monkeypatch, tmp_path, capsys):
    import json
    import subprocess

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import small_backbones
    import small_networks

    gpu, file = importlib.import_module("gpu"), tmp_path / "gpu.jsonl"
    tiny = {gpu.TANGO: small_networks.pipeline(), gpu.STABLE_AUDIO: small_backbones.stable_audio()}
    monkeypatch.setattr(gpu, "pipeline", lambda _, kind=gpu.TANGO: tiny[kind])
    counted = gpu.flops
    monkeypatch.setattr(gpu, "flops", lambda tiny, kind=gpu.TANGO: 1e6 if kind == gpu.TANGO else counted(tiny, kind))
    monkeypatch.setattr(gpu, "time", clock_of_passes(tiny[gpu.TANGO].unet, tiny[gpu.STABLE_AUDIO].transformer))
    gpu.main([str(file), "--tiny"])
    rows = {row["figure"]: row for row in map(json.loads, file.read_text().splitlines())}
    assert [name for name, _ in gpu.figures(tiny=True, clips=2)] == list(rows)
    assert not [row for row in rows.values() if "error" in row]
    for name in ("sample bf16, batch 1", "sample fp32, batch 2", "Stable Audio Open: sample bf16, batch 1"):
        assert rows[name]["ms_per_step"] == pytest.approx(1, rel=0.01)
        batch, steps = int(name[-1]), 100 if "Stable" in name else 50
        assert rows[name]["clips_per_s"] == pytest.approx(batch / steps * 1000, rel=0.01)
    assert 0 < rows["score LAION-CLAP"]["network_share"] <= 1
    assert rows["DPO LoRA 16, bf16"]["pairs_per_s"] == pytest.approx(1000 / 2, rel=0.01)
    assert rows["Stable Audio Open: DPO LoRA 16, bf16"]["pairs_per_s"] == pytest.approx(1000 / 2, rel=0.01)
    assert rows["parity of one clip with the CPU"]["largest_difference"] == 0
    lines = file.read_text()
    capsys.readouterr()
    gpu.main([str(file), "--tiny"])
    assert (file.read_text(), capsys.readouterr().out) == (lines, "")
    gpu.main([str(tmp_path / "other.jsonl"), "--tiny", "--seconds", "0"])
    assert capsys.readouterr().out.startswith("time is up before sample bf16, batch 1")
    assert subprocess.run(["bash", "-n", str(ROOT / "benchmarks" / "gpu.sh")], check=False).returncode == 0
