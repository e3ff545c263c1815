"""Serving of pages: restrictive headers on every answer, request bodies of a bounded size, errors in one line.

Pages come from a package by name, never from a path in a request; nothing is loaded from the network.
"""

import errno
import re
import socket
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from milonga.core.errors import AudioError, DataError, MilongaError, RecipeError, ServiceError

MAX_BODY = 4096  # bytes
REQUEST_SECONDS = 30.0  # within which a client must have sent its request
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; media-src 'self' blob:; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
LOCAL = ["127.0.0.1", "localhost"]
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
SHARED = {  # files that all pages use
    f"/page/{name}": ("milonga.core/static", name) for name in ("style.css", "parts.js", "player.css", "player.js")
}


class Unknown(MilongaError):
    """A link, trial or clip that does not exist for this client."""


class NotNow(MilongaError):
    """A request that is not allowed at this point of a session, or for this trial."""


class FieldError(RecipeError):
    """A value of a form that cannot be used; `field` is the form's name of it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


STATUS: dict[type[MilongaError], int] = {
    Unknown: 404, NotNow: 409, RecipeError: 400, DataError: 400, AudioError: 400, FieldError: 400,
}  # fmt: skip


class Guard:
    """ASGI middleware: sets HEADERS on every answer, refuses request bodies above MAX_BODY, or above the limit for the
    end of their path, and changes that another site's page asks for."""

    def __init__(self, app: Any, limits: Mapping[str, int]) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        size = headers.get("content-length", b"0")
        send, last = _with_headers(send), scope["path"].rpartition("/")[2]
        foreign = scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site") in (
            b"cross-site",
            b"same-site",
        )
        if (
            foreign
            or "transfer-encoding" in headers
            or not size.isdigit()
            or int(size) > self.limits.get(last, MAX_BODY)
        ):
            await send({"type": "http.response.start", "status": 403 if foreign else 413, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await self.app(scope, receive, send)


def application(
    pages: dict[str, tuple[str, str]], hidden: str = "", limits: Mapping[str, int] | None = None, local: bool = False
) -> Any:
    """A FastAPI application with routes for static pages; `pages` maps a path to (package folder, file name).

    A MilongaError becomes JSON `{"error": ...}`, with the `field` of a FieldError. With `hidden`, that text replaces
    the message of errors with status 503. `limits` are bytes of a request's body by the last part of its path. A
    `local` one refuses requests that name another host than this machine: a page elsewhere could otherwise let its
    name point here (DNS rebinding).
    """
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(MilongaError)
    def on_error(request: Request, error: MilongaError) -> JSONResponse:
        status = STATUS.get(type(error), 503)
        field = {"field": error.field} if isinstance(error, FieldError) else {}
        return JSONResponse({"error": hidden if hidden and status == 503 else str(error)} | field, status)

    @app.exception_handler(RequestValidationError)
    def on_invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}", "field": f"{first['loc'][-1]}"}, 422)

    for path, (folder, name) in pages.items():
        body, kind = page(folder, name), KINDS[name.rpartition(".")[2]]
        app.get(path)(lambda body=body, kind=kind: Response(body, media_type=f"{kind}; charset=utf-8"))
    if local:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL, www_redirect=False)
    app.add_middleware(Guard, limits=limits or {})
    return app


def page(folder: str, name: str) -> str:
    """The text of a page, style or script in a package's folder, such as `milonga.listening_test/static`."""
    package, _, inside = folder.partition("/")
    return (files(package) / inside / name).read_text(encoding="utf-8")


def partial(body: bytes, media_type: str, wanted: str | None) -> Any:
    """An answer with a part of `body` where the header `Range: bytes=A-B` asks for it, as Safari does of all media."""
    from fastapi.responses import Response

    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    headers = {"Accept-Ranges": "bytes"}
    if match is None or not any(match.groups()):
        return Response(body, media_type=media_type, headers=headers)
    first, last = match.groups()
    start = int(first) if first else max(0, len(body) - int(last))
    stop = min(len(body), int(last) + 1) if first and last else len(body)
    if start >= stop:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{len(body)}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
    return Response(body[start:stop], 206, media_type=media_type, headers=headers)


def serve(app: Any, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves an application until it is interrupted; calls `ready` with its address once the port is open.

    For a host that stands for all addresses that is the one of this machine in its network. Raises ServiceError where
    the host or the port is not available.
    """
    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=256)
    except socket.gaierror as error:
        raise ServiceError(f"cannot listen on {host}: no such address; choose another --host") from error
    except (OSError, OverflowError) as error:
        reason, option = getattr(error, "strerror", None) or error, "--port"
        if getattr(error, "errno", None) in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            option = "--host"
        raise ServiceError(f"cannot listen on {host}:{port}: {reason}; choose another {option}") from error
    name = own_address(family) if host in ("0.0.0.0", "::") else host
    ready(f"http://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}")
    # No access log: its lines would contain the tokens.
    config = uvicorn.Config(
        app, http=deadline_protocol(), log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=3,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listening])


def own_address(family: socket.AddressFamily) -> str:
    """This machine's address in its network; the loopback one where it has no network. Nothing is sent."""
    outside, inside = ("2001:db8::1", "::1") if family == socket.AF_INET6 else ("192.0.2.1", "127.0.0.1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((outside, 9))
            return probe.getsockname()[0]
        except OSError:
            return inside


def deadline_protocol() -> type:
    """uvicorn's HTTP protocol, which closes a connection whose request is not complete after REQUEST_SECONDS.

    Without it a few hundred clients that send a byte now and then would hold all connections that a process may have.
    """
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class DeadlineProtocol(H11Protocol):
        deadline: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.watch()

        def connection_lost(self, exc: Exception | None) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
            super().connection_lost(exc)

        def watch(self) -> None:
            """Starts the deadline where a request is incomplete, and ends it where one is complete."""
            if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
                self.deadline = self.deadline or self.loop.call_later(REQUEST_SECONDS, self.transport.close)
            elif self.deadline is not None:
                self.deadline.cancel()
                self.deadline = None

    return DeadlineProtocol


def _with_headers(send: Any) -> Any:
    extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def send_with_headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower().encode() for name in HEADERS}
            message["headers"] = [row for row in message["headers"] if row[0].lower() not in names] + extra
        await send(message)

    return send_with_headers
