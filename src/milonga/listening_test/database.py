"""One SQLite database per folder; every write is on the disk before it is acknowledged.

WAL with `synchronous=FULL`: a commit is flushed before it returns, so neither `kill -9` nor a power failure loses an
acknowledged write.
"""

import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from milonga.core.errors import StoreError

ADMIN = "CREATE TABLE IF NOT EXISTS admin (token TEXT NOT NULL) STRICT"
FILE = "ratings.sqlite"
TIMEOUT = 30.0  # seconds that a write waits for another process's


class Database:
    """Tables of one folder's database. Threads and processes may share it; an error of SQLite becomes a StoreError.

    A subclass defines its tables (`schema`); the subclasses of one folder share one file.
    """

    schema = ""

    def __init__(self, path: Path) -> None:
        self._path, self._local = path, threading.local()
        if not path.exists():
            try:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # private: it holds everyone's tokens
            except OSError as error:
                raise StoreError(f"cannot write {path}: {error.strerror}; make room or choose another place") from error
        with self._work(writes=True) as work:
            for statement in filter(str.strip, [ADMIN, *self.schema.split(";")]):
                work.execute(statement)
            work.execute("INSERT INTO admin SELECT ? WHERE NOT EXISTS (SELECT 1 FROM admin)", (new_token(),))

    def admin_token(self) -> str:
        """The token in the link of the folder's owner."""
        return self._rows("SELECT token FROM admin")[0][0]

    def renew_admin_token(self) -> None:
        """Replaces the token in the owner's link; the link before is no longer valid."""
        with self._work(writes=True) as work:
            work.execute("UPDATE admin SET token = ?", (new_token(),))

    def _rows(self, query: str, values: tuple = ()) -> list[tuple]:
        with self._work() as work:
            return work.execute(query, values).fetchall()

    @contextmanager
    def _work(self, writes: bool = False) -> Iterator[sqlite3.Connection]:
        """An atomic transaction; one inside another is part of it."""
        try:
            work = self._connection()
            if work.in_transaction:
                yield work
                return
            work.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            try:
                yield work
                work.execute("COMMIT")
            except BaseException:
                work.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(
                f"{self._path}: {error}; is the disk full or read-only, or is this not a database?"
            ) from error

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        if not hasattr(self._local, "connection"):
            connection = sqlite3.connect(self._path, timeout=TIMEOUT, isolation_level=None)
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                connection.execute(f"PRAGMA {pragma}")
            self._local.connection = connection
        return self._local.connection


def new_token() -> str:
    """A token of 128 random bits in 22 letters, digits, dashes and underscores."""
    return secrets.token_urlsafe(16)


def now() -> str:
    """The current time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
