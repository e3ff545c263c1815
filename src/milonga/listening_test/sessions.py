"""What raters and the admin may see and do. No answer to a rater names a system, a file or another rater."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import compare_digest
from typing import Annotated, Any, Literal

from pydantic import Field

from milonga.core.ids import content_id
from milonga.core.records import Rating, Record
from milonga.core.web import NotNow, Unknown
from milonga.listening_test import screening
from milonga.listening_test.database import FILE
from milonga.listening_test.design import choose_prompts, plan_session
from milonga.listening_test.material import clip_file, read_test
from milonga.listening_test.page import COMMENT, read_page
from milonga.listening_test.ratings import Ratings, rater_name
from milonga.listening_test.records import BROKEN, RaterRow
from milonga.listening_test.screening import TONE_ITEMS, TONES_NEEDED, Verdict, verdicts

IDLE = timedelta(hours=1)  # a session without activity for this long no longer reserves its prompts
PACE = 0.9  # of the clips' length must have passed before an answer: a browser may end a clip a little early
PAUSE_SECONDS = 8.0  # that reading and answering take beside the clips, for the time that the page announces
Mark = Annotated[int, Field(ge=1, le=5, strict=True)]
Score = Annotated[int, Field(ge=0, le=100, strict=True)]


class Judgement(Record):
    """A rater's answer: `ovl` and `rel` for a clip, `better` for two, `scores` by letter for several.

    `seconds` is the time since the trial was shown.
    """

    ovl: Mark | None = None
    rel: Mark | None = None
    better: Literal["a", "b", "same"] | None = None
    scores: dict[str, Score] | None = None
    seconds: float = Field(ge=0, le=86400, allow_inf_nan=False, strict=True)


class Sessions:
    """A test folder while it is served: what the server's routes do.

    With `archive` a folder that cannot be written is read, and nothing more.
    """

    def __init__(self, folder: Path, archive: bool = False) -> None:
        self.folder, self.test = folder, read_test(folder)
        self.page = read_page(folder)
        self.ratings = Ratings(folder / FILE, archive)
        self._clips = {(clip.prompt_id, clip.system): clip for clip in self.test.clips}

    def rater(self, token: str) -> int:
        """The number of the rater with this link's token; Unknown for any other token."""
        number = self.ratings.number_of(token)
        if number is None:
            raise Unknown("this link is not valid: ask the sender for a new one")
        return number

    def join(self, token: str, parameters: dict[str, str]) -> str:
        """The token of someone who comes by the entry link with these parameters; the same for the same participant.

        Raises Unknown for another link, NotNow where the test is closed or has enough raters, or where the parameter
        that `page.toml` names is missing.
        """
        if not compare_digest(token.encode(), self.ratings.entry_token().encode()):
            raise Unknown("this link is not valid: ask the sender for a new one")
        name = self.page.participant or next(iter(parameters), "")
        if self.page.participant and not parameters.get(name):
            raise NotNow(f"the link lacks {name}: open it from the platform that sent you")
        participant = f"{name}={parameters[name]}" if parameters.get(name) else ""
        covered = self.covered()
        enough = self.closed or not self.missing([covered.get(prompt.id, 0) for prompt in self.test.prompts])
        rater = self.ratings.join(participant, parameters, 0 if enough else self.page.max_raters)
        if rater is None:
            raise NotNow("this test has enough participants: thank you for your interest")
        return rater

    @property
    def closed(self) -> bool:
        """Whether the admin has closed the test: nobody may join or answer."""
        return bool(self.ratings.setting("closed"))

    def state(self, number: int) -> dict[str, Any]:
        """A rater's progress and next trial; the first call plans the session."""
        if not self.closed:
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
            "prompt": self.test.prompt(trial.shown_id or trial.prompt_id).text,
            "sides": list(trial.sides),
            "given": judged.get(place),
        }

    def clip(self, number: int, place: int, side: str) -> Path:
        """The file of one of a trial's clips, noted as sent; Unknown where there is none or it is not reached."""
        trials = self.ratings.trials(number)
        self._check_reached(place, len(trials), self.ratings.judged(number))
        system = trials[place].sides.get(side)
        if not system:
            raise Unknown("there is no such clip")
        self.ratings.note_served(number, f"{place}/{side}")
        return clip_file(self.folder, self._clips[trials[place].prompt_id, system])

    def example(self, which: str) -> Path:
        """The file of the `good` or the `broken` example."""
        system = {"good": self.test.reference or self.test.systems[0], "broken": BROKEN}.get(which)
        if system is None:
            raise Unknown("there is no such example")
        return clip_file(self.folder, self._clips[self.test.example.id, system])

    def judge(self, number: int, place: int, judgement: Judgement) -> dict[str, Any]:
        """Stores a rating of the next trial, or a new one of an earlier trial, and returns the rater's state.

        Raises NotNow where the test is closed, where the headphone check is not passed, where the answer is of another
        kind, and where the clips were not sent or cannot have been played to their ends since; that is noted.
        """
        trials = self.ratings.trials(number)
        self._check_reached(place, len(trials), self.ratings.judged(number))
        self._check_open()
        answered, right = self.ratings.tones_answered(number)
        if answered < TONE_ITEMS:
            raise NotNow("the headphone check comes first")
        if right < TONES_NEEDED:
            raise NotNow("the headphone check was not passed")
        trial = trials[place]
        expected = {"rate": {"ovl", "rel"}, "compare": {"better"}, "mushra": {"scores"}}[trial.kind]
        answers = judgement.model_dump(exclude={"seconds"})
        if {name for name, value in answers.items() if value is not None} != expected:
            raise NotNow(f"this trial asks for {' and '.join(sorted(expected))}")
        if trial.sliders and set(answers["scores"]) != set(trial.sides):
            raise NotNow(f"this trial asks for a score of each of {', '.join(trial.sides)}")
        since = self.ratings.since_served(number)
        lengths = {f"{place}/{side}": self._clips[trial.prompt_id, own].seconds for side, own in trial.sides.items()}
        waited = {clip: since.get(clip, -1.0) for clip in lengths}
        if max(waited.values()) < PACE * sum(lengths.values()) or any(
            waited[clip] < PACE * length for clip, length in lengths.items()
        ):
            self.ratings.note_early(number, place)
            raise NotNow(self.page.all_texts()["listen_all" if len(lengths) > 1 else "listen_one"])
        self.ratings.judge(number, place, answers, judgement.seconds, round(max(waited.values()), 3))
        return self._state(number)

    def answer_survey(self, number: int, answers: dict[str, str]) -> dict[str, Any]:
        """Stores consent and answers to the questions, or a comment, and returns the rater's state.

        Raises NotNow for answers that `page.toml` does not ask for, and where required ones are missing.
        """
        self._check_open()
        earlier = self.ratings.survey().get(number, {})
        trouble = self.page.check_answers(earlier | answers)
        if trouble:
            raise NotNow(trouble)
        self.ratings.answer_survey(number, answers)
        return self._state(number)

    def tones(self, number: int, item: int) -> bytes:
        """The sound of an item of the headphone check, noted as sent."""
        self._check_item(item)
        self.ratings.note_served(number, f"tone/{item}")
        return screening.tones(self.test.seed, number, item)

    def answer_tone(self, number: int, item: int, answer: int) -> dict[str, Any]:
        """Stores the answer to an item of the headphone check and returns the rater's state.

        Items come in order, after consent and questions. Raises NotNow for one that was not listened to.
        """
        self._check_item(item)
        self._check_open()
        if item > self.ratings.tones_answered(number)[0]:
            raise NotNow("an earlier sound comes first")
        trouble = self.page.check_answers(self.ratings.survey().get(number, {}))
        if trouble:
            raise NotNow(trouble)
        if f"tone/{item}" not in self.ratings.since_served(number):
            self.ratings.note_early(number, -1)
            raise NotNow(self.page.all_texts()["listen_one"])
        correct = answer == screening.tone_answer(self.test.seed, number, item)
        self.ratings.answer_tone(number, item, answer, correct)
        return self._state(number)

    def progress(self, known: str = "") -> dict[str, Any]:
        """What the admin page shows: links, progress and exclusions of raters, and the number of raters per prompt.

        `{"same": True}` where nothing has changed since the version `known`.
        """
        none = {"tones": None, "checks": 0, "failed": 0, "early": 0, "excluded": ""}  # who has judged nothing yet
        checks = {verdict.rater: verdict.model_dump(exclude={"rater"}) for verdict in self.verdicts()}
        counts = self.covered(finished=True)
        names = [(rater, rater_name(rater.number)) for rater in self.ratings.raters()]
        raters = [vars(rater) | {"name": name} | checks.get(name, none) for rater, name in names]
        covered = [counts.get(prompt.id, 0) for prompt in self.test.prompts]
        state = {
            "title": self.test.title,
            "systems": self.test.systems,
            "target": self.test.raters_per_clip,
            "prompts": len(self.test.prompts),
            "covered": covered,
            "raters": raters,
            "more": self.missing(covered),
            "entry": self.ratings.entry_token(),
            "url": self.ratings.setting("url"),
            "closed": self.closed,
        }
        version = content_id(json.dumps(state, sort_keys=True))
        return {"same": True} if version == known else state | {"version": version}

    def missing(self, covered: list[int]) -> int:
        """The number of further complete sessions that bring every prompt to the target."""
        left = [max(0, self.test.raters_per_clip - count) for count in covered]
        each = min(self.test.per_rater, len(self.test.prompts))
        return max(-(-sum(left) // each), max(left, default=0))

    def verdicts(self) -> list[Verdict]:
        """The verdict of the checks on everyone who judged anything."""
        return self._verdicts(bool(self.test.check_prompts))

    def judgements(self) -> tuple[list[Rating], list[Verdict]]:
        """Every rating that stands, and the verdict on every rater: what results and exports are made of."""
        return self.ratings.ratings(self.test), self.verdicts()

    def rater_rows(self) -> list[RaterRow]:
        """Every rater with progress, checks and answers to the questions."""
        verdicts = {verdict.rater: verdict for verdict in self.verdicts()}
        survey, arrivals, tones = self.ratings.survey(), self.ratings.arrivals(), self.ratings.tones()
        rows = []
        for rater in self.ratings.raters():
            name, answers = rater_name(rater.number), dict(survey.get(rater.number, {}))
            checks = verdicts.get(name) or Verdict(
                rater=name, tones=tones.get(name, 0), checks=0, failed=0, early=0, excluded=""
            )
            rows.append(RaterRow(
                rater=name, participant=rater.participant or "",
                parameters=json.dumps(arrivals.get(rater.number, {}), ensure_ascii=False),
                tones=checks.tones, trials=rater.trials, judged=rater.judged, minutes=round(rater.seconds / 60, 1),
                checks=checks.checks, failed=checks.failed, early=checks.early,
                excluded=checks.excluded or ("revoked" if rater.revoked else ""), comment=answers.pop(COMMENT, ""),
                answers=json.dumps(answers, ensure_ascii=False),
            ))  # fmt: skip
        return rows

    def _verdicts(self, checked: bool) -> list[Verdict]:
        own = self.ratings
        return verdicts(own.ratings(self.test), own.tones(), checked, own.early(), own.revoked())

    def covered(self, finished: bool = False) -> dict[str, int]:
        """Raters per prompt: those who judged all of its trials and, unless `finished`, those whose session is active.

        Raters who are excluded so far do not count.
        """
        excluded = {verdict.rater for verdict in self._verdicts(checked=False) if verdict.excluded}
        excluded |= self.ratings.revoked()
        counts: dict[str, int] = {}
        for prompt in self.ratings.prompts():
            active = not finished and datetime.now(UTC) - datetime.fromisoformat(prompt.seen) < IDLE
            if (active or prompt.judged == prompt.trials) and rater_name(prompt.number) not in excluded:
                counts[prompt.prompt_id] = counts.get(prompt.prompt_id, 0) + 1
        return counts

    def _state(self, number: int) -> dict[str, Any]:
        trials, judged = self.ratings.trials(number), self.ratings.judged(number)
        tones, right = self.ratings.tones_answered(number)
        place = _next(len(trials), judged)
        passed = tones < TONE_ITEMS or right >= TONES_NEEDED
        stage = "trials"
        if self.closed:
            stage = "closed"
        elif not passed:
            stage = "failed"
        elif tones < TONE_ITEMS:
            stage = "tones" if tones else "welcome"
        elif place is None:
            stage = "done"
        listening = sum(self._clips[own.prompt_id, system].seconds for own in trials for system in own.sides.values())
        return {
            "title": self.test.title,
            "stage": stage,
            "kinds": self.test.kinds,
            "tones": {"answered": min(tones, TONE_ITEMS), "total": TONE_ITEMS},
            "answered": len(judged),
            "total": len(trials),
            "minutes": max(1, round((listening + PAUSE_SECONDS * (len(trials) + TONE_ITEMS)) / 60)),
            "example": self.test.example.text,
            "welcome": self._welcome(number) if stage == "welcome" else None,
            "end": self.page.ending(passed, self.ratings.arrivals().get(number, {})),
            "next": self.trial(number, place) if stage == "trials" and place is not None else None,
        }

    def _welcome(self, number: int) -> dict[str, Any]:
        return {
            "instructions": self.page.instructions,
            "consent": self.page.consent,
            "contact": self.page.contact,
            "questions": [question.model_dump() for question in self.page.all_questions()],
            "platform": number in self.ratings.arrivals(),
        }

    def _check_open(self) -> None:
        if self.closed:
            raise NotNow(self.page.all_texts()["closed"])

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
