"""The studio's takes made one after another, in a thread beside the server, watched and ended at any step."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from milonga.core.errors import MilongaError, StoreError, brief
from milonga.core.protocols import WatchedModel
from milonga.core.records import Clip
from milonga.listening_test.records import Take
from milonga.studio.clips import Takes

PAUSE = 5.0  # seconds until a disk that refused is asked again
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class System:
    """A model that the studio offers: its name, a hash of its weights, how it is best sampled, how it is loaded."""

    name: str
    weights: str
    steps: int
    guidance: float
    load: Callable[[], WatchedModel]


class Cancelled(Exception):
    """The take that is being made is no longer wanted."""


class Maker:
    """Makes what the database wants, the oldest first, and gives each clip to `keep`. Start it as a thread once."""

    def __init__(self, takes: Takes, systems: Mapping[str, System], keep: Callable[[Take, Clip], None]) -> None:
        self.takes, self.systems, self._keep = takes, systems, keep
        self._wake, self._ended = threading.Event(), False
        self._take: Take | None = None
        self._step, self._cancelled = 0, False

    def start(self) -> None:
        """Begins, with whatever was left to be made when the last server ended."""
        threading.Thread(target=self._run, name="studio", daemon=True).start()

    def wake(self) -> None:
        """Looks again for what is wanted."""
        self._wake.set()

    def stop(self) -> None:
        """Ends after the step that is under way."""
        self._ended = True
        self._wake.set()

    def cancel(self) -> None:
        """Forgets all that is not made yet; what is being made ends at its next step."""
        self.takes.drop()
        self._cancelled = True

    def now(self) -> dict[str, Any] | None:
        """The take that is being made, its steps done (0: its model is being loaded) and in all; None at rest."""
        take = self._take
        return None if take is None else {"id": take.id, "step": self._step, "steps": take.steps}

    def _run(self) -> None:
        while not self._ended:
            try:
                self._look()
            except StoreError as error:  # the disk takes not even a note of what went wrong: it may be better soon
                log.error("%s", error)
                self._wake.wait(PAUSE)

    def _look(self) -> None:
        self._wake.clear()
        self._cancelled = False  # before the look: what is cancelled from here on is meant for what it finds
        self._step = 0
        self._take = self.takes.next(list(self.systems))
        if self._take is None:
            self._wake.wait()
        else:
            self._make(self._take)

    def _make(self, take: Take) -> None:
        try:
            model = self.systems[take.system].load()
            [clip] = model.generate([take.request()], self._stepped)
            self._keep(take, clip)
        except Cancelled:
            log.info("take %s was cancelled", take.id)
        except MilongaError as error:
            self.takes.failed(take.id, str(error))
        except Exception as error:  # one take's failure is told on its card, and the next is made all the same
            log.exception("take %s failed", take.id)
            self.takes.failed(take.id, brief(error))

    def _stepped(self, done: int) -> None:
        self._step = done
        if self._cancelled or self._ended:
            raise Cancelled
