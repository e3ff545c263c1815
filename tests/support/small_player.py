"""A page with two of the pages' players that share a position; as a process: `python small_player.py`."""

import numpy as np

from milonga.core import web
from milonga.core.audio import flac_bytes
from milonga.core.records import Clip
from milonga.maths.clip_view import clip_view

RATE, SECONDS = 8000, 1.0
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Player</title><link rel="icon" href="data:,">
<meta name="color-scheme" content="light dark">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/page/style.css"><link rel="stylesheet" href="/page/player.css">
<script src="/page/parts.js" defer></script><script src="/page/player.js" defer></script>
<script src="/test.js" defer></script></head><body><main id="stage"><h1>Player</h1></main></body></html>"""
SCRIPT = """
const group = playerGroup();
const log = [];
const add = (name, label, more) => soundPlayer({ url: `/sound/${name}`, view: `/view/${name}`, label, ...more });
const players = ["a", "b"].map((name) => add(name, `Sound ${name}`, { group,
  onHeard: () => log.push(`heard ${name}`), onRegion: (region) => log.push(region ? "region" : "none") }));
players.push(add("lost", "Lost", {}));
byId("stage").append(...players.map((one) => one.element));
"""


def clip(name: str) -> Clip:
    time = np.arange(int(RATE * SECONDS)) / RATE
    return Clip((0.25 * np.sin(2 * np.pi * {"a": 440, "b": 660}[name] * time) * (time > 0.3)).astype(np.float32), RATE)


if __name__ == "__main__":
    from fastapi.responses import HTMLResponse, Response

    app = web.application(web.SHARED)
    app.get("/")(lambda: HTMLResponse(PAGE))
    app.get("/test.js")(lambda: Response(SCRIPT, media_type="text/javascript"))

    @app.get("/sound/{name}")
    def sound(name: str) -> Response:
        if name not in "ab":
            raise web.Unknown("there is no such clip")
        return Response(flac_bytes(clip(name)), media_type="audio/flac")

    @app.get("/view/{name}")
    def view(name: str) -> dict:
        if name not in "ab":
            raise web.Unknown("there is no such clip")
        return clip_view(clip(name))

    web.serve(app, "127.0.0.1", 0, lambda base: print(base, flush=True))
