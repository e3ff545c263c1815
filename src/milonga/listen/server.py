"""The test as a web server: one page for raters, one for the admin, each behind a token in its link.

Nothing is taken from the network or from elsewhere on the disk: pages come from this package by name, audio by a
rater's own trial, so a request cannot name a file at all. Text of prompts travels as JSON and is shown as text.
"""

import socket
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path as File
from typing import Any

from milonga.core.errors import MilongaError, ServiceError
from milonga.core.records import Record
from milonga.listen.sessions import Judgement, NotNow, Sessions, Unknown

LONGEST_BODY = 4096
MOST_LINKS = 500
PAGES = {name: f"text/{kind}; charset=utf-8" for name, kind in (
    ("style.css", "css"), ("rater.js", "javascript"), ("admin.js", "javascript"), ("parts.js", "javascript"),
)}  # fmt: skip
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; media-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Answer(Record):
    """Which of three tones was the quietest."""

    answer: int


class Invitation(Record):
    """How many links to make."""

    count: int


class Guard:
    """ASGI middleware: puts HEADERS on every answer, and refuses a body that is larger than any judgement."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        size = headers.get("content-length", b"0")
        if "transfer-encoding" in headers or not size.isdigit() or int(size) > LONGEST_BODY:
            await send({"type": "http.response.start", "status": 413, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await self.app(scope, receive, _with_headers(send))


def _with_headers(send: Any) -> Any:
    extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower().encode() for name in HEADERS}
            message["headers"] = [row for row in message["headers"] if row[0].lower() not in names] + extra
        await send(message)

    return sent


def application(folder: File) -> Any:
    """The ASGI application of a test folder. Raises StoreError where there is no test."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

    sessions = Sessions(folder)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(MilongaError)
    def refused(request: Request, error: MilongaError) -> JSONResponse:
        status = 404 if isinstance(error, Unknown) else 409 if isinstance(error, NotNow) else 503
        # What the disk says is the admin's business: a rater is told to wait.
        told = str(error) if status < 500 else "the test is not available just now"
        return JSONResponse({"error": told}, status)

    _pages(app)
    _rater_doors(app, sessions)
    _admin_doors(app, sessions)
    app.add_middleware(Guard)
    return app


def serve(folder: File, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves a test until it is interrupted; `ready` is given the admin page's link once the port is ours.

    Raises ServiceError where the port cannot be had.
    """
    import uvicorn

    app, token = application(folder), Sessions(folder).ratings.admin_token()
    try:
        listening = socket.create_server((host, port), backlog=256)
    except OSError as error:
        raise ServiceError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
    ready(f"http://{host}:{listening.getsockname()[1]}/admin/{token}")
    # No access log: its lines would hold everyone's tokens.
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=3
    )
    uvicorn.Server(config).run(sockets=[listening])


def _pages(app: Any) -> None:
    from fastapi.responses import Response

    @app.get("/page/{name}")
    def asset(name: str) -> Response:
        if name not in PAGES:
            raise Unknown("there is no such page")
        return Response(_page(name), media_type=PAGES[name])


def _rater_doors(app: Any, sessions: Sessions) -> None:
    from fastapi import Depends
    from fastapi.responses import FileResponse, HTMLResponse, Response

    known = Depends(sessions.rater)

    @app.get("/r/{token}")
    def page(token: str) -> HTMLResponse:
        invited = sessions.ratings.number_of(token) is not None
        return HTMLResponse(_page("rater.html" if invited else "unknown.html"), 200 if invited else 404)

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
        return HTMLResponse(_page("admin.html"))

    @app.get("/admin/{token}/state", dependencies=[Depends(only_admin)])
    def progress() -> dict[str, Any]:
        return sessions.progress()

    @app.post("/admin/{token}/raters", dependencies=[Depends(only_admin)])
    def invite(wanted: Invitation) -> dict[str, Any]:
        if not 1 <= wanted.count <= MOST_LINKS:
            raise NotNow(f"from 1 to {MOST_LINKS} links at a time")
        sessions.ratings.invite(wanted.count)
        return sessions.progress()


def _page(name: str) -> str:
    return (files("milonga.listen") / "page" / name).read_text(encoding="utf-8")
