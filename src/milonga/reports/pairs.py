"""The command `pairs`: a run's pairs in the browser, the winner beside the loser, by a server of this machine alone.

Every pair and clip is read from the run on request, so that a run of any size opens at once. A request that names
another host than this machine is refused: a page elsewhere could otherwise let its name point here and read the run
(DNS rebinding).
"""

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from milonga.core import web
from milonga.core.errors import RecipeError, StoreError
from milonga.core.records import Pair
from milonga.core.store import Run
from milonga.data.pairs import ClipBytes, planned, refusals

PAGE = 20  # pairs that the page shows at once
SIDES = ("chosen", "rejected")
HOST = "127.0.0.1"
FOLDER = "milonga.reports/templates/pairs"
STATIC = {"/": (FOLDER, "page.html"), "/style.css": (FOLDER, "style.css"), "/script.js": (FOLDER, "script.js")}


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
        accepted = len(self.all) - sum(refused.values())
        strategies = sorted({pair.strategy for pair in self.all})
        name, scorers = self.run.path.resolve().name, sorted(self.all[0].chosen_scores)
        return {"run": name, "verdicts": {"kept": accepted} | refused, "strategies": strategies, "scorers": scorers}

    def page(self, query: Mapping[str, str]) -> dict[str, Any]:
        """One page of the pairs that fit, and how many fit in all.

        `verdict` is `kept` or a condition's name, `strategy` a strategy, `words` part of the prompt (each may be left
        out); `sort` is `closest`, `clearest` (by Δ of `scorer`) or empty (as stored); `start` counts from 0. Raises
        RecipeError for a start or scorer that makes no sense.
        """
        start, scorer = query.get("start", "0"), query.get("scorer") or sorted(self.all[0].chosen_scores)[0]
        if not (start.isascii() and start.isdecimal()) or scorer not in self.all[0].chosen_scores:
            raise RecipeError("start must be a whole number, and scorer one that the pairs were scored by")
        matches = [pair for pair in self.all if _fits(pair, query)]
        if query.get("sort"):
            matches.sort(key=lambda pair: _delta(pair, scorer), reverse=query["sort"] == "clearest")
        shown = matches[int(start) : int(start) + PAGE]
        return {"total": len(matches), "size": PAGE, "pairs": [_shown(pair) for pair in shown]}

    def clip(self, name: str) -> bytes | None:
        """A clip's FLAC bytes, None where the run has no such clip."""
        place = self.places.get(name)
        with self._lock:  # requests come in threads, and ClipBytes is not thread-safe
            return None if place is None else self.clips.get(name, place.shard)


def _fits(pair: Pair, query: Mapping[str, str]) -> bool:
    verdict, strategy, words = (query.get(key, "") for key in ("verdict", "strategy", "words"))
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
    fields = {key: getattr(pair, f"{side}_{key}") for key in ("id", "words", "steps")}
    scores = getattr(pair, f"{side}_scores").items()
    # Seeds have 63 bits, more than a number of JavaScript holds.
    seed = str(getattr(pair, f"{side}_seed"))
    return fields | {"seed": seed, "scores": {name: value if math.isfinite(value) else None for name, value in scores}}


def application(path: Path) -> Any:
    """The ASGI application of a run's pairs. Raises StoreError when the run has none."""
    from fastapi import Request, Response
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    pairs, app = Pairs(path), web.application(STATIC)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)

    @app.get("/about")
    def about() -> dict[str, Any]:
        return pairs.about()

    @app.get("/pairs")
    def page(request: Request) -> dict[str, Any]:
        return pairs.page(dict(request.query_params))

    @app.get("/clips/{name}")
    def clip(name: str) -> Response:
        data = pairs.clip(name)
        if data is None:
            raise web.Unknown("the run has no such clip")
        return Response(data, media_type="audio/flac")

    return app


def serve(path: Path, port: int, ready: Callable[[str], None]) -> None:
    """Serves a run's pairs on this machine at `port` (0: any that is free) until interrupted; `ready` is given the
    address. Raises StoreError when the run has no pairs, ServiceError when the port cannot be had.
    """
    web.serve(application(path), HOST, port, lambda base: ready(f"{base}/"))
