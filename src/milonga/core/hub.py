"""Downloads: repositories of the Hugging Face Hub and published files, resumed after a break and checked by their hash.

It adds to `huggingface_hub`, whose cache, tokens and addresses (`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`)
it uses: a large download that was killed resumes where it stopped, nothing whose SHA-256 differs from the stated one
enters the cache, and the licence of weights is printed once.
"""

import contextlib
import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milonga.core.errors import CheckpointError, RecipeError, brief

Choose = Callable[[Sequence[str]], Sequence[str]]
BLOCK = 1 << 16
# Breaks of the connection in a row, without a byte between them, after which a download gives up; seconds between.
TRIES, PAUSE = 5, 1.0
_OFFLINE: ContextVar[bool] = ContextVar("offline", default=False)


def as_repository(name: str) -> tuple[str, str | None] | None:
    """`user/name` or `user/name@revision` as repository and revision; None for what is neither."""
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?", name)
    return (match[1], match[2]) if match else None


@contextlib.contextmanager
def offline(wanted: bool = True) -> Iterator[None]:
    """Inside, only what was fetched before is used and no server is contacted; without effect if not `wanted`."""
    before = _OFFLINE.set(wanted)
    try:
        yield
    finally:
        _OFFLINE.reset(before)


def is_offline() -> bool:
    """Whether the caller is inside of `offline`."""
    return _OFFLINE.get()


def fetch(repository: str, revision: str | None, choose: Choose, tell: Callable[[str], object] | None = None) -> Path:
    """The folder that holds the files of a repository which `choose` picks from their names, fetched where missing.

    Without a connection it is the folder of what was fetched before. `tell` is given the licence, once for each
    repository (default: a line on stderr). Raises CheckpointError saying what is missing, broken or out of reach.
    """
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT)
    cache = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    if is_offline():
        return _fetched_before(api, cache, repository, revision)
    with _hub_errors(repository, revision):
        commit = api.resolve_revision(repository, revision=revision).resolved
        snapshot = cache / "snapshots" / commit
        try:
            info = api.model_info(repository, revision=commit, files_metadata=True)
        except (OSError, *_unreachable()):
            if snapshot.is_dir():
                return snapshot
            raise
        files = {file.rfilename: file for file in info.siblings or ()}
        for name in choose(list(files)):
            if name not in files:
                raise CheckpointError(f"{repository} on {constants.ENDPOINT} has no file {name}")
            if files[name].lfs is not None:
                _fetch_blob(api, cache, repository, commit, files[name])
            _retried(lambda name=name: api.hf_hub_download(repository, name, revision=commit))
    _print_licence(repository, info, tell or (lambda line: print(f"milonga: {line}", file=sys.stderr)))
    return snapshot


def fetch_file(source: str, folder: Path, sha256: str = "") -> Path:
    """One file of weights: a path, `OWNER/NAME:FILE` of the Hub, or an address with its known `sha256`.

    A file from an address is stored in `folder` under its own name. Raises CheckpointError where it cannot be
    downloaded or is `offline` and not on this machine, RecipeError for what is none of the three.
    """
    from huggingface_hub.utils import WeakFileLock

    if Path(source).is_file():
        return Path(source)
    absent = CheckpointError(f"{source} is not on this machine: --fetch would download it")
    if sha256:
        path = folder / source.rpartition("/")[2]
        if not path.is_file():
            if is_offline():
                raise absent
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with WeakFileLock(folder / f".{path.name}.lock"):  # another process may be at it
                    if not path.is_file():
                        _download(_Remote(source, path.name, source, sha256), path)
            except OSError as error:
                raise CheckpointError(f"{source} cannot be downloaded: {brief(error)}") from None
        return path
    repository, mark, name = source.partition(":")
    if not mark or as_repository(repository) is None:
        raise RecipeError(f"{source!r} is neither a file nor OWNER/NAME:FILE of the Hub")
    path = fetch(repository, None, lambda _: [name]) / name
    if not path.is_file():
        raise absent
    return path


def _fetched_before(api: Any, cache: Path, repository: str, revision: str | None) -> Path:
    from huggingface_hub.errors import RevisionResolutionError

    with contextlib.suppress(RevisionResolutionError):
        commit = api.resolve_revision(repository, revision=revision, local_files_only=True).resolved
        if (cache / "snapshots" / commit).is_dir():
            return cache / "snapshots" / commit
    raise CheckpointError(f"{repository} is not on this machine: --fetch would download it")


def _fetch_blob(api: Any, cache: Path, repository: str, commit: str, file: Any) -> None:
    """Puts a large (LFS) file into the hub's cache by our own download, whose bytes are the library's blobs."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    blob = cache / "blobs" / file.lfs.sha256
    lock = cache.parent / ".locks" / cache.name / f"{blob.name}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            url = hf_hub_url(repository, file.rfilename, revision=commit, endpoint=api.endpoint)
            headers = tuple(build_hf_headers().items())
            _download(_Remote(repository, file.rfilename, url, blob.name, file.lfs.size, headers), blob)


def _retried(request: Callable[[], Any]) -> Any:
    """A request's result; it is repeated where a kept connection turns out to be closed by the other side."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(*_unreachable()):
            return request()
        time.sleep(PAUSE)
    return request()


@dataclass(frozen=True)
class _Remote:
    """A file to download: where it comes from and its name, for messages; its address, hash, and size where known."""

    source: str
    name: str
    url: str
    sha256: str
    size: int | None = None
    headers: tuple[tuple[str, str], ...] = ()


def _download(remote: _Remote, path: Path) -> None:
    """Streams a file beside its place from where an earlier attempt stopped; renames it when its hash is right."""
    from huggingface_hub.utils import tqdm

    part = path.with_name(f"{path.name}.milonga.incomplete")
    with part.open("a+b") as file, tqdm(total=remote.size, unit="B", unit_scale=True, desc=remote.name) as bar:
        digest = hashlib.sha256()
        file.seek(0)
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
        _complete(remote, file, digest, bar)
    if digest.hexdigest() != remote.sha256:
        part.unlink()
        raise CheckpointError(
            f"{remote.source}: what came as {remote.name} has not the SHA-256 that is stated for it, and was deleted: "
            "try again, and tell its owner if that does not help"
        )
    part.rename(path)


def _complete(remote: _Remote, file: Any, digest: Any, bar: Any) -> None:
    """Appends what is missing, over as many connections as it takes while each of them brings something."""
    fruitless, size = 0, remote.size
    while digest.hexdigest() != remote.sha256 and (size is None or file.tell() < size):
        before, problem = file.tell(), "the connection ended"
        try:
            size = _stream(remote, file, digest, bar) or size
        except _unreachable() as error:
            problem = brief(error)
        fruitless = 0 if file.tell() > before else fruitless + 1
        if fruitless >= TRIES:
            raise CheckpointError(
                f"{remote.source}: {remote.name} stopped at {file.tell()} of {size or 'unknown'} bytes ({problem}): "
                "re-run the same command to resume"
            )
        if size is None or file.tell() < size:
            time.sleep(PAUSE)


def _stream(remote: _Remote, file: Any, digest: Any, bar: Any) -> int | None:
    """Appends the bytes from the end of `file` on, until the connection ends or breaks; the whole file's size."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status

    start = file.tell()
    headers = dict(remote.headers) | {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    limit = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", remote.url, headers=headers, follow_redirects=True, timeout=limit) as response:
        hf_raise_for_status(response)
        if response.status_code != 206 and start:
            file.truncate(0)
            raise CheckpointError(f"{remote.url}: the server cannot resume a download: re-run to begin anew")
        for block in response.iter_bytes(BLOCK):
            file.write(block)
            digest.update(block)
            bar.update(len(block))
        length = response.headers.get("content-length", "")
    return start + int(length) if length.isdigit() else remote.size or file.tell()


def _unreachable() -> tuple[type[Exception], ...]:
    """What a missing or broken connection raises."""
    import httpx2

    return (httpx2.TransportError,)


@contextlib.contextmanager
def _hub_errors(repository: str, revision: str | None) -> Any:
    """Errors of the hub and its library as CheckpointErrors of one line that says what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        RevisionResolutionError,
    )

    where = f"{repository} on {constants.ENDPOINT}"
    try:
        yield
    except GatedRepoError:
        raise CheckpointError(f"{where} asks for its terms to be accepted: do so there, and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise CheckpointError(f"{where} does not exist, or is private: check the name, or set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{where} has no revision {revision!r}") from None
    except RevisionResolutionError as error:
        raise CheckpointError(
            f"{where} cannot be reached, and was not fetched before: connect, or name a folder ({brief(error)})"
        ) from None
    except (HFValidationError, OSError, *_unreachable()) as error:
        raise CheckpointError(f"{where}: {brief(error)}") from None


def _print_licence(repository: str, info: Any, tell: Callable[[str], object]) -> None:
    from huggingface_hub import constants

    shown = Path(constants.HF_HOME) / "milonga" / "licences" / repository.replace("/", "--")
    if shown.exists():
        return
    licence = (info.card_data or {}).get("license")
    stated = f"are under {licence}" if licence else "come without a stated licence: ask their owner"
    tell(f"the weights of {repository} {stated} ({constants.ENDPOINT}/{repository})")
    with contextlib.suppress(OSError):  # a home that cannot be written to costs the line once more, nothing else
        shown.parent.mkdir(parents=True, exist_ok=True)
        shown.touch()
