"""How every page is served: answers that forbid what no page needs, bodies of a bounded size, errors in a line.

Pages come from a package by name, never from a path that a request holds; nothing is taken from the network.
"""

import socket
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from milonga.core.errors import DataError, MilongaError, RecipeError, ServiceError

LONGEST_BODY = 4096
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; media-src 'self' blob:; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
SHARED = ("style.css", "parts.js")  # what all pages are built from


class Unknown(MilongaError):
    """A link, trial or clip that is not there for the one who asks."""


class NotNow(MilongaError):
    """Something that cannot be done at this point of a session, or not to this trial."""


STATUS: dict[type[MilongaError], int] = {Unknown: 404, NotNow: 409, RecipeError: 400, DataError: 400}


class Guard:
    """ASGI middleware: puts HEADERS on every answer, and refuses a body that is larger than any question."""

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


def application(pages: dict[str, tuple[str, str]], hidden: str = "") -> Any:
    """A FastAPI application with doors for static pages, `pages` giving (package folder, file name) by path.

    An error of ours becomes JSON `{"error": ...}` in a line; with `hidden`, that text stands for what only the disk
    and the admin know of.
    """
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(MilongaError)
    def refused(request: Request, error: MilongaError) -> JSONResponse:
        status = STATUS.get(type(error), 503)
        return JSONResponse({"error": hidden if hidden and status == 503 else str(error)}, status)

    @app.exception_handler(RequestValidationError)
    def misunderstood(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    for path, (folder, name) in pages.items():
        body, kind = page(folder, name), KINDS[name.rpartition(".")[2]]
        app.get(path)(lambda body=body, kind=kind: Response(body, media_type=f"{kind}; charset=utf-8"))
    app.add_middleware(Guard)
    return app


def page(folder: str, name: str) -> str:
    """A page, style or script of a package's folder, such as `milonga.listening_test/static`."""
    package, _, inside = folder.partition("/")
    return (files(package) / inside / name).read_text(encoding="utf-8")


def serve(app: Any, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves an application until it is interrupted; `ready` is given `http://HOST:PORT` once the port is ours.

    Raises ServiceError where the port cannot be had.
    """
    import uvicorn

    try:
        listening = socket.create_server((host, port), backlog=256)
    except (OSError, OverflowError) as error:
        told = getattr(error, "strerror", None) or error
        raise ServiceError(f"cannot listen on {host}:{port}: {told}; choose another --port") from error
    ready(f"http://{host}:{listening.getsockname()[1]}")
    # No access log: its lines would hold everyone's tokens.
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=3
    )
    uvicorn.Server(config).run(sockets=[listening])


def _with_headers(send: Any) -> Any:
    extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower().encode() for name in HEADERS}
            message["headers"] = [row for row in message["headers"] if row[0].lower() not in names] + extra
        await send(message)

    return sent
