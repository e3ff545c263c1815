"""A small listening test from seeds, its server as a real process, and raters who listen to it over HTTP."""

import http.client
import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from serving import ask, serving

from milonga.core.records import Clip, Prompt
from milonga.listening_test.material import Plan, Source, make_test
from milonga.listening_test.ratings import Ratings
from milonga.listening_test.records import DEFAULT_KINDS, Test
from milonga.listening_test.screening import TONE_ITEMS, tone_answer

RATE = 16000
SYSTEMS = ("zebra-base", "zebra-sft", "zebra-aligned", "reference")
HOSTILE = "<script>document.title='owned'</script> a bell & \"quotes\" '<img src=x onerror=alert(1)>'"
PLAN = Plan("A small test", DEFAULT_KINDS, "reference", None, per_rater=4, raters_per_clip=4, seed=5)


def material(prompts: int, seconds: float = 0.3) -> tuple[list[Prompt], dict[str, dict[str, Source]]]:
    """Prompts, the hostile one among them, and a clip of each by each system."""
    texts = [HOSTILE, *(f"a bell rings {number} times" for number in range(1, prompts))]
    rows = [Prompt.of(text, "small") for text in texts]
    return rows, {
        system: {one.id: Source(sound(place * 31 + number, seconds)) for number, one in enumerate(rows)}
        for place, system in enumerate(SYSTEMS)
    }


def sound(seed: int, seconds: float) -> Clip:
    """A short tone in noise, different for every seed."""
    rng, time_ = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    wave = rng.uniform(0.05, 0.5) * np.sin(2 * np.pi * rng.uniform(300, 3000) * time_) + 0.01 * rng.normal(
        size=len(time_)
    )
    return Clip(wave.astype(np.float32), RATE)


def small_test(folder: Path, prompts: int = 9, plan: Plan = PLAN, seconds: float = 0.3) -> Test:
    """A test folder: three systems and a reference; six of the nine prompts are judged."""
    return make_test(folder, plan, *material(prompts, seconds))


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server as the command starts it, and the admin page's link; killed with -9 at the end."""
    with serving("listen", "serve", str(folder), "--port", str(port)) as (process, link):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/admin/[\w-]{22}", link), link
        yield process, link


def until_answered(base: str, method: str, path: str, body: Any = None) -> Any:
    """The answer's JSON, asking again while the server is away, as the page does."""
    for _ in range(600):
        try:
            status, _, answer = ask(base, method, path, body)
        except (OSError, http.client.HTTPException):
            time.sleep(0.1)
            continue
        assert status == 200, (status, answer)
        return answer
    raise AssertionError("the server did not come back")


class Rater:
    """Someone who opens a link and answers everything; `marks` decides, `given` is what the server acknowledged."""

    def __init__(self, base: str, token: str, number: int, test: Test, folder: Path | None = None) -> None:
        self.folder, self.trials, self.pace = folder, [], 1.0  # `pace`: of a clip's length, how long it is listened to
        self.base, self.path, self.number, self.test = base, f"/r/{token}", number, test
        self.given: dict[int, dict[str, Any]] = {}
        self.seen: list[str] = []
        self.rng = np.random.default_rng(number)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request of the rater's own, remembered word for word."""
        answer = until_answered(self.base, method, self.path + path, body)
        self.seen.append(json.dumps(answer) if isinstance(answer, dict) else "")
        return answer

    def tones(self) -> Any:
        """Does the headphone check, all right, and gives the state."""
        state = self.ask("GET", "/state")
        for item in range(state["tones"]["answered"], TONE_ITEMS):
            until_answered(self.base, "GET", f"{self.path}/tones/{item}")
            state = self.ask("PUT", f"/tones/{item}", {"answer": tone_answer(self.test.seed, self.number, item)})
        return state

    def judgement(self, trial: dict[str, Any]) -> dict[str, Any]:
        """A chance answer."""
        if trial["kind"] == "rate":
            return {"ovl": int(self.rng.integers(1, 6)), "rel": int(self.rng.integers(1, 6))}
        if trial["kind"] == "mushra":
            return {"scores": {side: int(self.rng.integers(0, 101)) for side in trial["sides"]}}
        return {"better": str(self.rng.choice(["a", "b", "same"]))}

    def answer(self, trial: dict[str, Any], given: dict[str, Any]) -> dict[str, Any] | None:
        """Sends an answer and gives the new state; None ends the session."""
        state = self.ask("PUT", f"/trials/{trial['place']}", given | {"seconds": 1.5})
        self.given[trial["place"]] = given
        return state

    def session(self) -> None:
        """Everything, from wherever the session stands."""
        state = self.tones()
        self.trials = Ratings(self.folder / "ratings.sqlite").trials(self.number) if self.folder else []
        while state is not None and state["next"] is not None:
            trial = state["next"]
            for side in trial["sides"]:
                self.ask("GET", f"/trials/{trial['place']}/{side}")
            time.sleep(self.pace * len(trial["sides"]) * self.test.clips[0].seconds)
            state = self.answer(trial, self.judgement(trial))
