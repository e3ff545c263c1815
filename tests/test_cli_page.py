"""docs/cli.md says what the command line says: every command, word, option and default."""

import re
from pathlib import Path

import pytest
from cli_page import page
from typer.testing import CliRunner

from milonga.cli.main import app

PAGE = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^## `milonga ?(.*)`$", PAGE, re.M)


def options_of(command: str) -> set[str]:
    """The options that the page lists under a command."""
    part = PAGE.split(f"## `milonga {command}".rstrip() + "`\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(-[\w-]+)", part, re.M))


def test_the_page_is_what_the_command_line_gives():
    assert page() == PAGE, "docs/cli.md is out of date: run `make docs`"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_knows_the_same_options(command):
    done = CliRunner().invoke(app, [*command.split(), "--help"])
    assert done.exit_code == 0
    assert set(re.findall(r"^ +(-[\w-]+)", done.output, re.M)) - {"--help"} == options_of(command)


def test_every_door_of_this_version_is_there():
    assert {"generate", "run", "status"} <= set(COMMANDS)
