"""What raters and the admin may see and do. No answer to a rater names a system, a file or another rater."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from milonga.core.records import Record
from milonga.core.web import NotNow, Unknown
from milonga.listening_test import screening
from milonga.listening_test.database import FILE, now
from milonga.listening_test.design import choose_prompts, plan_session
from milonga.listening_test.material import clip_file, read_test
from milonga.listening_test.ratings import PromptProgress, Ratings, rater_name
from milonga.listening_test.records import BROKEN
from milonga.listening_test.screening import TONE_ITEMS, Verdict, verdicts

# A session without activity for this long no longer reserves its prompts.
IDLE = timedelta(hours=1)
Mark = Annotated[int, Field(ge=1, le=5, strict=True)]


class Judgement(Record):
    """A rater's answer: `ovl` and `rel` for a clip, `better` for two; `seconds` since the trial was shown."""

    ovl: Mark | None = None
    rel: Mark | None = None
    better: Literal["a", "b", "same"] | None = None
    seconds: float = Field(ge=0, le=86400, allow_inf_nan=False, strict=True)


class Sessions:
    """A test folder while it is served: what the server's routes do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.test = folder, read_test(folder)
        self.ratings = Ratings(folder / FILE)

    def rater(self, token: str) -> int:
        """The number of the rater with this link's token; Unknown for any other token."""
        number = self.ratings.number_of(token)
        if number is None:
            raise Unknown("this link is not valid: ask the sender for a new one")
        return number

    def state(self, number: int) -> dict[str, Any]:
        """A rater's progress and next trial; the first call plans the session."""
        self.ratings.begin(number, lambda: self._plan(number))
        return self._state(number)

    def trial(self, number: int, place: int) -> dict[str, Any]:
        """A trial as its rater sees it: the next one, or one already judged; Unknown for any other."""
        trials, judged = self.ratings.trials(number), self.ratings.judged(number)
        self._check_reached(place, len(trials), judged)
        trial = trials[place]
        return {
            "place": place,
            "kind": trial.kind,
            "first": place == 0 or trials[place - 1].kind != trial.kind,
            "prompt": self.test.prompt(trial.prompt_id).text,
            "given": judged.get(place),
        }

    def clip(self, number: int, place: int, side: str) -> Path:
        """The file of a trial's clip `a` or `b`; Unknown where the trial has none or has not been reached."""
        trials = self.ratings.trials(number)
        self._check_reached(place, len(trials), self.ratings.judged(number))
        system = {"a": trials[place].a, "b": trials[place].b}.get(side)
        if not system:
            raise Unknown("there is no such clip")
        return clip_file(self.folder, self.test.clip(trials[place].prompt_id, system))

    def example(self, which: str) -> Path:
        """The file of the `good` or the `broken` example."""
        system = {"good": self.test.reference or self.test.systems[0], "broken": BROKEN}.get(which)
        if system is None:
            raise Unknown("there is no such example")
        return clip_file(self.folder, self.test.clip(self.test.example.id, system))

    def judge(self, number: int, place: int, judgement: Judgement) -> dict[str, Any]:
        """Stores a rating of the next trial, or a new one of an earlier trial, and returns the rater's state.

        Raises NotNow where the headphone check is not done, or where the answer is of the other kind.
        """
        trials = self.ratings.trials(number)
        self._check_reached(place, len(trials), self.ratings.judged(number))
        if self.ratings.tones_answered(number) < TONE_ITEMS:
            raise NotNow("the headphone check comes first")
        expected = {"ovl", "rel"} if trials[place].kind == "rate" else {"better"}
        answers = judgement.model_dump(exclude={"seconds"})
        if {name for name, value in answers.items() if value is not None} != expected:
            raise NotNow(f"this trial asks for {' and '.join(sorted(expected))}")
        self.ratings.judge(number, place, answers, judgement.seconds)
        return self._state(number)

    def tones(self, number: int, item: int) -> bytes:
        """The sound of an item of the headphone check."""
        self._check_item(item)
        return screening.tones(self.test.seed, number, item)

    def answer_tone(self, number: int, item: int, answer: int) -> dict[str, Any]:
        """Stores the answer to an item of the headphone check and returns the rater's state. Items come in order."""
        self._check_item(item)
        if item > self.ratings.tones_answered(number):
            raise NotNow("an earlier sound comes first")
        correct = answer == screening.tone_answer(self.test.seed, number, item)
        self.ratings.answer_tone(number, item, answer, correct)
        return self._state(number)

    def progress(self) -> dict[str, Any]:
        """What the admin page shows: links, progress and exclusions of raters, and the number of raters per prompt."""
        none = {"tones": None, "checks": 0, "failed": 0, "excluded": ""}  # a rater who has judged nothing yet
        checks = {verdict.rater: verdict.model_dump(exclude={"rater"}) for verdict in self.verdicts()}
        counts = self.covered(finished=True)
        names = [(rater, rater_name(rater.number)) for rater in self.ratings.raters()]
        raters = [vars(rater) | {"name": name} | checks.get(name, none) for rater, name in names]
        covered = [counts.get(prompt.id, 0) for prompt in self.test.prompts]
        return {
            "title": self.test.title,
            "systems": self.test.systems,
            "target": self.test.raters_per_clip,
            "prompts": len(self.test.prompts),
            "covered": covered,
            "raters": raters,
            "more": self.missing(covered),
            "now": now(),
        }

    def missing(self, covered: list[int]) -> int:
        """The number of further complete sessions that bring every prompt to the target."""
        left = [max(0, self.test.raters_per_clip - count) for count in covered]
        each = min(self.test.per_rater, len(self.test.prompts))
        return max(-(-sum(left) // each), max(left, default=0))

    def verdicts(self) -> list[Verdict]:
        """The verdict of the checks on everyone who judged anything."""
        return verdicts(self.ratings.ratings(self.test), self.ratings.tones(), bool(self.test.check_prompts))

    def covered(self, finished: bool = False) -> dict[str, int]:
        """Raters per prompt: those who judged all of its trials and, unless `finished`, those whose session is active.

        Raters who are excluded so far do not count.
        """
        own = verdicts(self.ratings.ratings(self.test), self.ratings.tones(), checked=False)
        excluded = {verdict.rater for verdict in own if verdict.excluded}
        counts: dict[str, int] = {}
        for prompt in self.ratings.prompts():
            counts_now = prompt.judged == prompt.trials or (not finished and _is_active(prompt))
            if counts_now and rater_name(prompt.number) not in excluded:
                counts[prompt.prompt_id] = counts.get(prompt.prompt_id, 0) + 1
        return counts

    def _state(self, number: int) -> dict[str, Any]:
        trials, judged = self.ratings.trials(number), self.ratings.judged(number)
        tones = min(self.ratings.tones_answered(number), TONE_ITEMS)
        place = _next(len(trials), judged)
        return {
            "title": self.test.title,
            "kinds": self.test.kinds,
            "tones": {"answered": tones, "total": TONE_ITEMS},
            "answered": len(judged),
            "total": len(trials),
            "example": self.test.example.text,
            "next": None if place is None else self.trial(number, place),
        }

    def _plan(self, number: int) -> list:
        before: dict[str, int] = {}
        for prompt in self.ratings.prompts():
            before[prompt.prompt_id] = before.get(prompt.prompt_id, 0) + 1
        picked = choose_prompts(self.test, number, self.covered())
        return plan_session(self.test, number, {name: before.get(name, 0) for name in picked})

    @staticmethod
    def _check_reached(place: int, total: int, judged: dict[int, Any]) -> None:
        if not 0 <= place < total or (place not in judged and place != _next(total, judged)):
            raise Unknown("there is no such trial, or it has not been reached")

    @staticmethod
    def _check_item(item: int) -> None:
        if not 0 <= item < TONE_ITEMS:
            raise Unknown("there is no such sound")


def _next(total: int, judged: dict[int, Any]) -> int | None:
    """The first trial that is not judged yet; None at the end."""
    return next((place for place in range(total) if place not in judged), None)


def _is_active(prompt: PromptProgress) -> bool:
    return datetime.now(UTC) - datetime.fromisoformat(prompt.seen) < IDLE
