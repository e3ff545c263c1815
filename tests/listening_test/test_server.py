"""The server as a process: eight raters at once, killed with -9 on the way; and what nobody may do."""

import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from serving import ask
from small_test import HOSTILE, SYSTEMS, Rater, served, small_test

from milonga.listening_test.material import read_test
from milonga.listening_test.ratings import Ratings
from milonga.listening_test.records import BROKEN
from milonga.listening_test.screening import tone_answer


@pytest.mark.slow
def test_eight_raters_at_once_and_a_server_killed_twice_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    test = small_test(tmp_path / "test", seconds=0.1)
    ratings = Ratings(tmp_path / "test" / "ratings.sqlite")
    tokens = ratings.invite(8)
    with served(tmp_path / "test") as (process, link):
        base = link.split("/admin")[0]
        port = urlsplit(base).port or 0
        raters = [Rater(base, token, ratings.number_of(token) or 0, test) for token in tokens]
        threads = [threading.Thread(target=rater.session) for rater in raters]
        for thread in threads:
            thread.start()
        for fewest in (24, 120):  # killed while all are at it, twice, each time with requests on the way
            while sum(len(rater.given) for rater in raters) < fewest:
                threads[0].join(0.01)
            process.kill()
            process.wait()
            acknowledged = {(rater.number, place): given for rater in raters for place, given in rater.given.items()}
            kept = {(number, place): row for number in range(1, 9) for place, row in ratings.judged(number).items()}
            for key, given in acknowledged.items():
                assert {name: kept[key][name] for name in given} == given
            context = served(tmp_path / "test", port)
            process, _ = context.__enter__()
        for thread in threads:
            thread.join(240)
        assert not any(thread.is_alive() for thread in threads)
        status, _, progress = ask(base, "GET", urlsplit(link).path + "/state")
        process.kill()
        process.wait()
    assert status == 200
    assert all(one["judged"] == one["trials"] for one in progress["raters"])
    everything = ratings.ratings(test)
    assert len(everything) == sum(len(ratings.trials(number)) for number in range(1, 9))
    assert len({(one.rater, one.place) for one in everything}) == len(everything)
    assert {(one.rater, one.place): _given(one) for one in everything} == {
        (f"r{rater.number}", place): given for rater in raters for place, given in rater.given.items()
    }
    for rater in raters:  # nobody was told a system's name, or that something was a check
        for told in rater.seen:
            assert not any(word in told for word in ("zebra", BROKEN, "check", "system", "token"))
            assert "reference" not in told
    assert sqlite3.connect(tmp_path / "test" / "ratings.sqlite").execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _given(one) -> dict:
    return {"ovl": one.ovl, "rel": one.rel} if one.kind == "rate" else {"better": one.better}


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_server_ends_at_once_and_says_that_it_goes_on(tmp_path: Path, with_signal: int) -> None:
    small_test(tmp_path / "test")
    with served(tmp_path / "test") as (process, link):
        assert ask(link.split("/admin")[0], "GET", "/page/rater.js")[0] == 200
        process.send_signal(with_signal)
        assert process.wait(20) == 130


class Place:
    """A served test with two raters."""

    def __init__(self, folder: Path, link: str) -> None:
        self.folder, self.link, self.base = folder, link, link.split("/admin")[0]
        self.test = read_test(folder)
        self.ratings = Ratings(folder / "ratings.sqlite")
        self.one, self.other = self.ratings.invite(2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("server") / "test"
    small_test(folder)
    (folder / "secret.flac").write_bytes(b"not yours")
    with served(folder) as (_, link):
        yield Place(folder, link)


@pytest.mark.parametrize(
    "token",
    ["", "x", "0", "1", "r1", "null", "%00", "..", "%2e%2e", "A" * 22, "A" * 5000, "' OR 1=1 --", "%27%20OR%201"],
)
def test_a_token_that_nobody_was_given_opens_nothing(place: Place, token: str) -> None:
    path = token.replace(" ", "%20")
    for tail in ("", "/state", "/trials/0", "/trials/0/a", "/tones/0", "/examples/good"):
        assert ask(place.base, "GET", f"/r/{path}{tail}")[0] == 404
    for tail in ("", "/state"):
        assert ask(place.base, "GET", f"/admin/{path}{tail}")[0] == 404
        assert ask(place.base, "GET", f"/admin/{place.one}{tail}")[0] == 404
    assert ask(place.base, "PUT", f"/r/{path}/trials/0", {"better": "a", "seconds": 1})[0] in (404, 405)
    assert ask(place.base, "POST", f"/admin/{place.one}/raters", {"count": 1})[0] == 404


def test_tokens_are_random_and_long(place: Place) -> None:
    tokens = {one.token for one in place.ratings.raters()} | {place.ratings.admin_token()}
    assert all(len(token) == 22 for token in tokens)  # 128 bits
    assert (place.folder / "ratings.sqlite").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "path",
    [
        "/page/../server.py", "/page/%2e%2e/server.py", "/page/..%2fserver.py", "/page//etc/passwd", "/page/rater.html",
        "/r/TOKEN/trials/0/../../../secret.flac", "/r/TOKEN/trials/0/..%2f..%2fsecret.flac", "/r/TOKEN/trials/0/c",
        "/r/TOKEN/trials/0/b", "/r/TOKEN/trials/-1/a", "/r/TOKEN/trials/1/a", "/r/TOKEN/trials/99/a",
        "/r/TOKEN/examples/..%2f..%2ftest.json", "/r/TOKEN/examples/reference", "/r/TOKEN/tones/6", "/r/TOKEN/tones/-1",
        "/playback/", "/test.json", "/ratings.sqlite", "/docs", "/openapi.json", "/",
    ],
)  # fmt: skip
def test_no_request_names_a_file_or_a_trial_that_is_not_reached(place: Place, path: str) -> None:
    ask(place.base, "GET", f"/r/{place.one}/state")
    status, _, body = ask(place.base, "GET", path.replace("TOKEN", place.one))
    assert status == 404
    assert b"not yours" not in (body if isinstance(body, bytes) else b"")


def test_audio_says_nothing_but_sound_and_can_be_sought_in(place: Place) -> None:
    ask(place.base, "GET", f"/r/{place.one}/state")
    status, headers, body = ask(place.base, "GET", f"/r/{place.one}/trials/0/a")
    assert status == 200
    assert body[:4] == b"fLaC"
    assert headers["Content-Type"] == "audio/flac"
    assert headers["Last-Modified"].endswith("1970 00:00:00 GMT")
    assert "Content-Disposition" not in headers
    assert b"zebra" not in body
    part = ask(place.base, "GET", f"/r/{place.one}/trials/0/a", headers={"Range": "bytes=0-3"})
    assert (part[0], part[2]) == (206, b"fLaC")


def test_answers_are_checked_and_are_of_the_rater_whose_link_it_is(place: Place) -> None:
    path = f"/r/{place.other}"
    state = ask(place.base, "GET", f"{path}/state")[2]
    good = {"ovl": 3, "rel": 4, "seconds": 2.0}
    assert ask(place.base, "PUT", f"{path}/trials/0", good)[0] == 409  # the headphone check comes first
    assert ask(place.base, "PUT", f"{path}/tones/1", {"answer": 1})[0] == 409
    assert ask(place.base, "PUT", f"{path}/tones/0", {"answer": 4})[0] == 409
    assert ask(place.base, "PUT", f"{path}/tones/0", {"answer": 1})[0] == 409  # it was not listened to
    number = place.ratings.number_of(place.other) or 0
    for item in range(6):
        ask(place.base, "GET", f"{path}/tones/{item}")
        answer = {"answer": tone_answer(place.test.seed, number, item)}
        assert ask(place.base, "PUT", f"{path}/tones/{item}", answer)[0] == 200
    first = ask(place.base, "PUT", f"{path}/tones/0", {"answer": 2})[2]
    assert first["tones"] == {"answered": 6, "total": 6}
    assert ask(place.base, "PUT", f"{path}/trials/0", good)[0] == 409  # neither was this
    ask(place.base, "GET", f"{path}/trials/0/a")
    assert ask(place.base, "PUT", f"{path}/trials/0", good)[0] == 409  # nor is it over yet
    assert place.ratings.early() == {f"r{number}": 3}
    time.sleep(0.3)
    for bad in (
        {"ovl": 6}, {"ovl": 0}, {"ovl": "3"}, {"ovl": 3.5}, {"ovl": True},
        {"seconds": -1}, {"seconds": "inf"}, {"seconds": "2"}, {"seconds": True}, {"rater": 1},
    ):  # fmt: skip
        assert ask(place.base, "PUT", f"{path}/trials/0", good | bad)[0] == 422
    for wrong in ({"ovl": 3}, {"better": "a"}, good | {"better": "a"}):
        assert ask(place.base, "PUT", f"{path}/trials/0", {"seconds": 1} | wrong)[0] == 409
    assert ask(place.base, "PUT", f"{path}/trials/1", good)[0] == 404
    assert ask(place.base, "PUT", f"{path}/trials/0", good)[2]["answered"] == state["answered"] + 1
    assert ask(place.base, "PUT", f"{path}/trials/0", good | {"ovl": 1})[2]["answered"] == 1  # changed, not added
    given = {"ovl": 1, "rel": 4, "better": None, "scores": None}
    assert place.ratings.judged(number)[0] == given
    assert ask(place.base, "GET", f"{path}/trials/0")[2]["given"] == given
    history = [(own.ovl, own.revision) for own in place.ratings.ratings(place.test, history=True)]
    assert history == [(3, 1), (1, 2)]
    assert [own.ovl for own in place.ratings.ratings(place.test)] == [1]
    # The other rater's link shows and changes nothing of it.
    assert ask(place.base, "GET", f"/r/{place.one}/trials/0")[2]["given"] is None
    assert place.ratings.judged(place.ratings.number_of(place.one) or 0) == {}


def test_what_is_too_large_is_not_read(place: Place) -> None:
    path = f"/r/{place.one}/trials/0"
    assert ask(place.base, "PUT", path, b"x" * 5000)[0] == 413
    assert ask(place.base, "PUT", path, b"{", {"Transfer-Encoding": "chunked"})[0] in (400, 413)
    assert ask(place.base, "PUT", path, b"{")[0] == 422


def test_every_answer_forbids_what_pages_do_not_need(place: Place) -> None:
    for path in (
        f"/r/{place.one}",
        f"/r/{place.one}/state",
        "/page/rater.js",
        "/r/nobody",
        place.link[len(place.base) :],
    ):
        headers = ask(place.base, "GET", path)[1]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Server" not in headers


def test_the_admin_sees_progress_and_invites(place: Place) -> None:
    path = place.link[len(place.base) :]
    before = len(place.ratings.raters())
    assert ask(place.base, "POST", f"{path}/raters", {"count": 0})[0] == 409
    assert ask(place.base, "POST", f"{path}/raters", {"count": 501})[0] == 409
    status, _, told = ask(place.base, "POST", f"{path}/raters", {"count": 3})
    assert status == 200
    assert len(told["raters"]) == before + 3
    assert told["systems"] == list(SYSTEMS)
    assert len(told["covered"]) == told["prompts"] == 6


def test_a_prompt_travels_as_text(place: Place) -> None:
    body = ask(place.base, "GET", f"/r/{place.one}")[2]
    assert HOSTILE.encode() not in body
    assert b"<script>document" not in body
