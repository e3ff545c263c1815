"""docs/reference/cli.md as text, from the live command line."""

from collections.abc import Iterator
from typing import Any

import typer

from milonga.cli.main import app

HEAD = """# The command line

Generated from the live command line by `make docs`; a test keeps it true. `milonga COMMAND --help` says the same.

Results go to stdout, progress and errors to stderr. The exit status is 0 when done, 1 for a failure (one line on
stderr), 2 for wrong usage, and 130 when interrupted (Ctrl-C or SIGTERM); the same command then resumes. `--debug`
shows the whole traceback of a failure. `python -m milonga` is the same command.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *section(typer.main.get_command(app), "milonga")]).strip() + "\n"


def section(command: Any, name: str) -> Iterator[str]:
    """One command's usage, words and options; then, of a group, each of its commands."""
    inner = getattr(command, "commands", {})
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    usage = [name, *(["[OPTIONS]"] if options else []), *map(word, arguments), *(["COMMAND ..."] if inner else [])]
    yield from (f"## `{name}`", "", command.help.strip(), "", "```", " ".join(usage), "```", "")
    if arguments or options:
        yield from ("| | default | |", "|---|---|---|", *map(row, arguments), *map(row, options), "")
    for key, child in inner.items():
        if not child.hidden:
            yield from section(child, f"{name} {key}")


def word(argument: Any) -> str:
    """An argument as usage lines show it."""
    shown = argument.metavar or argument.name.upper()
    return shown if argument.required else f"[{shown}]"


def row(parameter: Any) -> str:
    """A table row: how it is written, its default, its help."""
    if parameter.param_type_name == "argument":
        written = word(parameter)
    else:
        value = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
        written = ", ".join(parameter.opts) + value
    return f"| `{written}` | {default(parameter)} | {parameter.help} |"


def default(parameter: Any) -> str:
    """The default as `--help` tells it; nothing where there is none, and for flags, which are off."""
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    value = parameter.default
    return "" if parameter.required or value is None or parameter.is_flag else f"`{value}`"


if __name__ == "__main__":
    print(page(), end="")
