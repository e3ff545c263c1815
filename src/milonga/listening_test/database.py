"""One SQLite database per folder; every write is on the disk before it is acknowledged.

WAL with `synchronous=FULL`: a commit is flushed before it returns, so neither `kill -9` nor a power failure loses an
acknowledged write.
"""

import os
import secrets
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from milonga.core.errors import StoreError

ADMIN = "CREATE TABLE IF NOT EXISTS admin (token TEXT NOT NULL) STRICT"
FILE = "ratings.sqlite"
TIMEOUT = 30.0  # seconds that a write waits for another process's
CAUSES = {  # what SQLite's error codes mean to whoever reads the message
    "SQLITE_FULL": "the disk is full: make room, then repeat the command",
    "SQLITE_BUSY": f"another process held the database for more than {TIMEOUT:g} s: end it, then repeat the command",
    "SQLITE_READONLY": "the file or its folder is read-only: copy the folder to a place that can be written",
    "SQLITE_CANTOPEN": "the file cannot be opened: check the permissions of the file and of its folder",
    "SQLITE_NOTADB": "the file is no database: restore it",
    "SQLITE_CORRUPT": "the database is damaged: restore it",
}


class Database:
    """Tables of one folder's database. Threads and processes may share it; an error of SQLite becomes a StoreError.

    A subclass defines its tables (`schema`), and columns that were added to a table since (`columns`: table to column
    to declaration); the subclasses of one folder share one file. With `archive`, a file that cannot be written is read
    from a temporary copy.
    """

    schema = ""
    columns: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    def __init__(self, path: Path, archive: bool = False) -> None:
        self._path, self._local = path, threading.local()
        if archive and path.exists() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
            # A copy, because SQLite cannot read what is still in the log without writing beside it.
            self._copy = tempfile.TemporaryDirectory(prefix="milonga-")
            for file in (path, path.with_name(f"{path.name}-wal")):
                if file.exists():
                    shutil.copyfile(file, Path(self._copy.name) / file.name)
            self._path = Path(self._copy.name) / path.name
        elif not path.exists():
            try:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # private: it holds everyone's tokens
            except OSError as error:
                raise StoreError(f"cannot write {path}: {error.strerror}; make room or choose another place") from error
        with self._work(writes=True) as work:
            for statement in filter(str.strip, [ADMIN, *self.schema.split(";")]):
                work.execute(statement)
            for table, columns in self.columns.items():
                existing = {row[1] for row in work.execute(f"PRAGMA table_info({table})")}
                for name in columns.keys() - existing:
                    work.execute(f"ALTER TABLE {table} ADD COLUMN {name} {columns[name]}")
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
                if work.in_transaction:  # a full disk has rolled back already, and its error is the one to report
                    work.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorname", "")
            cause = next((text for name, text in CAUSES.items() if code.startswith(name)), None)
            raise StoreError(f"{self._path}: {cause or error}") from error

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
    return datetime.now(UTC).isoformat(timespec="milliseconds")
