"""Repositories of the hub, from a server of the test's own: what is fetched, what goes on, and what is refused."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hub_server
import pytest
from hub_server import Hub, Repository

from milonga.core import hub as milonga_hub
from milonga.core.errors import CheckpointError, RecipeError
from milonga.core.hub import as_repository, fetch, fetch_file, offline

NAME = "someone/sounds"
DATA = os.urandom(3_000_000)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository: two large files, a config, and a note that nobody needs."""
    folder = tmp_path / "there"
    (folder / "part").mkdir(parents=True)
    (folder / "model.bin").write_bytes(DATA)
    (folder / "other.bin").write_bytes(b"other")
    (folder / "part" / "config.json").write_text('{"a": 1}')
    (folder / "README.md").write_text("note")
    with hub_server.serving() as made:
        made.repositories[NAME] = Repository(folder, {"license": "cc-by-nc-sa-4.0"})
        hub_server.use(monkeypatch, made, tmp_path / "home")
        monkeypatch.setattr(milonga_hub, "PAUSE", 0.01)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield made


def choose(names: Sequence[str]) -> list[str]:
    return [one for one in names if one in ("model.bin", "part/config.json")]


def quiet(_: str) -> None:
    pass


def test_only_what_is_needed_is_fetched_and_only_once(hub: Hub) -> None:
    folder = fetch(NAME, None, choose, quiet)
    assert (folder / "model.bin").read_bytes() == DATA
    assert (folder / "part" / "config.json").read_text() == '{"a": 1}'
    assert not (folder / "other.bin").exists()
    sent = hub.got()
    assert sorted(Path(path).name for path in sent) == ["config.json", "model.bin"]
    assert fetch(NAME, None, choose, quiet) == folder
    assert hub.got() == sent


def test_other_libraries_find_the_files_in_the_hubs_own_cache(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download

    folder = fetch(NAME, None, choose, quiet)
    sent = hub.got()
    assert Path(hf_hub_download(NAME, "model.bin")) == folder / "model.bin"
    assert hub.got() == sent


def test_a_revision_is_another_folder(hub: Hub, tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    (older / "model.bin").write_bytes(b"older")
    hub.repositories[NAME].revisions["v1"] = older
    assert (fetch(NAME, "v1", choose, quiet) / "model.bin").read_bytes() == b"older"
    assert (fetch(NAME, None, choose, quiet) / "model.bin").read_bytes() == DATA
    commit, _ = hub.repositories[NAME].at("v1") or ("", None)
    assert fetch(NAME, commit, choose, quiet).name == commit
    with pytest.raises(CheckpointError, match=r"someone/sounds on http\S+ has no revision 'v9'"):
        fetch(NAME, "v9", choose, quiet)


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub) -> None:
    hub.breaks["model.bin"] = [1_000_000, 500_000]
    folder = fetch(NAME, None, choose, quiet)
    assert (folder / "model.bin").read_bytes() == DATA
    starts = [first for _, path, first in hub.asked if path.endswith("model.bin") and first]
    assert len(starts) == 2
    assert starts[0] <= 1_000_000 < starts[1] <= 1_500_000


def test_a_kept_connection_that_the_hub_has_closed_is_no_failure(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    from huggingface_hub import HfApi

    real, closed = HfApi.hf_hub_download, [httpx2.RemoteProtocolError("Server disconnected"), httpx2.ReadError("reset")]

    def asked(*args: Any, **more: Any) -> Any:
        if closed:
            raise closed.pop()
        return real(*args, **more)

    monkeypatch.setattr(HfApi, "hf_hub_download", asked)
    folder = fetch(NAME, None, choose, quiet)
    assert (folder / "model.bin").read_bytes() == DATA
    assert not closed


def test_a_connection_that_never_comes_back_costs_nothing_that_is_there(hub: Hub) -> None:
    hub.breaks["model.bin"] = [1_200_000] + [0] * 20
    with pytest.raises(CheckpointError, match=r"model\.bin stopped at \d+ of 3000000 bytes .* re-run the same command"):
        fetch(NAME, None, choose, quiet)
    hub.breaks.clear()
    hub.asked.clear()
    assert (fetch(NAME, None, choose, quiet) / "model.bin").read_bytes() == DATA
    (first,) = [first for method, path, first in hub.asked if method == "GET" and path.endswith("model.bin")]
    assert first > 1_000_000


KILLED = """
import sys, time
from milonga.core import hub
class Slow:
    def __init__(self, file): self.file = file
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, block):
        self.file.write(block); self.file.flush(); print("wrote", flush=True); time.sleep(60)
stream = hub._stream
hub._stream = lambda wanted, file, digest, bar: stream(wanted, Slow(file), digest, bar)
hub.fetch(sys.argv[1], None, lambda names: ["model.bin"], lambda line: None)
"""


@pytest.mark.slow
def test_a_download_that_was_killed_goes_on_in_the_next_process(hub: Hub, tmp_path: Path) -> None:
    environment = os.environ | hub_server.environment(hub, tmp_path / "home")
    process = subprocess.Popen([sys.executable, "-c", KILLED, NAME], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "wrote\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    hub.asked.clear()
    assert (fetch(NAME, None, choose, quiet) / "model.bin").read_bytes() == DATA
    (first,) = [first for method, path, first in hub.asked if method == "GET" and path.endswith("model.bin")]
    assert first >= milonga_hub.BLOCK


def test_what_has_another_hash_never_enters_the_cache(hub: Hub, tmp_path: Path) -> None:
    hub.hashes["model.bin"] = "0" * 64
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"came as model\.bin has not the SHA-256 that is stated"):
            fetch(NAME, None, choose, quiet)
        assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.stat().st_size > 1000]
    hub.hashes.clear()
    assert (fetch(NAME, None, choose, quiet) / "model.bin").read_bytes() == DATA


def test_a_part_that_was_spoilt_is_thrown_away(hub: Hub, tmp_path: Path) -> None:
    hub.breaks["model.bin"] = [1_200_000] + [0] * 20
    with pytest.raises(CheckpointError, match="stopped"):
        fetch(NAME, None, choose, quiet)
    hub.breaks.clear()
    (part,) = (tmp_path / "home").rglob("*.incomplete")
    part.write_bytes(b"?" + part.read_bytes()[1:])
    with pytest.raises(CheckpointError, match="SHA-256"):
        fetch(NAME, None, choose, quiet)
    assert (fetch(NAME, None, choose, quiet) / "model.bin").read_bytes() == DATA


def test_a_server_that_only_sends_whole_files_is_asked_for_a_whole_one(hub: Hub) -> None:
    hub.breaks["model.bin"], hub.ranges = [1_200_000], False
    with pytest.raises(CheckpointError, match="cannot resume a download: re-run to begin anew"):
        fetch(NAME, None, choose, quiet)
    assert (fetch(NAME, None, choose, quiet) / "model.bin").read_bytes() == DATA


def test_one_file_of_a_repository(hub: Hub, tmp_path: Path) -> None:
    source = f"{NAME}:model.bin"
    with offline(), pytest.raises(CheckpointError, match="not on this machine: --fetch"):
        fetch_file(source, tmp_path)
    path = fetch_file(source, tmp_path)
    assert path.read_bytes() == DATA
    with offline():
        assert fetch_file(source, tmp_path) == path
        with pytest.raises(CheckpointError, match=r"other\.bin is not on this machine"):
            fetch_file(f"{NAME}:other.bin", tmp_path)
    with pytest.raises(CheckpointError, match=r"has no file nothing\.bin"):
        fetch_file(f"{NAME}:nothing.bin", tmp_path)
    assert fetch_file(str(path), tmp_path) == path
    for name in ("model.bin", "/a/b:model.bin"):
        with pytest.raises(RecipeError, match="neither a file nor OWNER/NAME:FILE"):
            fetch_file(name, tmp_path)


def test_a_published_file_is_resumed_and_checked(hub: Hub, tmp_path: Path) -> None:
    address, digest = f"{hub.url}/{NAME}/resolve/main/model.bin", hashlib.sha256(DATA).hexdigest()
    hub.breaks["model.bin"] = [1_000_000]
    with offline(), pytest.raises(CheckpointError, match="not on this machine"):
        fetch_file(address, tmp_path / "weights", digest)
    path = fetch_file(address, tmp_path / "weights", digest)
    assert path == tmp_path / "weights" / "model.bin"
    assert path.read_bytes() == DATA
    sent = hub.got()
    assert len(sent) == 2
    assert fetch_file(address, tmp_path / "weights", digest) == path
    assert hub.got() == sent
    with pytest.raises(CheckpointError, match="SHA-256"):
        fetch_file(address, tmp_path / "others", "0" * 64)
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        fetch_file(f"{hub.url}/{NAME}/resolve/main/nothing.bin", tmp_path / "others", digest)


def test_two_who_want_one_published_file_at_once_both_get_it_whole(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, digest = f"{hub.url}/{NAME}/resolve/main/model.bin", hashlib.sha256(DATA).hexdigest()
    real, meeting = milonga_hub._stream, threading.Barrier(2)

    def met(*words: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            meeting.wait(timeout=0.3)
        return real(*words)

    monkeypatch.setattr(milonga_hub, "_stream", met)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: fetch_file(address, tmp_path / "weights", digest), range(2)))
    assert paths == [tmp_path / "weights" / "model.bin"] * 2
    assert paths[0].read_bytes() == DATA
    assert len(hub.got()) == 1


@pytest.mark.parametrize("revision", [None, "main"])
def test_without_a_connection_what_was_fetched_serves(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    folder = fetch(NAME, revision, choose, quiet)
    hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch(NAME, revision, choose, quiet) == folder
    assert not hub.asked
    with pytest.raises(CheckpointError, match=r"someone/else on \S+ cannot be reached, and was not fetched before"):
        fetch("someone/else", None, choose, quiet)


def test_a_hub_that_is_gone_is_like_no_connection(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(NAME, None, choose, quiet)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert fetch(NAME, None, choose, quiet) == folder


def test_the_licence_is_told_once(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    fetch(NAME, None, choose, told.append)
    fetch(NAME, None, choose, told.append)
    assert told == [f"the weights of {NAME} are under cc-by-nc-sa-4.0 ({hub.url}/{NAME})"]
    hub.repositories["a/b"] = Repository(hub.repositories[NAME].folder)
    fetch("a/b", None, choose)
    assert "a/b come without a stated licence" in capsys.readouterr().err


def test_what_is_not_there_is_told_in_one_line(hub: Hub) -> None:
    hub.repositories["a/closed"] = Repository(hub.repositories[NAME].folder, gated=True)
    cases: list[tuple[str, str]] = [
        ("a/closed", "asks for its terms to be accepted"),
        ("a/missing", "does not exist, or is private"),
        ("a/b--c", "HFValidationError"),
    ]
    for name, told in cases:
        with pytest.raises(CheckpointError, match=told) as error:
            fetch(name, None, choose, quiet)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a/b", ("a/b", None)),
        ("declare-lab/tango2@refs/pr/4", ("declare-lab/tango2", "refs/pr/4")),
        ("a/b@0f1e", ("a/b", "0f1e")),
        ("nano", None),
        ("a/b/c", None),
        ("/a/b", None),
        ("./b", None),
        ("", None),
    ],
)
def test_names_of_repositories(name: str, found: Any) -> None:
    assert as_repository(name) == found
