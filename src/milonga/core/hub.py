"""Repositories of the Hugging Face Hub: the files that are needed, checked by their hashes, in the hub's own cache.

What it adds to `huggingface_hub`, whose cache, tokens and addresses (`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`,
`HF_HUB_OFFLINE`) it uses: a large download that was killed goes on where it stopped, nothing enters the cache whose
SHA-256 is not the one the hub states, and the licence of weights is told once.
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

from milonga.core.errors import CheckpointError, brief

Choose = Callable[[Sequence[str]], Sequence[str]]
BLOCK = 1 << 16
# Breaks of the connection in a row, without a byte between them, after which a download gives up; seconds between.
TRIES, PAUSE = 5, 1.0
_OFFLINE: ContextVar[bool] = ContextVar("offline", default=False)


def as_repository(name: str) -> tuple[str, str | None] | None:
    """`user/name` or `user/name@revision` as repository and revision; None for what is neither."""
    found = re.fullmatch(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?", name)
    return (found[1], found[2]) if found else None


@contextlib.contextmanager
def offline(wanted: bool = True) -> Iterator[None]:
    """Inside, `fetch` gives what was fetched before and never asks the hub; not so where it is not `wanted`."""
    before = _OFFLINE.set(wanted)
    try:
        yield
    finally:
        _OFFLINE.reset(before)


def is_offline() -> bool:
    """Whether this is inside of `offline`."""
    return _OFFLINE.get()


def fetch(repository: str, revision: str | None, choose: Choose, tell: Callable[[str], object] | None = None) -> Path:
    """The folder that holds the files of a repository which `choose` picks from their names, fetched where missing.

    Without a connection it is the folder of what was fetched before. `tell` is given the licence, once for each
    repository (default: a line on stderr). Raises CheckpointError saying what is not there, broken or out of reach.
    """
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT)
    cache = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    if is_offline():
        return _here(api, cache, repository, revision)
    with _told(repository, revision):
        commit = api.resolve_revision(repository, revision=revision).resolved
        snapshot = cache / "snapshots" / commit
        try:
            info = api.model_info(repository, revision=commit, files_metadata=True)
        except (OSError, *_unreachable()):
            if snapshot.is_dir():
                return snapshot
            raise
        files = {one.rfilename: one for one in info.siblings or ()}
        for name in choose(list(files)):
            _file(_Wanted(api, repository, commit, name, files[name], cache))
    _licence(repository, info, tell or _say)
    return snapshot


def _here(api: Any, cache: Path, repository: str, revision: str | None) -> Path:
    """The folder of what was fetched before; CheckpointError where nothing was."""
    from huggingface_hub.errors import RevisionResolutionError

    with contextlib.suppress(RevisionResolutionError):
        commit = api.resolve_revision(repository, revision=revision, local_files_only=True).resolved
        if (cache / "snapshots" / commit).is_dir():
            return cache / "snapshots" / commit
    raise CheckpointError(f"{repository} is not on this machine: --fetch would download it")


@dataclass(frozen=True)
class _Wanted:
    """One file of a repository's commit, with what the hub says about it."""

    api: Any
    repository: str
    commit: str
    name: str
    facts: Any
    cache: Path


def _file(wanted: _Wanted) -> None:
    """Puts a file into the cache; large ones (LFS) by our own download, whose bytes are the library's blobs."""
    from huggingface_hub.utils import WeakFileLock

    if wanted.facts.lfs is not None:
        blob = wanted.cache / "blobs" / wanted.facts.lfs.sha256
        lock = wanted.cache.parent / ".locks" / wanted.cache.name / f"{blob.name}.lock"
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if not blob.exists():
                _download(wanted, blob)
    _again(lambda: wanted.api.hf_hub_download(wanted.repository, wanted.name, revision=wanted.commit))


def _again(ask: Callable[[], Any]) -> Any:
    """What an answer is, asked for again where a connection that was kept turns out to be closed by the other side."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(*_unreachable()):
            return ask()
        time.sleep(PAUSE)
    return ask()


def _download(wanted: _Wanted, blob: Path) -> None:
    """Streams an LFS file beside its place from where an earlier attempt stopped; renames it when its hash fits."""
    from huggingface_hub.utils import tqdm

    part, size = blob.with_name(f"{blob.name}.milonga.incomplete"), wanted.facts.lfs.size
    with part.open("a+b") as file, tqdm(total=size, unit="B", unit_scale=True, desc=wanted.name) as bar:
        digest = _hashed(file, bar)
        _complete(wanted, file, digest, bar)
    if part.stat().st_size != size or digest.hexdigest() != blob.name:
        part.unlink()
        raise CheckpointError(
            f"{wanted.repository}: what came as {wanted.name} has not the SHA-256 that the hub states, and was "
            "thrown away: try again, and tell its owner if that does not help"
        )
    part.rename(blob)


def _hashed(file: Any, bar: Any) -> Any:
    """The hash of what an earlier attempt left; reading stops where writing goes on."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(BLOCK):
        digest.update(block)
        bar.update(len(block))
    return digest


def _complete(wanted: _Wanted, file: Any, digest: Any, bar: Any) -> None:
    """Appends what is missing, over as many connections as it takes while each of them brings something."""
    fruitless, size = 0, wanted.facts.lfs.size
    while (before := file.tell()) < size:
        told = "the connection ended"
        try:
            _stream(wanted, file, digest, bar)
        except _unreachable() as error:
            told = brief(error)
        fruitless = 0 if file.tell() > before else fruitless + 1
        if fruitless >= TRIES:
            raise CheckpointError(
                f"{wanted.repository}: {wanted.name} stopped at {file.tell()} of {size} bytes ({told}): "
                "the same command goes on from there"
            )
        if file.tell() < size:
            time.sleep(PAUSE)


def _stream(wanted: _Wanted, file: Any, digest: Any, bar: Any) -> None:
    """Appends the bytes from where `file` ends, until the connection ends or breaks."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(wanted.repository, wanted.name, revision=wanted.commit, endpoint=wanted.api.endpoint)
    headers = build_hf_headers() | {"Range": f"bytes={file.tell()}-", "Accept-Encoding": "identity"}
    session, limit = get_session(), constants.HF_HUB_DOWNLOAD_TIMEOUT
    with session.stream("GET", url, headers=headers, follow_redirects=True, timeout=limit) as answer:
        hf_raise_for_status(answer)
        if answer.status_code != 206 and file.tell():
            file.truncate(0)
            raise CheckpointError(f"{url}: the server cannot go on in the middle: the same command begins anew")
        for block in answer.iter_bytes(BLOCK):
            file.write(block)
            digest.update(block)
            bar.update(len(block))


def _unreachable() -> tuple[type[Exception], ...]:
    """What a connection that is not there, or breaks, raises."""
    import httpx2

    return (httpx2.TransportError,)


@contextlib.contextmanager
def _told(repository: str, revision: str | None) -> Any:
    """What the hub and its library raise, as one line that says what to do."""
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
        raise CheckpointError(f"{where} is not there, or is private: check the name, or set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{where} has no revision {revision!r}") from None
    except RevisionResolutionError as error:
        told = f"{where} cannot be reached, and was not fetched before: connect, or name a folder ({brief(error)})"
        raise CheckpointError(told) from None
    except (HFValidationError, OSError, *_unreachable()) as error:
        raise CheckpointError(f"{where}: {brief(error)}") from None


def _licence(repository: str, info: Any, tell: Callable[[str], object]) -> None:
    from huggingface_hub import constants

    shown = Path(constants.HF_HOME) / "milonga" / "licences" / repository.replace("/", "--")
    if shown.exists():
        return
    found = (info.card_data or {}).get("license")
    stated = f"are under {found}" if found else "come without a stated licence: ask their owner"
    tell(f"the weights of {repository} {stated} ({constants.ENDPOINT}/{repository})")
    with contextlib.suppress(OSError):  # a home that cannot be written to costs the line once more, nothing else
        shown.parent.mkdir(parents=True, exist_ok=True)
        shown.touch()


def _say(line: str) -> None:
    print(f"milonga: {line}", file=sys.stderr)
