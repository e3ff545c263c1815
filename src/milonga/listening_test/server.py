"""The test as a web server: one page for raters, one for the admin, each behind a token in its link.

Nothing is taken from the network or from elsewhere on the disk: pages come from this package by name, audio by a
rater's own trial, so a request cannot name a file at all. Text of prompts travels as JSON and is shown as text.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from milonga.core import web
from milonga.core.records import Record
from milonga.core.web import NotNow, Unknown
from milonga.listening_test.sessions import Judgement, Sessions

MOST_LINKS = 500
FOLDER = "milonga.listening_test/static"
PAGES = {f"/page/{name}": (FOLDER, name) for name in (*web.SHARED, "rater.js", "admin.js")}


class Answer(Record):
    """Which of three tones was the quietest."""

    answer: int


class Invitation(Record):
    """How many links to make."""

    count: int


def application(folder: Path) -> Any:
    """The ASGI application of a test folder. Raises StoreError where there is no test."""
    sessions = Sessions(folder)
    # What the disk says is the admin's business: a rater is told to wait.
    app = web.application(PAGES, hidden="the test is not available just now")
    _rater_doors(app, sessions)
    _admin_doors(app, sessions)
    return app


def serve(folder: Path, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves a test until it is interrupted; `ready` is given the admin page's link once the port is ours.

    Raises ServiceError where the port cannot be had.
    """
    token = Sessions(folder).ratings.admin_token()
    web.serve(application(folder), host, port, lambda base: ready(f"{base}/admin/{token}"))


def _rater_doors(app: Any, sessions: Sessions) -> None:
    from fastapi import Depends
    from fastapi.responses import FileResponse, HTMLResponse, Response

    known = Depends(sessions.rater)

    @app.get("/r/{token}")
    def page(token: str) -> HTMLResponse:
        invited = sessions.ratings.number_of(token) is not None
        return HTMLResponse(web.page(FOLDER, "rater.html" if invited else "unknown.html"), 200 if invited else 404)

    @app.get("/r/{token}/state")
    def state(rater: int = known) -> dict[str, Any]:
        return sessions.state(rater)

    @app.get("/r/{token}/tones/{item}")
    def tones(item: int, rater: int = known) -> Response:
        return Response(sessions.tones(rater, item), media_type="audio/flac")

    @app.put("/r/{token}/tones/{item}")
    def hear(item: int, given: Answer, rater: int = known) -> dict[str, Any]:
        if given.answer not in (1, 2, 3):
            raise NotNow("the answer is 1, 2 or 3")
        return sessions.hear(rater, item, given.answer)

    @app.get("/r/{token}/examples/{which}")
    def example(which: str, rater: int = known) -> FileResponse:
        return FileResponse(sessions.example(which), media_type="audio/flac")

    @app.get("/r/{token}/trials/{place}")
    def trial(place: int, rater: int = known) -> dict[str, Any]:
        return sessions.trial(rater, place)

    @app.put("/r/{token}/trials/{place}")
    def judge(place: int, given: Judgement, rater: int = known) -> dict[str, Any]:
        return sessions.judge(rater, place, given)

    @app.get("/r/{token}/trials/{place}/{side}")
    def clip(place: int, side: str, rater: int = known) -> FileResponse:
        return FileResponse(sessions.clip(rater, place, side), media_type="audio/flac")


def _admin_doors(app: Any, sessions: Sessions) -> None:
    from fastapi import Depends
    from fastapi.responses import HTMLResponse

    def only_admin(token: str) -> None:
        from secrets import compare_digest

        if not compare_digest(token.encode(), sessions.ratings.admin_token().encode()):
            raise Unknown("this link is not valid")

    @app.get("/admin/{token}", dependencies=[Depends(only_admin)])
    def page() -> HTMLResponse:
        return HTMLResponse(web.page(FOLDER, "admin.html"))

    @app.get("/admin/{token}/state", dependencies=[Depends(only_admin)])
    def progress() -> dict[str, Any]:
        return sessions.progress()

    @app.post("/admin/{token}/raters", dependencies=[Depends(only_admin)])
    def invite(wanted: Invitation) -> dict[str, Any]:
        if not 1 <= wanted.count <= MOST_LINKS:
            raise NotNow(f"from 1 to {MOST_LINKS} links at a time")
        sessions.ratings.invite(wanted.count)
        return sessions.progress()
