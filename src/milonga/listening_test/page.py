"""What raters read and where they go: `page.toml` in a test's folder, its texts, questions and completion codes.

```toml
instructions = "You will rate sounds that a computer made."
consent = "I am 18 or older and agree that my answers are stored without my name."
contact = "sound-lab@example.org"
ask = ["device", "hearing"]          # questions that come with Milonga; "age" is another
comment = true                       # a free comment at the end
completion_url = "https://app.prolific.com/submissions/complete?cc=C1A2B3"

[[questions]]
name = "training"
text = "Do you work with sound?"
choices = ["Yes", "No"]

[texts]                              # other words or another language; `milonga listen texts` prints all of them
next = "Weiter"
```
"""

import json
import re
import tomllib
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, ValidationError, field_validator

from milonga.core.errors import RecipeError
from milonga.core.records import Record

FILE = "page.toml"
CONSENT, COMMENT = "consent", "comment"  # names under which these are stored beside answers to questions
MAX_TEXT = 2000  # letters of an answer or a comment


class Question(Record):
    """A question before the test; without `choices` the answer is free text."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}$")
    text: str
    choices: tuple[str, ...] = ()
    required: bool = True


class Page(Record):
    """Your settings of the raters' page; every one of them is optional.

    `participant` names the parameter of the entry link that identifies a person, such as PROLIFIC_PID; without it the
    first parameter does. `max_raters` limits how many may join by that link. `completion_code` and `completion_url` are
    shown at the end, `failed_code` and `failed_url` to those whom the headphone check ends early; in a URL `{NAME}`
    stands for a parameter of the entry link.
    """

    language: str = "en"
    instructions: str = ""
    consent: str = ""
    contact: str = ""
    ask: tuple[Literal["device", "hearing", "age"], ...] = ()
    questions: tuple[Question, ...] = ()
    comment: bool = False
    participant: str = ""
    max_raters: int | None = Field(default=None, ge=1)
    completion_code: str = ""
    completion_url: str = ""
    failed_code: str = ""
    failed_url: str = ""
    texts: dict[str, str] = Field(default_factory=dict)

    @field_validator("completion_url", "failed_url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if value and not re.match(r"https?://[^\s/]", value):
            raise ValueError("is not a web address: it begins with https://")
        return value

    @field_validator("texts")
    @classmethod
    def _check_texts(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if name not in TEXTS:
                close = get_close_matches(name, TEXTS, 1)
                raise ValueError(f"no text {name!r}" + (f": do you mean {close[0]!r}?" if close else ""))
            missing = set(re.findall(r"\{\w+\}", TEXTS[name])) - set(re.findall(r"\{\w+\}", text))
            if missing:
                raise ValueError(f"{name!r} lacks {', '.join(sorted(missing))}")
        return value

    def all_texts(self) -> dict[str, str]:
        """Every text of the page by its name, yours where you gave one."""
        return TEXTS | self.texts

    def all_questions(self) -> list[Question]:
        """The questions before the test: those that come with Milonga, then yours."""
        texts = self.all_texts()
        own = [
            Question(name=name, text=texts[f"ask_{name}"], choices=tuple(texts[f"ask_{name}_choices"].split("|")))
            for name in self.ask
        ]
        return [*own, *self.questions]

    def check_answers(self, answers: dict[str, str]) -> str:
        """Why answers to the questions and the consent cannot be stored; empty where they can."""
        questions = {question.name: question for question in self.all_questions()}
        for name, answer in answers.items():
            if name not in questions and name not in (CONSENT, COMMENT):
                return f"there is no question {name!r}"
            if len(answer) > MAX_TEXT:
                return f"{name}: more than {MAX_TEXT} letters"
            if name in questions and answer and questions[name].choices and answer not in questions[name].choices:
                return f"{name}: {answer!r} is not one of the answers"
        missing = [name for name, question in questions.items() if question.required and not answers.get(name)]
        if self.consent and not answers.get(CONSENT):
            missing.append(CONSENT)
        return f"still to be answered: {', '.join(missing)}" if missing else ""

    def ending(self, passed: bool, parameters: dict[str, str]) -> dict[str, Any]:
        """What the last screen shows: a completion code, an address, and whether it invites a comment."""
        code, url = (self.completion_code, self.completion_url) if passed else (self.failed_code, self.failed_url)
        for name, value in parameters.items():
            url = url.replace(f"{{{name}}}", quote(value, safe=""))
        return {"code": code, "url": url, "comment": self.comment}


TEXTS: dict[str, str] = json.loads(
    (files("milonga.listening_test") / "static" / "texts.json").read_text(encoding="utf-8")
)


def read_page(folder: Path) -> Page:
    """The page settings of a test's folder, the defaults where there is no `page.toml`; RecipeError for a wrong one."""
    path = folder / FILE
    if not path.exists():
        return Page()
    try:
        return Page.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            close = get_close_matches(place, Page.model_fields, 1)
            raise RecipeError(
                f"{path}: no setting {place}" + (f": do you mean {close[0]}?" if close else "")
            ) from error
        raise RecipeError(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}") from error


def texts_toml() -> str:
    """All texts of the raters' page as the `[texts]` table of a `page.toml`, to be translated."""
    import tomli_w

    return tomli_w.dumps({"language": "en", "texts": TEXTS})
