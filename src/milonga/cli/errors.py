"""What all doors of the command line share: failures in one line, and the exit status they stand for."""

import functools
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec

import typer

from milonga.core.errors import MilongaError, MilongaWarning

P = ParamSpec("P")
debug = {"on": False}


def door(command: Callable[P, None]) -> Callable[P, None]:
    """Tells a command's failures in one line and gives the exit status they stand for."""

    @functools.wraps(command)
    def told(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _warnings_in_one_line():
                command(*args, **kwargs)
        except KeyboardInterrupt:
            say("interrupted; the same command goes on from here")
            raise typer.Exit(130) from None
        except MilongaError as error:
            raise _failed(str(error)) from error
        except typer.Exit:
            raise
        except Exception as error:  # told, not swallowed: a user wants the one line, --debug gives the rest
            raise _failed(f"{type(error).__name__}: {error} (--debug shows where)") from error

    return told


def say(message: str) -> None:
    """One line on stderr."""
    typer.echo(f"milonga: {message}", err=True)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Our own warnings as lines of the command line; other libraries' as they are."""
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *rest: Any) -> None:
        if issubclass(category, MilongaWarning):
            say(str(message))
        else:
            usual(message, category, *rest)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


def _failed(message: str) -> typer.Exit:
    if debug["on"]:
        traceback.print_exc()
    say(" ".join(message.split()))
    return typer.Exit(1)
