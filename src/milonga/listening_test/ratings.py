"""Ratings in SQLite, on the disk before they are acknowledged (see `database`).

(rater, place) is the key: a rating that is sent twice is stored once, with the last answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from milonga.core.records import Rating
from milonga.listening_test.database import Database, new_token, now
from milonga.listening_test.records import Test, Trial

SCHEMA = """
CREATE TABLE IF NOT EXISTS raters (
    id INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL UNIQUE, made TEXT NOT NULL, seen TEXT
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
CREATE TABLE IF NOT EXISTS ratings (
    rater INTEGER NOT NULL, place INTEGER NOT NULL,
    ovl INTEGER CHECK (ovl BETWEEN 1 AND 5), rel INTEGER CHECK (rel BETWEEN 1 AND 5),
    better TEXT CHECK (better IN ('a', 'b', 'same')), seconds REAL NOT NULL, given TEXT NOT NULL,
    PRIMARY KEY (rater, place), FOREIGN KEY (rater, place) REFERENCES trials(rater, place),
    CHECK ((ovl IS NULL) = (rel IS NULL) AND (ovl IS NULL) <> (better IS NULL))
) STRICT;
"""


@dataclass(frozen=True)
class RaterProgress:
    """A rater's progress: number, token, time last seen (UTC, None: never), trials planned and judged."""

    number: int
    token: str
    seen: str | None
    trials: int
    judged: int


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

    def invite(self, count: int) -> list[str]:
        """Adds `count` raters and returns their tokens."""
        tokens = [new_token() for _ in range(count)]
        with self._work(writes=True) as work:
            work.executemany("INSERT INTO raters (token, made) VALUES (?, ?)", [(token, now()) for token in tokens])
        return tokens

    def number_of(self, token: str) -> int | None:
        """The number of the rater with this token; None where there is none."""
        rows = self._rows("SELECT id FROM raters WHERE token = ?", (token,))
        return rows[0][0] if rows else None

    def raters(self) -> list[RaterProgress]:
        """All raters, in order of invitation."""
        return [RaterProgress(*row) for row in self._rows(
            "SELECT id, token, seen, (SELECT COUNT(*) FROM trials WHERE rater = id),"
            " (SELECT COUNT(*) FROM ratings WHERE rater = id) FROM raters ORDER BY id"
        )]  # fmt: skip

    def prompts(self) -> list[PromptProgress]:
        """Every prompt of every session that has begun, without attention checks."""
        return [PromptProgress(*row) for row in self._rows(
            "SELECT trials.rater, prompt, COUNT(*), COUNT(given), seen FROM trials"
            " JOIN raters ON raters.id = trials.rater LEFT JOIN ratings USING (rater, place)"
            " WHERE checks = '' GROUP BY trials.rater, prompt"
        )]  # fmt: skip

    def begin(self, number: int, plan: Callable[[], Sequence[Trial]]) -> None:
        """Updates the time when the rater was last seen, and stores the trials of `plan` if they have none yet.

        The plan is made inside the transaction, so that other sessions do not change before it is written.
        """
        with self._work(writes=True) as work:
            work.execute("UPDATE raters SET seen = ? WHERE id = ?", (now(), number))
            if work.execute("SELECT 1 FROM trials WHERE rater = ? LIMIT 1", (number,)).fetchone() is None:
                rows = [(number, place, *trial.model_dump().values()) for place, trial in enumerate(plan())]
                work.executemany("INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def trials(self, number: int) -> list[Trial]:
        """A rater's trials, in order."""
        rows = self._rows("SELECT kind, checks, prompt, a, b FROM trials WHERE rater = ? ORDER BY place", (number,))
        return [Trial.model_validate(dict(zip(Trial.model_fields, row, strict=True))) for row in rows]

    def judged(self, number: int) -> dict[int, dict[str, int | str | None]]:
        """A rater's answers by place: `ovl`, `rel`, `better`."""
        rows = self._rows("SELECT place, ovl, rel, better FROM ratings WHERE rater = ? ORDER BY place", (number,))
        return {place: {"ovl": ovl, "rel": rel, "better": better} for place, ovl, rel, better in rows}

    def judge(self, number: int, place: int, given: Mapping[str, int | str | None], seconds: float) -> None:
        """Stores a rating (`ovl` and `rel`, or `better`); once this returns it is on the disk."""
        row = (number, place, given["ovl"], given["rel"], given["better"], seconds, now())
        with self._work(writes=True) as work:
            work.execute("INSERT OR REPLACE INTO ratings VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            work.execute("UPDATE raters SET seen = ? WHERE id = ?", (now(), number))

    def answer_tone(self, number: int, item: int, answer: int, correct: bool) -> None:
        """Stores the first answer to an item of the headphone check; later ones change nothing."""
        with self._work(writes=True) as work:
            row = (number, item, answer, int(correct), now())
            work.execute("INSERT OR IGNORE INTO tones VALUES (?, ?, ?, ?, ?)", row)

    def tones_answered(self, number: int) -> int:
        """The number of items of the headphone check that a rater has answered."""
        return self._rows("SELECT COUNT(*) FROM tones WHERE rater = ?", (number,))[0][0]

    def tones(self) -> dict[str, int]:
        """Right answers to the headphone check, by rater's name."""
        return {
            rater_name(row[0]): row[1] for row in self._rows("SELECT rater, SUM(correct) FROM tones GROUP BY rater")
        }

    def ratings(self, test: Test) -> list[Rating]:
        """All ratings with attention checks, by rater and place."""
        texts = {prompt.id: prompt.text for prompt in (*test.prompts, *test.check_prompts)}
        rows = self._rows(
            "SELECT rater, place, kind, checks, prompt, a, b, ovl, rel, better, seconds, given"
            " FROM ratings JOIN trials USING (rater, place) ORDER BY rater, place"
        )
        names = [name for name in Rating.model_fields if name != "prompt"]
        values = [dict(zip(names, row, strict=True)) for row in rows]
        return [
            Rating.model_validate(row | {"rater": rater_name(row["rater"]), "prompt": texts[row["prompt_id"]]})
            for row in values
        ]


def rater_name(number: int) -> str:
    """A rater's name in results: `r3`."""
    return f"r{number}"
