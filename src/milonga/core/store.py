"""The run folder: Parquet shards and JSON, written so that a file that exists is complete.

Every write goes to a temporary name beside its place, is flushed to disk and renamed. Shards carry Parquet's own page
checksums, so a flipped bit in a column's data is noticed when that column is read, by Milonga and by any other Parquet
reader; the footer (schema and offsets) has no checksum. Records become columns by their type: tuples are lists, nested
records are structs, and `dict[str, float]` is an Arrow `map<string, double>`, which keeps NaN where JSON would not.
Column types come from the record, so no row is needed.
"""

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
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
PART = ".part"
_UNFINISHED = re.compile(r".+\.\d+-[0-9a-f]{8}\.part")  # what `_temporary` names, which a killed process leaves behind
PACKAGES = ("milonga", "torch", "diffusers", "transformers", "numpy", "scikit-learn", "pyarrow", "soundfile")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` beside `path`, flushes it to disk, renames it into place and flushes the folder.

    Raises StoreError when the disk refuses (full, read-only); what was at `path` before is then still there.
    """
    part = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # on a read-only disk there is nothing to remove, and that is an error too
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: Path, replace: bool = True) -> Iterator[Path]:
    """Gives a new folder beside `path` to write into; when the block ends well it is flushed and renamed to `path`.

    A folder at `path` is replaced; without `replace` one that holds anything stays, and the new one is dropped: two
    processes that make the same thing may both finish. Raises StoreError when the disk refuses; what was at `path`
    before is then still there (after a kill in that moment as NAME….before).
    """
    part, before = _temporary(path), _temporary(path).with_suffix(".before")
    try:
        part.mkdir(parents=True)
        yield part
        access = part.stat().st_mode & 0o666
        for file in [*part.rglob("*"), part]:
            if file.is_file() and access & ~file.stat().st_mode:  # safetensors' own are for nobody but their owner
                file.chmod(access)
            _sync(file)
        if replace and path.is_dir() and not path.is_symlink():
            path.rename(before)
        try:
            part.rename(path)
        except OSError:
            if before.is_dir():
                before.rename(path)
            if replace or not path.is_dir():
                raise
        _sync(path.parent)
        if before.is_dir():
            before.rename(part)  # by this name it goes now, or after a kill when the folder's run is locked again
    except Exception as error:
        # safetensors and torch tell of a full disk by errors of their own.
        if isinstance(error, OSError) or re.search("No space left|PytorchStreamWriter failed", str(error)):
            raise cannot_write(path, error) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{PART}")


def _sync(path: Path) -> None:
    """Asks the disk to keep a file or folder through a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cannot_write(path: Path, error: Exception) -> StoreError:
    """The error of a disk that refuses a file, in one line."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error).partition("\n")[0]
    return StoreError(f"cannot write {path}: {reason}; make room or choose another place")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text as `write_bytes` does; of a file's name that is no text the bytes stand as `\\udcXX`."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON as `write_bytes` does."""
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
        return [record for name in (self.names() if names is None else names) for record in self._records(name, kind)]

    def write_table(self, name: str, table: "pyarrow.Table") -> None:
        """Writes a table as a shard with page checksums; raises StoreError when the disk refuses."""
        import pyarrow.parquet as pq

        buffer = BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        write_bytes(self._file(name), buffer.getvalue())

    def read_table(self, name: str, columns: list[str] | None = None) -> "pyarrow.Table":
        """A shard's table, or some of its columns, of which alone the data is then read.

        Raises StoreError when the shard is missing, is no Parquet file, lacks a column, or its data is not as written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._file(name)
        try:
            # Not pq.read_table: its pool of reader threads now and then aborts a process that is just ending.
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                missing = set(columns or ()) - set(file.schema_arrow.names)
                if missing:
                    raise StoreError(f"{path} has no column {', '.join(sorted(missing))}")
                table = file.read(columns, use_threads=False)
        except FileNotFoundError as error:
            raise StoreError(f"{self.path} has no shard {name}: run the stage that writes it first") from error
        except PermissionError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _broken(path) from error
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

    def check_visible(self) -> None:
        """StoreError where the folder cannot be seen: a worker on another machine would generate clips for nobody."""
        if not (self.path / "manifest.json").exists():
            raise StoreError(
                f"{self.path} is not to be seen on {os.uname().nodename}: put the run where all machines see it"
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from running on this folder; StoreError when one already is.

        The kernel drops the lock when its holder dies, however it dies, so a stale `lock` file does not matter. Once
        the folder is ours, what killed processes left half-written is removed.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise cannot_write(self.path, error) from error
        with lock as file:
            _take_lock(file, self.path)
            for part in [path for path in self.path.rglob(f"*{PART}") if _UNFINISHED.fullmatch(path.name)]:
                shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
            yield
            file.truncate(0)


def _take_lock(file: Any, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        raise StoreError(f"{path} is in use by process {holder}: wait for it, or choose another --out") from error
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, and says nothing about its holder
        file.truncate(0)
        os.write(file.fileno(), f"{os.getpid()} on {os.uname().nodename}".encode())


def _broken(file: Path) -> StoreError:
    return StoreError(f"{file} is damaged or was not written by Milonga: delete it and run again")


def read_manifest(run: Run) -> dict[str, Any] | None:
    """The manifest of a run folder, None where there is none yet; StoreError when it is damaged."""
    path = run.path / "manifest.json"
    return read_json(path) if path.exists() else None


def software() -> dict[str, Any]:
    """The git `commit` (None outside git), the `versions` of the libraries behind the numbers, and the `machine`."""
    return {
        "commit": commit(Path(__file__).parent),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}",
    }


def commit(folder: Path) -> str | None:
    """The git commit of the checkout that `folder` is in, with `+` when files differ from it; None outside git."""
    head = _git(folder, "rev-parse", "HEAD")
    changed = head and _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+" if changed else head


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
