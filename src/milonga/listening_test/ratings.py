"""Raters, their sessions and their answers in SQLite, on the disk before they are acknowledged (see `database`).

Answers are only ever added: the last one to a trial counts, and earlier ones stay as its history. An answer that is
sent twice is stored once.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from milonga.core.records import Rating
from milonga.listening_test.database import Database, new_token, now
from milonga.listening_test.records import Test, Trial

SCHEMA = """
CREATE TABLE IF NOT EXISTS raters (
    id INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL UNIQUE, made TEXT NOT NULL, seen TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS arrivals (
    rater INTEGER PRIMARY KEY REFERENCES raters(id), participant TEXT UNIQUE, parameters TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS survey (
    id INTEGER PRIMARY KEY, rater INTEGER NOT NULL REFERENCES raters(id), name TEXT NOT NULL, answer TEXT NOT NULL,
    given TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS tones (
    rater INTEGER NOT NULL REFERENCES raters(id), item INTEGER NOT NULL CHECK (item >= 0),
    answer INTEGER NOT NULL CHECK (answer BETWEEN 1 AND 3), correct INTEGER NOT NULL, given TEXT NOT NULL,
    PRIMARY KEY (rater, item)
) STRICT;
CREATE TABLE IF NOT EXISTS trials (
    rater INTEGER NOT NULL REFERENCES raters(id), place INTEGER NOT NULL, kind TEXT NOT NULL, checks TEXT NOT NULL,
    prompt TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL, PRIMARY KEY (rater, place)
) STRICT;
CREATE TABLE IF NOT EXISTS served (
    rater INTEGER NOT NULL REFERENCES raters(id), clip TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (rater, clip)
) STRICT;
CREATE TABLE IF NOT EXISTS early (
    id INTEGER PRIMARY KEY, rater INTEGER NOT NULL REFERENCES raters(id), place INTEGER NOT NULL, at TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY, rater INTEGER NOT NULL, place INTEGER NOT NULL,
    ovl INTEGER CHECK (ovl BETWEEN 1 AND 5), rel INTEGER CHECK (rel BETWEEN 1 AND 5),
    better TEXT CHECK (better IN ('a', 'b', 'same')), scores TEXT, seconds REAL NOT NULL, elapsed REAL,
    given TEXT NOT NULL, FOREIGN KEY (rater, place) REFERENCES trials(rater, place),
    CHECK ((ovl IS NULL) = (rel IS NULL) AND (ovl IS NOT NULL) + (better IS NOT NULL) + (scores IS NOT NULL) = 1)
) STRICT;
CREATE INDEX IF NOT EXISTS by_trial ON answers (rater, place);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""
LATEST = "(SELECT rater, place, MAX(id) AS id FROM answers GROUP BY rater, place)"


@dataclass(frozen=True)
class RaterProgress:
    """A rater's progress: number, token, time last seen (UTC, None: never), trials planned and judged.

    `participant` is the crowd platform's id of the rater; `revoked` the time when the link was revoked, or None;
    `seconds` the time that the answers took by the page's clock.
    """

    number: int
    token: str
    seen: str | None
    trials: int
    judged: int
    participant: str | None
    revoked: str | None
    seconds: float


@dataclass(frozen=True)
class PromptProgress:
    """One prompt of one rater's session: its trials, those judged, and the time when the rater was last seen."""

    number: int
    prompt_id: str
    trials: int
    judged: int
    seen: str


class Ratings(Database):
    """Raters, their sessions and their answers."""

    schema = SCHEMA
    columns: ClassVar = {
        "raters": {"revoked": "TEXT"},
        "trials": {"shown": "TEXT NOT NULL DEFAULT ''", "sliders": "TEXT NOT NULL DEFAULT '[]'"},
    }

    def __init__(self, path: Path, archive: bool = False) -> None:
        super().__init__(path, archive)
        if self._rows("SELECT 1 FROM sqlite_master WHERE name = 'ratings'"):  # of a version without history
            with self._work(writes=True) as work:
                work.execute(
                    "INSERT INTO answers (rater, place, ovl, rel, better, seconds, given)"
                    " SELECT rater, place, ovl, rel, better, seconds, given FROM ratings"
                )
                work.execute("DROP TABLE ratings")

    def setting(self, name: str) -> str:
        """A value that was stored for the folder, such as the address of its server; empty where there is none."""
        rows = self._rows("SELECT value FROM settings WHERE name = ?", (name,))
        return rows[0][0] if rows else ""

    def store_setting(self, name: str, value: str) -> None:
        """Stores a value for the folder."""
        with self._work(writes=True) as work:
            work.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    def entry_token(self) -> str:
        """The token of the link with which anyone may join; drawn when it is first needed."""
        with self._work(writes=True) as work:
            work.execute("INSERT OR IGNORE INTO settings VALUES ('entry', ?)", (new_token(),))
        return self.setting("entry")

    def invite(self, count: int) -> list[str]:
        """Adds `count` raters and returns their tokens."""
        tokens = [new_token() for _ in range(count)]
        with self._work(writes=True) as work:
            work.executemany("INSERT INTO raters (token, made) VALUES (?, ?)", [(token, now()) for token in tokens])
        return tokens

    def join(self, participant: str, parameters: Mapping[str, str], limit: int | None) -> str | None:
        """The token of someone who came by the entry link: their own if the participant was here before.

        An empty `participant` is a new one each time. None where `limit` people have come already.
        """
        with self._work(writes=True) as work:
            known = work.execute(
                "SELECT token FROM raters JOIN arrivals ON rater = id WHERE participant = ?", (participant,)
            ).fetchone()
            if participant and known:
                return known[0]
            if limit is not None and work.execute("SELECT COUNT(*) FROM arrivals").fetchone()[0] >= limit:
                return None
            token = self.invite(1)[0]
            row = (token, participant or None, json.dumps(dict(parameters), ensure_ascii=False))
            work.execute("INSERT INTO arrivals SELECT id, ?2, ?3 FROM raters WHERE token = ?1", row)
        return token

    def revoke(self, number: int) -> None:
        """Ends the validity of a rater's link. What they answered stays, and no longer counts."""
        with self._work(writes=True) as work:
            work.execute("UPDATE raters SET revoked = ? WHERE id = ? AND revoked IS NULL", (now(), number))

    def number_of(self, token: str) -> int | None:
        """The number of the rater with this token; None where there is none or it was revoked."""
        rows = self._rows("SELECT id FROM raters WHERE token = ? AND revoked IS NULL", (token,))
        return rows[0][0] if rows else None

    def raters(self) -> list[RaterProgress]:
        """All raters, in order of invitation."""
        return [RaterProgress(*row) for row in self._rows(
            "SELECT raters.id, token, seen, (SELECT COUNT(*) FROM trials WHERE rater = raters.id), COUNT(answers.id),"
            " participant, revoked, COALESCE(SUM(answers.seconds), 0) FROM raters LEFT JOIN arrivals ON"
            f" arrivals.rater = raters.id LEFT JOIN {LATEST} AS latest ON latest.rater = raters.id"
            " LEFT JOIN answers ON answers.id = latest.id GROUP BY raters.id ORDER BY raters.id"
        )]  # fmt: skip

    def arrivals(self) -> dict[int, dict[str, str]]:
        """The parameters of the entry link by which raters came, by rater's number."""
        return {number: json.loads(text) for number, text in self._rows("SELECT rater, parameters FROM arrivals")}

    def prompts(self) -> list[PromptProgress]:
        """Every prompt of every session that has begun, without attention checks."""
        return [PromptProgress(*row) for row in self._rows(
            "SELECT trials.rater, prompt, COUNT(*), COUNT(latest.id), seen FROM trials JOIN raters ON"
            f" raters.id = trials.rater LEFT JOIN {LATEST} AS latest USING (rater, place)"
            " WHERE checks = '' GROUP BY trials.rater, prompt"
        )]  # fmt: skip

    def begin(self, number: int, plan: Callable[[], Sequence[Trial]]) -> None:
        """Stores the trials of `plan` for a rater who has none yet. Nothing is written for one who has.

        The plan is made inside the transaction, so that other sessions do not change before it is written.
        """
        if self._rows("SELECT 1 FROM trials WHERE rater = ? LIMIT 1", (number,)):
            return
        with self._work(writes=True) as work:
            work.execute("UPDATE raters SET seen = ? WHERE id = ?", (now(), number))
            if work.execute("SELECT 1 FROM trials WHERE rater = ? LIMIT 1", (number,)).fetchone() is None:
                rows = [
                    (number, place, own.kind, own.check, own.prompt_id, own.a, own.b, own.shown_id,
                     json.dumps(own.sliders)) for place, own in enumerate(plan())
                ]  # fmt: skip
                work.executemany(
                    "INSERT INTO trials (rater, place, kind, checks, prompt, a, b, shown, sliders)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    rows,
                )

    def trials(self, number: int) -> list[Trial]:
        """A rater's trials, in order."""
        rows = self._rows(
            "SELECT kind, checks, prompt, a, b, shown, sliders FROM trials WHERE rater = ? ORDER BY place", (number,)
        )
        return [
            Trial.model_validate(dict(zip(Trial.model_fields, (*row[:-1], json.loads(row[-1])), strict=True)))
            for row in rows
        ]

    def judged(self, number: int) -> dict[int, dict[str, Any]]:
        """A rater's latest answers by place: `ovl`, `rel`, `better`, `scores`."""
        rows = self._rows(
            f"SELECT answers.place, ovl, rel, better, scores FROM answers JOIN {LATEST} AS latest USING (id)"
            " WHERE answers.rater = ? ORDER BY answers.place",
            (number,),
        )
        return {
            place: {"ovl": ovl, "rel": rel, "better": better, "scores": scores and json.loads(scores)}
            for place, ovl, rel, better, scores in rows
        }

    def judge(
        self, number: int, place: int, given: Mapping[str, Any], seconds: float, elapsed: float | None = None
    ) -> None:
        """Adds an answer (`ovl` and `rel`, `better`, or `scores` by letter); once this returns it is on the disk.

        `seconds` is its time by the page's clock, `elapsed` by the server's. An answer that equals the last one in
        everything is not added again: the page repeats it when the server did not acknowledge it.
        """
        scores = given.get("scores")
        text = None if scores is None else json.dumps(dict(scores), sort_keys=True)
        row = (number, place, given.get("ovl"), given.get("rel"), given.get("better"), text, seconds)
        with self._work(writes=True) as work:
            last = work.execute(
                "SELECT rater, place, ovl, rel, better, scores, seconds FROM answers WHERE rater = ? AND place = ?"
                " ORDER BY id DESC LIMIT 1",
                (number, place),
            ).fetchone()
            if last != row:
                work.execute(
                    "INSERT INTO answers (rater, place, ovl, rel, better, scores, seconds, elapsed, given)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, elapsed, now()),
                )
            work.execute("UPDATE raters SET seen = ? WHERE id = ?", (now(), number))

    def note_served(self, number: int, clip: str) -> None:
        """Stores when a clip was first sent to a rater."""
        if not self._rows("SELECT 1 FROM served WHERE rater = ? AND clip = ?", (number, clip)):
            with self._work(writes=True) as work:
                work.execute("INSERT OR IGNORE INTO served VALUES (?, ?, ?)", (number, clip, now()))

    def since_served(self, number: int) -> dict[str, float]:
        """Seconds since each clip was first sent to a rater."""
        return {
            clip: (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()
            for clip, at in self._rows("SELECT clip, at FROM served WHERE rater = ?", (number,))
        }

    def note_early(self, number: int, place: int) -> None:
        """Stores that a rater sent an answer before the clips could have been played."""
        with self._work(writes=True) as work:
            work.execute("INSERT INTO early (rater, place, at) VALUES (?, ?, ?)", (number, place, now()))

    def early(self) -> dict[str, int]:
        """The number of answers that came too early to be accepted, by rater's name."""
        rows = self._rows("SELECT rater, COUNT(*) FROM early GROUP BY rater")
        return {rater_name(number): count for number, count in rows}

    def answer_survey(self, number: int, answers: Mapping[str, str]) -> None:
        """Adds answers to questions, a comment or a consent, each by its name."""
        with self._work(writes=True) as work:
            rows = [(number, name, answer, now()) for name, answer in answers.items()]
            work.executemany("INSERT INTO survey (rater, name, answer, given) VALUES (?, ?, ?, ?)", rows)

    def survey(self) -> dict[int, dict[str, str]]:
        """The latest answer of every rater to every question, by rater's number and question's name."""
        answers: dict[int, dict[str, str]] = {}
        for number, name, answer in self._rows("SELECT rater, name, answer FROM survey ORDER BY id"):
            answers.setdefault(number, {})[name] = answer
        return answers

    def answer_tone(self, number: int, item: int, answer: int, correct: bool) -> None:
        """Stores the first answer to an item of the headphone check; later ones change nothing."""
        with self._work(writes=True) as work:
            row = (number, item, answer, int(correct), now())
            work.execute("INSERT OR IGNORE INTO tones VALUES (?, ?, ?, ?, ?)", row)
            work.execute("UPDATE raters SET seen = ? WHERE id = ?", (now(), number))

    def tones_answered(self, number: int) -> tuple[int, int]:
        """The number of items of the headphone check that a rater has answered, and of right answers among them."""
        return self._rows("SELECT COUNT(*), COALESCE(SUM(correct), 0) FROM tones WHERE rater = ?", (number,))[0]

    def tones(self) -> dict[str, int]:
        """Right answers to the headphone check, by rater's name."""
        return {
            rater_name(row[0]): row[1] for row in self._rows("SELECT rater, SUM(correct) FROM tones GROUP BY rater")
        }

    def revoked(self) -> set[str]:
        """The names of raters whose links were revoked."""
        return {rater_name(row[0]) for row in self._rows("SELECT id FROM raters WHERE revoked IS NOT NULL")}

    def ratings(self, test: Test, history: bool = False) -> list[Rating]:
        """The latest answers with attention checks, by rater and place; with `history` all answers in their order.

        A trial with sliders is one rating for each of its clips.
        """
        texts = {prompt.id: prompt.text for prompt in (*test.prompts, *test.check_prompts)}
        rows = self._rows(
            "SELECT answers.rater, answers.place, kind, checks, prompt, shown, a, b, sliders, ovl, rel, better, scores,"
            " seconds, elapsed, given, answers.id = latest.id,"
            " ROW_NUMBER() OVER (PARTITION BY answers.rater, answers.place ORDER BY answers.id)"
            f" FROM answers JOIN trials USING (rater, place) JOIN {LATEST} AS latest USING (rater, place)"
            " ORDER BY answers.rater, answers.place, answers.id"
        )
        ratings = []
        for (number, place, kind, check, prompt, shown, a, b, sliders, ovl, rel, better, scores, seconds, elapsed,
             given, is_latest, revision) in rows:  # fmt: skip
            if not (is_latest or history):
                continue
            own = Rating(
                rater=rater_name(number), place=place, kind=kind, check=check, prompt_id=prompt,
                prompt=texts[shown or prompt], a=a, b=b, ovl=ovl, rel=rel, better=better, seconds=seconds, given=given,
                elapsed=elapsed, revision=revision,
            )  # fmt: skip
            if scores is None:
                ratings.append(own)
                continue
            systems = dict(zip("abcdefghijklmnopqrstuvwxyz", json.loads(sliders), strict=False))
            ratings += [
                own.model_copy(update={"a": systems[side], "score": score})
                for side, score in json.loads(scores).items()
            ]
        return ratings


def rater_name(number: int) -> str:
    """A rater's name in results: `r3`."""
    return f"r{number}"
