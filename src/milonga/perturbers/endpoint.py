"""One request to an OpenAI-compatible server: its address, its answer, and what a failure means.

The key is read from the environment and goes to the server alone: it is removed from whatever the server sends back.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError

from milonga.core.errors import DataError, RecipeError, ServiceError
from milonga.perturbers.prompting import shortened

if TYPE_CHECKING:
    from openai import APIStatusError

OPENAI = "https://api.openai.com/v1"
LONGEST_WAIT = 120.0  # seconds that a server's Retry-After is obeyed for
_NAME = re.compile(r"(?P<model>\S+?)(?:@(?P<url>https?://\S+))?")
_FILTERED = ("content_filter", "content_policy_violation")


@dataclass(frozen=True)
class Endpoint:
    """A model, as its server names it, that server's base URL, and the setting that names it, for messages."""

    model: str
    url: str = OPENAI
    setting: str = "plan.perturber"

    @classmethod
    def of(cls, name: str, kind: str = "llm", setting: str = "plan.perturber") -> "Endpoint":
        """The endpoint in a model's name, `kind:MODEL` or `kind:MODEL@URL`, which `setting` holds.

        Raises RecipeError for another form, and for a URL with a password or a query: a run keeps its recipe, so a
        secret in it would be kept too.
        """
        match = _NAME.fullmatch(name.removeprefix(f"{kind}:")) if name.startswith(f"{kind}:") else None
        if not match or ("@" in match["model"] and not match["url"]):  # "llm:x@localhost:8000" is no model of OpenAI's
            example = f"{kind}:qwen3@http://host/v1"
            raise RecipeError(f"{setting}: write a language model as {kind}:MODEL@URL, such as {example}")
        url = (match["url"] or OPENAI).rstrip("/")
        parts = _split(url, setting)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise RecipeError(f"{setting}: a URL with user, password or query would be kept; give MILONGA_LLM_KEY")
        return cls(match["model"], url, setting)

    def key(self, environment: Mapping[str, str] = os.environ) -> str:
        """The key for this server, "" for none.

        OPENAI_API_KEY is for OpenAI's own server; another one, which a recipe may name, gets MILONGA_LLM_KEY alone.
        Raises RecipeError for a key that no header can hold.
        """
        names = ("MILONGA_LLM_KEY", "OPENAI_API_KEY") if self.url == OPENAI else ("MILONGA_LLM_KEY",)
        name = next((name for name in names if environment.get(name, "").strip()), "")
        key = environment.get(name, "").strip()
        if not (key.isascii() and key.isprintable()) and key:
            raise RecipeError(f"{name} holds characters that no key has; set it again")
        return key


@dataclass(frozen=True)
class Reply:
    """What a model said, why it may not serve ("" if it may), the tokens it took, and where the server gives them the
    log-probabilities of its first token's likeliest values."""

    text: str
    flaw: str
    tokens_in: int
    tokens_out: int
    first: tuple[tuple[str, float], ...] = ()


class NoAnswerError(Exception):
    """The server gave no answer this time; asking again, after `wait` seconds where it says so, may help."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Token(BaseModel):
    token: str
    logprob: float


class _Position(_Token):
    top_logprobs: list[_Token] = []


class _Logprobs(BaseModel):
    content: list[_Position] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class Server:
    """A server that is asked through the `openai` client; several threads may ask at once.

    Raises RecipeError when the client is not installed.
    """

    def __init__(self, endpoint: Endpoint, key: str, timeout: float) -> None:
        try:
            from openai import OpenAI
        except ImportError:
            raise RecipeError("a language model needs the openai client: pip install 'milonga[llm]'") from None
        self.endpoint, self._key = endpoint, key
        # How often and how soon to ask again is decided in one place, by the caller.
        self._client = OpenAI(api_key=key or "none", base_url=endpoint.url, timeout=timeout, max_retries=0)

    def ask(self, words: str | list[dict[str, Any]], **options: Any) -> Reply:
        """The model's answer to one message, a text or its parts; `options` are further fields of the request.

        Raises NoAnswerError where asking again may help, DataError where the server's filter refuses these words, and
        ServiceError where no question would be answered.
        """
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        create: Any = self._client.chat.completions.with_raw_response.create
        try:
            raw = create(model=self.endpoint.model, messages=[{"role": "user", "content": words}], **options)
            return self._read(raw.http_response.content, bounded="max_tokens" in options)
        except APITimeoutError:
            failure: Exception = NoAnswerError("no answer in time")
        except APIConnectionError as error:
            failure = NoAnswerError(f"no connection ({type(error.__cause__ or error).__name__})")
        except APIStatusError as error:
            failure = self._failure(error)
        raise failure from None  # the client's errors hold the request, and that the key

    def _read(self, body: bytes, bounded: bool) -> Reply:
        try:
            answer = _Completion.model_validate_json(body)
        except ValidationError:
            raise NoAnswerError("an answer that is not a chat completion") from None
        choice, usage = answer.choices[0], answer.usage or _Usage()
        text, refusal = self._redact(choice.message.content or ""), self._redact(choice.message.refusal or "")
        positions = (choice.logprobs and choice.logprobs.content) or []
        first = tuple((one.token, one.logprob) for one in (positions[0].top_logprobs if positions else ()))
        flaw = "it was cut off at the length limit" if choice.finish_reason == "length" and not bounded else ""
        if refusal or choice.finish_reason == "content_filter":
            flaw = f"the model refused: {shortened(refusal or text or 'content filter')}"
        return Reply(text, flaw, usage.prompt_tokens or 0, usage.completion_tokens or 0, first)

    def _failure(self, error: "APIStatusError") -> Exception:
        """The error of a status other than 200: whether a retry may help, and what to change."""
        status, code = error.status_code, getattr(error, "code", None)
        message = f"HTTP {status} {shortened(self._message(error))}"
        where = f"{self.endpoint.url}, model {self.endpoint.model}"
        if code in _FILTERED:
            return DataError(f"the server's filter refused the caption: {message}")
        if code == "insufficient_quota":
            return ServiceError(f"{where}: no quota left: {message}; earlier answers are stored, so run again later")
        if status == 400 and "logprob" in message.lower():
            return DataError(f"{where}: gives no logprobs: {message}")
        if status in (408, 409, 425, 429) or status >= 500:
            return NoAnswerError(message, _retry_after(error.response.headers))
        if status in (401, 403):
            return ServiceError(f"{where}: the key is missing or refused: {message}; set MILONGA_LLM_KEY")
        return ServiceError(f"{where}: {message}; check {self.endpoint.setting}")

    def _message(self, error: "APIStatusError") -> str:
        body: Any = error.body
        message = body.get("message") if isinstance(body, dict) else body
        return self._redact(message) if isinstance(message, str) else ""

    def _redact(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as the header says them, in seconds or as a date; at most LONGEST_WAIT, None without a header."""
    message = headers.get("retry-after", "")
    try:
        seconds = float(message)
    except ValueError:
        try:
            date = parsedate_to_datetime(message)
        except ValueError:
            return None  # no header, or one that says nothing
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else None


def _split(url: str, setting: str) -> Any:
    try:
        return urlsplit(url)
    except ValueError:
        raise RecipeError(f"{setting}: what follows @ is no URL") from None
