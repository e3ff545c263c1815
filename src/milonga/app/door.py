"""What all doors of the command line share: failures in one line, and the exit status they stand for."""

import functools
import traceback
from collections.abc import Callable
from typing import ParamSpec

import typer

from milonga.core.errors import MilongaError

P = ParamSpec("P")
debug = {"on": False}


def door(command: Callable[P, None]) -> Callable[P, None]:
    """Tells a command's failures in one line and gives the exit status they stand for."""

    @functools.wraps(command)
    def told(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
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


def _failed(message: str) -> typer.Exit:
    if debug["on"]:
        traceback.print_exc()
    say(" ".join(message.split()))
    return typer.Exit(1)
