"""The studio's takes in the folder's database: wanted, made, kept or discarded, and which is better than which.

What is wanted is in the database too, so that a server that was killed makes it when it is started again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from milonga.listening_test.database import Database, now
from milonga.listening_test.records import Choice, Take

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
"""
FIELDS = ", ".join(Take.model_fields)
VALUES = ", ".join("?" * len(Take.model_fields))


@dataclass(frozen=True)
class Asked:
    """A prompt that takes were asked of: how many are made, and how many kept."""

    id: str
    text: str
    made: int
    kept: int


class Takes(Database):
    """Everything that was asked for in a studio, and what was decided about it."""

    schema = SCHEMA

    def want(self, takes: Sequence[Take]) -> None:
        """Notes takes that are to be made; one that is there already stays as it is, one that failed is tried again."""
        rows = [tuple(take.model_dump().values()) for take in takes]
        with self._work(writes=True) as work:
            work.executemany(
                f"INSERT INTO takes ({FIELDS}) VALUES ({VALUES}) ON CONFLICT (id) DO UPDATE SET trouble = ''", rows
            )

    def next(self, systems: Sequence[str]) -> Take | None:
        """The take of one of these systems that has waited longest to be made; None where none waits."""
        marks = ", ".join("?" * len(systems))
        query = f"WHERE made IS NULL AND trouble = '' AND system IN ({marks}) ORDER BY place LIMIT 1"
        return next(iter(self._takes(query, tuple(systems))), None)

    def waiting(self) -> int:
        """How many takes are still to be made."""
        return self._rows("SELECT COUNT(*) FROM takes WHERE made IS NULL AND trouble = ''")[0][0]

    def drop(self) -> None:
        """Forgets every take that is not made."""
        with self._work(writes=True) as work:
            work.execute("DELETE FROM takes WHERE made IS NULL")

    def made(self, name: str) -> None:
        """Notes that a take's files are on the disk; nothing, where it is no longer wanted."""
        self._change("UPDATE takes SET made = ? WHERE id = ?", (now(), name))

    def failed(self, name: str, trouble: str) -> None:
        """Notes why a take could not be made."""
        self._change("UPDATE takes SET trouble = ? WHERE id = ?", (trouble, name))

    def decide(self, name: str, kept: bool | None) -> None:
        """Keeps or discards a take that is made, or takes that back (None); once this returns it is on the disk."""
        self._change("UPDATE takes SET kept = ?, given = ? WHERE id = ? AND made IS NOT NULL", (kept, now(), name))

    def choose(self, a: str, b: str, better: str) -> None:
        """Notes which of two takes is better (empty: neither), as last given; it is on the disk once this returns."""
        low, high = sorted((a, b))
        self._change("INSERT OR REPLACE INTO choices VALUES (?, ?, ?, ?)", (low, high, better, now()))

    def get(self, name: str) -> Take | None:
        """The take of that id, None where there is none."""
        return next(iter(self._takes("WHERE id = ?", (name,))), None)

    def of(self, prompt_id: str) -> list[Take]:
        """A prompt's takes in the order that they were asked for."""
        return self._takes("WHERE prompt_id = ? ORDER BY place", (prompt_id,))

    def every(self) -> list[Take]:
        """All takes that are made."""
        return self._takes("WHERE made IS NOT NULL ORDER BY place")

    def choices(self) -> list[Choice]:
        """All comparisons."""
        rows = self._rows("SELECT low, high, better FROM choices ORDER BY low, high")
        return [Choice(a=low, b=high, better=better) for low, high, better in rows]

    def prompts(self) -> list[Asked]:
        """Every prompt that takes were asked of, the newest first."""
        return [Asked(*row) for row in self._rows(
            "SELECT prompt_id, MIN(prompt), COUNT(made), COALESCE(SUM(kept), 0) FROM takes"
            " GROUP BY prompt_id ORDER BY MAX(place) DESC"
        )]  # fmt: skip

    def _takes(self, query: str, values: tuple = ()) -> list[Take]:
        rows = self._rows(f"SELECT {FIELDS} FROM takes {query}", values)
        return [Take.model_validate(dict(zip(Take.model_fields, row, strict=True))) for row in rows]

    def _change(self, statement: str, values: tuple) -> None:
        with self._work(writes=True) as work:
            work.execute(statement, values)
