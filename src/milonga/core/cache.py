"""Results that need not be computed twice: the last objects of a loader, and arrays by key in one file on disk."""

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache, wraps
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from milonga.core.errors import StoreError

if TYPE_CHECKING:
    import numpy as np

P = ParamSpec("P")
T = TypeVar("T")
MAGIC = b"SQLite format 3\0"
KEYS_PER_QUERY = 500  # below SQLite's limit


def once(loader: Callable[P, T]) -> Callable[P, T]:
    """Caches a loader's last four results; threads that call it at the same time wait for one load."""
    cached, lock = lru_cache(maxsize=4)(loader), Lock()

    @wraps(loader)
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with lock:
            return cached(*args, **kwargs)

    return locked


def cache_folder(kind: str = "") -> Path:
    """The cache folder, or its subfolder of one `kind`: in MILONGA_CACHE, else in `milonga` of the user's own cache."""
    given = os.environ.get("MILONGA_CACHE")
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milonga"
    return (Path(given) if given else own) / kind


class ArrayCache:
    """Named arrays by key, in one SQLite file that threads and processes may share.

    An entry is on disk before `put` returns, completely or not at all. A file that is no database is renamed to
    `.damaged` and a new one is started, since everything in it can be computed again. Raises StoreError where the file
    cannot be opened, read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size:
            with self.path.open("rb") as file:
                is_database = file.read(len(MAGIC)) == MAGIC
            if not is_database:
                self.path.replace(self.path.with_suffix(".damaged"))
        with self._connection() as file:
            file.execute("CREATE TABLE IF NOT EXISTS arrays (key TEXT PRIMARY KEY, tensors BLOB NOT NULL)")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that commits when the block ends well, and rolls back otherwise."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as file, file:
                yield file
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be used ({error}): it only saves time, so delete it") from error

    def get(self, keys: Sequence[str]) -> "dict[str, dict[str, np.ndarray]]":
        """The arrays of the entries that exist, by key and name."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        entries: dict[str, dict[str, np.ndarray]] = {}
        with self._connection() as file:
            for first in range(0, len(keys), KEYS_PER_QUERY):
                part = list(keys[first : first + KEYS_PER_QUERY])
                query = f"SELECT key, tensors FROM arrays WHERE key IN ({','.join('?' * len(part))})"
                try:
                    entries |= {key: load(tensors) for key, tensors in file.execute(query, part)}
                except SafetensorError as error:
                    raise sqlite3.DatabaseError(f"an entry is damaged: {error}") from error
        return entries

    def put(self, entries: "Mapping[str, Mapping[str, np.ndarray]]") -> None:
        """Stores entries, each its arrays by name (safetensors' format); an entry that exists already stays."""
        import numpy as np
        from safetensors.numpy import save

        rows = [
            (key, save({name: np.array(value, order="C") for name, value in arrays.items()}))
            for key, arrays in entries.items()
        ]
        with self._connection() as file:
            file.executemany("INSERT OR IGNORE INTO arrays VALUES (?, ?)", rows)


def feature_cache(folder: Path | None = None) -> ArrayCache:
    """The cache of what networks compute from clips, in `folder` (default: the user's cache folder)."""
    return ArrayCache((folder or cache_folder()) / "features.sqlite")
