"""The language-model perturber: the paper's own way to wrong captions (Table 1), over any OpenAI-compatible server.

A language model has no seed that could be relied on: what makes a run repeatable is the cache of its answers, one file
for each model and question, which any number of runs and threads share. An answer is checked anew each time it is read.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Lock
from typing import Any

from pydantic import ValidationError

from milonga.core.cache import cache_folder
from milonga.core.config import Asking
from milonga.core.errors import DataError, ServiceError, StoreError
from milonga.core.ids import content_id, derive_seed
from milonga.core.records import Prompt, Record
from milonga.core.store import read_json, write_json
from milonga.perturbers.answers import accepted
from milonga.perturbers.endpoint import Endpoint, NoAnswerError, Reply, Server
from milonga.perturbers.instructions import again, instructions

PATIENCE = 3  # captions in a row without any answer, before the server counts as gone
LONGEST_PAUSE = 60.0


class Answer(Record):
    """A model's answer that served, with its question and the tokens it took: one file of the cache."""

    url: str
    model: str
    asked: str
    count: int
    answer: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Spent:
    """What perturbing took: requests and their tokens, and the tokens that answers from the cache once took."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cached: int = 0
    cached_tokens_in: int = 0
    cached_tokens_out: int = 0


def named(name: str, asking: Asking | None = None) -> "LlmPerturber":
    """The perturber `llm:MODEL@URL`, its answers, which were paid for, kept; raises RecipeError as its parts do."""
    return LlmPerturber(Endpoint.of(name), cache_folder("llm"), asking)


class LlmPerturber:
    """Asks a language model; `llm:MODEL@URL` is its name. Threads may share it.

    `pause` is the first wait in seconds after a failure, doubled with each further one. Raises RecipeError when the
    `openai` client is not installed.
    """

    def __init__(self, endpoint: Endpoint, cache: Path, asking: Asking | None = None, pause: float = 1.0) -> None:
        self.asking = asking or Asking()
        self.name, self.concurrency = f"llm:{endpoint.model}@{endpoint.url}", self.asking.concurrency
        self._endpoint, self._cache, self._pause = endpoint, cache, pause
        self._server = Server(endpoint, endpoint.key(), self.asking.timeout)
        self._stopped, self._lock = Event(), Lock()
        self._busy: defaultdict[str, Lock] = defaultdict(Lock)
        self._spent, self._silent, self._reason = Spent(), 0, f"{self.name}: stopped"

    def perturb(self, prompt: Prompt, count: int, temporal: bool, seed: int) -> list[str]:
        """`count` distinct wrong captions, from the cache or the server; `seed` only spreads the waits.

        Raises DataError when no answer would do, with the last one's problem; ServiceError when the server refuses key
        or model, or left `PATIENCE` captions in a row without an answer. No refusal is cached.
        """
        if count < 1:
            return []
        asked = instructions(prompt.text, count, temporal)
        name = content_id(self._endpoint.url, self._endpoint.model, asked, count)

        def check(text: str) -> tuple[list[str], str]:
            return accepted(text, prompt.text, count, temporal)

        with self._lock:
            busy = self._busy[name]
        with busy:  # the same question twice is asked once
            return self._kept(name, check) or self._answered(name, asked, count, check, seed)

    def stop(self) -> None:
        """Ends waits and further attempts; a request that is under way ends with its answer or its time-out."""
        self._stopped.set()

    def spent(self) -> dict[str, Any]:
        """Requests and tokens so far, failed attempts included, and their cost where both prices are known."""
        spent, asking = self._spent, self.asking
        told: dict[str, Any] = {"perturber": self.name, **asdict(spent), "cost": None}
        if asking.price_in is not None and asking.price_out is not None:
            told["cost"] = (spent.tokens_in * asking.price_in + spent.tokens_out * asking.price_out) / 1e6
        return told

    def _kept(self, name: str, check: Callable[[str], tuple[list[str], str]]) -> list[str]:
        """The captions of a cached answer, none where there is no sound one: then the model is asked."""
        path = self._cache / f"{name}.json"
        if not path.exists():
            return []
        try:
            kept = Answer.model_validate(read_json(path))
        except (StoreError, ValidationError):
            return []
        captions, _ = check(kept.answer)
        if captions:
            self._count(cached=1, cached_tokens_in=kept.tokens_in, cached_tokens_out=kept.tokens_out)
        return captions

    def _answered(
        self, name: str, asked: str, count: int, check: Callable[[str], tuple[list[str], str]], seed: int
    ) -> list[str]:
        """Asks until an answer serves: at once after a bad answer, after a growing pause after none."""
        problem, failure, heard = "", "", False
        for attempt in range(self.asking.attempts):
            try:
                reply = self._ask(again(asked, problem))
            except NoAnswerError as error:
                failure = str(error)
                if attempt + 1 < self.asking.attempts:
                    self._rest(attempt, error.wait, seed)
                continue
            heard = True
            captions, problem = ([], reply.flaw) if reply.flaw else check(reply.text)
            failure = problem
            if captions:
                self._keep(name, asked, count, reply)
                return captions
        if not heard:
            self._note_silence(failure)
        raise DataError(f"{self.name}: refused after {self.asking.attempts} attempts: {failure}")

    def _ask(self, words: str) -> Reply:
        if self._stopped.is_set():
            raise ServiceError(self._reason)
        self._count(requests=1)
        try:
            reply = self._server.ask(words)
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
                f"{self.name} left {PATIENCE} captions in a row without an answer ({failure}); what was answered is "
                "kept: run again when the server is well"
            )

    def _ended(self, reason: str) -> ServiceError:
        """The error that ends all asking: no other thread need find it out for itself, and each tells the cause."""
        with self._lock:
            self._reason = self._reason if self._stopped.is_set() else reason
            self._stopped.set()
            return ServiceError(self._reason)

    def _keep(self, name: str, asked: str, count: int, reply: Reply) -> None:
        answer = Answer(
            url=self._endpoint.url,
            model=self._endpoint.model,
            asked=asked,
            count=count,
            answer=reply.text,
            tokens_in=reply.tokens_in,
            tokens_out=reply.tokens_out,
        )
        write_json(self._cache / f"{name}.json", answer.model_dump())

    def _count(self, **more: int) -> None:
        with self._lock:
            self._spent = replace(self._spent, **{name: getattr(self._spent, name) + n for name, n in more.items()})
