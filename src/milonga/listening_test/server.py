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
from milonga.listening_test.export import as_csv, screened
from milonga.listening_test.formatting import as_text
from milonga.listening_test.records import RaterRow, ScreenedRating
from milonga.listening_test.results import compute_results
from milonga.listening_test.sessions import Judgement, Sessions
from milonga.listening_test.sources import check_url

MAX_LINKS = 500
FOLDER = "milonga.listening_test/static"
FILES = ("listening.css", "rater.js", "admin.js")
PAGES = web.SHARED | {f"/page/{name}": (FOLDER, name) for name in FILES}


class Answer(Record):
    """The number of the quietest of three tones."""

    answer: int


class Arrival(Record):
    """The parameters of an entry link."""

    parameters: dict[str, str]


class Survey(Record):
    """Answers to questions, the consent or a comment, by name."""

    answers: dict[str, str]


class Invitation(Record):
    """The number of links to create."""

    count: int


class Opening(Record):
    """Whether the test is to be closed."""

    closed: bool


def application(folder: Path) -> Any:
    """The ASGI application of a test folder. Raises StoreError where there is no test."""
    sessions = Sessions(folder)
    # Errors of the disk concern the admin only; raters see a general message.
    app = web.application(PAGES, hidden="the test is not available at the moment")
    _add_rater_routes(app, sessions)
    _add_admin_routes(app, sessions)
    return app


def serve(folder: Path, host: str, port: int, url: str | None, ready: Callable[[str], None]) -> None:
    """Serves a test until it is interrupted; calls `ready` with the admin page's link once the port is open.

    `url` is the address at which raters reach the server, where that is another one; links are then made with it.
    Raises ServiceError where the port is not available.
    """
    ratings = Sessions(folder).ratings

    def on_open(base: str) -> None:
        ratings.store_setting("url", check_url(url or base))
        ready(f"{base}/admin/{ratings.admin_token()}")

    web.serve(application(folder), host, port, on_open)


def _add_rater_routes(app: Any, sessions: Sessions) -> None:
    from fastapi import Depends, Request
    from fastapi.responses import FileResponse, HTMLResponse, Response

    known = Depends(sessions.rater)

    @app.get("/join/{token}")
    def entry(token: str) -> HTMLResponse:
        valid = compare_digest(token.encode(), sessions.ratings.entry_token().encode())
        return HTMLResponse(web.page(FOLDER, "rater.html" if valid else "unknown.html"), 200 if valid else 404)

    @app.post("/join/{token}")
    def join(token: str, arrival: Arrival) -> dict[str, str]:
        return {"token": sessions.join(token, arrival.parameters)}

    @app.get("/join/{token}/texts")
    def entry_texts(token: str) -> dict[str, Any]:
        return texts(0)

    @app.get("/r/{token}")
    def page(token: str) -> HTMLResponse:
        invited = sessions.ratings.number_of(token) is not None
        return HTMLResponse(web.page(FOLDER, "rater.html" if invited else "unknown.html"), 200 if invited else 404)

    @app.get("/r/{token}/state")
    def state(rater: int = known) -> dict[str, Any]:
        return sessions.state(rater)

    @app.get("/r/{token}/texts")
    def texts(rater: int = known) -> dict[str, Any]:
        return {"language": sessions.page.language, "texts": sessions.page.all_texts()}

    @app.put("/r/{token}/survey")
    def answer_survey(survey: Survey, rater: int = known) -> dict[str, Any]:
        return sessions.answer_survey(rater, survey.answers)

    @app.get("/r/{token}/tones/{item}")
    def tones(item: int, request: Request, rater: int = known) -> Response:
        return web.partial(sessions.tones(rater, item), "audio/flac", request.headers.get("range"))

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
    from fastapi import APIRouter, Depends
    from fastapi.responses import HTMLResponse, PlainTextResponse, Response

    def only_admin(token: str) -> None:
        if not compare_digest(token.encode(), sessions.ratings.admin_token().encode()):
            raise Unknown("this link is not valid")

    routes = APIRouter(prefix="/admin/{token}", dependencies=[Depends(only_admin)])

    @routes.get("")
    def page() -> HTMLResponse:
        return HTMLResponse(web.page(FOLDER, "admin.html"))

    @routes.get("/state")
    def progress(known: str = "") -> dict[str, Any]:
        return sessions.progress(known)

    @routes.post("/raters")
    def invite(invitation: Invitation) -> dict[str, Any]:
        if not 1 <= invitation.count <= MAX_LINKS:
            raise NotNow(f"from 1 to {MAX_LINKS} links at a time")
        sessions.ratings.invite(invitation.count)
        return sessions.progress()

    @routes.delete("/raters/{number}")
    def revoke(number: int) -> dict[str, Any]:
        sessions.ratings.revoke(number)
        return sessions.progress()

    @routes.put("/closed")
    def close(opening: Opening) -> dict[str, Any]:
        sessions.ratings.store_setting("closed", "yes" if opening.closed else "")
        return sessions.progress()

    @routes.get("/results.txt")
    def results() -> PlainTextResponse:
        return PlainTextResponse(as_text(compute_results(sessions.test, *sessions.judgements())))

    @routes.get("/ratings.csv")
    def ratings() -> Response:
        table = as_csv(screened(*sessions.judgements()), ScreenedRating)
        return Response(table, media_type="text/csv", headers={"Content-Disposition": "attachment"})

    @routes.get("/raters.csv")
    def raters() -> Response:
        table = as_csv(sessions.rater_rows(), RaterRow)
        return Response(table, media_type="text/csv", headers={"Content-Disposition": "attachment"})

    app.include_router(routes)
