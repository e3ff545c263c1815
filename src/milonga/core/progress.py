"""Progress on stderr: a bar on a terminal, a line every few seconds in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

EVERY = 5.0
Advance = Callable[[int], None]


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


@contextmanager
def tracked(stage: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Gives a function to call with the number of newly finished items, of `total`; shows speed and time left."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn(f"{stage:<9}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(stage, total=total, completed=done)
            yield lambda count: progress.update(task, advance=count)
    else:
        yield _Lines(stage, total, done).advance


@contextmanager
def steps_shown(label: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Progress of a training, whose number of steps is known from its first step on."""
    with ExitStack() as stack:
        shown: list[Advance] = []

        def on_step(row: dict[str, Any]) -> None:
            if not shown:
                shown.append(stack.enter_context(tracked(label, row["total"], row["step"] - 1)))
            shown[0](1)

        yield on_step


class _Lines:
    """At most one line every few seconds, and one at the end."""

    def __init__(self, stage: str, total: int, done: int) -> None:
        self.stage, self.total, self.begun, self.done = stage, total, done, done
        self.start = self.printed = time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.printed >= EVERY or self.done >= self.total:
            self.printed = now
            speed = (self.done - self.begun) / max(now - self.start, 1e-9)
            left = (self.total - self.done) / max(speed, 1e-9)
            line = f"{self.stage}: {self.done}/{self.total}, {speed:.1f}/s, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
