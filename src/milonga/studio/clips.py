"""The studio's takes in the folder's database: waiting, generated, edited, kept or discarded, and compared.

The queue is in the database too, so a server that was killed generates the remaining takes after a restart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any, ClassVar

from milonga.core.ids import clip_seed, content_id
from milonga.core.records import Prompt, Record, Request
from milonga.listening_test.database import Database, now

STUDIO = "studio"  # the source of the studio's prompts, and the strategy of its pairs
UPLOAD, REGION, CONTINUE, LOOP, VARY = "upload", "region", "continue", "loop", "vary"
CANCELLED = "cancelled"  # the trouble of a take that was taken out of the queue
PAGE = 20  # prompts of the history that are shown at once
SCHEMA = """
CREATE TABLE IF NOT EXISTS takes (
    place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, prompt_id TEXT NOT NULL, prompt TEXT NOT NULL,
    system TEXT NOT NULL, weights TEXT NOT NULL, steps INTEGER NOT NULL CHECK (steps >= 1), guidance REAL NOT NULL,
    seed INTEGER NOT NULL, number INTEGER NOT NULL, made TEXT, trouble TEXT NOT NULL,
    kept INTEGER CHECK (kept IN (0, 1)), given TEXT, CHECK (kept IS NULL OR made IS NOT NULL)
) STRICT;
CREATE INDEX IF NOT EXISTS takes_by_prompt ON takes (prompt_id);
CREATE TABLE IF NOT EXISTS choices (
    low TEXT NOT NULL REFERENCES takes(id), high TEXT NOT NULL REFERENCES takes(id), better TEXT NOT NULL,
    given TEXT NOT NULL, PRIMARY KEY (low, high), CHECK (low < high AND better IN ('', low, high))
) STRICT;
CREATE TABLE IF NOT EXISTS scores (
    take TEXT NOT NULL REFERENCES takes(id), scorer TEXT NOT NULL, score REAL, PRIMARY KEY (take, scorer)
) STRICT;
"""
# Columns that folders of earlier versions lack: fields of Take with its defaults, and the time of deletion.
ADDED = {
    "edit": "TEXT NOT NULL DEFAULT ''",
    "source": "TEXT NOT NULL DEFAULT ''",
    "words": "TEXT NOT NULL DEFAULT ''",
    "negative": "TEXT NOT NULL DEFAULT ''",
    "scheduler": "TEXT NOT NULL DEFAULT ''",
    "seconds": "REAL",
    "start": "REAL",
    "stop": "REAL",
    "strength": "REAL",
    "title": "TEXT NOT NULL DEFAULT ''",
    "deleted": "TEXT",
}
# The columns of Take's fields, in their order; existing folders have the names `made` and `kept`.
COLUMNS = (
    "id, prompt_id, prompt, system, weights, steps, guidance, seed, number, made, trouble, kept, edit, source, words, "
    "negative, scheduler, seconds, start, stop, strength, title"
)
QUEUED = "made IS NULL AND trouble = '' AND deleted IS NULL"


class Take(Record):
    """One clip of the studio: its request, the time of its generation (UTC; None: not yet) and the decision on it.

    `seed` and `number` are those of `milonga generate --seed S -n N`; the clip's own seed follows from them. `trouble`
    is the reason why it could not be generated. `keep` is True for kept, False for discarded, None for undecided.
    An `edit` changes the take `source`: a `region` from `start` to `stop` (s), a `continue` by `seconds`, a `loop`, or
    the whole clip (`vary`), by `words` where they differ from the prompt. An `upload` is a file that was dropped.
    """

    id: str
    prompt_id: str
    prompt: str
    system: str
    weights: str
    steps: int
    guidance: float
    seed: int
    number: int
    generated: str | None = None
    trouble: str = ""
    keep: bool | None = None
    edit: str = ""
    source: str = ""
    words: str = ""
    negative: str = ""
    scheduler: str = ""
    seconds: float | None = None
    start: float | None = None
    stop: float | None = None
    strength: float | None = None
    title: str = ""

    @classmethod
    def of(
        cls, text: str, system: str, weights: str, steps: int, guidance: float, seed: int, number: int = 0, **more: Any
    ) -> "Take":
        """A take whose id is a hash of its request and of the weights: the same request is the same take.

        `more` are the fields of an edit, `negative`, `scheduler` and `seconds`.
        """
        prompt = Prompt.of(text, STUDIO)
        request = Request.of(seed, prompt, more.get("words") or text, steps, guidance, number)
        settings = {name: value for name, value in more.items() if value not in ("", None)}
        name = content_id(system, weights, request.id, seed, *([settings] if settings else []))
        return cls(
            id=name, prompt_id=prompt.id, prompt=text,
            system=system, weights=weights, steps=steps, guidance=guidance, seed=seed, number=number, **more,
        )  # fmt: skip

    def request(self) -> Request:
        """The request of this take, the same as that of `milonga generate`, or of `edit` with this take's words."""
        prompt, words = Prompt.of(self.prompt, STUDIO), self.words or self.prompt
        request = Request.of(self.seed, prompt, words, self.steps, self.guidance, self.number)
        return request.model_copy(update={"seed": clip_seed(self.seed, words, self.number)})

    def change(self) -> dict[str, Any]:
        """The arguments of `models.editing.edit` for this edit."""
        changes: dict[str, dict[str, Any]] = {
            REGION: {"region": (self.start, self.stop)}, CONTINUE: {"extend": self.seconds}, LOOP: {"loop": True},
        }  # fmt: skip
        return changes.get(self.edit, {}) | ({} if self.strength is None else {"strength": self.strength})


class Choice(Record):
    """Two takes of one prompt that were compared: `better` is the id of one of them, or empty for neither."""

    a: str
    b: str
    better: str


@dataclass(frozen=True)
class PromptSummary:
    """A prompt of the studio with its numbers of takes that are generated, that are kept and that wait."""

    id: str
    text: str
    num_generated: int
    num_kept: int
    num_waiting: int


class Takes(Database):
    """All takes of a studio and the decisions on them. A deleted take can be restored until `purge`."""

    schema = SCHEMA
    columns: ClassVar[Mapping[str, Mapping[str, str]]] = {"takes": ADDED}

    def add(self, takes: Sequence[Take]) -> None:
        """Queues takes for generation. An existing one stays as it is; one that failed is tried again, one that was
        deleted is restored."""
        rows = [tuple(take.model_dump().values()) for take in takes]
        marks = ", ".join("?" * len(Take.model_fields))
        with self._work(writes=True) as work:
            work.executemany(
                f"INSERT INTO takes ({COLUMNS}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET"
                " trouble = '', deleted = NULL",
                rows,
            )

    def queue(self, systems: Sequence[str]) -> list[Take]:
        """The takes of these systems that wait, the first in the queue first."""
        marks = ", ".join("?" * len(systems))
        return self._takes(f"WHERE {QUEUED} AND system IN ({marks}) ORDER BY place", tuple(systems))

    def num_waiting(self) -> int:
        """The number of takes that wait for generation."""
        return self._rows(f"SELECT COUNT(*) FROM takes WHERE {QUEUED}")[0][0]

    def cancel(self, prompt_id: str, systems: Sequence[str]) -> None:
        """Takes a prompt's waiting takes of these systems out of the queue; they can be queued again."""
        marks = ", ".join("?" * len(systems))
        self._change(
            f"UPDATE takes SET trouble = ? WHERE prompt_id = ? AND {QUEUED} AND system IN ({marks})",
            (CANCELLED, prompt_id, *systems),
        )

    def delete(self, column: str, value: str, deleted: bool) -> None:
        """Deletes or restores a take (by `id`) or all takes of a prompt (by `prompt_id`)."""
        self._change(f"UPDATE takes SET deleted = ? WHERE {column} = ?", (now() if deleted else None, value))

    def purge(self) -> list[str]:
        """Removes deleted takes, with their scores and comparisons, for good, and returns their ids."""
        gone = "(SELECT id FROM takes WHERE deleted IS NOT NULL)"
        with self._work(writes=True) as work:
            removed = [row[0] for row in work.execute(gone.strip("()"))]
            work.execute(f"DELETE FROM scores WHERE take IN {gone}")
            work.execute(f"DELETE FROM choices WHERE low IN {gone} OR high IN {gone}")
            work.execute("DELETE FROM takes WHERE deleted IS NOT NULL")
        return removed

    def rename(self, name: str, title: str) -> None:
        """Gives a take a name of its own; empty: none."""
        self._change("UPDATE takes SET title = ? WHERE id = ?", (title, name))

    def mark_generated(self, name: str) -> None:
        """Records that a take's files are on the disk; nothing happens where it is no longer there."""
        self._change("UPDATE takes SET made = ?, trouble = '' WHERE id = ?", (now(), name))

    def store_scores(self, name: str, scores: Mapping[str, float]) -> None:
        """Records a take's scores by scorer (NaN as NULL); nothing happens where the take is no longer there."""
        rows = [(name, scorer, score if isfinite(score) else None) for scorer, score in scores.items()]
        with self._work(writes=True) as work:
            if work.execute("SELECT 1 FROM takes WHERE id = ?", (name,)).fetchone():
                work.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)

    def scores(self, prompt_id: str) -> dict[str, dict[str, float]]:
        """The scores of a prompt's takes: by take and scorer."""
        query = "SELECT take, scorer, score FROM scores JOIN takes ON take = id WHERE prompt_id = ? AND deleted IS NULL"
        scores: dict[str, dict[str, float]] = {}
        for name, scorer, score in self._rows(query, (prompt_id,)):
            scores.setdefault(name, {})[scorer] = nan if score is None else score
        return scores

    def mark_failed(self, name: str, trouble: str) -> None:
        """Records why a take could not be generated."""
        self._change("UPDATE takes SET trouble = ? WHERE id = ?", (trouble, name))

    def decide(self, name: str, keep: bool | None) -> None:
        """Keeps or discards a generated take, or undoes that (None); it is on the disk once this returns."""
        self._change("UPDATE takes SET kept = ?, given = ? WHERE id = ? AND made IS NOT NULL", (keep, now(), name))

    def choose(self, a: str, b: str, better: str) -> None:
        """Records which of two takes is better (empty: neither); the last answer counts, and is on the disk then."""
        low, high = sorted((a, b))
        self._change("INSERT OR REPLACE INTO choices VALUES (?, ?, ?, ?)", (low, high, better, now()))

    def undo_choice(self, prompt_id: str) -> tuple[str, str] | None:
        """Removes the last comparison of two takes of a prompt and returns their ids; None where there is none."""
        query = (
            "SELECT choices.rowid, low, high FROM choices JOIN takes ON low = id WHERE prompt_id = ?"
            " AND deleted IS NULL ORDER BY choices.rowid DESC LIMIT 1"
        )
        with self._work(writes=True) as work:
            row = work.execute(query, (prompt_id,)).fetchone()
            if row is None:
                return None
            work.execute("DELETE FROM choices WHERE rowid = ?", row[:1])
        return row[1], row[2]

    def get(self, name: str) -> Take | None:
        """The take with that id, deleted or not; None where there is none."""
        return next(iter(self._takes("WHERE id = ?", (name,))), None)

    def of_prompt(self, prompt_id: str) -> list[Take]:
        """A prompt's takes in the order of their requests."""
        return self._takes("WHERE prompt_id = ? AND deleted IS NULL ORDER BY place", (prompt_id,))

    def ordinals(self, prompt_id: str) -> dict[str, int]:
        """The numbers of a prompt's takes from 1, by id, which no deletion changes before `purge`."""
        rows = self._rows("SELECT id FROM takes WHERE prompt_id = ? ORDER BY place", (prompt_id,))
        return {name: number for number, (name,) in enumerate(rows, 1)}

    def all_generated(self) -> list[Take]:
        """All generated takes that are not deleted."""
        return self._takes("WHERE made IS NOT NULL AND deleted IS NULL ORDER BY place")

    def choices(self, prompt_id: str = "") -> list[Choice]:
        """All comparisons of takes that are not deleted, or those of one prompt."""
        rows = self._rows(
            "SELECT low, high, better FROM choices JOIN takes AS a ON low = a.id JOIN takes AS b ON high = b.id"
            " WHERE a.deleted IS NULL AND b.deleted IS NULL AND ? IN ('', a.prompt_id) ORDER BY low, high",
            (prompt_id,),
        )
        return [Choice(a=low, b=high, better=better) for low, high, better in rows]

    def history(self, words: str = "", start: int = 0) -> tuple[int, list[PromptSummary]]:
        """The number of prompts that contain `words`, and PAGE of them from `start` on, the newest first."""
        pattern = "%" + words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        group = "FROM takes WHERE deleted IS NULL AND prompt LIKE ? ESCAPE '\\' GROUP BY prompt_id"
        [(total,)] = self._rows(f"SELECT COUNT(*) FROM (SELECT 1 {group})", (pattern,))
        rows = self._rows(
            "SELECT prompt_id, MIN(prompt), COUNT(made), COALESCE(SUM(kept), 0), SUM(made IS NULL AND trouble = '')"
            f" {group} ORDER BY MAX(place) DESC LIMIT ? OFFSET ?",
            (pattern, PAGE, start),
        )
        return total, [PromptSummary(*row) for row in rows]

    def stamp(self) -> str:
        """A text that changes whenever the history does."""
        counts = "COUNT(*), MAX(place), COUNT(made), SUM(kept), COUNT(kept), COUNT(deleted), SUM(trouble = '')"
        return "-".join(map(str, self._rows(f"SELECT {counts} FROM takes")[0]))

    def _takes(self, query: str, values: tuple = ()) -> list[Take]:
        rows = self._rows(f"SELECT {COLUMNS} FROM takes {query}", values)
        return [Take.model_validate(dict(zip(Take.model_fields, row, strict=True))) for row in rows]

    def _change(self, statement: str, values: tuple) -> None:
        with self._work(writes=True) as work:
            work.execute(statement, values)
