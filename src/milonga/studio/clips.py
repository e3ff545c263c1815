"""The studio's takes in the folder's database: waiting, generated, scored, kept or discarded, and compared.

The queue is in the database too, so a server that was killed generates the remaining takes after a restart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

from milonga.core.ids import clip_seed, content_id
from milonga.core.records import Prompt, Record, Request
from milonga.listening_test.database import Database, now

STUDIO = "studio"  # the source of the studio's prompts, and the strategy of its pairs
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
# The columns of Take's fields, in their order; existing folders have the names `made` and `kept`.
COLUMNS = "id, prompt_id, prompt, system, weights, steps, guidance, seed, number, made, trouble, kept"


class Take(Record):
    """One clip of the studio: its request, the time of its generation (UTC; None: not yet) and the decision on it.

    `seed` and `number` are those of `milonga generate --seed S -n N`; the clip's own seed follows from them. `trouble`
    is the reason why it could not be generated. `keep` is True for kept, False for discarded, None for undecided.
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

    @classmethod
    def of(
        cls, text: str, system: str, weights: str, steps: int, guidance: float, seed: int, number: int = 0
    ) -> "Take":
        """A take whose id is a hash of its request and of the weights: the same request is the same take."""
        prompt = Prompt.of(text, STUDIO)
        request = Request.of(seed, prompt, text, steps, guidance, number)
        return cls(
            id=content_id(system, weights, request.id, seed), prompt_id=prompt.id, prompt=text, system=system,
            weights=weights, steps=steps, guidance=guidance, seed=seed, number=number,
        )  # fmt: skip

    def request(self) -> Request:
        """The request of this take, the same as that of `milonga generate`."""
        prompt = Prompt.of(self.prompt, STUDIO)
        request = Request.of(self.seed, prompt, self.prompt, self.steps, self.guidance, self.number)
        return request.model_copy(update={"seed": clip_seed(self.seed, self.prompt, self.number)})


class Choice(Record):
    """Two takes of one prompt that were compared: `better` is the id of one of them, or empty for neither."""

    a: str
    b: str
    better: str


@dataclass(frozen=True)
class PromptSummary:
    """A prompt of the studio with its numbers of takes that are generated and that are kept."""

    id: str
    text: str
    num_generated: int
    num_kept: int


class Takes(Database):
    """All takes of a studio and the decisions on them."""

    schema = SCHEMA

    def add(self, takes: Sequence[Take]) -> None:
        """Queues takes for generation. An existing one stays as it is; one that failed is tried again."""
        rows = [tuple(take.model_dump().values()) for take in takes]
        marks = ", ".join("?" * len(Take.model_fields))
        with self._work(writes=True) as work:
            work.executemany(
                f"INSERT INTO takes ({COLUMNS}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET trouble = ''", rows
            )

    def next(self, systems: Sequence[str]) -> Take | None:
        """The take of one of these systems that has waited longest; None where none waits."""
        marks = ", ".join("?" * len(systems))
        query = f"WHERE made IS NULL AND trouble = '' AND system IN ({marks}) ORDER BY place LIMIT 1"
        return next(iter(self._takes(query, tuple(systems))), None)

    def num_waiting(self) -> int:
        """The number of takes that wait for generation."""
        return self._rows("SELECT COUNT(*) FROM takes WHERE made IS NULL AND trouble = ''")[0][0]

    def drop_waiting(self) -> None:
        """Deletes every take that is not generated."""
        with self._work(writes=True) as work:
            work.execute("DELETE FROM scores WHERE take IN (SELECT id FROM takes WHERE made IS NULL)")
            work.execute("DELETE FROM takes WHERE made IS NULL")

    def mark_generated(self, name: str) -> None:
        """Records that a take's files are on the disk; nothing happens where it was cancelled."""
        self._change("UPDATE takes SET made = ? WHERE id = ?", (now(), name))

    def store_scores(self, name: str, scores: Mapping[str, float]) -> None:
        """Records a take's scores by scorer (NaN as NULL); nothing happens where the take was cancelled."""
        rows = [(name, scorer, score if isfinite(score) else None) for scorer, score in scores.items()]
        with self._work(writes=True) as work:
            if work.execute("SELECT 1 FROM takes WHERE id = ?", (name,)).fetchone():
                work.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)

    def scores(self, prompt_id: str) -> dict[str, dict[str, float]]:
        """The scores of a prompt's takes: by take and scorer."""
        query = "SELECT take, scorer, score FROM scores JOIN takes ON take = id WHERE prompt_id = ?"
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

    def get(self, name: str) -> Take | None:
        """The take with that id, None where there is none."""
        return next(iter(self._takes("WHERE id = ?", (name,))), None)

    def of_prompt(self, prompt_id: str) -> list[Take]:
        """A prompt's takes in the order of their requests."""
        return self._takes("WHERE prompt_id = ? ORDER BY place", (prompt_id,))

    def all_generated(self) -> list[Take]:
        """All generated takes."""
        return self._takes("WHERE made IS NOT NULL ORDER BY place")

    def choices(self) -> list[Choice]:
        """All comparisons."""
        rows = self._rows("SELECT low, high, better FROM choices ORDER BY low, high")
        return [Choice(a=low, b=high, better=better) for low, high, better in rows]

    def prompts(self) -> list[PromptSummary]:
        """Every prompt with takes, the newest first."""
        return [PromptSummary(*row) for row in self._rows(
            "SELECT prompt_id, MIN(prompt), COUNT(made), COALESCE(SUM(kept), 0) FROM takes"
            " GROUP BY prompt_id ORDER BY MAX(place) DESC"
        )]  # fmt: skip

    def _takes(self, query: str, values: tuple = ()) -> list[Take]:
        rows = self._rows(f"SELECT {COLUMNS} FROM takes {query}", values)
        return [Take.model_validate(dict(zip(Take.model_fields, row, strict=True))) for row in rows]

    def _change(self, statement: str, values: tuple) -> None:
        with self._work(writes=True) as work:
            work.execute(statement, values)
