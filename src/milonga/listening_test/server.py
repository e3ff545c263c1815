"""The web server of a test: one page for raters, one for the admin, each behind a token in its link.

A request cannot name a file: pages come from this package by name, audio by a rater's own trial. The text of prompts
travels as JSON and is shown as text.
"""

from collections.abc import Callable
from pathlib import Path
from secrets import compare_digest
from typing import Any

from milonga.core import web
from milonga.core.records import Record
from milonga.core.web import NotNow, Unknown
from milonga.listening_test.sessions import Judgement, Sessions

MAX_LINKS = 500
FOLDER = "milonga.listening_test/static"
PAGES = web.SHARED | {f"/page/{name}": (FOLDER, name) for name in ("rater.js", "admin.js")}


class Answer(Record):
    """The number of the quietest of three tones."""

    answer: int


class Invitation(Record):
    """The number of links to create."""

    count: int


def application(folder: Path) -> Any:
    """The ASGI application of a test folder. Raises StoreError where there is no test."""
    sessions = Sessions(folder)
    # Errors of the disk concern the admin only; raters see a general message.
    app = web.application(PAGES, hidden="the test is not available at the moment")
    _add_rater_routes(app, sessions)
    _add_admin_routes(app, sessions)
    return app


def serve(folder: Path, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves a test until it is interrupted; calls `ready` with the admin page's link once the port is open.

    Raises ServiceError where the port is not available.
    """
    token = Sessions(folder).ratings.admin_token()
    web.serve(application(folder), host, port, lambda base: ready(f"{base}/admin/{token}"))


def _add_rater_routes(app: Any, sessions: Sessions) -> None:
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
    def answer_tone(item: int, answer: Answer, rater: int = known) -> dict[str, Any]:
        if answer.answer not in (1, 2, 3):
            raise NotNow("the answer is 1, 2 or 3")
        return sessions.answer_tone(rater, item, answer.answer)

    @app.get("/r/{token}/examples/{which}")
    def example(which: str, rater: int = known) -> FileResponse:
        return FileResponse(sessions.example(which), media_type="audio/flac")

    @app.get("/r/{token}/trials/{place}")
    def trial(place: int, rater: int = known) -> dict[str, Any]:
        return sessions.trial(rater, place)

    @app.put("/r/{token}/trials/{place}")
    def judge(place: int, judgement: Judgement, rater: int = known) -> dict[str, Any]:
        return sessions.judge(rater, place, judgement)

    @app.get("/r/{token}/trials/{place}/{side}")
    def clip(place: int, side: str, rater: int = known) -> FileResponse:
        return FileResponse(sessions.clip(rater, place, side), media_type="audio/flac")


def _add_admin_routes(app: Any, sessions: Sessions) -> None:
    from fastapi import Depends
    from fastapi.responses import HTMLResponse

    def only_admin(token: str) -> None:
        if not compare_digest(token.encode(), sessions.ratings.admin_token().encode()):
            raise Unknown("this link is not valid")

    @app.get("/admin/{token}", dependencies=[Depends(only_admin)])
    def page() -> HTMLResponse:
        return HTMLResponse(web.page(FOLDER, "admin.html"))

    @app.get("/admin/{token}/state", dependencies=[Depends(only_admin)])
    def progress() -> dict[str, Any]:
        return sessions.progress()

    @app.post("/admin/{token}/raters", dependencies=[Depends(only_admin)])
    def invite(invitation: Invitation) -> dict[str, Any]:
        if not 1 <= invitation.count <= MAX_LINKS:
            raise NotNow(f"from 1 to {MAX_LINKS} links at a time")
        sessions.ratings.invite(invitation.count)
        return sessions.progress()
