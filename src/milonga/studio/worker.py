"""Generation of the studio's takes, one after another, in a thread beside the server that can stop at any step."""

import contextlib
import copy
import fcntl
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.errors import MilongaError, RecipeError, StoreError, brief
from milonga.core.records import Clip
from milonga.studio.clips import CANCELLED, Take, Takes

PAUSE = 5.0  # seconds before a retry after the disk refused a write, or while another studio has all waiting takes
STOPPING = 30.0  # seconds that a server waits for the step in progress when it ends
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class System:
    """A model that the studio offers: its name, a hash of its weights, its default sampling, and its loader, which is
    given the name of a scheduler (None: the model's own)."""

    name: str
    weights: str
    steps: int
    guidance: float
    load: Callable[[str | None], Any]


@dataclass(frozen=True)
class Source:
    """What an edit starts from: samples (samples, channels), float64, and their rate in Hz."""

    samples: np.ndarray
    rate: int


class Cancelled(Exception):
    """The take under generation was cancelled."""


class GenerationWorker:
    """Generates the takes that wait in the database, oldest first, and passes each clip to `save`.

    `source_of` gives what an edit starts from; an edit's samples, all channels of it, go to `save` beside the clip.
    `trouble` says why nothing is written at the moment, such as a full disk.
    """

    def __init__(
        self,
        takes: Takes,
        systems: Mapping[str, System],
        save: Callable[[Take, Clip, np.ndarray | None], None],
        source_of: Callable[[Take], Source],
        claims: Path,
    ) -> None:
        self.takes, self.systems, self._save, self._source_of = takes, systems, save, source_of
        self._wake, self._stopped, self._claims = threading.Event(), False, claims
        self._take: Take | None = None
        self._step, self._loading, self._cancelled = 0, False, False
        self._thread: threading.Thread | None = None
        self.trouble = ""

    def start(self) -> None:
        """Starts the thread, with the takes that waited when the last server ended. Call it once."""
        self._thread = threading.Thread(target=self._run, name="studio", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Makes the worker look for new takes."""
        self._wake.set()

    def stop(self) -> None:
        """Stops the worker and waits until it has ended: the interpreter must not end while torch computes."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(STOPPING)

    def cancel(self, prompt_id: str) -> None:
        """Takes a prompt's waiting takes out of the queue; where the current one is its own, it ends at its next
        step."""
        self.takes.cancel(prompt_id, list(self.systems))
        take = self._take
        self._cancelled = self._cancelled or (take is not None and take.prompt_id == prompt_id)
        self.wake()

    def abandon(self, name: str) -> None:
        """Ends the current take at its next step where it is this one."""
        take = self._take
        self._cancelled = self._cancelled or (take is not None and take.id == name)
        self.wake()

    def current(self) -> dict[str, Any] | None:
        """The take under generation, its finished steps, all steps, and whether its model is being loaded; None when
        idle."""
        take = self._take
        if take is None:
            return None
        return {"id": take.id, "step": self._step, "steps": take.steps, "loading": self._loading, "prompt": take.prompt}

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._wake.clear()
                self._cancelled = False  # before the look-up: a later cancellation concerns the take that it returns
                self._step, self._take = 0, None
                queue = self.takes.queue(list(self.systems))
                if not any(self._generate_claimed(take) for take in queue):
                    self._wake.wait(PAUSE if queue else None)
            except StoreError as error:  # not even the failure can be recorded now: try again later
                self.trouble = str(error)
                log.error("%s", error)
                self._wake.wait(PAUSE)
        self._take = None

    def _generate_claimed(self, take: Take) -> bool:
        """Generates a take unless another studio on this folder is at it; whether it did."""
        with _claim(self._claims / take.id) as claimed:
            stored = self.takes.get(take.id) if claimed else None
            if stored is None or stored.generated or stored.trouble:
                return False
            self._take = take
            self._generate(take)
            self._take = None
            return True

    def _generate(self, take: Take) -> None:
        try:
            clip, samples = self._clip(take)
            while not self._stopped:  # a full disk costs a wait, not the clip
                try:
                    self._save(take, clip, samples)
                    self.trouble = ""
                    return
                except StoreError as error:
                    self.trouble = str(error)
                    log.error("%s", error)
                    self._wake.wait(PAUSE)
                    self._wake.clear()
                    if self._cancelled:
                        raise Cancelled from None
        except Cancelled:
            if self._stopped and not self._cancelled:
                return  # it stays in the queue, for the next server
            log.info("take %s was cancelled", take.id)
            self.takes.mark_failed(take.id, CANCELLED)
        except MilongaError as error:
            self.takes.mark_failed(take.id, str(error))
        except Exception as error:  # the failure is shown on the take's card, and the next take is generated
            log.exception("take %s failed", take.id)
            self.takes.mark_failed(take.id, brief(error))

    def _clip(self, take: Take) -> tuple[Clip, np.ndarray | None]:
        self._loading = True
        model = self.systems[take.system].load(take.scheduler or None)
        self._loading = False
        if take.source:
            from milonga.models.editing import edit

            if not hasattr(model, "denoiser"):
                raise RecipeError(f"{take.system} has a pipeline of its own: it generates clips and cannot edit them")
            source, request = self._source_of(take), take.request()
            [samples] = edit(
                model.denoiser, source.samples, source.rate, request.words, steps=take.steps, guidance=take.guidance,
                seeds=[request.seed], negative=take.negative, on_step=self._on_step, **take.change(),
            )  # fmt: skip
            return Clip.of(samples.astype(np.float32), source.rate), samples
        if take.seconds is not None:
            model = copy.copy(model)  # a length of its own, with the same weights
            model.seconds = take.seconds
        options = {"negative": take.negative} if take.negative else {}
        [clip] = model.generate([take.request()], self._on_step, **options)
        return clip, None

    def _on_step(self, done: int) -> None:
        self._step = done
        if self._cancelled or self._stopped:
            raise Cancelled


@contextlib.contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Whether this process has the lock of that name; the kernel ends it with the process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; make room or choose another place") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
