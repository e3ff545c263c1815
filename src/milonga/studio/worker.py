"""Generation of the studio's takes, one after another, in a thread beside the server that can stop at any step."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from milonga.core.errors import MilongaError, StoreError, brief
from milonga.core.protocols import WatchedModel
from milonga.core.records import Clip
from milonga.studio.clips import Take, Takes

PAUSE = 5.0  # seconds before a retry after the disk refused a write
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class System:
    """A model that the studio offers: its name, a hash of its weights, its default sampling, and its loader."""

    name: str
    weights: str
    steps: int
    guidance: float
    load: Callable[[], WatchedModel]


class Cancelled(Exception):
    """The take under generation was cancelled."""


class GenerationWorker:
    """Generates the takes that wait in the database, oldest first, and passes each clip to `save`."""

    def __init__(self, takes: Takes, systems: Mapping[str, System], save: Callable[[Take, Clip], None]) -> None:
        self.takes, self.systems, self._save = takes, systems, save
        self._wake, self._stopped = threading.Event(), False
        self._take: Take | None = None
        self._step, self._cancelled = 0, False

    def start(self) -> None:
        """Starts the thread, with the takes that waited when the last server ended. Call it once."""
        threading.Thread(target=self._run, name="studio", daemon=True).start()

    def wake(self) -> None:
        """Makes the worker look for new takes."""
        self._wake.set()

    def stop(self) -> None:
        """Stops the worker after the current step."""
        self._stopped = True
        self._wake.set()

    def cancel(self) -> None:
        """Deletes all takes that wait; the current one ends at its next step."""
        self.takes.drop_waiting()
        self._cancelled = True

    def current(self) -> dict[str, Any] | None:
        """The take under generation, its finished steps (0: the model is loading) and all steps; None when idle."""
        take = self._take
        return None if take is None else {"id": take.id, "step": self._step, "steps": take.steps}

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._wake.clear()
                self._cancelled = False  # before the look-up: a later cancellation concerns the take that it returns
                self._step = 0
                self._take = self.takes.next(list(self.systems))
                if self._take is None:
                    self._wake.wait()
                else:
                    self._generate(self._take)
            except StoreError as error:  # not even the failure can be recorded now: try again later
                log.error("%s", error)
                self._wake.wait(PAUSE)

    def _generate(self, take: Take) -> None:
        try:
            model = self.systems[take.system].load()
            [clip] = model.generate([take.request()], self._on_step)
            self._save(take, clip)
        except Cancelled:
            log.info("take %s was cancelled", take.id)
        except MilongaError as error:
            self.takes.mark_failed(take.id, str(error))
        except Exception as error:  # the failure is shown on the take's card, and the next take is generated
            log.exception("take %s failed", take.id)
            self.takes.mark_failed(take.id, brief(error))

    def _on_step(self, done: int) -> None:
        self._step = done
        if self._cancelled or self._stopped:
            raise Cancelled
