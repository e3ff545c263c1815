"""What need not be computed twice: rows of numbers kept by key, in one file that processes may share."""

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
ASKED = 500  # keys in one question, below SQLite's limit


def once(loader: Callable[P, T]) -> Callable[P, T]:
    """Keeps the last four things a loader gave; threads that ask at the same time wait for one loading."""
    kept, lock = lru_cache(maxsize=4)(loader), Lock()

    @wraps(loader)
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with lock:
            return kept(*args, **kwargs)

    return locked


def cache_folder(kind: str) -> Path:
    """Where things of one kind are kept: that folder in MILONGA_CACHE, or in `milonga` of the user's own cache."""
    given = os.environ.get("MILONGA_CACHE")
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milonga"
    return (Path(given) if given else own) / kind


class RowCache:
    """Float32 rows by key, in an SQLite file: a row is on disk before `put` returns, and is there whole or not at all.

    A file that is no database is put aside, not lost, and begun anew: everything in it can be made again. Raises
    StoreError where the file cannot be opened, read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size and not self._begins_as_database():
            self.path.replace(self.path.with_suffix(".damaged"))
        with self._opened() as file:
            file.execute("CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, row BLOB NOT NULL)")

    def _begins_as_database(self) -> bool:
        with self.path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are on disk when it closes, or not made."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as file, file:
                yield file
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be used ({error}): it only saves time, so delete it") from error

    def get(self, keys: Sequence[str]) -> "dict[str, np.ndarray]":
        """The rows that are there, by key."""
        import numpy as np

        found: dict[str, np.ndarray] = {}
        with self._opened() as file:
            for first in range(0, len(keys), ASKED):
                part = list(keys[first : first + ASKED])
                asked = f"SELECT key, row FROM rows WHERE key IN ({','.join('?' * len(part))})"
                found |= {key: np.frombuffer(row, dtype="<f4") for key, row in file.execute(asked, part)}
        return found

    def put(self, rows: "Mapping[str, np.ndarray]") -> None:
        """Keeps rows; one that is there already stays."""
        packed = [(key, row.astype("<f4").tobytes()) for key, row in rows.items()]
        with self._opened() as file:
            file.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?)", packed)
