"""What raters and the admin may see and do. Nothing that a rater is told names a system, a file or another rater."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from milonga.core.records import Record
from milonga.core.web import NotNow, Unknown
from milonga.listening_test import design, headphones
from milonga.listening_test.database import FILE, now
from milonga.listening_test.material import clip_file, read_test
from milonga.listening_test.ratings import Ratings, Taken, name_of
from milonga.listening_test.records import BROKEN
from milonga.listening_test.screening import Verdict, verdicts

# A session nobody has touched for so long no longer keeps its prompts from others.
IDLE = timedelta(hours=1)
Mark = Annotated[int, Field(ge=1, le=5, strict=True)]


class Judgement(Record):
    """What a rater sends: `ovl` and `rel` for a clip, `better` for two; `seconds` since the trial was shown."""

    ovl: Mark | None = None
    rel: Mark | None = None
    better: Literal["a", "b", "same"] | None = None
    seconds: float = Field(ge=0, le=86400, allow_inf_nan=False, strict=True)


class Sessions:
    """A test folder at work: everything that the server's doors do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.test = folder, read_test(folder)
        self.ratings = Ratings(folder / FILE)

    def rater(self, token: str) -> int:
        """The rater whose link this is; Unknown for any other token."""
        number = self.ratings.number_of(token)
        if number is None:
            raise Unknown("this link is not valid: ask whoever sent it for a new one")
        return number

    def state(self, number: int) -> dict[str, Any]:
        """Where a rater stands, and what comes next; the first call plans the session."""
        self.ratings.begin(number, lambda: self._plan(number))
        return self._state(number)

    def trial(self, number: int, place: int) -> dict[str, Any]:
        """A trial as its rater sees it: the next one, or one that was judged; Unknown for any other."""
        trials, judged = self.ratings.trials(number), self.ratings.judged(number)
        self._reached(place, len(trials), judged)
        trial = trials[place]
        return {
            "place": place,
            "kind": trial.kind,
            "first": place == 0 or trials[place - 1].kind != trial.kind,
            "prompt": self.test.prompt(trial.prompt_id).text,
            "given": judged.get(place),
        }

    def clip(self, number: int, place: int, side: str) -> Path:
        """The file of a trial's clip `a` or `b`; Unknown where the rater's trial has none, or is not reached."""
        trials = self.ratings.trials(number)
        self._reached(place, len(trials), self.ratings.judged(number))
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

    def judge(self, number: int, place: int, given: Judgement) -> dict[str, Any]:
        """Keeps a rating of the next trial, or another one of an earlier trial; then the rater's state.

        Raises NotNow where the headphone check is not done, or the answer is to another question.
        """
        trials = self.ratings.trials(number)
        self._reached(place, len(trials), self.ratings.judged(number))
        if self.ratings.heard(number) < headphones.ITEMS:
            raise NotNow("the headphone check comes first")
        wanted = {"ovl", "rel"} if trials[place].kind == "rate" else {"better"}
        answers = given.model_dump(exclude={"seconds"})
        if {name for name, value in answers.items() if value is not None} != wanted:
            raise NotNow(f"this trial asks for {' and '.join(sorted(wanted))}")
        self.ratings.judge(number, place, answers, given.seconds)
        return self._state(number)

    def tones(self, number: int, item: int) -> bytes:
        """The sound of an item of the headphone check."""
        self._item(item)
        return headphones.tones(self.test.seed, number, item)

    def hear(self, number: int, item: int, answer: int) -> dict[str, Any]:
        """Keeps the answer to an item of the headphone check, whose items come in order; then the rater's state."""
        self._item(item)
        if item > self.ratings.heard(number):
            raise NotNow("an earlier sound comes first")
        self.ratings.hear(number, item, answer, answer == headphones.answer(self.test.seed, number, item))
        return self._state(number)

    def progress(self) -> dict[str, Any]:
        """What the admin page shows: links, who is how far, who is excluded, how many raters every clip has."""
        told = {one.rater: one for one in self.verdicts()}
        counts = self.covered(finished=True)
        raters = [vars(one) | {"name": name_of(one.number)} | _told(told.get(name_of(one.number)))
                  for one in self.ratings.invited()]  # fmt: skip
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
        """How many more whole sessions bring every prompt to the target."""
        left = [max(0, self.test.raters_per_clip - count) for count in covered]
        each = min(self.test.per_rater, len(self.test.prompts))
        return max(-(-sum(left) // each), max(left, default=0))

    def verdicts(self) -> list[Verdict]:
        """What the checks say of everyone who judged anything."""
        return verdicts(self.ratings.ratings(self.test), self.ratings.tones(), bool(self.test.check_prompts))

    def covered(self, finished: bool = False) -> dict[str, int]:
        """How many raters each prompt has: those who judged all of it and, unless `finished`, those still at it.

        Raters whose checks have failed so far do not count.
        """
        found = verdicts(self.ratings.ratings(self.test), self.ratings.tones(), checked=False)
        bad = {one.rater for one in found if one.excluded}
        counts: dict[str, int] = {}
        for taken in self.ratings.taken():
            done = taken.judged == taken.trials or (not finished and _alive(taken))
            if done and name_of(taken.number) not in bad:
                counts[taken.prompt_id] = counts.get(taken.prompt_id, 0) + 1
        return counts

    def _state(self, number: int) -> dict[str, Any]:
        trials, judged = self.ratings.trials(number), self.ratings.judged(number)
        heard = min(self.ratings.heard(number), headphones.ITEMS)
        place = _next(len(trials), judged)
        return {
            "title": self.test.title,
            "kinds": self.test.kinds,
            "tones": {"answered": heard, "total": headphones.ITEMS},
            "answered": len(judged),
            "total": len(trials),
            "example": self.test.example.text,
            "next": None if place is None else self.trial(number, place),
        }

    def _plan(self, number: int) -> list:
        before: dict[str, int] = {}
        for taken in self.ratings.taken():
            before[taken.prompt_id] = before.get(taken.prompt_id, 0) + 1
        picked = design.chosen(self.test, number, self.covered())
        return design.session(self.test, number, {one: before.get(one, 0) for one in picked})

    @staticmethod
    def _reached(place: int, total: int, judged: dict[int, Any]) -> None:
        if not 0 <= place < total or (place not in judged and place != _next(total, judged)):
            raise Unknown("there is no such trial, or it has not been reached")

    @staticmethod
    def _item(item: int) -> None:
        if not 0 <= item < headphones.ITEMS:
            raise Unknown("there is no such sound")


def _next(total: int, judged: dict[int, Any]) -> int | None:
    """The first trial that is not judged yet; None at the end."""
    return next((place for place in range(total) if place not in judged), None)


def _alive(taken: Taken) -> bool:
    return datetime.now(UTC) - datetime.fromisoformat(taken.seen) < IDLE


def _told(found: Verdict | None) -> dict[str, Any]:
    empty = {"tones": None, "checks": 0, "failed": 0, "excluded": ""}
    return empty if found is None else found.model_dump(exclude={"rater"})
