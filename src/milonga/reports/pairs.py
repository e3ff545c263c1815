"""The command `pairs`: a run's pairs in the browser, the winner beside the loser, by a server of this machine alone.

Every pair and clip is read from the run on request, so that a run of any size opens at once. The page is behind a
token that is new at every start. A correction (swap, drop, keep) is stored in the run's `corrections/`, and training
uses it.
"""

import math
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from secrets import compare_digest, token_urlsafe
from threading import Lock
from typing import Any

from milonga.core import web
from milonga.core.audio import from_flac
from milonga.core.errors import RecipeError, StoreError
from milonga.core.records import Pair, Record
from milonga.core.store import Run
from milonga.data.corrections import correct_pair, corrected, corrections
from milonga.data.pairs import ClipBytes, planned, refusals
from milonga.maths.clip_view import clip_view

PAGE = 20  # pairs that the page shows at once
SIDES = ("chosen", "rejected")
HOST = "127.0.0.1"
FOLDER = "milonga.reports/templates/pairs"
STATIC = web.SHARED | {f"/page/{name}": (FOLDER, name) for name in ("pairs.js", "pairs.css")}
VIEWS = 256  # of clips that are held in memory


class Action(Record):
    """A correction of a pair: `swap`, `drop`, `keep`, or empty for none."""

    action: str


class Pairs:
    """A run's pairs, kept and refused, to be looked through; `Shards` damage and the like raise StoreError."""

    def __init__(self, path: Path) -> None:
        self.run, self._lock = Run(path), Lock()
        self.all = [pair for stage in ("pair", "refused") for pair in self.run.stage(stage).read_records(Pair)]
        if not self.all:
            raise StoreError(f"{path} holds no pairs: run it until `pair`")
        self.clips, self.actions = ClipBytes(self.run), corrections(self.run)
        self.view = lru_cache(VIEWS)(self._view)

    @cached_property
    def places(self) -> Mapping[str, Any]:
        """Where each clip is."""
        return planned(self.run)

    def about(self) -> dict[str, Any]:
        """What there is to choose from: strategies, reasons with their counts, scorers."""
        refused = {reason: count for reason, count in refusals(self._corrected()).items() if count}
        accepted = len(self.all) - sum(refused.values())
        strategies = sorted({pair.strategy for pair in self.all})
        verdicts = {"kept": accepted} | refused | ({"corrected by hand": len(self.actions)} if self.actions else {})
        name, scorers = self.run.path.resolve().name, sorted(self.all[0].chosen_scores)
        return {"run": name, "verdicts": verdicts, "strategies": strategies, "scorers": scorers}

    def page(self, query: Mapping[str, str]) -> dict[str, Any]:
        """One page of the pairs that match, and how many match in all.

        `pair` is the id of the only one that is shown. Else `verdict` is `kept`, a condition's name or `corrected by
        hand`, `strategy` a strategy, `words` part of the prompt (each may be left out); `sort` is `closest`, `clearest`
        (by Δ of `scorer`) or empty (the original order); `start` counts from 0. Raises RecipeError for a start or
        scorer that makes no sense.
        """
        start, scorer = query.get("start", "0"), query.get("scorer") or sorted(self.all[0].chosen_scores)[0]
        if not (start.isascii() and start.isdecimal()) or scorer not in self.all[0].chosen_scores:
            raise RecipeError("start must be a whole number, and scorer one that the pairs were scored by")
        matches = [pair for pair in self._corrected() if self._fits(pair, query)]
        if query.get("sort"):
            matches.sort(key=lambda pair: _delta(pair, scorer), reverse=query["sort"] == "clearest")
        shown = matches[int(start) : int(start) + PAGE]
        return {"total": len(matches), "size": PAGE, "pairs": [self._shown(pair) for pair in shown]}

    def correct(self, pair_id: str, action: str) -> dict[str, Any]:
        """Stores a correction and returns the pair as it is then. Raises Unknown for a pair that is not here."""
        pair = next((pair for pair in self.all if pair.id == pair_id), None)
        if pair is None:
            raise web.Unknown("the run has no such pair")
        with self._lock:
            correct_pair(self.run, pair_id, action)
            self.actions = {name: kind for name, kind in self.actions.items() if name != pair_id}
            if action:
                self.actions[pair_id] = action
        return self._shown(corrected(pair, action))

    def clip(self, name: str) -> bytes | None:
        """A clip's FLAC bytes, None where the run has no such clip."""
        place = self.places.get(name)
        with self._lock:  # requests come in threads, and ClipBytes is not thread-safe
            return None if place is None else self.clips.get(name, place.shard)

    def _view(self, name: str) -> dict[str, Any] | None:
        """What the player draws of a clip."""
        data = self.clip(name)
        return None if data is None else clip_view(from_flac(data))

    def _corrected(self) -> list[Pair]:
        return [corrected(pair, self.actions.get(pair.id, "")) for pair in self.all]

    def _fits(self, pair: Pair, query: Mapping[str, str]) -> bool:
        if query.get("pair"):
            return pair.id == query["pair"]
        verdict, strategy, words = (query.get(key, "") for key in ("verdict", "strategy", "words"))
        by_hand = verdict == "corrected by hand" and pair.id in self.actions
        return (
            (not verdict or by_hand or (pair.refused.partition(":")[0] or "kept") == verdict)
            and (not strategy or pair.strategy == strategy)
            and words.lower() in pair.prompt.lower()
        )

    def _shown(self, pair: Pair) -> dict[str, Any]:
        """A pair as the page wants it; a score that is not a number is null."""
        fields = {"id": pair.id, "prompt": pair.prompt, "strategy": pair.strategy, "refused": pair.refused}
        sides = {side: _side(pair, side) for side in SIDES}
        return fields | sides | {"correction": self.actions.get(pair.id, "")}


def _delta(pair: Pair, scorer: str) -> float:
    """Δ for sorting; a pair that could not be judged counts as the closest."""
    delta = pair.chosen_scores[scorer] - pair.rejected_scores[scorer]
    return delta if math.isfinite(delta) else -math.inf


def _side(pair: Pair, side: str) -> dict[str, Any]:
    fields = {key: getattr(pair, f"{side}_{key}") for key in ("id", "words", "steps")}
    scores = getattr(pair, f"{side}_scores").items()
    # Seeds have 63 bits, more than a number of JavaScript holds.
    seed = str(getattr(pair, f"{side}_seed"))
    return fields | {"seed": seed, "scores": {name: value if math.isfinite(value) else None for name, value in scores}}


def application(path: Path, token: str) -> Any:
    """The ASGI application of a run's pairs, behind a token in its paths. Raises StoreError when the run has none."""
    from fastapi import APIRouter, Depends, Request
    from fastapi.responses import HTMLResponse, Response

    pairs = Pairs(path)

    def only_owner(given: str) -> None:
        if not compare_digest(given.encode(), token.encode()):
            raise web.Unknown("this link is not valid: open the one that `milonga pairs` printed")

    routes = APIRouter(prefix="/pairs/{given}", dependencies=[Depends(only_owner)])
    routes.get("")(lambda: HTMLResponse(web.page(FOLDER, "page.html")))

    @routes.get("/about")
    def about() -> dict[str, Any]:
        return pairs.about()

    @routes.get("/pairs")
    def page(request: Request) -> dict[str, Any]:
        return pairs.page(dict(request.query_params))

    @routes.put("/pairs/{pair}")
    def correct(pair: str, action: Action) -> dict[str, Any]:
        return pairs.correct(pair, action.action)

    @routes.get("/clips/{name}")
    def clip(name: str) -> Response:
        data = pairs.clip(name)
        if data is None:
            raise web.Unknown("the run has no such clip")
        return Response(data, media_type="audio/flac")

    @routes.get("/clips/{name}/view")
    def view(name: str) -> dict[str, Any]:
        view = pairs.view(name)
        if view is None:
            raise web.Unknown("the run has no such clip")
        return view

    app = web.application(STATIC, local=True)
    app.include_router(routes)
    return app


def serve(path: Path, port: int, ready: Callable[[str], None]) -> None:
    """Serves a run's pairs on this machine at `port` (0: any that is free) until interrupted; `ready` is given the
    link. Raises StoreError when the run has no pairs, ServiceError when the port cannot be had.
    """
    token = token_urlsafe(16)
    web.serve(application(path, token), HOST, port, lambda base: ready(f"{base}/pairs/{token}"))
