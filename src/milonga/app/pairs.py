"""The command `pairs`: a run's pairs in the browser, the winner beside the loser, by a server of this machine alone.

The standard library's server does: there is one listener, and every pair and clip is read from the run as it is asked
for, so that a run of any size opens at once. Pages of other sites get nothing: see `Handler`.
"""

import contextlib
import json
import math
import sys
from collections.abc import Mapping
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from milonga.app.export import ClipBytes, planned
from milonga.core.errors import MilongaError, RecipeError, StoreError
from milonga.core.records import Pair
from milonga.core.store import Run
from milonga.stages.pair import refusals

PAGE = 20  # pairs that the page shows at once
SIDES = ("chosen", "rejected")
STATIC = {
    "/": ("page.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/script.js": ("script.js", "text/javascript"),
}
# The page may load its own script, style and data, and play what it fetched; nothing else, and nobody may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src blob:; img-src data:; "
    "frame-ancestors 'none'"
)


class Pairs:
    """A run's pairs, kept and refused, to be looked through; `Shards` damage and the like raise StoreError."""

    def __init__(self, path: Path) -> None:
        self.run, self._lock = Run(path), Lock()
        self.all = [pair for stage in ("pair", "refused") for pair in self.run.stage(stage).read_records(Pair)]
        if not self.all:
            raise StoreError(f"{path} holds no pairs: run it until `pair`")
        self.clips = ClipBytes(self.run)

    @cached_property
    def places(self) -> Mapping[str, Any]:
        """Where each clip is."""
        return planned(self.run)

    def about(self) -> dict[str, Any]:
        """What there is to choose from: strategies, reasons with their counts, scorers."""
        refused = {reason: count for reason, count in refusals(self.all).items() if count}
        kept = len(self.all) - sum(refused.values())
        strategies = sorted({pair.strategy for pair in self.all})
        name, scorers = self.run.path.resolve().name, sorted(self.all[0].chosen_scores)
        return {"run": name, "verdicts": {"kept": kept} | refused, "strategies": strategies, "scorers": scorers}

    def page(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """One page of the pairs that fit, and how many fit in all.

        `verdict` is `kept` or a condition's name, `strategy` a strategy, `words` part of the prompt (each may be left
        out); `sort` is `closest`, `clearest` (by Δ of `scorer`) or empty (as stored); `start` counts from 0. Raises
        RecipeError for a start or scorer that makes no sense.
        """
        start, scorer = asked.get("start", "0"), asked.get("scorer") or sorted(self.all[0].chosen_scores)[0]
        if not (start.isascii() and start.isdecimal()) or scorer not in self.all[0].chosen_scores:
            raise RecipeError("start must be a whole number, and scorer one that the pairs were scored by")
        found = [pair for pair in self.all if _fits(pair, asked)]
        if asked.get("sort"):
            found.sort(key=lambda pair: _delta(pair, scorer), reverse=asked["sort"] == "clearest")
        shown = found[int(start) : int(start) + PAGE]
        return {"total": len(found), "size": PAGE, "pairs": [_shown(pair) for pair in shown]}

    def clip(self, name: str) -> bytes | None:
        """A clip's FLAC bytes, None where the run has no such clip."""
        place = self.places.get(name)
        with self._lock:  # requests come in threads, and the clips' memory is not made for them
            return None if place is None else self.clips.get(name, place.shard)


def _fits(pair: Pair, asked: Mapping[str, str]) -> bool:
    verdict, strategy, words = (asked.get(key, "") for key in ("verdict", "strategy", "words"))
    return (
        (not verdict or (pair.refused.partition(":")[0] or "kept") == verdict)
        and (not strategy or pair.strategy == strategy)
        and words.lower() in pair.prompt.lower()
    )


def _delta(pair: Pair, scorer: str) -> float:
    """Δ for sorting; a pair that could not be judged counts as the closest."""
    delta = pair.chosen_scores[scorer] - pair.rejected_scores[scorer]
    return delta if math.isfinite(delta) else -math.inf


def _shown(pair: Pair) -> dict[str, Any]:
    """A pair as the page wants it; a score that is not a number is null."""
    sides = {side: _side(pair, side) for side in SIDES}
    return {"id": pair.id, "prompt": pair.prompt, "strategy": pair.strategy, "refused": pair.refused} | sides


def _side(pair: Pair, side: str) -> dict[str, Any]:
    told = {key: getattr(pair, f"{side}_{key}") for key in ("id", "words", "steps")}
    scores = getattr(pair, f"{side}_scores").items()
    # Seeds have 63 bits, more than a number of JavaScript holds.
    seed = str(getattr(pair, f"{side}_seed"))
    return told | {"seed": seed, "scores": {name: value if math.isfinite(value) else None for name, value in scores}}


class Handler(BaseHTTPRequestHandler):
    """Answers GET for the page, its data and its clips.

    A request that names another host than the server's own is refused: a page elsewhere could otherwise have its name
    point to this machine and read along (DNS rebinding).
    """

    pairs: Pairs
    server: ThreadingHTTPServer

    def do_GET(self) -> None:
        """One request; what is wrong with it is told in a line."""
        try:
            status, body, kind = self._answer(urlsplit(self.path))
        except MilongaError as error:
            status = HTTPStatus.BAD_REQUEST if isinstance(error, RecipeError) else HTTPStatus.INTERNAL_SERVER_ERROR
            body, kind = str(error).encode(), "text/plain"
        with contextlib.suppress(ConnectionError):  # who asked has gone on to another page: there is nobody to tell
            self._send(status, body, kind)

    def _answer(self, url: Any) -> tuple[HTTPStatus, bytes, str]:
        host, port = self.server.server_address[:2]
        if self.headers.get("Host") not in {f"{name}:{port}" for name in (host, "localhost")}:
            return HTTPStatus.FORBIDDEN, b"open the address that `milonga pairs` printed", "text/plain"
        if url.path in STATIC:
            name, kind = STATIC[url.path]
            return HTTPStatus.OK, (files("milonga.app") / "pairs_page" / name).read_bytes(), kind
        if url.path in ("/about", "/pairs"):
            found = self.pairs.about() if url.path == "/about" else self.pairs.page(dict(parse_qsl(url.query)))
            return HTTPStatus.OK, json.dumps(found, allow_nan=False).encode(), "application/json"
        clip = self.pairs.clip(url.path.removeprefix("/clips/")) if url.path.startswith("/clips/") else None
        if clip is None:
            return HTTPStatus.NOT_FOUND, b"no such thing", "text/plain"
        return HTTPStatus.OK, clip, "audio/flac"

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        text = kind.startswith("text/") or kind == "application/json"
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if text else kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests that went well are nobody's news; the others go to stderr."""
        if len(args) > 1 and not str(args[1]).startswith("2"):
            print(f"pairs: {format % args}", file=sys.stderr)


def server(path: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of a run's pairs on 127.0.0.1 at `port` (0: any that is free), not yet serving.

    Raises StoreError when the run has no pairs, RecipeError when the port cannot be had.
    """
    handler = type("PairsHandler", (Handler,), {"pairs": Pairs(path)})
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        raise RecipeError(f"port {port} cannot be had: {error}; choose another, or 0 for any") from error


def address(of: ThreadingHTTPServer) -> str:
    """Where a server is to be opened."""
    return f"http://127.0.0.1:{of.server_address[1]}/"
