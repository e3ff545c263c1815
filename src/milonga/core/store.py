"""The run folder: Parquet shards that are written aside, flushed and renamed, so a file that exists is finished.

Every shard carries, under the Parquet key `milonga.sha256`, the SHA-256 of its own file (taken with that digest set to
zeros), so one flipped bit anywhere is noticed on reading and any Parquet tool still reads the file. Records become
columns by their type: tuples are lists, nested records are structs, and `dict[str, float]` is an Arrow
`map<string, double>`, which keeps NaN where JSON would not. Column types come from the record, so no row is needed.
"""

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from milonga.core.arrow import RECORD, plain, rows_to_table
from milonga.core.errors import StoreError
from milonga.core.records import Record

if TYPE_CHECKING:
    import pyarrow

R = TypeVar("R", bound=Record)
DIGEST = "milonga.sha256"
BLANK = b"0" * 64
PART = ".part"


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` beside `path`, flushes it to disk, renames it into place and flushes the folder.

    Raises StoreError when the disk refuses (full, read-only); what was at `path` before is then still there.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync(path.parent)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another place"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text by the same rule as `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON by the same rule as `write_bytes`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote; StoreError when the file is missing or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}; delete it and run again") from error


class Shards:
    """One folder of Parquet shards; a shard that exists is finished."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Sorted names of the finished shards, without `.parquet`; files still being written are not among them."""
        return sorted(file.stem for file in self.path.glob("*.parquet"))

    def has(self, name: str) -> bool:
        """Whether the shard is finished."""
        return self._file(name).exists()

    def rows(self, name: str) -> int:
        """How many rows a shard holds, by its footer alone."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_metadata(self._file(name)).num_rows
        except (OSError, pa.ArrowException) as error:
            raise _broken(self._file(name)) from error

    def write_records(self, name: str, records: Sequence[Record], kind: type[Record]) -> None:
        """Writes records of one kind (none is fine) as a shard."""
        self.write_table(name, rows_to_table([record.model_dump() for record in records], kind))

    def read_records(self, kind: type[R], names: Sequence[str] | None = None) -> list[R]:
        """The records of the named shards (None: of all of them), in order of shard and row.

        Raises StoreError for a missing or damaged shard, or one that holds records of another kind.
        """
        found = self.names() if names is None else names
        return [record for name in found for record in self._records(name, kind)]

    def write_table(self, name: str, table: "pyarrow.Table") -> None:
        """Writes a table as a shard, sealed with its digest; raises StoreError when the disk refuses."""
        write_bytes(self._file(name), _seal(table))

    def read_table(self, name: str, columns: list[str] | None = None) -> "pyarrow.Table":
        """A shard's table, or some of its columns; StoreError when it is missing or a single bit is not as written."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        data = self._bytes(name)
        try:
            _check_seal(data)
            # Not pq.read_table: its pool of reader threads now and then aborts a process that is just ending.
            table = pq.ParquetFile(pa.BufferReader(data)).read(columns, use_threads=False)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _broken(self._file(name)) from error
        missing = set(columns or ()) - set(table.column_names)
        if missing:
            raise StoreError(f"{self._file(name)} has no column {', '.join(sorted(missing))}")
        return table.select(columns) if columns else table

    def clear(self) -> None:
        """Deletes this folder and what it holds."""
        if self.path.exists():
            shutil.rmtree(self.path)

    def _records(self, name: str, kind: type[R]) -> list[R]:
        table = self.read_table(name)
        held = (table.schema.metadata or {}).get(RECORD, b"?").decode()
        if held != kind.__name__:
            raise StoreError(f"{self._file(name)} holds {held} records, not {kind.__name__}: it belongs elsewhere")
        try:
            return [kind.model_validate(row) for row in plain(table)]
        except ValidationError as error:
            raise StoreError(f"{self._file(name)} was written by another version: delete it and run again") from error

    def _bytes(self, name: str) -> bytes:
        try:
            return self._file(name).read_bytes()
        except FileNotFoundError as error:
            raise StoreError(f"{self.path} has no shard {name}: run the stage that writes it first") from error
        except OSError as error:
            raise StoreError(f"cannot read {self._file(name)}: {error.strerror or error}") from error

    def _file(self, name: str) -> Path:
        if not name or Path(name).name != name:
            raise StoreError(f"{name!r} cannot name a shard: use letters, digits and dashes")
        return self.path / f"{name}.parquet"


def shard_name(place: int, count: int) -> str:
    """`00003-of-00010`: every shard says how many there are, so a folder knows when it is complete."""
    return f"{place:05d}-of-{count:05d}"


def expected(names: Sequence[str]) -> int:
    """How many shards there will be when complete, by the name of any; 0 where there is none yet."""
    return max((int(name.rpartition("-of-")[2]) for name in names if "-of-" in name), default=0)


def complete(shards: Shards) -> bool:
    """Whether all shards that belong to a stage are there."""
    names = shards.names()
    return bool(names) and len(names) == expected(names)


def cut(items: Sequence[Any], size: int) -> dict[str, Sequence[Any]]:
    """Items in shards of `size`, by shard name; at least one shard, so that nothing at all is complete too."""
    count = max(1, -(-len(items) // size))
    return {shard_name(place, count): items[place * size : (place + 1) * size] for place in range(count)}


class Run:
    """A run folder: the whole truth about a run."""

    def __init__(self, root: Path) -> None:
        self.path = Path(root)

    def stage(self, name: str) -> Shards:
        """The shards of a stage (`generate`), or of a part of one (`evaluate/base`)."""
        return Shards(self.path / name)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from running on this folder; StoreError when one already is.

        The kernel drops the lock when its holder dies, however it dies, so a stale `lock` file does not matter. Once
        the folder is ours, what killed processes left half-written is removed.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as file:
            _claim(file, self.path)
            for part in [one for one in self.path.rglob(f"*{PART}") if one.is_file()]:
                part.unlink(missing_ok=True)
            yield
            file.truncate(0)


def _claim(file: Any, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        raise StoreError(f"{path} is in use by process {holder}: wait for it, or choose another --out") from error
    file.truncate(0)
    file.write(f"{os.getpid()} on {os.uname().nodename}")
    file.flush()


def _seal(table: "pyarrow.Table") -> bytes:
    import pyarrow.parquet as pq

    buffer = BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({DIGEST: BLANK.decode()})
    data = buffer.getvalue()
    place = data.rfind(BLANK)
    return data[:place] + sha256(data).hexdigest().encode() + data[place + len(BLANK) :]


def _check_seal(data: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    digest = (pq.read_metadata(pa.BufferReader(data)).metadata or {}).get(DIGEST.encode(), b"")
    place = data.rfind(digest) if digest else -1
    blank = data[:place] + BLANK + data[place + len(BLANK) :]
    if place < 0 or sha256(blank).hexdigest().encode() != digest:
        raise ValueError("digest does not match")


def _broken(file: Path) -> StoreError:
    return StoreError(f"{file} is damaged or was not written by Milonga: delete it and run again")


def sync(path: Path) -> None:
    """Asks the disk to keep a file or folder through a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_manifest(run: Run) -> dict[str, Any] | None:
    """The manifest of a run folder, None where there is none yet; StoreError when it is damaged."""
    path = run.path / "manifest.json"
    return read_json(path) if path.exists() else None
