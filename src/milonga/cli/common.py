"""What commands share: options, and failures in one line on stderr, with a matching exit status."""

import errno
import functools
import html
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from milonga.core.errors import MilongaError, MilongaWarning

ModelName = Annotated[
    str, typer.Option(help="A model's name or folder, RUN/SYSTEM, or user/name[@revision] on the Hub.")
]
Steps = Annotated[int | None, typer.Option(help="Number of denoising steps.", show_default="the model's own")]
Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance scale.", show_default="the model's own")]
Device = Annotated[str, typer.Option(help="Where networks run: auto, cpu, cuda, cuda:1, mps.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe value.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
P = ParamSpec("P")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR)
debug = {"on": False}


def handle_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Decorates a command: it reports a failure in one line and exits with 1, or with 130 after an interruption."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _warnings_in_one_line():
                command(*args, **kwargs)
        except KeyboardInterrupt:
            say("Interrupted. Re-run the same command to resume.")
            raise typer.Exit(130) from None
        except MilongaError as error:
            raise _failed(str(error)) from error
        except typer.Exit:
            raise
        except Exception as error:  # users get one line; --debug prints the traceback
            from pydantic import ValidationError

            if isinstance(error, ValidationError):
                first = error.errors()[0]
                place = "".join(f"{part}: " for part in first["loc"])
                raise _failed(f"{place}{first['msg']}") from error
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                place = error.filename or "the disk"
                raise _failed(f"{place}: {error.strerror}; make room, or choose another place") from error
            raise _failed(f"{type(error).__name__}: {error} (use --debug for the traceback)") from error

    return guarded


def say(message: str) -> None:
    """Prints one line on stderr."""
    typer.echo(f"milonga: {message}", err=True)


def show_page(address: str, no_open: bool) -> None:
    """Prints the address of a page and, unless `no_open`, opens it in the browser.

    The browser is given a file that only this user can read: an address on its command line, token included, would be
    in everybody's list of processes.
    """
    import atexit
    import os
    import tempfile
    import webbrowser

    typer.echo(address)
    if no_open:
        return
    handle, name = tempfile.mkstemp(prefix="milonga-", suffix=".html")  # of mode 0600
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(address)}">')
    atexit.register(Path(name).unlink, missing_ok=True)
    webbrowser.open(Path(name).as_uri())


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Prints Milonga's own warnings as single lines; other libraries' warnings keep their form."""
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
