"""The run folder keeps what it is given, notices any damage, and never shows an unfinished file."""

import errno
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from milonga.core.errors import StoreError
from milonga.core.records import Candidate, Event, Pair, Prompt, Request, Summary
from milonga.core.store import Run, Shards, atomic_dir, read_json, write_bytes, write_json

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
FLOATS = st.floats(allow_nan=False)
SEEDS = st.integers(0, 2**63 - 1)
PROMPTS = st.builds(
    Prompt,
    id=TEXT,
    text=TEXT,
    source=TEXT,
    tags=st.lists(TEXT, max_size=3).map(tuple),
    scene=st.none() | st.lists(st.lists(TEXT, max_size=2).map(tuple), max_size=3).map(tuple),
)
REQUESTS = st.builds(Request, steps=SEEDS, guidance=FLOATS, number=SEEDS, seed=SEEDS)
CANDIDATES = st.builds(Candidate, request=REQUESTS, scores=st.dictionaries(TEXT, FLOATS, max_size=3))
RECORDS = st.one_of(
    st.tuples(st.just(Prompt), st.lists(PROMPTS, max_size=5)),
    st.tuples(st.just(Candidate), st.lists(CANDIDATES, max_size=5)),
    st.tuples(st.just(Event), st.lists(st.builds(Event, onset=FLOATS, offset=FLOATS), max_size=5)),
    st.tuples(
        st.just(Summary), st.lists(st.builds(Summary, value=FLOATS, low=FLOATS, high=FLOATS, n=SEEDS), max_size=2)
    ),
)


def some_prompts(count: int = 3) -> list[Prompt]:
    return [Prompt.of(f"sound number {n}", "test", scene=(("Bell",),)) for n in range(count)]


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return Run(tmp_path).stage("prompts")


@settings(max_examples=60, deadline=None)
@given(RECORDS)
def test_records_come_back_as_they_were(case):
    kind, records = case
    with TemporaryDirectory() as folder:
        shards = Shards(Path(folder))
        shards.write_records("a", records, kind)
        assert shards.read_records(kind) == records
        assert shards.rows("a") == len(records)


def test_nan_scores_stay_nan(shards):
    request = Request.of(1, some_prompts()[0], "x", 5, 3.0)
    shards.write_records("a", [Candidate(request=request, scores={"one": math.nan, "two": 0.5})], Candidate)
    (back,) = shards.read_records(Candidate)
    assert math.isnan(back.scores["one"])
    assert back.scores["two"] == 0.5


def test_shards_are_read_in_order_of_name(shards):
    for name in ("b", "a", "c"):
        shards.write_records(name, [Prompt.of(name, "test")], Prompt)
    assert [prompt.text for prompt in shards.read_records(Prompt)] == ["a", "b", "c"]
    assert [prompt.text for prompt in shards.read_records(Prompt, ["c", "b"])] == ["c", "b"]


def damage(file: Path, step: int, found: Callable[[], object]) -> list[object]:
    """What `found` gives with one bit flipped at every `step`th byte of a shard's data, StoreErrors by their text."""
    intact = file.read_bytes()
    footer = int.from_bytes(intact[-8:-4], "little")
    results: list[object] = []
    for place in range(4, len(intact) - 8 - footer, step):
        damaged = bytearray(intact)
        damaged[place] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        try:
            results.append(found())
        except StoreError as error:
            results.append(str(error))
    file.write_bytes(intact)
    return results


def test_a_flipped_bit_in_the_data_is_noticed(shards):
    """Or it is without effect, as in the statistics that a page's header repeats; the footer has no checksum."""
    prompts = some_prompts(200)
    shards.write_records("a", prompts, Prompt)
    results = damage(shards.path / "a.parquet", 7, lambda: shards.read_records(Prompt) == prompts)
    refused = [result for result in results if result is not True]
    assert len(refused) > 0.9 * len(results)
    assert all(re.search(r"a\.parquet is damaged.*delete it and run again", str(result)) for result in refused)


def test_reading_some_columns_reads_and_checks_those_alone(shards):
    rows = 50
    blob = np.random.default_rng(0).bytes(10_000)
    shards.write_table("a", pa.table({"id": [f"clip {n}" for n in range(rows)], "audio": [blob] * rows}))
    file = shards.path / "a.parquet"
    data = bytearray(file.read_bytes())
    data[data.find(blob[:16]) + 5000] ^= 1
    file.write_bytes(data)
    assert shards.read_table("a", ["id"]).num_rows == rows
    with pytest.raises(StoreError, match="is damaged"):
        shards.read_table("a")
    with pytest.raises(StoreError, match="is damaged"):
        shards.read_table("a", ["audio"])


def test_a_shard_of_the_first_edition_still_reads(shards):
    """It has the SHA-256 of its file in the footer and no page checksums."""
    shards.write_records("new", some_prompts(), Prompt)
    table = pq.read_table(shards.path / "new.parquet")
    with pq.ParquetWriter(shards.path / "old.parquet", table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"milonga.sha256": "0" * 64})
    assert shards.read_records(Prompt, ["old"]) == some_prompts()


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_truncated_shard_is_refused(shards, keep):
    shards.write_records("a", some_prompts(), Prompt)
    file = shards.path / "a.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(StoreError, match="delete it and run again"):
        shards.read_records(Prompt)


def test_a_foreign_parquet_file_is_refused_and_ours_is_plain_parquet(shards):
    shards.write_records("a", some_prompts(), Prompt)
    table = pq.read_table(shards.path / "a.parquet")
    assert table.column("text").to_pylist() == [prompt.text for prompt in some_prompts()]
    pq.write_table(table.replace_schema_metadata(None), shards.path / "a.parquet")
    with pytest.raises(StoreError, match=r"holds \? records, not Prompt: it belongs elsewhere"):
        shards.read_records(Prompt)


def test_a_half_written_file_is_never_seen(shards):
    shards.write_records("a", some_prompts(), Prompt)
    (shards.path / "b.parquet.4242-deadbeef.part").write_bytes(b"half")
    (shards.path / "c.4242-deadbeef.part").mkdir()
    (shards.path / "folder.part").mkdir()
    assert shards.names() == ["a"]
    assert not shards.has("b")
    with Run(shards.path.parent).lock():
        assert [one.name for one in shards.path.glob("*.part")] == ["folder.part"]


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    write_bytes(tmp_path / "x", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*x: No space left on device"):
        write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "model"
    with atomic_dir(target) as part:
        (part / "inner").mkdir()
        (part / "inner" / "x").write_text("one")
        assert not target.exists()
    with pytest.raises(ValueError, match="stopped"), atomic_dir(target) as part:  # noqa: PT012
        (part / "x").write_text("half")
        raise ValueError("stopped")
    assert [file.name for file in target.rglob("*")] == ["inner", "x"]
    with atomic_dir(target) as part:
        (part / "y").write_text("two")
    assert [file.name for file in target.iterdir()] == ["y"]
    assert [file.name for file in target.parent.iterdir()] == ["model"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_who_may_read_a_folder_may_read_its_weights(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_dir(tmp_path / "model") as part:
            save_file({"weight": np.zeros(3, np.float32)}, part / "model.safetensors")
            write_json(part / "config.json", {})
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()} == {mode}


def test_a_folder_that_another_process_made_meanwhile_stays(tmp_path):
    with atomic_dir(tmp_path / "model", replace=False) as part:
        (part / "ours").touch()
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "theirs").touch()
    assert [file.name for file in tmp_path.rglob("*")] == ["model", "theirs"]


def test_a_full_disk_leaves_the_old_folder(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*model: No space left"), atomic_dir(tmp_path / "model"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("held", [["new"], ["old", "new"]], ids=["the new one", "either"])
def test_where_a_folder_cannot_be_moved_the_old_one_stays_as_it_was(tmp_path, monkeypatch, held):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("precious")
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if any((self / name).exists() for name in held):
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(StoreError, match=r"cannot write .*model: Device or"), atomic_dir(tmp_path / "model") as part:
        (part / "new").touch()
    assert [str(file.relative_to(tmp_path)) for file in sorted(tmp_path.rglob("*"))] == ["model", "model/old"]
    assert (tmp_path / "model" / "old").read_text() == "precious"


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Shards(tmp_path).write_records("a", some_prompts(), Prompt)
    assert list(tmp_path.iterdir()) == []


def test_another_kind_of_record_is_refused(shards):
    shards.write_records("a", some_prompts(), Prompt)
    with pytest.raises(StoreError, match="holds Prompt records, not Pair"):
        shards.read_records(Pair)


def test_missing_shards_columns_and_bad_names(shards):
    shards.write_table("a", pa.table({"id": ["x"], "n": [1]}))
    assert shards.read_table("a", ["n"]).column_names == ["n"]
    with pytest.raises(StoreError, match="has no column clap"):
        shards.read_table("a", ["id", "clap"])
    with pytest.raises(StoreError, match="has no shard b: run the stage"):
        shards.read_table("b")
    for name in ("", "../a", "x/y"):
        with pytest.raises(StoreError, match="cannot name a shard"):
            shards.has(name)


def test_clear_forgets_a_stage_and_only_that(tmp_path):
    run = Run(tmp_path)
    for stage in ("pair", "score"):
        run.stage(stage).write_records("a", some_prompts(), Prompt)
    run.stage("pair").clear()
    run.stage("pair").clear()
    assert run.stage("pair").names() == []
    assert run.stage("score").names() == ["a"]


def test_json_round_trip_and_a_broken_file(tmp_path):
    write_json(tmp_path / "deep" / "x.json", {"a": [1, "é"]})
    assert read_json(tmp_path / "deep" / "x.json") == {"a": [1, "é"]}
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(StoreError, match=r"x\.json.*delete it and run again"):
        read_json(tmp_path / "x.json")


HOLDER = """
import sys, time
from pathlib import Path
from milonga.core.store import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_in_use_is_refused_and_a_dead_holder_is_not(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(StoreError, match=f"in use by process {holder.pid}"), Run(tmp_path).lock():
            pass
    finally:
        holder.kill()
        holder.wait()
    assert str(holder.pid) in (tmp_path / "lock").read_text()
    with Run(tmp_path).lock():
        assert (tmp_path / "lock").read_text().startswith(str(os.getpid()))
    with Run(tmp_path).lock():
        pass
