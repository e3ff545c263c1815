"""Crowd platforms: entry link, page.toml, consent and questions, early ends, revoked links, closed tests, archives."""

import shutil
import socket
import time
from pathlib import Path

import pytest
from serving import ask
from small_test import served, small_test

from milonga.core.errors import RecipeError, StoreError
from milonga.core.web import NotNow, Unknown
from milonga.listening_test.database import Database
from milonga.listening_test.page import TEXTS, Page, read_page, texts_toml
from milonga.listening_test.ratings import Ratings
from milonga.listening_test.screening import tone_answer
from milonga.listening_test.sessions import Judgement, Sessions
from milonga.studio.export import export

PAGE = """
language = "de"
instructions = "Kurze Klänge.\\n\\nEs ist leicht."
consent = "Ich bin 18 oder älter."
ask = ["device"]
comment = true
completion_url = "https://crowd.example.org/done?cc=C1&pid={PROLIFIC_PID}"
completion_code = "C1"
failed_url = "https://crowd.example.org/screened"
[[questions]]
name = "training"
text = "Do you work with sound?"
choices = ["Yes", "No"]
[texts]
next = "Weiter"
"""
DEVICE = TEXTS["ask_device_choices"].split("|")[0]
ANSWERS = {"consent": "Ich bin 18 oder älter.", "device": DEVICE, "training": "No"}


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("entry") / "test"
    small_test(folder, seconds=0.05)
    return folder


@pytest.fixture
def folder(made_once: Path, tmp_path: Path) -> Path:
    """A fresh copy of a test, with a page.toml."""
    shutil.copytree(made_once, tmp_path / "test")
    (tmp_path / "test" / "page.toml").write_text(PAGE, encoding="utf-8")
    return tmp_path / "test"


def check_tones(sessions: Sessions, number: int, right: int = 6) -> dict:
    """The headphone check with so many right answers, and the state after it."""
    state = {}
    for item in range(6):
        sessions.tones(number, item)
        answer = tone_answer(sessions.test.seed, number, item)
        state = sessions.answer_tone(number, item, answer if item < right else answer % 3 + 1)
    return state


@pytest.mark.slow
def test_an_arrival_has_one_session_and_goes_through_consent_to_the_code(folder: Path) -> None:
    sessions = Sessions(folder)
    entry = sessions.ratings.entry_token()
    token = sessions.join(entry, {"PROLIFIC_PID": "p 1", "STUDY_ID": "s"})
    assert sessions.join(entry, {"PROLIFIC_PID": "p 1", "STUDY_ID": "other"}) == token
    assert sessions.join(entry, {"PROLIFIC_PID": "p2"}) != token
    assert sessions.join(entry, {}) != sessions.join(entry, {})
    number = sessions.rater(token)
    state = sessions.state(number)
    assert state["stage"] == "welcome"
    assert state["welcome"]["platform"] is True
    assert [question["name"] for question in state["welcome"]["questions"]] == ["device", "training"]
    sessions.tones(number, 0)
    with pytest.raises(NotNow, match="device, training, consent"):
        sessions.answer_tone(number, 0, 1)
    for wrong in (ANSWERS | {"device": "An ear trumpet"}, ANSWERS | {"name": "x"}, {"training": "No"}):
        with pytest.raises(NotNow):
            sessions.answer_survey(number, wrong)
    sessions.answer_survey(number, ANSWERS)
    state = check_tones(sessions, number)
    for place in range(state["total"]):
        for side in state["next"]["sides"]:
            sessions.clip(number, place, side)
        time.sleep(0.05 * len(state["next"]["sides"]))
        answer = {"ovl": 3, "rel": 3} if state["next"]["kind"] == "rate" else {"better": "a"}
        state = sessions.judge(number, place, Judgement(**answer, seconds=1.0))
    assert state["stage"] == "done"
    assert state["end"] == {"code": "C1", "url": "https://crowd.example.org/done?cc=C1&pid=p%201", "comment": True}
    sessions.answer_survey(number, {"comment": "loud!"})
    row = sessions.rater_rows()[0]
    assert (row.participant, row.comment, row.judged) == ("PROLIFIC_PID=p 1", "loud!", row.trials)
    assert '"device"' in row.answers
    assert all(rating.elapsed >= 0.045 for rating in sessions.ratings.ratings(sessions.test))


def test_failed_headphones_end_the_session_early(folder: Path) -> None:
    sessions = Sessions(folder)
    number = sessions.rater(sessions.join(sessions.ratings.entry_token(), {"PROLIFIC_PID": "deaf"}))
    sessions.state(number)
    sessions.answer_survey(number, ANSWERS)
    state = check_tones(sessions, number, right=4)
    assert (state["stage"], state["next"]) == ("failed", None)
    assert state["end"]["url"] == "https://crowd.example.org/screened"
    sessions.clip(number, 0, "a")
    time.sleep(0.06)
    with pytest.raises(NotNow, match="not passed"):
        sessions.judge(number, 0, Judgement(ovl=3, rel=3, seconds=1.0))


def test_who_may_join(folder: Path) -> None:
    page = PAGE.replace('language = "de"', 'participant = "PROLIFIC_PID"\nmax_raters = 2')
    (folder / "page.toml").write_text(page, encoding="utf-8")
    sessions = Sessions(folder)
    entry = sessions.ratings.entry_token()
    with pytest.raises(NotNow, match="PROLIFIC_PID"):
        sessions.join(entry, {"id": "1"})
    with pytest.raises(Unknown):
        sessions.join("A" * 22, {"PROLIFIC_PID": "1"})
    first = sessions.join(entry, {"PROLIFIC_PID": "1"})
    sessions.join(entry, {"PROLIFIC_PID": "2"})
    with pytest.raises(NotNow, match="enough"):
        sessions.join(entry, {"PROLIFIC_PID": "3"})
    assert sessions.join(entry, {"PROLIFIC_PID": "1"}) == first


def test_a_revoked_link_is_dead_and_a_closed_test_takes_nothing(folder: Path) -> None:
    sessions = Sessions(folder)
    entry = sessions.ratings.entry_token()
    one, two = (sessions.join(entry, {"id": str(number)}) for number in range(2))
    sessions.ratings.revoke(sessions.rater(one))
    with pytest.raises(Unknown):
        sessions.rater(one)
    number = sessions.rater(two)
    sessions.state(number)
    sessions.ratings.store_setting("closed", "yes")
    assert sessions.state(number)["stage"] == "closed"
    for refused in (
        lambda: sessions.answer_survey(number, ANSWERS), lambda: sessions.join(entry, {"id": "9"}),
        lambda: sessions.judge(number, 0, Judgement(ovl=3, rel=3, seconds=1.0)),
    ):  # fmt: skip
        with pytest.raises(NotNow):
            refused()
    sessions.ratings.store_setting("closed", "")
    assert sessions.state(number)["stage"] == "welcome"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("consnt = 'x'", "do you mean consent"), ("ask = ['shoes']", "ask"), ("[", "page.toml"),
        ("completion_url = 'done'", "web address"), ("[texts]\nnxt = 'x'", "do you mean 'next'"),
        ("[texts]\ntones_step = 'x'", "lacks {item}, {total}"), ("[[questions]]\nname = '1'\ntext = ''", "name"),
    ],
)  # fmt: skip
def test_a_wrong_page_is_told_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "page.toml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_page(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def test_the_printed_texts_are_a_page_and_the_page_uses_each_of_them(tmp_path: Path) -> None:
    (tmp_path / "page.toml").write_text(texts_toml(), encoding="utf-8")
    assert read_page(tmp_path) == Page(texts=TEXTS)
    script = (Path(__file__).parents[2] / "src/milonga/listening_test/static/rater.js").read_text(encoding="utf-8")
    kinds = ("rate", "compare", "mushra")
    built = {f"{kind}_about" for kind in kinds} | {
        f"{scale}_{part}" for scale in ("ovl", "rel") for part in ("about", "marks")
    }
    built |= {f"{end}_about" for end in ("thanks", "failed", "closed")} | {"loading"}
    unused = [name for name in TEXTS if f'"{name}"' not in script and name not in built and not name.startswith("ask_")]
    assert [name for name in unused if f" {name}:" not in script and f"{{ {name}:" not in script] == []


def test_an_archive_that_cannot_be_written_is_read_with_what_is_still_in_the_log(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    sessions = Sessions(folder)
    number = sessions.rater(sessions.join(sessions.ratings.entry_token(), {"id": "1"}))
    sessions.state(number)
    sessions.ratings.judge(number, 0, {"ovl": 4, "rel": 2}, 1.0)
    assert (folder / "ratings.sqlite-wal").stat().st_size > 0
    before = {file: file.stat().st_mtime_ns for file in folder.glob("ratings.sqlite*")}
    monkeypatch.setattr(
        "milonga.listening_test.database.os.access", lambda path, mode: False
    )  # root may write anywhere
    archive = Sessions(folder, archive=True)
    assert [(own.ovl, own.rel) for own in archive.ratings.ratings(archive.test)] == [(4, 2)]
    assert export(folder, tmp_path / "raters.csv", "raters").exists()
    archive.ratings.invite(1)  # into the copy
    assert len(sessions.ratings.raters()) == 1
    assert {file: file.stat().st_mtime_ns for file in folder.glob("ratings.sqlite*")} == before


def test_a_database_of_an_earlier_version_is_taken_over(folder: Path) -> None:
    import sqlite3

    sessions = Sessions(folder)
    token = sessions.ratings.invite(1)[0]
    sessions.state(1)
    with sqlite3.connect(folder / "ratings.sqlite") as old:
        old.execute("CREATE TABLE ratings (rater, place, ovl, rel, better, seconds, given)")
        old.execute("INSERT INTO ratings VALUES (1, 0, 5, 1, NULL, 2.5, '2026-01-01T00:00:00+00:00')")
    again = Ratings(folder / "ratings.sqlite")
    assert again.judged(again.number_of(token) or 0)[0] == {"ovl": 5, "rel": 1, "better": None, "scores": None}
    assert Ratings(folder / "ratings.sqlite").judged(1) == again.judged(1)


def test_a_full_disk_is_named_as_the_cause(folder: Path, monkeypatch) -> None:
    database = Database(folder / "small.sqlite")
    with database._work(writes=True) as work:
        work.execute("CREATE TABLE rows (text TEXT)")
        pages = work.execute("PRAGMA page_count").fetchone()[0]
    database._connection().execute(f"PRAGMA max_page_count = {pages + 2}")

    def fill() -> None:
        with database._work(writes=True) as work:
            for _ in range(9):
                work.execute("INSERT INTO rows VALUES (?)", ("x" * 4000,))

    with pytest.raises(StoreError, match="the disk is full"):
        fill()
    assert database._rows("SELECT COUNT(*) FROM rows") == [(0,)]


def test_only_the_owner_can_open_a_test(folder: Path, made_once: Path) -> None:
    assert made_once.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_tones_come_in_parts_and_a_slow_request_is_cut_off(folder: Path, monkeypatch) -> None:
    with served(folder) as (_, link):
        base = link.split("/admin")[0]
        entry = ask(base, "GET", link[len(base) :] + "/state")[2]["entry"]
        token = ask(base, "POST", f"/join/{entry}", {"parameters": {"id": "1"}})[2]["token"]
        assert ask(base, "GET", f"/join/{entry}?PROLIFIC_PID=x")[0] == 200
        assert ask(base, "GET", f"/join/{'A' * 22}")[0] == 404
        whole = ask(base, "GET", f"/r/{token}/tones/0")
        assert whole[1]["Accept-Ranges"] == "bytes"
        for wanted, status, part in (
            ("bytes=0-1", 206, whole[2][:2]), ("bytes=5-", 206, whole[2][5:]), ("bytes=-3", 206, whole[2][-3:]),
            ("bytes=99999999-", 416, b""), ("lines=1-2", 200, whole[2]),
        ):  # fmt: skip
            answer = ask(base, "GET", f"/r/{token}/tones/0", headers={"Range": wanted})
            assert (answer[0], answer[2]) == (status, part)
        assert ask(base, "GET", f"/r/{token}/texts")[2]["texts"]["next"] == "Weiter"


def test_a_request_that_is_never_complete_is_cut_off(monkeypatch) -> None:
    import threading

    import uvicorn

    from milonga.core import web

    monkeypatch.setattr(web, "REQUEST_SECONDS", 0.3)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(web.application({}), http=web.deadline_protocol(), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    with socket.create_connection(listening.getsockname()) as client:
        client.settimeout(20)
        client.sendall(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while b"Not Found" not in answer.partition(b"\r\n\r\n")[2]:
            answer += client.recv(4096)
        client.sendall(b"GET /slow HTTP/1.1\r\n")
        assert client.recv(4096) == b""
    server.should_exit = True
    thread.join(20)
