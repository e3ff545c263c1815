"""Arrays by key: atomic, shared, and started anew where the file is damaged."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from full_disk import no_file_above

from milonga.core.cache import ArrayCache, cache_folder, feature_cache
from milonga.core.errors import MilongaWarning


def row(value: float) -> dict[str, np.ndarray]:
    return {"rows": np.full((2, 5), value, np.float32), "silent": np.array(value)}


def equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    """Whether names, shapes, types and values are the same."""
    return first.keys() == second.keys() and all(
        one.dtype == second[name].dtype and np.array_equal(one, second[name]) for name, one in first.items()
    )


def test_rows_come_back_as_they_were_put(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path / "deep" / "rows.sqlite")
    cache.put({f"k{n}": row(n) for n in range(1200)})
    found = ArrayCache(tmp_path / "deep" / "rows.sqlite").get([f"k{n}" for n in range(1300)])
    assert len(found) == 1200
    assert all(equal(found[f"k{n}"], row(n)) for n in (0, 499, 500, 1199))
    cache.put({"k0": row(9)})
    assert equal(cache.get(["k0"])["k0"], row(9))
    assert cache.get([]) == {}


def test_threads_may_share_it(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path / "rows.sqlite")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ArrayCache(cache.path).put({f"k{n % 20}": row(n % 20)}), range(100)))
    assert len(cache.get([f"k{n}" for n in range(20)])) == 20


def closed(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """What a cache gives that cannot be used, after it was asked to store something."""
    cache = ArrayCache(path)
    rows = cache.get(["a"])
    cache.put({"a": row(1), "b": row(2)})
    return rows | cache.get(["a", "b"])


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    path.write_bytes(b"no database at all" * 100)
    cache = ArrayCache(path)
    cache.put({"a": row(1)})
    assert equal(ArrayCache(path).get(["a"])["a"], row(1))
    assert (tmp_path / "rows.damaged").read_bytes().startswith(b"no database")
    held = path.read_bytes()
    path.write_bytes(held[:200] + b"\xff" * (len(held) - 200))
    with pytest.warns(MilongaWarning, match=r"rows\.sqlite cannot be used .*computed each time: delete it"):
        rows = closed(path)
    assert rows == {}


@pytest.mark.parametrize("place", ["/proc/nohome/rows.sqlite", "file/rows.sqlite", "folder"])
def test_a_place_that_cannot_be_written_costs_a_warning(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder").mkdir()
    with pytest.warns(MilongaWarning, match=r"cannot be used .*or set MILONGA_CACHE to another folder") as warnings:
        rows = closed(tmp_path / place)
    assert rows == {}
    assert len(warnings) == 1


def test_a_full_disk_costs_a_warning_and_what_is_stored_is_read(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path / "rows.sqlite")
    cache.put({"a": row(1)})
    with no_file_above(20_000), pytest.warns(MilongaWarning, match="cannot be used"):
        cache.put({"b": {"rows": np.zeros(10_000)}})
    cache = ArrayCache(tmp_path / "rows.sqlite")
    assert equal(cache.get(["a", "b"])["a"], row(1))
    cache.put({"b": row(2)})
    assert equal(cache.get(["a", "b"])["b"], row(2))


def test_where_things_are_kept_can_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILONGA_CACHE", str(tmp_path))
    assert cache_folder("clap") == tmp_path / "clap"
    monkeypatch.delenv("MILONGA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder("clap") == tmp_path / "x" / "milonga" / "clap"
    assert feature_cache().path == tmp_path / "x" / "milonga" / "features.sqlite"
