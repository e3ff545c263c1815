"""The studio's web server: one page, behind a token in its link.

A request names takes by their ids, which are looked up in the database, and never a file.
"""

from collections.abc import Callable
from functools import partial
from secrets import compare_digest
from typing import Any
from urllib.parse import quote

from milonga.core import web
from milonga.core.records import Record
from milonga.studio.orders import Order, scheduler_names
from milonga.studio.sounds import MAX_UPLOAD
from milonga.studio.studio import Studio

MAX_ORDER = 16_384  # bytes: a prompt, a negative one and words of an edit

FOLDER = "milonga.studio/static"
PAGES = web.SHARED | {f"/page/{name}": (FOLDER, name) for name in ("studio.js", "cards.js", "forms.js", "studio.css")}


class Change(Record):
    """What changes of a take: kept (True), discarded (False) or neither (None), its name, whether it is deleted."""

    keep: bool | None = None
    title: str = ""
    deleted: bool = False


class Deletion(Record):
    """Whether a prompt is deleted."""

    deleted: bool


class Comparison(Record):
    """Which of two takes is better: `a`, `b` or `same`."""

    a: str
    b: str
    better: str


def application(studio: Studio, local: bool = True) -> Any:
    """The ASGI application of a studio; a `local` one answers for this machine's names alone."""
    from fastapi import APIRouter, Depends, Request
    from fastapi.responses import FileResponse, HTMLResponse, Response, StreamingResponse
    from starlette.concurrency import run_in_threadpool

    def only_owner(token: str) -> None:
        if not compare_digest(token.encode(), studio.takes.admin_token().encode()):
            raise web.Unknown("this link is not valid: open the one that `milonga studio` printed")

    routes = APIRouter(prefix="/studio/{token}", dependencies=[Depends(only_owner)])
    routes.get("")(lambda: HTMLResponse(web.page(FOLDER, "studio.html")))

    @routes.get("/state")
    def state(prompt: str = "") -> dict[str, Any]:
        return studio.state(prompt)

    @routes.get("/schedulers")
    def schedulers() -> tuple[str, ...]:
        return scheduler_names()

    @routes.get("/history")
    def history(words: str = "", start: int = 0) -> dict[str, Any]:
        return studio.history(words, start)

    @routes.post("/takes")
    def order(order: Order) -> dict[str, Any]:
        return studio.order(order)

    @routes.post("/upload")
    async def upload(request: Request, name: str = "", prompt: str = "") -> dict[str, Any]:
        data = await request.body()
        return await run_in_threadpool(studio.upload, name, prompt, data)

    @routes.post("/takes/{name}")
    def retry(name: str) -> dict[str, Any]:
        return studio.retry(name)

    @routes.put("/takes/{name}")
    def change(name: str, change: Change) -> dict[str, Any]:
        fields = change.model_fields_set
        if "deleted" in fields:
            return studio.delete(name, change.deleted)
        return studio.rename(name, change.title) if "title" in fields else studio.decide(name, change.keep)

    @routes.delete("/prompts/{prompt}/queue")
    def cancel(prompt: str) -> dict[str, Any]:
        return studio.cancel(prompt)

    @routes.put("/prompts/{prompt}")
    def delete_prompt(prompt: str, deletion: Deletion) -> dict[str, Any]:
        return studio.delete_prompt(prompt, deletion.deleted)

    @routes.get("/comparison")
    def next_comparison(prompt: str) -> dict[str, Any]:
        return studio.next_comparison(prompt)

    @routes.put("/comparison")
    def choose(answer: Comparison) -> dict[str, Any]:
        return studio.choose(answer.a, answer.b, answer.better)

    @routes.delete("/comparison")
    def undo_choice(prompt: str) -> dict[str, Any]:
        return studio.undo_choice(prompt)

    @routes.get("/takes/{name}/sound")
    def sound(name: str) -> FileResponse:
        return FileResponse(studio.sound(name), media_type="audio/flac")

    @routes.get("/takes/{name}/view")
    def view(name: str) -> dict[str, Any]:
        return studio.view(name)

    @routes.get("/takes/{name}/original")
    def original(name: str) -> Response:
        file, data = studio.original(name)
        return Response(data, media_type="application/octet-stream", headers=_download(file))

    @routes.get("/kept.zip")
    def archive(prompt: str = "") -> StreamingResponse:
        return StreamingResponse(
            iter(partial(studio.archive(prompt).read, 2**16), b""),
            media_type="application/zip",
            headers=_download("kept.zip"),
        )

    app = web.application(PAGES, limits={"takes": MAX_ORDER, "upload": MAX_UPLOAD}, local=local)
    app.include_router(routes)
    return app


def _download(name: str) -> dict[str, str]:
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}


def serve(studio: Studio, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves a studio and generates its takes until it is interrupted; calls `ready` with the link once it is open.

    Raises ServiceError where the port is not available.
    """
    studio.purge()
    token = studio.takes.admin_token()

    def begin(base: str) -> None:
        studio.worker.start()
        ready(f"{base}/studio/{token}")

    try:
        web.serve(application(studio, host in web.LOCAL), host, port, begin)
    finally:
        studio.worker.stop()
