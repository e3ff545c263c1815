"""A hub on this machine: the Hugging Face Hub's file API for folders of one's own, with the faults one asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LARGE = (".bin", ".safetensors")


@dataclass
class Repository:
    """A folder as a repository: its branches and tags by name, its card, and what is asked of its terms."""

    folder: Path
    card: dict[str, Any] = field(default_factory=dict)
    revisions: dict[str, Path] = field(default_factory=dict)
    gated: bool = False

    def at(self, revision: str) -> tuple[str, Path] | None:
        """The commit and the folder of a branch, tag or commit."""
        known = {"main": self.folder} | self.revisions
        by_commit = {hashlib.sha1(str(folder).encode()).hexdigest(): folder for folder in known.values()}
        folder = known.get(revision) or by_commit.get(revision)
        return None if folder is None else (hashlib.sha1(str(folder).encode()).hexdigest(), folder)


@dataclass
class Hub:
    """The repositories by `user/name`, what was asked for (method, path, first byte), and the faults."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    # Bytes after which an answer with this file breaks off, once for each number; and what to say its hash is.
    breaks: dict[str, list[int]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    ranges: bool = True  # whether it sends files from the middle on

    def got(self) -> list[str]:
        """The files that were sent."""
        return [path for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that serves until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use(patch: pytest.MonkeyPatch, hub: Hub, home: Path) -> None:
    """Makes this process ask `hub` and keep what it fetches in `home`."""
    patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr("huggingface_hub.constants.HF_HOME", str(home))
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """The same for a process that is started."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.hub.asked.append((self.command, path, first))
        parts = path.split("/")
        named = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2])
        repository = self.hub.repositories.get(named)
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        if repository.gated:
            return self._refuse(403, "GatedRepo")
        if parts[:2] == ["api", "models"]:
            return self._info(named, repository, parts[5] if len(parts) > 5 else "main")
        return self._send(repository, parts[3], "/".join(parts[4:]), first, body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _info(self, named: str, repository: Repository, revision: str) -> None:
        found = repository.at(revision)
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        commit, folder = found
        files = [self._facts(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        told = json.dumps({"id": named, "sha": commit, "siblings": files, "cardData": repository.card, "tags": []})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told.encode())
        return None

    def _facts(self, path: Path, folder: Path) -> dict[str, Any]:
        data, name = path.read_bytes(), path.relative_to(folder).as_posix()
        facts: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
        if path.suffix in LARGE:
            stated = self.hub.hashes.get(name, hashlib.sha256(data).hexdigest())
            facts["lfs"] = {"sha256": stated, "size": len(data), "pointerSize": 130}
        return facts

    def _send(self, repository: Repository, revision: str, name: str, first: int, body: bool) -> None:
        found = repository.at(revision)
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        commit, folder = found
        if not (folder / name).is_file():
            return self._refuse(404, "EntryNotFound")
        facts, data = self._facts(folder / name, folder), (folder / name).read_bytes()
        first = first if self.hub.ranges else 0
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{facts["lfs"]["sha256"] if "lfs" in facts else facts["blobId"]}"')
        self.send_header("Accept-Ranges", "bytes")
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if body:
            left = self.hub.breaks.get(name)
            self.wfile.write(data[first : first + left.pop(0)] if left else data[first:])
            self.close_connection = bool(left is not None)
        return None
