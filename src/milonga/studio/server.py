"""The studio as a web server: one page, behind a token in its link.

A request names takes by their ids, which are looked up in the database, and never a file.
"""

from collections.abc import Callable
from pathlib import Path
from secrets import compare_digest
from typing import Any

from milonga.core import web
from milonga.core.records import Record
from milonga.studio.studio import Order, Studio

SHARED, FOLDER = "milonga.listening_test/static", "milonga.studio/static"
PAGES = {f"/page/{name}": (SHARED, name) for name in web.SHARED} | {
    f"/page/{name}": (FOLDER, name) for name in ("studio.js", "studio.css")
}


class Decision(Record):
    """Whether a take is kept (True), discarded (False) or neither."""

    kept: bool | None


class Comparison(Record):
    """Which of two takes is better: `a`, `b` or `same`."""

    a: str
    b: str
    better: str


def application(studio: Studio) -> Any:
    """The ASGI application of a studio."""
    from fastapi import APIRouter, Depends
    from fastapi.responses import HTMLResponse

    def only_owner(token: str) -> None:
        if not compare_digest(token.encode(), studio.takes.admin_token().encode()):
            raise web.Unknown("this link is not valid: open the one that `milonga studio` printed")

    doors = APIRouter(prefix="/studio/{token}", dependencies=[Depends(only_owner)])
    doors.get("")(lambda: HTMLResponse(web.page(FOLDER, "studio.html")))
    _doors(doors, studio)
    _sounds(doors, studio)
    app = web.application(PAGES)
    app.include_router(doors)
    return app


def serve(studio: Studio, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves a studio until it is interrupted, and makes what is wanted; `ready` is given the link.

    Raises ServiceError where the port cannot be had.
    """
    token = studio.takes.admin_token()

    def begin(base: str) -> None:
        studio.maker.start()
        ready(f"{base}/studio/{token}")

    try:
        web.serve(application(studio), host, port, begin)
    finally:
        studio.maker.stop()


def _doors(doors: Any, studio: Studio) -> None:
    @doors.get("/state")
    def state(prompt: str = "") -> dict[str, Any]:
        return studio.state(prompt)

    @doors.post("/takes")
    def order(wanted: Order) -> dict[str, Any]:
        return studio.order(wanted)

    @doors.delete("/takes")
    def cancel(prompt: str = "") -> dict[str, Any]:
        return studio.cancel(prompt)

    @doors.post("/takes/{name}")
    def retry(name: str) -> dict[str, Any]:
        return studio.retry(name)

    @doors.put("/takes/{name}")
    def decide(name: str, given: Decision) -> dict[str, Any]:
        return studio.decide(name, given.kept)

    @doors.get("/duel")
    def duel(prompt: str) -> dict[str, Any]:
        return studio.duel(prompt)

    @doors.put("/duel")
    def choose(given: Comparison) -> dict[str, Any]:
        return studio.choose(given.a, given.b, given.better)


def _sounds(doors: Any, studio: Studio) -> None:
    from fastapi.responses import FileResponse, Response

    @doors.get("/takes/{name}/sound")
    def sound(name: str) -> FileResponse:
        return FileResponse(Path(studio.played(name)), media_type="audio/flac")

    @doors.get("/takes/{name}/wav")
    def wav(name: str) -> Response:
        called, data = studio.wav(name)
        return Response(
            data, media_type="audio/wav", headers={"Content-Disposition": f'attachment; filename="{called}"'}
        )
