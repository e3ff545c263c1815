"""The package stays small enough to read: modules, lines, files of a room, and frames from command to network."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def frames(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("frames")


def test_no_room_has_too_many_files(frames):
    counts = frames.sizes()
    del counts["modules"], counts["lines"]
    assert {room: count for room, count in counts.items() if count > frames.ROOM} == {}


@pytest.mark.parametrize(("size", "limit"), [("modules", "MODULES"), ("lines", "LINES")])
def test_the_package_stays_within_its_budget(frames, size, limit):
    assert frames.sizes()[size] <= getattr(frames, limit)


@pytest.mark.slow
def test_a_reader_reaches_the_network_in_few_frames(frames, tmp_path):
    lengths = {command: len(path) for command, path in frames.paths(tmp_path)}
    assert {command: length for command, length in lengths.items() if not 0 < length <= frames.LIMITS[command]} == {}
