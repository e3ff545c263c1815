"""Results that need not be computed twice: the last objects of a loader, and arrays by key in one file on disk."""

import os
import sqlite3
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import lru_cache, wraps
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from milonga.core.errors import MilongaWarning

if TYPE_CHECKING:
    import numpy as np

P = ParamSpec("P")
T = TypeVar("T")
MAGIC = b"SQLite format 3\0"
KEYS_PER_QUERY = 500  # below SQLite's limit
_LOADED: list[Callable[[], None]] = []  # empties the cache of each loader
_WARNINGS = set[str]()  # warnings that were given: a command opens the cache several times


def once(loader: Callable[P, T]) -> Callable[P, T]:
    """Caches a loader's last four results; threads that call it at the same time wait for one load."""
    cached, lock = lru_cache(maxsize=4)(loader), RLock()
    _LOADED.append(cached.cache_clear)

    @wraps(loader)
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with lock:
            return cached(*args, **kwargs)

    return locked


def forget() -> None:
    """Empties the caches of all loaders: what nobody else holds is freed."""
    for clear in _LOADED:
        clear()


def cache_folder(kind: str = "") -> Path:
    """The cache folder, or its subfolder of one `kind`: in MILONGA_CACHE, else in `milonga` of the user's own cache."""
    given = os.environ.get("MILONGA_CACHE")
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milonga"
    return (Path(given) if given else own) / kind


class ArrayCache:
    """Named arrays by key, in one SQLite file that threads and processes may share.

    An entry is on disk before `put` returns, completely or not at all. A file that is no database is renamed to
    `.damaged` and a new one is started, since everything in it can be computed again. A file that cannot be opened,
    read or written costs time alone: a warning says so, and from then on nothing is stored.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.usable = Path(path), True
        table = "CREATE TABLE IF NOT EXISTS arrays (key TEXT PRIMARY KEY, tensors BLOB NOT NULL)"
        self._use(lambda file: file.execute(table))

    def get(self, keys: Sequence[str]) -> "dict[str, dict[str, np.ndarray]]":
        """The arrays of the entries that exist, by key and name."""
        from safetensors.numpy import load

        entries: dict[str, dict[str, np.ndarray]] = {}

        def read(file: sqlite3.Connection) -> None:
            for first in range(0, len(keys), KEYS_PER_QUERY):
                part = list(keys[first : first + KEYS_PER_QUERY])
                query = f"SELECT key, tensors FROM arrays WHERE key IN ({','.join('?' * len(part))})"
                entries.update((key, load(tensors)) for key, tensors in file.execute(query, part))

        self._use(read)
        return entries

    def put(self, entries: "Mapping[str, Mapping[str, np.ndarray]]") -> None:
        """Stores entries, each its arrays by name (safetensors' format); an entry that exists already is replaced."""
        import numpy as np
        from safetensors.numpy import save

        rows = [
            (key, save({name: np.array(value, order="C") for name, value in arrays.items()}))
            for key, arrays in entries.items()
        ]
        self._use(lambda file: file.executemany("INSERT OR REPLACE INTO arrays VALUES (?, ?)", rows))

    def _use(self, action: Callable[[sqlite3.Connection], object]) -> None:
        """Calls `action` with the database, and commits what it does; a failure closes the cache with a warning."""
        from safetensors import SafetensorError

        if not self.usable:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size:
                with self.path.open("rb") as start:
                    is_database = start.read(len(MAGIC)) == MAGIC
                if not is_database:
                    self.path.replace(self.path.with_suffix(".damaged"))
            with closing(sqlite3.connect(self.path, timeout=60)) as file, file:
                action(file)
        except (sqlite3.Error, OSError, SafetensorError) as error:
            self.usable = False
            advice = "delete it, or set MILONGA_CACHE to another folder"
            text = f"{self.path} cannot be used ({error}), so features are computed each time: {advice}"
            if text not in _WARNINGS:
                _WARNINGS.add(text)
                warnings.warn(text, MilongaWarning, stacklevel=2)


def feature_cache(folder: Path | None = None) -> ArrayCache:
    """The cache of what networks compute from clips, in `folder` (default: the user's cache folder)."""
    return ArrayCache((folder or cache_folder()) / "features.sqlite")
