"""The language-model perturber: wrong captions as the paper makes them (Table 1), by any OpenAI-compatible server.

A language model has no reliable seed. What makes a run repeatable is the cache of its answers, one file for each model
and request, which any number of runs and threads share. An answer is checked anew each time it is read.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Lock
from typing import Any, TypeVar

from pydantic import AliasChoices, Field

from milonga.core.cache import cache_folder
from milonga.core.config import Asking
from milonga.core.errors import DataError, RecipeError, ServiceError, StoreError
from milonga.core.ids import content_id, derive_seed
from milonga.core.protocols import Perturber
from milonga.core.records import Prompt, Record
from milonga.core.store import read_json, write_json
from milonga.perturbers.endpoint import Endpoint, NoAnswerError, Reply, Server
from milonga.perturbers.prompting import request, usable_captions

PATIENCE = 3  # captions in a row without any answer, before the server counts as gone
LONGEST_PAUSE = 60.0
T = TypeVar("T")


class Answer(Record):
    """A model's usable answer, with its request and the tokens it took: one file of the cache."""

    url: str
    model: str
    request: str = Field(validation_alias=AliasChoices("request", "asked"))
    count: int
    answer: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Spent:
    """What perturbing used: requests and their tokens, and the tokens that answers from the cache once used."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cached: int = 0
    cached_tokens_in: int = 0
    cached_tokens_out: int = 0


def named(name: str, asking: Asking | None = None) -> "LlmPerturber":
    """The perturber `llm:MODEL@URL` with its answers in the user's cache; raises RecipeError as its parts do."""
    return LlmPerturber(Endpoint.of(name), cache_folder("llm"), asking)


class LanguageModel:
    """A model that is asked through its server until an answer is usable; threads may share it.

    `kind:MODEL@URL` is its name. `pause` is the first wait in seconds after a failure, doubled with each
    further one. Raises RecipeError when the `openai` client is not installed.
    """

    kind, unit = "llm", "captions"  # what is asked about, each by one or several requests

    def __init__(self, endpoint: Endpoint, cache: Path, asking: Asking | None = None, pause: float = 1.0) -> None:
        self.asking = asking or Asking()
        self.name, self.concurrency = f"{self.kind}:{endpoint.model}@{endpoint.url}", self.asking.concurrency
        self._endpoint, self._cache, self._pause = endpoint, cache, pause
        self._server = Server(endpoint, endpoint.key(), self.asking.timeout)
        self._stopped, self._lock = Event(), Lock()
        self._busy: defaultdict[str, Lock] = defaultdict(Lock)
        self._spent, self._silent, self._reason = Spent(), 0, f"{self.name}: stopped"

    def stop(self) -> None:
        """Ends waits and further attempts; a request in progress ends with its answer or its time-out."""
        self._stopped.set()

    def spent(self) -> dict[str, Any]:
        """Requests and tokens so far, failed attempts included, and their cost where both prices are known."""
        spent, asking = self._spent, self.asking
        cost = None
        if asking.price_in is not None and asking.price_out is not None:
            cost = (spent.tokens_in * asking.price_in + spent.tokens_out * asking.price_out) / 1e6
        return {"perturber": self.name, **asdict(spent), "cost": cost}

    def spent_text(self) -> str:
        """The same in a line."""
        spent = self.spent()
        cost = "" if spent["cost"] is None else f", cost {spent['cost']:.4g}"
        return (
            f"{self.name}: {spent['requests']} requests, {spent['tokens_in']} tokens in and {spent['tokens_out']} out"
            f"{cost}; {spent['cached']} answers from the cache"
        )

    def _from_server(
        self, ask: Callable[[str], Reply], check: Callable[[Reply], tuple[T, str]], seed: int
    ) -> tuple[T, Reply]:
        """Asks until an answer is usable: at once after a bad answer, after a growing pause after none."""
        problem, failure, answered = "", "", False
        for attempt in range(self.asking.attempts):
            try:
                reply = ask(problem)
            except NoAnswerError as error:
                failure = str(error)
                if attempt + 1 < self.asking.attempts:
                    self._rest(attempt, error.wait, seed)
                continue
            answered = True
            result, problem = check(reply)
            problem = reply.flaw or problem
            failure = problem
            if not problem:
                return result, reply
        if not answered:
            self._note_silence(failure)
        raise DataError(f"{self.name}: refused after {self.asking.attempts} attempts: {failure}")

    def _stored(
        self, path: Path, read: Callable[[dict[str, Any]], T | None], ask: Callable[[], tuple[T, dict[str, Any]]]
    ) -> T:
        """What `read` makes of the answer in a file of the cache, else what `ask` gives, with the answer to be stored.

        `read` gives None for an answer that is not there, damaged or not usable. The same question twice is sent once.
        """
        with self._lock:
            busy = self._busy[path.name]
        with busy:
            try:
                stored = read_json(path) if path.exists() else {}
                value = read(stored)
            except (StoreError, KeyError, TypeError, ValueError):
                value = None
            else:
                if value is not None:
                    self._count(cached=1, cached_tokens_in=stored.get("tokens_in", 0),
                                cached_tokens_out=stored.get("tokens_out", 0))  # fmt: skip
            if value is None:
                value, answer = ask()
                write_json(path, answer)
            return value

    def _ask(self, message: str | list[dict[str, Any]], **options: Any) -> Reply:
        if self._stopped.is_set():
            raise ServiceError(self._reason)
        self._count(requests=1)
        try:
            reply = self._server.ask(message, **options)
        except ServiceError as error:
            raise self._ended(str(error)) from None
        self._count(tokens_in=reply.tokens_in, tokens_out=reply.tokens_out)
        with self._lock:
            self._silent = 0
        return reply

    def _rest(self, attempt: int, wanted: float | None, seed: int) -> None:
        spread = 0.5 + derive_seed(seed, attempt) % 1000 / 1000  # callers that failed together come back apart
        own = min(self._pause * 2**attempt * spread, LONGEST_PAUSE)
        self._stopped.wait(own if wanted is None else wanted + self._pause * (spread - 0.5))

    def _note_silence(self, failure: str) -> None:
        with self._lock:
            self._silent += 1
            gone = self._silent >= PATIENCE
        if gone:
            raise self._ended(
                f"{self.name} left {PATIENCE} {self.unit} in a row without an answer ({failure}); earlier answers are "
                "stored: run again when the server is well"
            )

    def _ended(self, reason: str) -> ServiceError:
        """The error that ends all requests: every other thread raises it too, with the same cause."""
        with self._lock:
            self._reason = self._reason if self._stopped.is_set() else reason
            self._stopped.set()
            return ServiceError(self._reason)

    def _count(self, **more: int) -> None:
        with self._lock:
            self._spent = replace(self._spent, **{name: getattr(self._spent, name) + n for name, n in more.items()})


class LlmPerturber(LanguageModel):
    """A `Perturber` that asks a language model; `llm:MODEL@URL` is its name."""

    def perturb(self, prompt: Prompt, count: int, temporal: bool, seed: int) -> list[str]:
        """`count` distinct wrong captions, from the cache or the server; `seed` only spreads the waits.

        Raises DataError when no answer is usable, with the last one's problem; ServiceError when the server refuses key
        or model, or left `PATIENCE` captions in a row without an answer. No refusal is cached.
        """
        if count < 1:
            return []
        first = request(prompt.text, count, temporal)
        path = self._cache / f"{content_id(self._endpoint.url, self._endpoint.model, first, count)}.json"

        def check(text: str) -> tuple[list[str], str]:
            return usable_captions(text, prompt.text, count, temporal)

        def ask(problem: str) -> Reply:
            return self._ask(request(prompt.text, count, temporal, problem))

        def read(stored: dict[str, Any]) -> list[str] | None:
            return check(Answer.model_validate(stored).answer)[0] or None

        def fresh() -> tuple[list[str], dict[str, Any]]:
            captions, reply = self._from_server(ask, lambda reply: check(reply.text), seed)
            answer = Answer(
                url=self._endpoint.url, model=self._endpoint.model, request=first, count=count, answer=reply.text,
                tokens_in=reply.tokens_in, tokens_out=reply.tokens_out,
            )  # fmt: skip
            return captions, answer.model_dump()

        return self._stored(path, read, fresh)


def perturber(name: str, asking: Asking | None = None) -> Perturber:
    """A perturber by name: `rules`, or a language model as `llm:MODEL@URL`, called as `asking` says.

    Raises RecipeError for another name, and where the `openai` client of a language model is not installed.
    """
    from milonga.perturbers.rules import RulePerturber

    if name == RulePerturber.name:
        return RulePerturber()
    if not name.startswith("llm:"):
        raise RecipeError(f"unknown perturber {name!r}: choose {RulePerturber.name} or llm:MODEL@URL")
    return named(name, asking)
