"""What can happen to a run folder: a full disk, damaged and deleted shards, two runs at once; nothing may be lost."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_parts import RECIPE, FakeParts, NoiseModel
from full_disk import no_file_above

from milonga.core.errors import StoreError
from milonga.core.store import Run
from milonga.experiment import run as pipeline
from milonga.experiment.invalidation import OUTPUTS, STAGES
from milonga.experiment.recipe import parse_recipe

FAKE = parse_recipe(RECIPE, "fake.toml")
SHARDED = ("prompts", "plan", "generate", "score")


def go(out: Path, parts: FakeParts | None = None) -> Run:
    return pipeline.run(FAKE, out, until="pair", parts=parts or FakeParts())


def shards(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*.parquet"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """Every shard of a run that nothing happened to."""
    return shards(go(tmp_path_factory.mktemp("whole")).path)


def without_later(path: Path, stage: str) -> None:
    """Removes the shards that the stages after this one made, so that its own are read again."""
    later = STAGES[STAGES.index(stage) + 1 :]
    for file in [file for one in later for output in OUTPUTS[one] for file in (path / output).glob("*.parquet")]:
        file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["plan", "generate", "score"])
def test_a_full_disk_is_told_and_what_was_made_stays(tmp_path, whole, stage):
    go(tmp_path)
    without_later(tmp_path, STAGES[STAGES.index(stage) - 1])
    before = shards(tmp_path)
    with no_file_above(2000), pytest.raises(StoreError, match=rf"cannot write .*{stage}/.*make room"):
        go(tmp_path)
    assert shards(tmp_path).items() >= before.items()
    assert not list(tmp_path.rglob("*.part"))
    go(tmp_path)
    assert shards(tmp_path) == whole


def flipped(file: Path) -> None:
    """One bit in the middle of a column's pages, which carry checksums; the footer has none."""
    column = pq.read_metadata(file).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(file.read_bytes())
    data[start + column.total_compressed_size // 2] ^= 1
    file.write_bytes(data)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize("stage", SHARDED)
@pytest.mark.parametrize("damage", [flipped, cut_short])
def test_a_damaged_shard_is_named_and_made_anew_once_it_is_deleted(tmp_path, whole, stage, damage):
    run = go(tmp_path)
    names = run.stage(stage).names()
    file = run.path / stage / f"{names[len(names) // 2]}.parquet"
    without_later(tmp_path, stage)
    damage(file)
    with pytest.raises(StoreError, match=rf"{file} is damaged.*delete it and run again"):
        go(tmp_path)
    file.unlink()
    go(tmp_path)
    assert shards(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("later", [True, False], ids=["with later stages", "without"])
@pytest.mark.parametrize("stage", ["plan", "generate", "score"])
def test_a_deleted_middle_shard_is_made_again_and_nothing_else(tmp_path, whole, stage, later):
    log = tmp_path / "log"
    run = go(tmp_path / "run", FakeParts(NoiseModel(log)))
    made = log.read_text().split()
    (run.path / stage / f"{run.stage(stage).names()[2]}.parquet").unlink()
    if not later:
        without_later(run.path, stage)
    go(run.path, FakeParts(NoiseModel(log)))
    assert shards(run.path) == whole
    again = len(log.read_text().split()) - len(made)
    assert again == {"plan": 0 if later else len(made), "generate": 8, "score": 0}[stage]


def test_two_runs_on_one_folder_the_second_says_who_is_there(tmp_path, whole):
    with Run(tmp_path).lock(), pytest.raises(StoreError, match=r"in use by process \d+ on .*another --out"):
        go(tmp_path)
    assert shards(go(tmp_path).path) == whole
