"""The studio's web server: one page, behind a token in its link.

A request names takes by their ids, which are looked up in the database, and never a file.
"""

from collections.abc import Callable
from secrets import compare_digest
from typing import Any

from milonga.core import web
from milonga.core.records import Record
from milonga.studio.studio import Order, Studio

FOLDER = "milonga.studio/static"
PAGES = web.SHARED | {f"/page/{name}": (FOLDER, name) for name in ("studio.js", "studio.css")}


class Decision(Record):
    """Whether a take is kept (True), discarded (False) or neither (None)."""

    keep: bool | None


class Comparison(Record):
    """Which of two takes is better: `a`, `b` or `same`."""

    a: str
    b: str
    better: str


def application(studio: Studio) -> Any:
    """The ASGI application of a studio."""
    from fastapi import APIRouter, Depends
    from fastapi.responses import FileResponse, HTMLResponse, Response

    def only_owner(token: str) -> None:
        if not compare_digest(token.encode(), studio.takes.admin_token().encode()):
            raise web.Unknown("this link is not valid: open the one that `milonga studio` printed")

    routes = APIRouter(prefix="/studio/{token}", dependencies=[Depends(only_owner)])
    routes.get("")(lambda: HTMLResponse(web.page(FOLDER, "studio.html")))

    @routes.get("/state")
    def state(prompt: str = "") -> dict[str, Any]:
        return studio.state(prompt)

    @routes.post("/takes")
    def order(order: Order) -> dict[str, Any]:
        return studio.order(order)

    @routes.delete("/takes")
    def cancel(prompt: str = "") -> dict[str, Any]:
        return studio.cancel(prompt)

    @routes.post("/takes/{name}")
    def retry(name: str) -> dict[str, Any]:
        return studio.retry(name)

    @routes.put("/takes/{name}")
    def decide(name: str, decision: Decision) -> dict[str, Any]:
        return studio.decide(name, decision.keep)

    @routes.get("/comparison")
    def next_comparison(prompt: str) -> dict[str, Any]:
        return studio.next_comparison(prompt)

    @routes.put("/comparison")
    def choose(answer: Comparison) -> dict[str, Any]:
        return studio.choose(answer.a, answer.b, answer.better)

    @routes.get("/takes/{name}/sound")
    def sound(name: str) -> FileResponse:
        return FileResponse(studio.playback_file(name), media_type="audio/flac")

    @routes.get("/takes/{name}/wav")
    def wav(name: str) -> Response:
        file, data = studio.wav(name)
        return Response(data, media_type="audio/wav", headers={"Content-Disposition": f'attachment; filename="{file}"'})

    app = web.application(PAGES)
    app.include_router(routes)
    return app


def serve(studio: Studio, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves a studio and generates its takes until it is interrupted; calls `ready` with the link once it is open.

    Raises ServiceError where the port is not available.
    """
    token = studio.takes.admin_token()

    def begin(base: str) -> None:
        studio.worker.start()
        ready(f"{base}/studio/{token}")

    try:
        web.serve(application(studio), host, port, begin)
    finally:
        studio.worker.stop()
