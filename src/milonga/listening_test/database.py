"""One SQLite database a folder, on the disk before anything is acknowledged.

WAL with `synchronous=FULL`: a commit is flushed before it returns, so neither `kill -9` nor a loss of power takes back
what somebody was told is saved.
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
PATIENCE = 30.0  # seconds that a write waits for another process's


class Database:
    """Tables of one folder's database. Threads and processes may share it; whatever SQLite refuses is a StoreError.

    Each kind of table is a class of its own (`schema`); those of one folder live in one file.
    """

    schema = ""

    def __init__(self, path: Path) -> None:
        self._path, self._local = path, threading.local()
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # it holds everyone's tokens
        with self._work(writes=True) as work:
            for statement in filter(str.strip, [ADMIN, *self.schema.split(";")]):
                work.execute(statement)
            work.execute("INSERT INTO admin SELECT ? WHERE NOT EXISTS (SELECT 1 FROM admin)", (new_token(),))

    def admin_token(self) -> str:
        """The token of the link of whoever owns the folder."""
        return self._rows("SELECT token FROM admin")[0][0]

    def _rows(self, query: str, values: tuple = ()) -> list[tuple]:
        with self._work() as work:
            return work.execute(query, values).fetchall()

    @contextmanager
    def _work(self, writes: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction that is whole or did not happen; one inside another is part of it."""
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
            raise StoreError(f"{self._path}: {error}; is the disk full, or this another kind of file?") from error

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        if not hasattr(self._local, "connection"):
            opened = sqlite3.connect(self._path, timeout=PATIENCE, isolation_level=None)
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                opened.execute(f"PRAGMA {pragma}")
            self._local.connection = opened
        return self._local.connection


def new_token() -> str:
    """128 random bits in 22 letters, digits, dashes and underscores: nothing that can be guessed."""
    return secrets.token_urlsafe(16)


def now() -> str:
    """The time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
